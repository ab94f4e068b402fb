"""Part files of several processes: merged once, nothing missing, nothing doubled."""

import json

import pytest

from ranking.plumbing.result_files import (
    check_inputs,
    merge_parts,
    output_paths,
    part_file,
    part_files,
    prepare_outputs,
    read_json_lines,
)


def row(number: int, **more) -> dict:
    return {"dataset": "d", "split": None, "id": f"example-{number}", "value": number, **more}


def write(path, rows, torn: str = "") -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + torn)


def test_parts_of_any_number_of_processes_become_one_file(tmp_path):
    examples = output_paths(str(tmp_path), "run.jsonl")["examples"]
    write(examples, [row(0), row(1)])
    write(part_file(examples, 0), [row(2)])
    write(part_file(examples, 11), [row(3), row(1)], torn='{"id": "exam')
    write(tmp_path / "run2.examples.part0.jsonl", [row(9)])  # another run's
    merged = merge_parts(examples)
    assert sorted(r["value"] for r in merged) == [0, 1, 2, 3]
    assert read_json_lines(examples) == merged and part_files(examples) == []
    assert (tmp_path / "run2.examples.part0.jsonl").exists()


def test_an_example_scored_twice_differently_is_an_error_and_nothing_is_lost(tmp_path):
    examples = output_paths(str(tmp_path), "run.jsonl")["examples"]
    write(part_file(examples, 0), [row(1)])
    write(part_file(examples, 1), [row(1, value=2)])
    with pytest.raises(ValueError, match=r"part1\.jsonl: example example-1 was scored twice"):
        merge_parts(examples)
    assert len(part_files(examples)) == 2 and not examples.exists()


def test_parts_resume_with_the_same_configuration_only(tmp_path):
    paths = output_paths(str(tmp_path), "run.jsonl")
    assert prepare_outputs(paths, {"seed": 0}, overwrite=False) == []
    write(part_file(paths["examples"], 2), [row(5)])
    with pytest.raises(ValueError, match="seed differ"):
        prepare_outputs(paths, {"seed": 1}, overwrite=False)
    assert prepare_outputs(paths, {"seed": 0}, overwrite=False) == [row(5)]
    write(part_file(paths["examples"], 0), [row(6)])
    assert prepare_outputs(paths, {"seed": 1}, overwrite=True) == []
    assert not paths["examples"].exists() and part_files(paths["examples"]) == []


def test_overwrite_discards_finished_runs_and_goes_on_with_the_unfinished_one(tmp_path):
    paths = output_paths(str(tmp_path), "run.jsonl")
    prepare_outputs(paths, {"seed": 0}, overwrite=True)
    write(paths["examples"], [row(1)], torn='{"id"')
    assert prepare_outputs(paths, {"seed": 0}, overwrite=True) == [row(1)]
    write(paths["summary"], [{"n": 1}])
    with pytest.raises(ValueError, match="exists: choose another"):
        prepare_outputs(paths, {"seed": 0}, overwrite=False)
    assert prepare_outputs(paths, {"seed": 0}, overwrite=True) == []
    assert not paths["summary"].exists() and not paths["examples"].exists()


def test_outputs_are_never_inputs_nor_of_another_summary(tmp_path):
    paths = output_paths(str(tmp_path), "run.jsonl")
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="run.examples.jsonl is read, and would be overwritten"):
        check_inputs(paths, [None, "sample", str(tmp_path / "sub/../run.examples.jsonl")])
    write(tmp_path / "run.json", [{"n": 1}])
    with pytest.raises(ValueError, match="run.json shares its other files with run.jsonl"):
        prepare_outputs(paths, {"seed": 0}, overwrite=True)


@pytest.mark.parametrize("content", ["", "[]", "{torn"])
def test_a_damaged_configuration_is_another_one(tmp_path, content):
    paths = output_paths(str(tmp_path), "run.jsonl")
    write(paths["examples"], [row(1)])
    paths["config"].write_text(content)
    with pytest.raises(ValueError, match="another configuration"):
        prepare_outputs(paths, {"seed": 0}, overwrite=False)
    write(paths["examples"], [row(1), 3])
    with pytest.raises(ValueError, match="row 2: not a JSON object"):
        merge_parts(paths["examples"])
