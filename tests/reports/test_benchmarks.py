"""What is shown of a benchmark equals its result rows."""

import pytest

from ranking.reports.benchmarks import benchmark_table, show_benchmarks
from ranking.reports.tables import as_latex, as_markdown


def benchmark_rows(model="gpt2", values=(0.5, 0.6)):
    def part(kind, name, value, wilson, chance=0.25):
        return {"kind": kind, "part": name, "n": 7, "value": value, "chance": chance,
                "wilson_95": wilson, "bootstrap_95": [0.1, 0.9]}  # fmt: skip

    return [
        {"model": model, "dataset_name": "a/reward-bench-2", "dataset_split": "test",
         "distance_metric": "benchmark", "benchmark": "RewardBench 2", "scored_by": "likelihood",
         "calib_property": f"ranking_{kind}", "missing": ["Ties"], "n_left_out": 2,
         "parts": [part("subset", "Math", value, [0.2, 0.8]),
                   part("score", "mean", value, [None, None], None)]}
        for kind, value in zip(("length-normalized", "non-length-normalized"), values)
    ]  # fmt: skip


def test_table_of_several_models():
    other = [{"distance_metric": "acc"}]
    table = benchmark_table([*benchmark_rows("a"), *other, *benchmark_rows("x/b", (0.7, 0.8))])
    columns, lines = table
    assert columns == ["benchmark", "model", "part", "what", "n", "chance", "per token", "summed"]
    assert lines[0] == ["RewardBench 2", "a", "Math", "subset", "7", "25.0", "50.0 [20, 80]",
                        "60.0 [20, 80]"]  # fmt: skip
    assert lines[1][5:] == ["–", "50.0 [10, 90]", "60.0 [10, 90]"]  # no Wilson: the bootstrap
    assert lines[3][1] == "b" and lines[3][6].startswith("70.0")
    assert "| RewardBench 2 | a | Math |" in as_markdown(table) and "Math" in as_latex(table)
    with pytest.raises(ValueError, match="no benchmark"):
        benchmark_table(other)


def test_what_is_missing_is_said(capsys):
    show_benchmarks(benchmark_rows())
    shown = capsys.readouterr().out
    assert "RewardBench 2, by likelihood" in shown and "50.0 [20.0, 80.0]" in shown
    assert "the mean is over what is there; missing: Ties" in shown
    assert "2 examples are not of its form, and left out" in shown
    show_benchmarks([])
    assert capsys.readouterr().out == ""
