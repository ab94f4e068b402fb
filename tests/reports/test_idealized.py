"""What is shown of idealized accuracy equals the result rows."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from result_rows import idealized_rows

from ranking.reports.idealized import (
    idealized_table,
    plot_critical_betas,
    plot_idealized_by_group,
    plot_idealized_curves,
    plot_required_loss,
)


def test_tables_of_one_run_and_of_several():
    rows = idealized_rows()
    cells = ["40.0", "50.0 / 75.0 / 100.0", "35.0 [20, 40]"] * 2
    assert idealized_table(rows)[1] == [["d", "sft → dpo", "7", *cells]]
    same = [{**row, "model": "a/sft", "gap_to_median_95": [None, None]} for row in rows]
    cells = ["40.0", "50.0 / 75.0 / 100.0", "35.0"] * 2
    assert idealized_table(same)[1] == [["d", "sft", "7", *cells]]
    split = [{**row, "dataset_split": "test"} for row in rows]
    columns, (line,) = idealized_table(split, alone=True)
    assert columns[:2] == ["dataset", "pairs"] and line[:2] == ["d (test)", "7"]
    assert line[4] == "35.0 [20.0, 40.0]"
    _, both = idealized_table([*rows, *({**row, "add_eos": True} for row in rows)])
    assert [line[0] for line in both] == ["d", "d, EOS scored"]
    with pytest.raises(ValueError, match="two runs of a/dpo on d: give one"):
        idealized_table(rows + rows)


def test_idealized_curves_of_two_runs_have_a_panel_each(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    curves = [
        {"dataset_name": "d", "dataset_split": None, "model": model, "add_eos": eos, "n": 4,
         "calib_property": f"ranks_{kind}", "critical_betas": [0.5], "limit_beta_to_0": 1.0,
         "observed_accuracy": 0.25}
        for model, eos in (("m/one", False), ("m/one", True), ("m/two", False))
        for kind in ("length-normalized", "non-length-normalized")
    ]  # fmt: skip
    plot_idealized_curves(curves, tmp_path / "c.png")
    assert [axes.get_title() for axes in plt.gcf().axes] == [
        "one, d (n = 4 pairs)", "one, d,\nEOS scored (n = 4 pairs)", "two, d (n = 4 pairs)"]  # fmt: skip
    first, _, third = plt.gcf().axes
    assert first.get_position().y0 > third.get_position().y1  # two beside each other
    with pytest.raises(ValueError, match="two runs of m/one on d"):
        plot_idealized_curves([*curves, curves[0]], tmp_path / "c.png")
    pairs = [
        {"c": 1.0, "tied": False, "gamma": g, "required_loss": {"1.0": 0.3}} for g in (0.0, 1.0)
    ]
    with pytest.raises(ValueError, match="several γ or β"):
        plot_required_loss(pairs, tmp_path / "l.png")


def test_a_required_loss_that_is_not_seen_is_said(tmp_path, monkeypatch):
    """The axis ends at 1e-4 nats: of c = 2 the loss at β = 10 is e^-20."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    pairs = [
        {"c": c, "tied": False, "gamma": 1.0, "dataset": "d", "split": None,
         "required_loss": {str(beta): np.log1p(np.exp(-beta * c)) for beta in (0.1, 10.0)}}
        for c in (2.0, 3.0)
    ]  # fmt: skip
    plot_required_loss(pairs, tmp_path / "l.png")
    names = [text.get_text() for text in plt.gca().get_legend().get_texts()]
    assert names == [r"$\beta$ = 0.1", r"$\beta$ = 10.0, below the axis"]


