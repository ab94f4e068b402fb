"""What is shown of implicit rewards equals the result rows and the pairs."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from result_rows import scored_record

from ranking.metrics.rewards import reward_pairs, summarize_rewards
from ranking.reports.rewards import (
    plot_rewards,
    ranking_and_reward_table,
    reward_displacement_table,
    reward_table,
    show_rewards,
)
from ranking.reports.tables import as_latex, as_markdown

# log-likelihoods of (chosen, rejected) before and after
MOVES = [
    ((-9, -10), (-8, -11)),  # right before and after; reward right
    ((-9, -10), (-12, -11)),  # right, then wrong; both fell, the chosen by more: reward wrong
    ((-20, -10), (-16, -12)),  # wrong before and after; reward right
    ((-20, -10), (-21, -11)),  # wrong; both fell by 1: equal rewards
]


def made(model="x/tuned", beta=0.5):
    shared = [
        tuple(
            {**scored_record(k, list(map(float, logps)), [1, 2], f"p{k}", n_tokens=[2, 4]),
             "model": name, "groups": {"domain": "ab"[k // 2]}}
            for logps, name in ((after, model), (before, "y/base"))
        )
        for k, (before, after) in enumerate(MOVES)
    ]  # fmt: skip
    pairs = list(reward_pairs(shared, beta))
    common = {"model": model, "reference_model": "y/base", "beta": beta, "dataset_name": "d",
              "dataset_split": "test", "dataset_config": None, "include_ties": False}  # fmt: skip
    return pairs, summarize_rewards(pairs, [2], common, 2.0**-23, 0)


def test_table_of_rewards_and_displacement():
    _, rows = made()
    columns, lines = reward_table([{"distance_metric": "acc"}, *rows])
    assert columns == ["dataset", "reference → model", "rewards", "pairs", "accuracy [95 %]",
                       "shorter / longer", "equal length", "r", "margin [95 %]", "AUC"]  # fmt: skip
    per_token, summed = lines
    assert summed[:4] == ["d:test", "base → tuned", "summed", "4"]
    assert summed[4].startswith("50.0 [")
    assert summed[5:7] == ["100.0 / 0.0", "–"]  # all chosen have 2 tokens, all rejected 4
    # β (chosen − rejected change): 0.5 · (1 + 1), (−3 + 1), (4 + 2), (−1 + 1)
    assert summed[8].startswith("0.75 [")
    assert summed[7] == "–"  # no difference of lengths
    # of 16 (chosen, rejected): 1 beats all, −3 none, 4 all, −1 beats −2 and ties thrice
    assert summed[9] == f"{100 * (4 + 0 + 4 + 1 + 3 * 0.5) / 16:.1f}"
    columns, (moved,) = reward_displacement_table(rows)
    assert columns[2:] == [
        "pairs",
        "fell: chosen / rejected / both",
        "moved, nats: chosen / rejected",
    ]
    assert moved[2:] == ["4", "50.0 / 100.0 / 50.0", "0.25 / -1.25"]
    _, alone = reward_displacement_table(rows, alone=True)
    assert [line for line in alone if line[0] == "  domain: a"] == [
        ["  domain: a", "2", "50.0 / 100.0 / 50.0", "-1 / -1"]]  # fmt: skip
    by_ranking = {line[0].strip(): line[1:] for line in alone if "→" in line[0]}
    assert by_ranking == {
        "correct → correct": ["1", "0.0 / 100.0 / 0.0", "1 / -1"],
        "correct → incorrect": ["1", "100.0 / 100.0 / 100.0", "-3 / -1"],
        "incorrect → incorrect": ["2", "50.0 / 100.0 / 50.0", "1.5 / -1.5"],
    }
    ches = {form: {"auc": auc} for form, auc in (("ches", 0.75), ("ches_normalized", 0.5))}
    columns, (line,) = reward_displacement_table([{**row, "ches": ches} for row in rows])
    assert dict(zip(columns, line))["CHES, AUC"] == "75.0"
    assert dict(zip(columns, line))["CHES per token, AUC"] == "50.0"
    columns, lines = reward_table(rows)
    assert per_token[2] == "per token"
    assert "| d:test | base → tuned | summed | 4 |" in as_markdown((columns, lines))
    assert "toprule" in as_latex((columns, lines))
    with pytest.raises(ValueError, match="no implicit rewards in these results"):
        reward_table([{"distance_metric": "acc"}])
    with pytest.raises(ValueError, match="two runs of x/tuned"):
        reward_table([*rows, *rows])
    assert len(reward_table([*rows, *made(beta=1.0)[1], *made("z")[1]])[1]) == 6


def test_table_of_ranking_and_reward():
    _, rows = made()
    columns, lines = ranking_and_reward_table(rows, alone=True)
    assert columns[3:] == ["both right", "only ranking", "only reward", "both wrong",
                           "McNemar p"]  # fmt: skip
    assert [line[0] for line in lines[::2]] == ["d (test)", "  domain: a", "  domain: b"]
    assert lines[1::2] == [  # not named again
        ["", "summed", "4", "25.0", "0.0", "25.0", "50.0", "1"],
        ["", "summed", "2", "50.0", "0.0", "0.0", "50.0", "1"],
        ["", "summed", "2", "0.0", "0.0", "50.0", "50.0", "1"],
    ]
    named = [line[0] for line in ranking_and_reward_table(rows)[1]]
    assert named == ["d:test"] * 2  # as a page sorts them


def test_what_is_said_below_the_tables(capsys):
    _, rows = made()
    show_rewards(rows)
    said = capsys.readouterr().out
    assert "β = 0.5, x/tuned against y/base" in said
    assert ("d (test), rewards summed: 1 pair differs by no more than rounding may make (1 not at "
            "all): accuracy 50.0 % if counted as wrong, 75.0 % if as right") in said  # fmt: skip
    unknown = [{**row, "n_within_rounding": None, "n_non_finite": 2} for row in rows]
    show_rewards(unknown)
    said = capsys.readouterr().out
    assert "rewards summed: 1 pair with exactly equal rewards, counted as wrong" in said
    assert "rewards summed: 2 pairs are not finite, counted as wrong" in said
    show_rewards([])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name", ["togethercomputer/rewardbench2_dpo", "princeton-pli/rewardbench_code_save_to_disk"]
)
def test_a_long_name_keeps_to_its_panel(name, tmp_path, monkeypatch):
    """As drawn: the title ends before the next panel with its numbers begins."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot_rewards([{**pair, "dataset": name} for pair in made()[0]], tmp_path / "r.png")
    plt.gcf().canvas.draw()
    first, second, _ = plt.gcf().axes
    assert first.get_title("left").replace("\n", "").startswith(name)
    assert first._left_title.get_window_extent().x1 <= second.get_tightbbox().x0


