"""Figures: what is drawn equals the result rows."""

import matplotlib.pyplot as plt
import pytest

import plot_results

ROWS = [
    {"dataset_name": name, "dataset_split": None, "model": "m", "calib_property": f"ranking_{kind}",
     "distance_metric": "acc", "distance_metric_value_mean": value, "wilson_95": [value - 0.1, value + 0.2],
     "chance": chance, "n": 100}
    for name, chance, values in (("a", 0.5, (0.55, 0.45)), ("b", 1 / 24, (0.10, 0.30)))
    for kind, value in zip(("length-normalized", "non-length-normalized"), values)
]  # fmt: skip


def test_ranking_accuracy_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot_results.plot_ranking_accuracy(ROWS, tmp_path / "f.png")
    axes = plt.gcf().axes[0]
    drawn = {c.get_label(): c for c in axes.containers}
    assert list(drawn["length-normalized"].lines[0].get_xdata()) == pytest.approx([55, 10])
    assert list(drawn["summed"].lines[0].get_xdata()) == pytest.approx([45, 30])
    (bars,) = drawn["summed"].lines[2]
    assert [s[:, 0].tolist() for s in bars.get_segments()] == [
        pytest.approx([35, 65]),
        pytest.approx([20, 50]),
    ]
    (chance,) = [c for c in axes.collections if c.get_label() == "chance"]
    assert [s[0, 0] for s in chance.get_segments()] == pytest.approx([50, 100 / 24])
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_command_line(tmp_path, capsys):
    from result_files import write_json_lines

    write_json_lines(tmp_path / "r.jsonl", ROWS)
    plot_results.main(plot_results.parse_args(
        ["ranking-accuracy", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "r.pdf")]
    ))  # fmt: skip
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF")
