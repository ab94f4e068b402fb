"""Figures: what is drawn equals the result rows."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import plot_results
from ranking.reports.accuracy import plot_ranking_accuracy
from ranking.reports.dynamics import (
    plot_accuracy_against_distance,
    plot_dynamics,
    plot_loss_against_reference,
)
from ranking.reports.idealized import plot_idealized_curves, plot_required_loss
from ranking.reports.style import model_labels

ROWS = [
    {"dataset_name": name, "dataset_split": None, "model": "m", "calib_property": f"ranking_{kind}",
     "distance_metric": "acc", "distance_metric_value_mean": value, "wilson_95": [value - 0.1, value + 0.2],
     "chance": chance, "n": 100}
    for name, chance, values in (("a", 0.5, (0.55, 0.45)), ("b", 1 / 24, (0.10, 0.30)))
    for kind, value in zip(("length-normalized", "non-length-normalized"), values)
]  # fmt: skip


def test_ranking_accuracy_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot_ranking_accuracy(ROWS, tmp_path / "f.png")
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


HOW = {"chat_template": False, "add_eos": False, "max_length": None, "separator": " ",
       "sample_size": 100}  # fmt: skip


def labels_of(rows, path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot_ranking_accuracy(rows, path)
    return [t.get_text().split("\n(n =")[0] for t in plt.gcf().axes[0].get_yticklabels()]


def test_runs_scored_differently_are_labelled(tmp_path, monkeypatch):
    """And rows that say nothing of it look as they did."""
    changes = ({}, {"chat_template": True, "separator": None}, {"add_eos": True}, {"max_length": 64},
               {"separator": "\n"}, {"sample_size": None})  # fmt: skip
    rows = [{**row, **HOW, **change} for change in changes for row in ROWS[:2]]
    assert labels_of(rows, tmp_path / "f.png", monkeypatch) == [
        'a,\nseparator " ", sample of 100', "a,\nchat template, sample of 100",
        'a,\nEOS scored, separator " ", sample of 100',
        'a,\nat most 64 tokens, separator " ", sample of 100',
        'a,\nseparator "\\n", sample of 100', 'a,\nseparator " ", all examples']  # fmt: skip
    alone = [{**row, **HOW} for row in ROWS]
    assert labels_of(alone, tmp_path / "f.png", monkeypatch) == ["a", "b"]
    assert labels_of(ROWS, tmp_path / "f.png", monkeypatch) == ["a", "b"]
    parts = [{**row, "dataset_config": c, "dataset_split": s} for c, s in
             (("x", "long-name-of-split-1"), ("y", "long-name-of-split-2")) for row in ROWS[:2]]  # fmt: skip
    assert labels_of(parts, tmp_path / "f.png", monkeypatch) == [
        "a:x, long-name-of-split-1", "a:y, long-name-of-split-2"]  # fmt: skip
    with pytest.raises(ValueError, match="two runs of m on a: give one"):
        plot_ranking_accuracy([*alone, *alone], tmp_path / "f.png")


def test_models_whose_paths_end_alike_have_different_labels():
    assert model_labels(["a/checkpoint-4", "b/checkpoint-4", "b/dpo"]) == {
        "a/checkpoint-4": "a/checkpoint-4", "b/checkpoint-4": "b/checkpoint-4", "b/dpo": "dpo"}  # fmt: skip


def test_idealized_curves_of_two_runs_have_a_panel_each(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    curves = [
        {"dataset_name": "d", "dataset_split": None, "model": model, "add_eos": eos, "n": 4,
         "calib_property": "ranks_length-normalized", "critical_betas": [0.5], "limit_beta_to_0": 1.0,
         "observed_accuracy": 0.25}
        for model, eos in (("m/one", False), ("m/one", True), ("m/two", False))
    ]  # fmt: skip
    plot_idealized_curves(curves, tmp_path / "c.png")
    assert [axes.get_title() for axes in plt.gcf().axes] == [
        "one, d (n = 4 pairs)", "one, d,\nEOS scored (n = 4 pairs)", "two, d (n = 4 pairs)"]  # fmt: skip
    with pytest.raises(ValueError, match="two runs of m/one on d"):
        plot_idealized_curves([*curves, curves[0]], tmp_path / "c.png")
    pairs = [
        {"c": 1.0, "tied": False, "gamma": g, "required_loss": {"1.0": 0.3}} for g in (0.0, 1.0)
    ]
    with pytest.raises(ValueError, match="several γ or β"):
        plot_required_loss(pairs, tmp_path / "l.png")


def test_command_line(tmp_path, capsys):
    from ranking.plumbing.result_files import write_json_lines

    write_json_lines(tmp_path / "r.jsonl", ROWS)
    plot_results.main(plot_results.parse_args(
        ["ranking-accuracy", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "r.pdf")]
    ))  # fmt: skip
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF")


def dynamics():
    """Two steps of four pairs; the validation loss is lowest at step 5."""
    rows = []
    losses = {0: (0.7, 0.7, 0.7, 0.7), 5: (0.5, 0.6, 0.4, 0.7), 10: (0.9, 0.9, 0.2, 0.9)}
    after = {0: (1, 1, 0, 0), 5: (1, 0, 1, 0), 10: (1, 1, 1, 1)}
    for part in ("train", "validation"):
        for step, values in losses.items():
            for k, (loss, correct) in enumerate(zip(values, after[step])):
                before = "correct" if k < 2 else "incorrect"
                rows.append(
                    {"step": step, "part": part, "id": str(k), "loss": loss, "beta": 0.1, "gamma": 1.0,
                     "group": f"{before}_to_{'correct' if correct else 'incorrect'}",
                     "reward_margin": step * 0.1, "ref_chosen": -10.0, "ref_rejected": -12.0 + 3 * k,
                     "squared_distance": step**2 if part == "validation" else None}
                )  # fmt: skip
    return rows


def drawn(monkeypatch, plot, path):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot(dynamics(), path)
    assert path.stat().st_size > 0
    return plt.gcf().axes


def test_dynamics_figure(tmp_path, monkeypatch):
    axes = drawn(monkeypatch, plot_dynamics, tmp_path / "f.png")
    assert len(axes) == 6
    share = {line.get_label(): line for line in axes[0].lines}
    assert list(share["correct → correct"].get_ydata()) == [50, 25, 50]
    assert list(share["correct → incorrect"].get_ydata()) == [0, 25, 0]
    assert list(share["incorrect → correct"].get_ydata()) == [0, 25, 50]
    assert list(share["lowest validation loss"].get_xdata()) == [5, 5]
    loss = {line.get_label(): line for line in axes[1].lines}
    assert loss["incorrect → correct"].get_ydata()[1] == pytest.approx(0.4)


def test_loss_against_reference_figure(tmp_path, monkeypatch):
    axes = drawn(monkeypatch, plot_loss_against_reference, tmp_path / "f.png")
    correct, wrong = axes[0].collections
    assert correct.get_offsets().tolist() == [[2.0, 0.5], [-4.0, 0.4]]
    assert wrong.get_offsets().tolist() == [[-1.0, 0.6], [-7.0, 0.7]]
    (needed,) = axes[0].lines  # −log σ(γβc), c = −(log-ratio): 7 at the left end, −2 at the right
    ends = needed.get_ydata()[[0, -1]]
    assert ends == pytest.approx(np.log1p(np.exp([-0.7, 0.2])))


def test_accuracy_against_distance_figure(tmp_path, monkeypatch):
    (axes,) = drawn(monkeypatch, plot_accuracy_against_distance, tmp_path / "f.png")
    for line in axes.lines:
        assert list(line.get_xdata()) == [0, 25, 100] and list(line.get_ydata()) == [50, 50, 100]


def test_dynamics_command_line(tmp_path):
    from ranking.plumbing.result_files import write_json_lines

    write_json_lines(tmp_path / "d.jsonl", dynamics())
    for figure in plot_results.DYNAMICS:
        output = tmp_path / f"{figure}.pdf"
        plot_results.main(
            plot_results.parse_args([figure, str(tmp_path / "d.jsonl"), "--output", str(output)])
        )
        assert output.read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="takes one dynamics file"):
        plot_results.main(plot_results.parse_args(["dynamics", "a", "b", "--output", "c.png"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [("fig", "give a .png or .pdf"), ("none/fig.png", "in a directory that exists")],
)
def test_where_a_picture_goes_is_checked_first(tmp_path, name, message):
    arguments = ["ranking-accuracy", "missing.jsonl", "--output", str(tmp_path / name)]
    with pytest.raises(ValueError, match=message):
        plot_results.main(plot_results.parse_args(arguments))


def test_rows_without_the_columns_are_one_line(tmp_path):
    from ranking.plumbing.result_files import write_json_lines

    row = {k: v for k, v in ROWS[0].items() if k != "model"}
    write_json_lines(tmp_path / "r.jsonl", [row])
    arguments = ["ranking-accuracy", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "f.png")]
    with pytest.raises(ValueError, match="r.jsonl: not a file of"):
        plot_results.main(plot_results.parse_args(arguments))
