"""Part files of several processes: merged once, nothing missing, nothing doubled."""

import json

import pytest

from ranking.plumbing.outputs import (
    begin_run,
    claim_file,
    merge_parts,
    part_file,
    part_files,
    plan_file,
    plan_output,
    take_output,
)
from ranking.plumbing.result_files import read_json_lines


def row(number: int, **more) -> dict:
    return {"dataset": "d", "split": None, "id": f"example-{number}", "value": number, **more}


def write(path, rows, torn: str = "") -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + torn)


def begin(folder, config, overwrite):
    """The rows that a run of this configuration resumes from."""
    return begin_run(plan_output(str(folder), "run.jsonl", overwrite, []), config, overwrite)


def test_parts_of_any_number_of_processes_become_one_file(tmp_path):
    examples = tmp_path / "run.examples.jsonl"
    write(examples, [row(0), row(1)])
    write(part_file(examples, 0), [row(2)])
    write(part_file(examples, 11), [row(3), row(1)], torn='{"id": "exam')
    write(tmp_path / "run2.examples.part0.jsonl", [row(9)])  # another run's
    merged = merge_parts(examples)
    assert sorted(r["value"] for r in merged) == [0, 1, 2, 3]
    assert read_json_lines(examples) == merged and part_files(examples) == []
    assert (tmp_path / "run2.examples.part0.jsonl").exists()


def test_an_example_scored_twice_differently_is_an_error_and_nothing_is_lost(tmp_path):
    examples = tmp_path / "run.examples.jsonl"
    write(part_file(examples, 0), [row(1)])
    write(part_file(examples, 1), [row(1, value=2)])
    with pytest.raises(ValueError, match=r"part1\.jsonl: example example-1 was scored twice"):
        merge_parts(examples)
    assert len(part_files(examples)) == 2 and not examples.exists()


def test_parts_resume_with_the_same_configuration_only(tmp_path):
    assert begin(tmp_path, {"seed": 0}, overwrite=False) == []
    write(part_file((tmp_path / "run.examples.jsonl"), 2), [row(5)])
    with pytest.raises(ValueError, match="seed differ"):
        begin(tmp_path, {"seed": 1}, overwrite=False)
    assert begin(tmp_path, {"seed": 0}, overwrite=False) == [row(5)]
    write(part_file((tmp_path / "run.examples.jsonl"), 0), [row(6)])
    assert begin(tmp_path, {"seed": 1}, overwrite=True) == []
    assert (
        not (tmp_path / "run.examples.jsonl").exists()
        and part_files(tmp_path / "run.examples.jsonl") == []
    )


def test_overwrite_discards_finished_runs_and_goes_on_with_the_unfinished_one(tmp_path):
    begin(tmp_path, {"seed": 0}, overwrite=True)
    write((tmp_path / "run.examples.jsonl"), [row(1)], torn='{"id"')
    assert begin(tmp_path, {"seed": 0}, overwrite=True) == [row(1)]
    write((tmp_path / "run.jsonl"), [{"n": 1}])
    with pytest.raises(ValueError, match="exists: choose another"):
        begin(tmp_path, {"seed": 0}, overwrite=False)
    assert begin(tmp_path, {"seed": 0}, overwrite=True) == []
    assert not (tmp_path / "run.jsonl").exists() and not (tmp_path / "run.examples.jsonl").exists()


def test_outputs_are_never_inputs_nor_of_another_summary(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="run.examples.jsonl is read, and would be overwritten"):
        plan_output(
            str(tmp_path), "run.jsonl", False,
            [None, "sample", str(tmp_path / "sub/../run.examples.jsonl")],
        )  # fmt: skip
    write(tmp_path / "run.json", [{"n": 1}])
    with pytest.raises(ValueError, match="run.json shares its other files with run.jsonl"):
        begin(tmp_path, {"seed": 0}, overwrite=True)


