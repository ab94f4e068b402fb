"""What is shown of win rates equals the result rows."""

import matplotlib.pyplot as plt
import pytest

from ranking.reports.style import BLUE
from ranking.reports.win_rate import plot_win_rate, win_rate_table

ROW = {"model": "run/checkpoint-2", "win_rate": 0.55, "bootstrap_95": [0.45, 0.651], "n": 19,
       "length_controlled_win_rate": None, "n_ties": 3, "n_unclear": 1,
       "mean_characters_policy": 120.6, "mean_characters_other": 99.4}  # fmt: skip
OF_CHECKPOINT = {"squared_distance": 1.25, "ranking_accuracy": 0.625}


def test_tables_of_one_run_and_of_checkpoints():
    with pytest.raises(ValueError, match="not a summary of calculate_win_rate.py --checkpoints"):
        win_rate_table([ROW])
    twice = {**ROW, "order_disagreement": 0.25}
    columns, (line,) = win_rate_table([twice], alone=True)
    assert dict(zip(columns, line)) == {
        "model": "checkpoint-2", "win rate [95 %]": "55.0 [45.0, 65.1]", "at equal lengths": "–",
        "characters": "121 / 99", "n": "19", "ties": "3", "unclear": "1",
        "orders disagree": "25.0"}  # fmt: skip
    found = [{"part": "all", "n": 2, "spearmanr": 0.5, "p_value": 0.125},
             {"part": "near", "n": 1, "spearmanr": None, "p_value": None}]  # fmt: skip
    far = {**ROW, **OF_CHECKPOINT, "model": "far", "squared_distance": 9.0, "win_rate": None,
           "bootstrap_95": [None, None]}  # fmt: skip
    rows = [far, {**ROW, **OF_CHECKPOINT, "correlations": found}]
    columns, lines = win_rate_table(rows)  # the nearest first
    assert lines == [
        ["checkpoint-2", "1.25", "62.5", "55.0 [45, 65]", "–", "121"],
        ["far", "9", "62.5", "–", "–", "121"],
        ["Spearman, accuracy and win rate, all (2)", "", "", "+0.50 (p = 0.12)", "", ""],
        ["Spearman, accuracy and win rate, near (1)", "", "", "–", "", ""],
    ]
    columns, lines = win_rate_table(rows, alone=True)
    assert [line[:3] for line in lines] == [["far", "9", "62.5"], ["checkpoint-2", "1.25", "62.5"]]


def test_lines_of_groups_stand_under_their_policy():
    entries = [
        {"column": "domain", "group": g, "n": 4, "value": 0.25, "bootstrap_95": [0.1, 0.4]}
        for g in "ab"
    ]
    mean = {"column": "domain", "n_groups": 2, "value": 0.5, "bootstrap_95": [None, None]}
    row = {**ROW, "by_group": entries, "mean_over_groups": [mean]}
    _, lines = win_rate_table([row], alone=True)
    assert lines[1:] == [
        ["  domain: a", "25.0 [10.0, 40.0]", "", "", "4", "", ""],
        ["  domain: b", "25.0 [10.0, 40.0]", "", "", "4", "", ""],
        ["  domain: mean over 2", "50.0", "", "", "", "", ""],
    ]
    assert len(win_rate_table([{**row, **OF_CHECKPOINT}])[1]) == 1


def test_win_rates_of_several_seeds_are_joined_by_their_means(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    rows = [
        {"step": None, "gamma": gamma, "win_rate": win, "bootstrap_95": [win - 0.1, win + 0.1], "n": 9,
         "ranking_accuracy": win / 2, "n_ranked": 9, "squared_distance": 1.0}
        for gamma, win in ((0.0, 0.4), (0.0, 0.6), (1.0, 0.7), (1.0, 0.7))
    ]  # fmt: skip
    plot_win_rate(rows, tmp_path / "w.png")
    left, right = plt.gcf().axes
    (means,) = [line for line in left.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
                and list(line.get_xdata()) == [0, 1] and line.get_color() == BLUE]  # fmt: skip
    assert list(means.get_ydata()) == pytest.approx([50, 70])
    assert list(right.lines[-1].get_ydata()) == pytest.approx([25, 35])
