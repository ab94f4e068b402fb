"""The command line of the figures; what they show: tests/reports."""

import pytest
from result_rows import evaluated_pairs, idealized_rows, ranking_rows, tuned_rows

import plot_results
from ranking.plumbing.result_files import write_json_lines


def test_command_line(tmp_path, capsys):
    write_json_lines(tmp_path / "r.jsonl", ranking_rows())
    plot_results.main(plot_results.parse_args(
        ["ranking-accuracy", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "r.pdf")]
    ))  # fmt: skip
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF")


def test_dynamics_command_line(tmp_path):
    write_json_lines(tmp_path / "d.jsonl", evaluated_pairs())
    for figure in plot_results.PICTURES_OF_RUN:
        output = tmp_path / f"{figure}.pdf"
        plot_results.main(
            plot_results.parse_args([figure, str(tmp_path / "d.jsonl"), "--output", str(output)])
        )
        assert output.read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="takes one dynamics file"):
        plot_results.main(plot_results.parse_args(["dynamics", "a", "b", "--output", "c.png"]))


def test_flips_and_losses_command_lines(tmp_path):
    """flips of one run at one of two steps; losses of two runs, or a line on what they lack."""
    rows = [r for part in ("train", "validation", "test") for r in tuned_rows(10, part=part)]
    for name in ("a", "b"):
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
    write_json_lines(tmp_path / "c.jsonl", tuned_rows())
    a, b, c = (str(tmp_path / f"{name}.jsonl") for name in "abc")
    for words in (["flips", a, "--at", "last"], ["losses", a], ["losses", a, b]):
        output = tmp_path / "f.pdf"
        plot_results.main(plot_results.parse_args([*words, "--output", str(output)]))
        assert output.read_bytes().startswith(b"%PDF")
        output.unlink()
    for words, message in ((["flips", a, b], "flips takes one dynamics file"),
                           (["losses", a, c], "c.jsonl: no losses of test pairs")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            plot_results.main(plot_results.parse_args([*words, "--output", str(output)]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fig", "give a .png or .pdf"),
        ("fig.html", "give a .png or .pdf"),
        ("none/fig.png", "in a directory that exists"),
    ],
)
def test_where_a_picture_goes_is_checked_first(tmp_path, name, message):
    arguments = ["ranking-accuracy", "missing.jsonl", "--output", str(tmp_path / name)]
    with pytest.raises(ValueError, match=message):
        plot_results.main(plot_results.parse_args(arguments))


def test_rows_without_the_columns_are_one_line(tmp_path):
    row = {k: v for k, v in ranking_rows()[0].items() if k != "model"}
    write_json_lines(tmp_path / "r.jsonl", [row])
    arguments = ["ranking-accuracy", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "f.png")]
    with pytest.raises(ValueError, match="r.jsonl: not a file of"):
        plot_results.main(plot_results.parse_args(arguments))


def test_the_help_says_which_files_a_page_is_made_of(capsys):
    with pytest.raises(SystemExit):
        plot_results.parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "any of these" not in said
    assert "for page, summaries and dynamics of any kind: what lies beside a summary" in said


def test_page_command_line(tmp_path, capsys):
    """Any mix of result files; no other figure is HTML, and a page is nothing else."""
    write_json_lines(tmp_path / "r.jsonl", ranking_rows())
    idealized = [{**row, "dataset_split": "test"} for row in idealized_rows()]
    write_json_lines(tmp_path / "i.jsonl", idealized)
    write_json_lines(tmp_path / "ranking_dynamics.jsonl", evaluated_pairs())
    files = [str(tmp_path / name) for name in ("r.jsonl", "i.jsonl", "ranking_dynamics.jsonl")]
    output = tmp_path / "report.html"
    plot_results.main(plot_results.parse_args(["page", *files, "--output", str(output)]))
    assert capsys.readouterr().out == f"{output}\n"
    html = output.read_text("utf-8")
    for cell in ("r.jsonl", "i.jsonl", "ranking_dynamics.jsonl", "60.0 [55.0, 65.0]"):
        assert f">{cell}</td>" in html
    with pytest.raises(ValueError, match="give a .html in a directory that exists"):
        plot_results.main(plot_results.parse_args(["page", files[0], "--output", "x.png"]))
    write_json_lines(tmp_path / "i.jsonl", idealized_rows())  # as of an older version
    with pytest.raises(ValueError, match="no 'dataset_split' in a line of one of these files"):
        plot_results.main(plot_results.parse_args(["page", *files, "--output", str(output)]))
    with pytest.raises(ValueError, match="missing.jsonl"):
        plot_results.main(
            plot_results.parse_args(["page", "missing.jsonl", "--output", str(output)])
        )


@pytest.mark.parametrize("words", [["dynamics", "--at", "last"], ["rewards", "--caption", "mine"]])
def test_a_flag_without_effect_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as stop:
        plot_results.parse_args([words[0], "r.jsonl", *words[1:], "--output", "f.png"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(f"error: {words[1]}")


def test_a_file_of_something_else_among_others_is_named(tmp_path):
    write_json_lines(tmp_path / "r.jsonl", ranking_rows())
    write_json_lines(tmp_path / "i.jsonl", [{"a": 1}])
    files = [str(tmp_path / name) for name in ("r.jsonl", "i.jsonl")]
    arguments = ["ranking-accuracy", *files, "--output", str(tmp_path / "f.png")]
    with pytest.raises(ValueError, match="i.jsonl: not a file of calculate_calibration_metrics"):
        plot_results.main(plot_results.parse_args(arguments))


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    write_json_lines(tmp_path / "r.jsonl", ranking_rows())
    (tmp_path / "f.png").mkdir()
    arguments = ["ranking-accuracy", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "f.png")]
    with pytest.raises(IsADirectoryError):
        plot_results.main(plot_results.parse_args(arguments))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f.png", "r.jsonl"]