def test_required_losses_are_said_to_be_of_their_reference(tmp_path, monkeypatch):
    """Files of earlier versions name none."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    pair = {"c": 1.0, "tied": False, "gamma": 1.0, "dataset": "d", "split": "test",
            "required_loss": {"1.0": 0.3}}  # fmt: skip
    plot_required_loss([{**pair, "reference_model": "m/sft"}], tmp_path / "l.png")
    assert plt.gcf().get_suptitle() == r"d (test), reference sft, $\gamma$ = 1"
    plot_required_loss(
        [{**pair, "reference_model": name} for name in ("a/x", "b/y")], tmp_path / "l.png"
    )
    assert plt.gcf().get_suptitle() == r"d (test), reference x, y, $\gamma$ = 1"
    plot_required_loss([pair], tmp_path / "l.png")
    assert plt.gcf().get_suptitle() == r"d (test), $\gamma$ = 1"


def test_critical_betas_of_datasets_share_a_panel(tmp_path, monkeypatch):
    """The share of pairs that R* still ranks rightly, by β: a colour each dataset, a line style
    each reference."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    curves = [
        {"dataset_name": dataset, "dataset_split": None, "model": model, "reference_model": model,
         "n": 4, "calib_property": f"ranks_{normalization}", "critical_betas": [beta, 0.5],
         "limit_beta_to_0": 0.75, "observed_accuracy": 0.25}
        for model, beta in (("m/one", 0.1), ("m/two", 0.2))
        for dataset in ("d", "e")
        for normalization in ("length-normalized", "non-length-normalized")
    ]  # fmt: skip
    plot_critical_betas(curves, tmp_path / "c.png")
    for axes in plt.gcf().axes:
        lines = [line for line in axes.lines if len(line.get_xdata())]
        assert [(line.get_color(), line.get_linestyle()) for line in lines] == [
            ("#0072B2", "-"), ("#D55E00", "-"), ("#0072B2", "--"), ("#D55E00", "--")]  # fmt: skip
        # three of four pairs at small β; one is lost at each critical β
        assert list(lines[0].get_xdata())[1:3] == [0.1, 0.5]
        assert list(lines[2].get_xdata())[1:3] == [0.2, 0.5]
        assert all(list(line.get_ydata()) == [75, 50, 25, 25] for line in lines)
        assert lines[0].get_drawstyle() == "steps-post"
    (legend,) = plt.gcf().legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "d (n = 4 pairs)", "e (n = 4 pairs)", "one", "two", r"$\beta$ of Tables 1 and 6"]  # fmt: skip
    with pytest.raises(ValueError, match="two runs of m/one on d"):
        plot_critical_betas([*curves, curves[0]], tmp_path / "c.png")
    many = [{**c, "model": name, "reference_model": name} for name in "abcde" for c in curves[:2]]
    with pytest.raises(ValueError, match="5 references, of which 4 can be told apart"):
        plot_critical_betas(many, tmp_path / "c.png")


def grouped_rows():
    gap = {"observed_accuracy": 0.5, "min_median_max": [0.6, 0.7, 0.8], "gap_to_median": 0.2,
           "gap_to_median_95": [0.1, 0.3]}  # fmt: skip
    more = {
        "by_group": [{"column": "domain", "group": g, "n": 3, "value": 0.7, **gap} for g in "ab"],
        "mean_over_groups": [{"column": "domain", "n_groups": 2, "value": 0.7, **gap}],
    }
    return [{**row, "dataset_split": "test", **more} for row in idealized_rows()]


def test_lines_of_groups_stand_under_their_dataset():
    rows = grouped_rows()
    _, lines = idealized_table(rows, alone=True)
    cells = ["50.0", "60.0 / 70.0 / 80.0", "20.0 [10.0, 30.0]"] * 2
    assert lines[1:] == [
        ["  domain: a", "3", *cells], ["  domain: b", "3", *cells],
        ["  domain: mean over 2", "", *cells]]  # fmt: skip
    assert len(idealized_table(rows)[1]) == 1  # beside the paper's: whole datasets


def test_figure_of_groups(tmp_path, monkeypatch):
    """A bar from the least to the largest R*, its median, and the observed accuracy."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot_idealized_by_group(grouped_rows(), tmp_path / "g.png")
    for axes in plt.gcf().axes:
        drawn = {c.get_label(): [s.tolist() for s in c.get_segments()] for c in axes.collections}
        assert drawn[r"$R^*$, over $\beta$"][1] == [pytest.approx([60, 1]), pytest.approx([80, 1])]
        assert drawn[r"its median over $\beta$"][0][0] == pytest.approx([70, -0.3])
        (observed,) = axes.lines
        assert list(observed.get_xdata()) == [50, 50] and list(observed.get_ydata()) == [0, 1]
    with pytest.raises(ValueError, match="no column of groups"):
        plot_idealized_by_group(idealized_rows(), tmp_path / "g.png")
    other = [{**row, "reference_model": "a/base"} for row in grouped_rows()]
    with pytest.raises(ValueError, match="groups of several models: draw each file by itself"):
        plot_idealized_by_group(grouped_rows() + other, tmp_path / "g.png")