def test_picture(tmp_path, monkeypatch):
    """The four counts, every pair at its changes, mean changes by group; a line per run."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    pairs, _ = made()
    lost = {**pairs[0], "id": "lost", "chosen_change": None, "reward_margin": None}
    plot_rewards([*pairs, lost, *made("other")[0]], tmp_path / "r.png")
    axes = plt.gcf().axes
    assert len(axes) == 6
    assert axes[0].get_title("left") == "tuned from base, d\n(n = 5 pairs)"
    assert plt.gcf().get_suptitle() == r"log-likelihoods summed over tokens, $\beta$ = 0.5"
    texts = [text.get_text().split("\n")[1] for text in axes[0].texts]
    assert texts == ["1", "1", "1", "2"]  # one that is not finite: ranked right, reward wrong
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
             for line in axes[1].lines if "→" in line.get_label()}  # fmt: skip
    assert drawn["correct → correct"] == ([1], [-1])
    assert drawn["correct → incorrect"] == ([-3], [-1])
    assert drawn["incorrect → incorrect"] == ([4, -1], [-2, -1])
    widths = [[bar.get_width() for bar in bars] for bars in axes[2].containers]
    assert np.allclose(widths, [[1, -3, 0, 1.5], [-1, -1, 0, -1.5]])
    assert (tmp_path / "r.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="two runs of x/tuned on d: give one"):
        plot_rewards([*pairs, {**pairs[0], "beta": 0.1}], tmp_path / "r.png")


def test_title_breaks_before_the_number_of_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    pairs = [{**pair, "dataset": "x" * 30} for pair in made()[0]]
    plot_rewards(pairs, tmp_path / "r.png")
    title = plt.gcf().axes[0].get_title("left")
    assert title.split("\n")[-1] == "(n = 4 pairs)"
    assert plt.gcf().get_suptitle().startswith("tuned against base; log-likelihoods summed")


def test_digits_and_correlation():
    _, rows = made()
    row = {**rows[1], "mean_margin": 0.0007184, "mean_margin_95": [-0.001034, 254.7],
           "length_correlation": 0.5512}  # fmt: skip
    columns, (_, line) = reward_table([rows[0], row])
    cells = dict(zip(columns, line))
    assert cells["margin [95 %]"] == "0.00072 [-0.001, 255]" and cells["r"] == "+0.55"
