"""reproduce/tables.py: the paper's numbers beside ours, its formats and errors."""

import pytest
from result_rows import HH, idealized_rows, ranking_rows, tuned_rows

from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import write_json_lines
from reproduce import tables


def test_ranking_table_marks_what_is_outside_the_interval():
    """gpt2 on HH test: published 49.9 and 46.0."""
    columns, (line,) = tables.accuracy_beside_paper(ranking_rows())
    assert dict(zip(columns, line)) | {"difference": None} == {
        "dataset": f"{HH}:test", "model": "gpt2", "n": "100", "chance": "50.0", "R̃ paper": "49.9",
        "R̃ ours [95 %]": "50.0 [45, 55]", "difference": None, "R paper": "46.0",
        "R ours [95 %]": "60.0 [55, 65]"}  # fmt: skip
    differences = [cell for column, cell in zip(columns, line) if column == "difference"]
    assert differences == ["+0.1", "+14.0 *"]


def test_tables_label_runs_that_were_scored_differently():
    how = {"chat_template": False, "add_eos": False, "max_length": None, "separator": "",
           "sample_size": 200}  # fmt: skip
    changes = ({}, {"chat_template": True, "separator": None}, {"max_length": 64, "add_eos": True})
    rows = [{**row, **how, **change} for change in changes for row in ranking_rows()]
    _, lines = tables.accuracy_beside_paper(rows)
    assert [line[0] for line in lines] == [
        f"{HH}:test", f"{HH}:test, chat template", f"{HH}:test, EOS scored, at most 64 tokens"]  # fmt: skip
    with_sizes = [*ranking_rows("a"), *({**r, **how} for r in ranking_rows("b"))]
    _, lines = tables.accuracy_beside_paper(with_sizes)
    assert [line[0] for line in lines] == [f"{HH}:test", f"{HH}:test, sample of 200"]


def test_ranking_table_beside_another_model():
    rows = ranking_rows("some/where/mine") + ranking_rows("gpt2", dataset="sample", split=None)
    _, (mine, sample) = tables.accuracy_beside_paper(rows, "gpt2")
    assert mine[1] == "mine" and mine[4] == "49.9 (gpt2)"
    assert sample[4] == "–" and sample[6] == "–"  # the paper has no such data
    _, (without, _) = tables.accuracy_beside_paper(rows)
    assert without[4] == "–"
    zephyr = ranking_rows("alignment-handbook/zephyr-7b-dpo-full")
    _, (line,) = tables.accuracy_beside_paper(zephyr)
    published = tables.PUBLISHED["ranking_accuracy"]["zephyr-7b-dpo"][f"{HH}:test"]
    assert line[4] == f"{published[0]:.1f}"


def test_idealized_by_dataset_is_ours_alone():
    files = [[{**row, "dataset_name": name, "model": model, "reference_model": model}
              for name in ("e", "d") for row in idealized_rows()]
             for model in ("two", "one")]  # fmt: skip
    _, lines = tables.idealized_by_dataset(sum(files, []))
    assert [line[:2] for line in lines] == [
        ["d", "two"], ["d", "one"], ["e", "two"], ["e", "one"]]  # fmt: skip


def test_idealized_table_beside_the_paper():
    rows = idealized_rows()
    _, lines = tables.idealized_beside_paper(rows)
    assert lines[0] == [
        "d",
        "sft → dpo",
        "7",
        *["40.0", "50.0 / 75.0 / 100.0", "35.0 [20, 40]"] * 2,
    ]
    assert lines[1][1:] == ["paper: zephyr-7b-dpo", "–", "54", "86 / 98 / 100", "44", "42",
                            "90 / 99 / 100", "57"]  # fmt: skip
    _, with_ties = tables.idealized_beside_paper([{**row, "include_ties": True} for row in rows])
    assert with_ties[0][0] == "d, ties included" and with_ties[1][3] == "42"