@pytest.mark.parametrize("name", ["", ".", "sub"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_is_not_overwritten(name, overwrite, tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="is a directory: give --output-filename"):
        plan_output(str(tmp_path), name, overwrite, [])
    with pytest.raises(ValueError, match="is a directory: give --output-filename"):
        plan_output(".", "", overwrite, [])


@pytest.mark.parametrize("folder", ["file", "file/sub"])
def test_a_directory_that_is_a_file_is_said(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^--output-dir .*file is a file: give a directory"):
        plan_output(str(tmp_path / folder), "run.jsonl", False, [])


def test_a_directory_that_is_a_link_to_nothing_is_said(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"^--output-dir .*link is a link to nothing: give a dir"):
        plan_output(str(tmp_path / "link/sub"), "run.jsonl", False, [])
    (tmp_path / "gone").mkdir()
    assert not plan_output(str(tmp_path / "link/sub"), "run.jsonl", False, []).finished


def test_a_name_that_says_gzip_is_refused(tmp_path):
    """Files are written as they are, and those of such a name would be read as gzip's."""
    with pytest.raises(ValueError, match="--output-filename run.jsonl.gz: files are not gzipped"):
        plan_output(str(tmp_path), "run.jsonl.gz", True, [])


@pytest.mark.parametrize("content", ["", "[]", "{torn"])
def test_a_damaged_configuration_is_another_one(tmp_path, content):
    write((tmp_path / "run.examples.jsonl"), [row(1)])
    (tmp_path / "run.config.json").write_text(content)
    with pytest.raises(ValueError, match="another configuration"):
        begin(tmp_path, {"seed": 0}, overwrite=False)
    write((tmp_path / "run.examples.jsonl"), [row(1), 3])
    with pytest.raises(ValueError, match="row 2: not a JSON object"):
        merge_parts(tmp_path / "run.examples.jsonl")


def test_nothing_is_made_before_a_run_begins(tmp_path):
    """A command that is refused for its data or its model leaves no directory behind."""
    output = plan_output(str(tmp_path / "new"), "run.jsonl", False, [])
    assert not output.summary.parent.exists()
    begin_run(output, {"seed": 0}, overwrite=False)
    assert output.config.exists()


def test_overwrite_leaves_what_the_run_does_not_write(tmp_path):
    """A script whose picture has another name keeps NAME.png of another."""
    write(tmp_path / "run.jsonl", [{"n": 1}])
    (tmp_path / "run.png").write_text("of another script")
    output = plan_output(str(tmp_path), "run.jsonl", True, [], writes=["curve.png"])
    begin_run(output._replace(picture=output.beside("curve.png")), {"seed": 0}, overwrite=True)
    assert (tmp_path / "run.png").exists() and not output.summary.exists()


def test_a_run_that_finished_since_is_not_written_over(tmp_path):
    """Planned while the other was under way, begun when it had ended."""
    output = plan_output(str(tmp_path), "run.jsonl", False, [])
    write(tmp_path / "run.examples.jsonl", [row(1)])
    write(tmp_path / "run.jsonl", [{"n": 1}])
    with pytest.raises(ValueError, match="run.jsonl exists: choose another"):
        begin_run(output, {"seed": 0}, overwrite=False)
    assert read_json_lines(tmp_path / "run.jsonl") == [{"n": 1}]


def test_a_file_of_its_own_is_planned(tmp_path):
    """Not one that is read, nor another of the run, nor, unless asked for, one that is there."""
    output = plan_output(str(tmp_path), "run.jsonl", False, [])
    read, there = tmp_path / "data.jsonl", tmp_path / "there.jsonl"
    for path in (read, there):
        path.write_text("{}")
    how = {"reads": [None, str(read)], "output": output, "writes": ["pairs.jsonl"]}
    assert plan_file(str(tmp_path / "new.jsonl"), "--export", False, **how).name == "new.jsonl"
    assert plan_file(str(there), "--export", True, **how) == there
    for path, overwrite, why in (
        (there, False, r"--export .*there.jsonl exists: choose another name or pass --overwrite"),
        (read, True, "is read, and would be overwritten"),
        (tmp_path / "x" / ".." / "data.jsonl", True, "is read"),
        (tmp_path / "run.pairs.jsonl", True, "is another file of this run"),
        (tmp_path, True, "is a directory"),
    ):
        with pytest.raises(ValueError, match=why):
            plan_file(str(path), "--export", overwrite, **how)


def test_what_a_run_has_no_part_in_goes_with_the_one_it_overwrites(tmp_path):
    """NAME of policy and reference is written again, of files: what it reads stays, and so does
    NAME.policy, a run by itself."""
    sides = ("run", "run.reference", "run.policy")
    for name in sides:
        write(tmp_path / f"{name}.examples.jsonl", [row(1)])
        (tmp_path / f"{name}.config.json").write_text("{}")
    write(part_file(tmp_path / "run.reference.examples.jsonl", 1), [row(2)])
    for name in ("run", "run.policy"):
        write(tmp_path / f"{name}.jsonl", [{"n": 1}])
    reads = [str(tmp_path / "x" / ".." / "run.examples.jsonl")]
    output = plan_output(str(tmp_path), "run.jsonl", True, reads, writes=["png"])
    assert (tmp_path / "run.reference.examples.jsonl").exists()  # only planned
    take_output(output)
    assert {path.name for path in tmp_path.glob("*.examples*")} == {
        "run.examples.jsonl", "run.policy.examples.jsonl"}  # fmt: skip
    assert {path.name for path in tmp_path.glob("*.config.json")} == {
        "run.config.json", "run.policy.config.json"}  # fmt: skip
    take_output(plan_output(str(tmp_path), "run.jsonl", True, [], writes=["png"]))
    assert [path.name for path in tmp_path.glob("*.examples*")] == ["run.policy.examples.jsonl"]


def test_examples_of_an_unfinished_run_are_not_made_to_look_whole(tmp_path):
    """By the summary of another one, which marks what is beside it as finished."""
    examples = tmp_path / "run.reference.examples.jsonl"
    write(examples, [row(1)])
    how = {"reads": [], "writes": ["examples.jsonl", "config.json"]}
    with pytest.raises(ValueError, match=r"run.reference.examples.jsonl is of an unfinished run"):
        plan_output(str(tmp_path), "run.jsonl", False, **how)
    begin_run(plan_output(str(tmp_path), "run.jsonl", True, **how), {"seed": 0}, overwrite=True)
    assert not examples.exists()


@pytest.mark.parametrize("side", ["", "reference."])
def test_a_run_that_is_read_is_not_discarded_by_scoring_under_its_name(tmp_path, side):
    """Killed, it would have no summary, and be of an unfinished run for good."""
    write(tmp_path / f"run.{side}examples.jsonl", [row(1)])
    write(tmp_path / "run.jsonl", [{"n": 1}])
    reads = [None, str(tmp_path / f"run.{side}examples.jsonl")]
    with pytest.raises(ValueError, match="is read, and of the run that --overwrite discards"):
        plan_output(str(tmp_path), "run.jsonl", True, reads, writes=["policy.examples.jsonl"])
    plan_output(str(tmp_path), "run.jsonl", True, reads, writes=["png"])  # nothing is scored


def test_only_the_unfinished_run_that_wrote_a_file_writes_it_again(tmp_path):
    for name in ("own.parquet", "another.parquet"):
        (tmp_path / name).write_text("")
    claim_file(plan_output(str(tmp_path), "run.jsonl", False, []), tmp_path / "own.parquet")

    def plan(file, run):
        output = plan_output(str(tmp_path), run, True, [])
        return plan_file(str(tmp_path / file), "--export", False, [], output, [])

    assert plan("own.parquet", "run.jsonl") == tmp_path / "own.parquet"
    for file, run in (("another.parquet", "run.jsonl"), ("own.parquet", "run2.jsonl")):
        with pytest.raises(ValueError, match="exists: choose another name or pass --overwrite"):
            plan(file, run)
    write(tmp_path / "run.jsonl", [{"n": 1}])
    with pytest.raises(ValueError, match="exists"):
        plan("own.parquet", "run.jsonl")
