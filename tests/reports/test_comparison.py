"""Tables and picture of several models on the same examples."""

import matplotlib.pyplot as plt
import pytest
from result_rows import scored_record

from ranking.metrics.comparison import compare_models
from ranking.reports.comparison import (
    comparison_table,
    mcnemar_table,
    plot_comparison,
    show_comparison,
)


def runs():
    """`tied` ranks all 12 pairs rightly by exact ties; `wrong` none; `half` those of one prompt."""
    logps = {"a/tied": (-1.0, -1.0), "b/wrong": (-2.0, -1.0)}
    found = {
        name: [scored_record(k, values, [1, 2], prompt=f"p{k // 2}") for k in range(12)]
        for name, values in logps.items()
    }
    found["c/half"] = [
        scored_record(k, (-1.0, -2.0) if k < 6 else (-2.0, -1.0), [1, 2], prompt=f"p{k // 2}")
        for k in range(14)
    ]
    return list(found.items())


def test_tables_hold_the_numbers_of_the_rows():
    rows = compare_models(runs(), 0)
    columns, lines = comparison_table(rows)
    assert [line[:5] for line in lines] == [
        ["d", "1", "tied", "12", "50.0"], ["", "2", "wrong", "", ""], ["", "3", "half", "", ""]]  # fmt: skip
    assert [line[5].split()[0] for line in lines] == ["100.0", "0.0", "50.0"]
    columns, lines = mcnemar_table(rows)
    assert [line[:2] for line in lines] == [["d", "2 − 1"], ["", "3 − 1"], ["", "3 − 2"]]
    assert lines[0][2:5] == lines[0][5:] == ["-100.0", "0, 12", "0.0015 *"]  # 3 · 2 / 2**12
    assert lines[2][3:5] == ["6, 0", "0.062"]  # twice 2 / 2**6: alone it would count


def test_the_screen_says_what_is_left_out_and_where_ties_decide(capsys, caplog):
    show_comparison(compare_models(runs(), 0))
    output = capsys.readouterr().out
    assert output.count("2 examples of c/half are left out") == 1
    assert "exact ties matter between a/tied and b/wrong: p = 0.00049" in caplog.text


def test_the_picture_shows_the_differences_on_one_scale(tmp_path, monkeypatch):
    """Of `wrong` and `half` less `tied`, which is the first: −100 points (p = 0.0015, filled)
    and −50 (p = 0.062)."""
    rows = compare_models(runs(), 0)
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot_comparison(rows, tmp_path / "f.png")
    figure = plt.gcf()
    for axes, title in zip(figure.axes, ("R̃ (per token)", "R (summed)")):
        assert axes.get_title() == title and axes.get_xlim() == figure.axes[0].get_xlim()
        points = [
            line for line in axes.lines if line.get_marker() in "os" and len(line.get_xdata())
        ]
        assert [line.get_xdata()[0] for line in points] == [-100.0, -50.0]
        assert [line.get_markerfacecolor() != "white" for line in points] == [True, False]
    assert figure.axes[0].get_yticklabels()[0].get_text() == "d\n(n = 12)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["wrong", "half"]
    assert "less that of tied on the same examples" in figure.get_suptitle()


def test_two_comparisons_of_a_dataset_are_refused(tmp_path):
    rows = compare_models(runs(), 0)
    for show in (comparison_table, mcnemar_table, lambda r: plot_comparison(r, tmp_path / "f.png")):
        for wrong in ([*rows, *rows], rows[:1]):
            with pytest.raises(ValueError, match="not one comparison of d: give one file, whole"):
                show(wrong)
