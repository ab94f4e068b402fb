"""What is shown of ranking accuracy equals the result rows."""

import matplotlib.pyplot as plt
import pytest
from result_rows import HH, ranking_rows

from ranking.reports.accuracy import (
    accuracy_table,
    plot_accuracy_by_group,
    plot_ranking_accuracy,
)

ROWS = [
    {"dataset_name": name, "dataset_split": None, "model": "m", "calib_property": f"ranking_{kind}",
     "distance_metric": "acc", "distance_metric_value_mean": value, "wilson_95": [value - 0.1, value + 0.2],
     "chance": chance, "n": 100}
    for name, chance, values in (("a", 0.5, (0.55, 0.45)), ("b", 1 / 24, (0.10, 0.30)))
    for kind, value in zip(("length-normalized", "non-length-normalized"), values)
]  # fmt: skip
HOW = {"chat_template": False, "add_eos": False, "max_length": None, "separator": " ",
       "sample_size": 100}  # fmt: skip


def test_table_of_one_run():
    """K, what was dropped and ties beside R̃ and R with their intervals; two splits apart."""
    more = {"k_min": 2, "k_max": 4, "dropped": {"too long": 2, "all ranks tied": 1},
            "n_examples_with_ties": 7}  # fmt: skip
    rows = [{**row, **more} for row in ranking_rows()]
    train = [{**row, "dataset_split": "train", "k_max": 2, "chance": None} for row in rows]
    other = [{**row, "distance_metric": "top1"} for row in rows]
    columns, lines = accuracy_table([*rows, *other, *train])
    assert columns == [
        "dataset", "K", "n", "chance", "R̃ (per token)", "R (summed)", "dropped", "ties"]  # fmt: skip
    assert lines == [
        [f"{HH} (test)", "2–4", "100", "50.0", "50.0 [45.0, 55.0]", "60.0 [55.0, 65.0]", "3", "7"],
        [f"{HH} (train)", "2", "100", "–", "50.0 [45.0, 55.0]", "60.0 [55.0, 65.0]", "3", "7"],
    ]


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


def test_many_datasets_with_long_names_keep_apart(tmp_path, monkeypatch):
    """As drawn: the legend lies right below the axis' name, marks at 0 and 100 % are whole, and the
    names of two panels' axes do not touch."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    names = [f"someone-with-a-long-name/preferences-of-kind-{k}" for k in range(20)]
    rows = [{**row, "dataset_name": name, "distance_metric_value_mean": value,
             "wilson_95": [max(0, value - 0.2), min(1, value + 0.2)]}
            for k, name in enumerate(names)
            for row, value in zip(ROWS[:2], (k % 2, 1 - k % 2))]  # fmt: skip
    plot_ranking_accuracy(rows, tmp_path / "f.png")
    figure = plt.gcf()
    axes = figure.axes[0]
    figure.canvas.draw()
    drawn = (figure.legends[0], axes.xaxis.label, axes)
    legend, label, panel = (artist.get_window_extent() for artist in drawn)
    assert 0 < (label.y0 - legend.y1) / figure.dpi < 0.2  # inches
    (left, _), (right, _) = axes.transData.transform([(0, 0), (100, 0)])
    assert left - panel.x0 > 3 and panel.x1 - right > 3  # points of half a mark
    assert axes.get_ylim() == (19.6, -0.6)
    plot_ranking_accuracy([*rows, *({**row, "model": "other"} for row in rows)], tmp_path / "f.png")
    figure = plt.gcf()
    figure.canvas.draw()
    left, right = (axes.xaxis.label.get_window_extent() for axes in figure.axes)
    assert left.x1 < right.x0


def test_baselines_are_marked(tmp_path, monkeypatch):
    """At the place of their dataset; rows of older files have none, and no entry in the legend."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    reached = {"random": 0.5, "shorter": 0.3, "longer": 0.7}
    rows = [row | ({"baselines": reached} if row["dataset_name"] == "b" else {}) for row in ROWS]
    plot_ranking_accuracy(rows, tmp_path / "f.png")
    marks = {line.get_label(): line.get_xydata().tolist() for line in plt.gcf().axes[0].lines}
    assert marks["prefer the shorter"] == [[pytest.approx(30), 1]]
    assert marks["prefer the longer"] == [[pytest.approx(70), 1]]
    plot_ranking_accuracy(ROWS, tmp_path / "f.png")
    texts = [text.get_text() for text in plt.gcf().legends[0].get_texts()]
    assert texts == ["chance", "length-normalized", "summed"]


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
        "a (x, long-name-of-split-1)", "a (y, long-name-of-split-2)"]  # fmt: skip
    with pytest.raises(ValueError, match="two runs of m on a: give one"):
        plot_ranking_accuracy([*alone, *alone], tmp_path / "f.png")


