"""What is shown of win rates equals the result rows."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from ranking.reports.style import BLUE, ORANGE, draw
from ranking.reports.win_rate import plot_win_rate, win_rate_table, win_rate_title

ROW = {"model": "run/checkpoint-2", "judge": "openai:m", "win_rate": 0.55, "bootstrap_95": [0.45, 0.651], "n": 19,
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


def test_judges_are_not_mixed(tmp_path):
    """In no table and in no picture; a table's title says whose verdicts it has."""
    rows = [{**ROW, **OF_CHECKPOINT, "judge": f"openai:{name}", "step": 2} for name in "ab"]
    for shown in (win_rate_table, lambda r: win_rate_table(r, alone=True),
                  lambda r: plot_win_rate(r, tmp_path / "w.png")):  # fmt: skip
        with pytest.raises(ValueError, match=r"different judges \(openai:a, openai:b\)"):
            shown(rows)
    title = win_rate_title({**ROW, "against": "sft"})
    assert title == "Win rate against sft, by openai:m, % [95 % interval]"


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


def joined_by(axes, colour):
    """y of the line between two means."""
    (line,) = [x for x in axes.lines if x.get_color() == colour and list(x.get_xdata()) == [0, 1]]
    return list(line.get_ydata())


def test_win_rates_of_several_seeds_are_joined_by_their_means(tmp_path, monkeypatch):
    """On one axis with the ranking accuracies; the picture says who judged what."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    rows = [
        {"step": None, "gamma": gamma, "win_rate": win, "bootstrap_95": [win - 0.1, win + 0.1], "n": 9,
         "ranking_accuracy": right / 10, "n_ranked": 10, "squared_distance": 1.0,
         "model": f"runs/{gamma}", "against": "chosen", "judge": "openai:gpt-4o",
         "dataset_name": "d", "dataset_split": "test"}
        for gamma, win, right in ((0.0, 0.4, 2), (0.0, 0.6, 3), (1.0, 0.7, 4), (1.0, 0.7, 4))
    ]  # fmt: skip
    plot_win_rate(rows, tmp_path / "w.png")
    (axes,) = plt.gcf().axes
    assert joined_by(axes, BLUE) == pytest.approx([50, 70])
    assert joined_by(axes, ORANGE) == pytest.approx([25, 40])
    low, high = axes.containers[1].lines[2][0].get_segments()[2][:, 1]  # 4 of 10, γ = 1
    assert (low, high) == pytest.approx(100 * np.array(proportion_confint(4, 10, method="wilson")))
    said = plt.gcf().get_suptitle().replace("\n", " ")
    assert said == "runs, against the preferred answers, d (test), judge: openai gpt-4o"


def test_checkpoints_of_two_runs_are_told_apart():
    rows = [{**ROW, **OF_CHECKPOINT, "model": f"{run}/checkpoint-2"} for run in ("a", "b")]
    _, lines = win_rate_table(rows)
    assert [line[0] for line in lines] == ["a/checkpoint-2", "b/checkpoint-2"]


def test_without_a_clear_verdict_there_is_no_picture(tmp_path, capsys):
    """And a line that says so: the summary is written after it."""
    rows = [{**ROW, **OF_CHECKPOINT, "win_rate": None, "step": 2, "gamma": 1.0}]
    assert not draw(plot_win_rate, rows, tmp_path / "w.png")
    assert capsys.readouterr().err.endswith("w.png: no clear verdict: no win rate to draw\n")