def test_flips_of_several_runs(tmp_path, capsys):
    files = [tmp_path / "gamma0.jsonl", tmp_path / "gamma1_seed0" / "ranking_dynamics.jsonl"]
    files[1].parent.mkdir()
    for file, gamma in zip(files, (0.0, 1.0)):
        write_json_lines(file, tuned_rows(gamma=gamma))
    tables.main(tables.parse_args(["flips", *map(str, files)]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| gamma0", "0"],
        ["| gamma1_seed0", "1"],
    ]
    with pytest.raises(ValueError, match="two files are called gamma0"):
        tables.main(tables.parse_args(["flips", str(files[0]), str(files[0])]))


def test_published_accuracies_of_another_model_have_a_footnote(tmp_path, capsys):
    """Gemma-7B-it's in Tables 1 and 6; it is by comparison: with its own values, there is none."""
    rows = idealized_rows()
    write_json_lines(tmp_path / "idealized.jsonl", rows)
    for style in tables.FORMATS:
        words = ["idealized", str(tmp_path / "idealized.jsonl"), "--format", style]
        tables.main(tables.parse_args(words))
        printed = capsys.readouterr().out
        marked = [line for line in printed.splitlines() if "†" in line]
        assert "paper: gemma-7b-it†" in marked[0] and len(marked) == 2
        assert marked[1] == (
            "† Table 1 prints for gemma-7b-it the accuracies (54, 40) that Tables 2-5 have for "
            "gemma-7b (53.6, 40.4); its own are 55.6, 39.1."
        )
    (note,) = tables.idealized_notes([{**row, "include_ties": True} for row in rows])
    assert "(41, 35) that Tables 2-5 have for gemma-7b (40.6, 35.2); its own are 15.8" in note


def test_a_published_accuracy_that_is_the_models_own_has_none(monkeypatch):
    corrected = {"R_norm": 56, "R": 39}
    monkeypatch.setitem(tables.PUBLISHED["idealized_table1"], "google/gemma-7b-it", corrected)
    assert tables.of_reference("google/gemma-7b-it", ties=False) is None
    assert tables.of_reference("meta-llama/Llama-2-7b-chat-hf", ties=False) is None


def test_formats_and_errors(tmp_path, capsys):
    write_json_lines(tmp_path / "r.jsonl", ranking_rows())
    for style, expected in (("markdown", f"| {HH}:test | gpt2 | 100 |"), ("latex", "\\toprule")):
        arguments = ["ranking", str(tmp_path / "r.jsonl"), "--format", style]
        tables.main(tables.parse_args(arguments))
        assert expected in capsys.readouterr().out
    wrong = [["idealized", str(tmp_path / "r.jsonl")], ["win-rate", str(tmp_path / "r.jsonl")],
             ["ranking", str(tmp_path / "r.jsonl"), "--beside", "me"],
             ["ranking", str(tmp_path / "none.jsonl")]]  # fmt: skip
    for arguments in wrong:
        with pytest.raises(SystemExit) as stop:
            run_script(tables.main, tables.parse_args(arguments))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("words", [["dynamics", "--at", "last"], ["rewards", "--beside", "gpt2"]])
def test_a_flag_without_effect_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as stop:
        tables.parse_args([words[0], "r.jsonl", *words[1:]])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(f"error: {words[1]}")


@pytest.mark.parametrize("table", tables.SUMMARIES)
def test_a_file_without_rows_is_one_line(table, tmp_path):
    (tmp_path / "r.jsonl").write_text("")
    with pytest.raises(ValueError, match="r.jsonl: no rows"):
        tables.main(tables.parse_args([table, str(tmp_path / "r.jsonl")]))


def test_a_row_of_an_older_version_is_one_line(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "chance"} for row in ranking_rows()]
    write_json_lines(tmp_path / "r.jsonl", rows)
    with pytest.raises(ValueError, match="r.jsonl: no 'chance' in a line"):
        tables.main(tables.parse_args(["ranking", str(tmp_path / "r.jsonl")]))