def test_figures_of_several_models_and_splits(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    rows = (
        ranking_rows("a") + ranking_rows("b", (0.7, 0.4)) + ranking_rows("b", (0.2, 0.3), "other")
    )
    plot_ranking_accuracy(rows, tmp_path / "r.png")
    left, right = plt.gcf().axes
    marks = {c.get_label(): list(c.lines[0].get_xdata()) for c in left.containers}
    assert marks == {"a": pytest.approx([50]), "b": pytest.approx([70, 20])}
    marks = {c.get_label(): list(c.lines[0].get_xdata()) for c in right.containers}
    assert marks == {"a": pytest.approx([60]), "b": pytest.approx([40, 30])}

    splits = ranking_rows("a") + ranking_rows("a", (0.7, 0.4), split="train")
    splits += [
        {**row, "include_ties": True, "chance": None} for row in ranking_rows("a", (0.2, 0.3))
    ]
    plot_ranking_accuracy(splits, tmp_path / "s.png")
    (axes,) = plt.gcf().axes
    assert [text.get_text().split("\n")[0] for text in axes.get_yticklabels()] == [
        f"{HH} (test)", f"{HH} (train)", f"{HH} (test), ties"]  # fmt: skip
    (chance,) = [c for c in axes.collections if c.get_label() == "chance"]
    assert len(chance.get_segments()) == 2


def grouped_rows(names, values=(0.5, 0.6)):
    """Summary rows of a dataset whose column `subset` has these names, the k-th with k + 1
    examples."""
    more = {"k_min": 2, "k_max": 2, "dropped": {}, "n_examples_with_ties": 0}
    return [
        {**row, **more,
         "by_group": [
             {"column": "subset", "group": name, "n": k + 1, "value": row["distance_metric_value_mean"],
              "chance": 0.5, "wilson_95": [0.4, 0.7], "bootstrap_95": [0.3, 0.8]}
             for k, name in enumerate(names)
         ],
         "mean_over_groups": [
             {"column": "subset", "n_groups": len(names), "value": row["distance_metric_value_mean"],
              "chance": 0.5, "bootstrap_95": [0.25, 0.75]}
         ]}
        for row in ranking_rows(values=values)
    ]  # fmt: skip


def test_lines_of_groups_stand_under_their_dataset():
    _, lines = accuracy_table(grouped_rows(["chat", None]))
    assert [line[0] for line in lines] == [
        f"{HH} (test)", "  subset: chat", "  subset: –", "  subset: mean over 2"]  # fmt: skip
    assert lines[1][1:] == ["", "1", "50.0", "50.0 [40.0, 70.0]", "60.0 [40.0, 70.0]", "", ""]
    assert lines[3][1:] == ["", "", "50.0", "50.0 [25.0, 75.0]", "60.0 [25.0, 75.0]", "", ""]
    _, lines = accuracy_table(grouped_rows(["all alike"]))
    assert len(lines) == 1


def test_the_largest_30_groups_are_shown():
    _, lines = accuracy_table(grouped_rows([f"{k:02}" for k in range(40)]))
    assert [line[0] for line in lines[1:31]] == [f"  subset: {k:02}" for k in range(10, 40)]
    assert lines[31][0] == "  subset: 10 smaller: by_group in the summary"
    assert lines[32][0] == "  subset: mean over 40" and len(lines) == 33
    many = [{**row, "by_group": [],
             "mean_over_groups": [{"column": "url", "n_groups": 5000, "value": None}]}
            for row in grouped_rows([])]  # fmt: skip
    assert accuracy_table(many)[1][1][0] == "  url: 5000 values, too many for groups"


def test_figure_of_groups(tmp_path, monkeypatch):
    """R̃ left, R right, a place for each group; of 40 groups, the 30 largest."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot_accuracy_by_group(grouped_rows(["chat", "math"]), tmp_path / "g.png")
    left, right = plt.gcf().axes
    for axes, value in ((left, 50), (right, 60)):
        (marks,) = axes.containers
        assert list(marks.lines[0].get_xdata()) == pytest.approx([value] * 2)
        assert list(marks.lines[0].get_ydata()) == [0, 1]
        (bars,) = marks.lines[2]
        assert [s[:, 0].tolist() for s in bars.get_segments()] == [pytest.approx([40, 70])] * 2
        (mean,) = [x for x in axes.lines if x.get_label() == "gpt2, mean over groups"]
        assert mean.get_xdata()[0] == pytest.approx(value)
    assert [text.get_text() for text in left.get_yticklabels()] == ["chat (n = 1)", "math (n = 2)"]
    rows = grouped_rows(["chat", "math"])
    for row in rows:
        row["by_group"][1]["baselines"] = {"random": 0.5, "shorter": 0.2, "longer": 0.8}
    plot_accuracy_by_group(rows, tmp_path / "g.png")
    marks = {line.get_label(): line.get_xydata().tolist() for line in plt.gcf().axes[0].lines}
    assert marks["prefer the shorter"] == [[pytest.approx(20), 1]]
    assert marks["prefer the longer"] == [[pytest.approx(80), 1]]
    plot_accuracy_by_group(grouped_rows([f"{k:02}" for k in range(40)]), tmp_path / "g.png")
    axes = plt.gcf().axes[0]
    assert len(axes.get_yticklabels()) == 30 and "30 largest of 40" in axes.get_title("left")
    with pytest.raises(ValueError, match="no column of groups"):
        plot_accuracy_by_group(ranking_rows(), tmp_path / "g.png")


def test_each_model_and_chance_are_named_whichever_panel_has_them(tmp_path, monkeypatch):
    """The first dataset has ties, thus no chance, and is scored by one of two models."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    with_ties = [{**row, "include_ties": True, "chance": None} for row in ranking_rows("a")]
    plot_ranking_accuracy(with_ties + ranking_rows("b") + ranking_rows("a"), tmp_path / "r.png")
    names = [text.get_text() for text in plt.gcf().legends[0].get_texts()]
    assert sorted(names) == ["a", "b", "chance"]

    first = [{**row, "model": "a"} for row in grouped_rows(["chat", "math"])]
    other = [{**row, "dataset_name": "other", "model": "b"} for row in grouped_rows(["x", "y"])]
    plot_accuracy_by_group(first + other, tmp_path / "g.png")
    names = [text.get_text() for text in plt.gcf().legends[0].get_texts()]
    means = ["a, mean over groups", "b, mean over groups"]
    assert sorted(names) == ["a", means[0], "b", means[1], "chance"]
    for axes in plt.gcf().axes:
        (chance,) = [c for c in axes.collections if c.get_label() == "chance"]
        assert [segment[0, 0] for segment in chance.get_segments()] == [50, 50]


def test_a_column_that_has_too_many_values_for_one_model_has_no_mean_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    many = [{"column": "subset", "n_groups": 5000, "value": None}]
    other = [
        {**row, "model": "b", "by_group": [], "mean_over_groups": many} for row in ranking_rows()
    ]
    plot_accuracy_by_group(grouped_rows(["chat", "math"]) + other, tmp_path / "g.png")
    labels = [line.get_label() for line in plt.gcf().axes[0].lines]
    assert [label for label in labels if "mean" in label] == ["gpt2, mean over groups"]
