"""The four groups and Theorem 4.1 on hand-worked and extreme values; means over pairs and seeds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from result_rows import evaluated_pairs
from scipy.special import log_expit

from ranking.metrics.dynamics import (
    lowest_loss_step,
    means_by_step,
    means_over_seeds,
    pair_values,
    rewards_moved,
    summarize_pairs,
    sweep_points,
)
from ranking.metrics.flips import summarize_flips
from ranking.training.dynamics_file import dynamics_rows

NAMES = ("chosen", "rejected", "ref_chosen", "ref_rejected", "n_chosen", "n_rejected")


def values_of(rows, beta=0.1, gamma=1.0, **loss):
    return pair_values(dict(zip(NAMES, np.array(rows, dtype=float).T)), beta, gamma, **loss)


HAND = [
    # chosen, rejected, ref_chosen, ref_rejected, n_chosen, n_rejected
    (-10, -20, -11, -12, 5, 5),  # right before (−11 > −12), right after
    (-30, -20, -11, -12, 5, 4),  # right before, wrong after
    (-10, -10, -15, -12, 10, 5),  # wrong before; after: equal, which counts as right (≥)
    (-40, -20, -42, -12, 20, 5),  # wrong before and after, but per token −2 > −4
]


def test_hand_worked_groups():
    values = values_of(HAND)
    means = summarize_pairs(values, 0.1)
    for name in (
        "correct_to_correct",
        "correct_to_incorrect",
        "incorrect_to_correct",
        "incorrect_to_incorrect",
    ):
        assert means[f"groups/{name}_share"] == 0.25
    assert means["ranking/accuracy"] == 0.5 and means["ranking/ref_accuracy"] == 0.5
    assert means["ranking/flipped_to_correct"] == 0.5
    assert values["correct_normalized"].tolist() == [True, False, True, True]
    # margins β(policy log-ratio − γ ref log-ratio): 0.1·(10 − 1), 0.1·(−10 − 1), 0.1·(0 + 3), 0.1·(−20 + 30)
    margins = [0.9, -1.1, 0.3, 1.0]
    assert values["reward_margin"] == pytest.approx(margins)
    assert values["loss"] == pytest.approx([math.log1p(math.exp(-m)) for m in margins])
    assert means["groups/correct_to_incorrect_loss"] == pytest.approx(math.log1p(math.exp(1.1)))
    assert means["rewards/accuracies"] == 0.75 and means["logps/chosen"] == -22.5
    # rewards of chosen: 0.1·(1, −19, 5, 2)
    assert means["rewards/chosen"] == pytest.approx(-0.275)
    # γ = 0.5: margin of the last pair 0.1·(−20 + 15); reward margins stay
    half = values_of(HAND, gamma=0.5)
    assert half["loss"][3] == pytest.approx(math.log1p(math.exp(0.5)))
    assert half["reward_margin"] == pytest.approx(margins)


def test_equal_rewards_within_rounding_are_a_tie():
    """S = 400 nats: τ = 16 · 2⁻²³ · 400 + 4 · rounding · 20 is 0.00077 nats in float32, where
    rounding is 2⁻²³, and 0.63 in bfloat16, where it is 2⁻⁷."""
    rows = [
        (-100.0004, -100, -100, -100, 9, 9),
        (-100, -100.0004, -100, -100, 9, 9),
        (-100, -100.5, -100, -100, 9, 9),
        (-100, -100, -99.5, -100, 9, 9),
        (-100, -100.8, -100, -100, 9, 9),
        (-100, -100, -100, -100, 9, 9),
    ]
    columns = np.array(rows).T[:4]
    better, same = rewards_moved(*columns, rounding=2.0**-23)
    assert better.tolist() == [False, False, True, False, True, False]
    assert same.tolist() == [True, True, False, False, False, True]
    means = summarize_pairs(values_of(rows), 0.1, 2.0**-7)
    assert means["rewards/accuracies"] == 1 / 6 and means["rewards/ties"] == 5 / 6


def test_hand_worked_thresholds_of_other_losses():
    """Log-ratios of the reference: 1, 1, −3, −30; per token: 0.2, 0.8, 0.9, 0.3."""
    ipo = values_of(HAND, beta=1.0, loss_type="ipo")
    assert ipo["meets_threshold"].tolist() == [True, False, True, True]  # as per token
    assert not ipo["wrong_at_lowest_loss"].any()  # margins needed are negative; it is lowest at ½
    wrong = values_of([(-9, -9, -9, -3, 3, 3)], beta=1.0, loss_type="ipo")  # needed: 3 − 1
    assert wrong["wrong_at_lowest_loss"].all() and wrong["meets_threshold"].all()
    hinge = values_of(HAND, beta=0.1, loss_type="hinge")
    assert hinge["meets_threshold"].tolist() == [True, False, True, False]
    assert "wrong_at_lowest_loss" not in hinge
    # margins needed: 2; reached: 8 and 1.5, where the loss is 0 all the same
    at_zero = values_of([(-9, -15, -9, -7, 3, 3), (-9, -8.5, -9, -7, 3, 3)], 1.0, loss_type="hinge")
    assert at_zero["correct"].tolist() == [True, False]
    assert not any("wrong_at_lowest_loss" in name for name in summarize_pairs(at_zero, 1.0))
    exo = values_of(HAND, beta=0.01, loss_type="exo_pair", label_smoothing=0.45)
    # margins needed: −0.01, −0.01, 0.03, 0.3; the loss is lowest at log(0.55/0.45) = 0.2007
    assert exo["wrong_at_lowest_loss"].tolist() == [False, False, False, True]
    means = summarize_pairs(exo, 0.01)
    assert means["ranking/meets_threshold"] == 0.5 == means["ranking/accuracy"]
    assert means["ranking/wrong_at_lowest_loss"] == 0.25
    assert "wrong_at_lowest_loss" not in values_of(HAND)  # Eq. 4's loss has none
    none = summarize_pairs(values_of(HAND, loss_type=None), 0.1)
    assert "ranking/meets_threshold" not in none and "ranking/meets_theorem_4_1" in none


@given(
    st.lists(st.tuples(*[st.floats(-300, -0.001)] * 4), min_size=1, max_size=20),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
def test_proposition_2_6(logps, beta, gamma):
    """By Eq. 4 itself: of all pairs in its condition, each is ranked correctly; up to log 2."""
    rows = [(*four, 7, 9) for four in logps]
    values = values_of(rows, beta, gamma)
    means = summarize_pairs(values, beta)
    ratios = np.array(logps)[:, 0] - np.array(logps)[:, 1]
    ref = np.array(logps)[:, 2] - np.array(logps)[:, 3]
    losses = -log_expit(beta * (ratios - gamma * ref))
    inside = (ref >= 0) & (losses <= 0.6)
    assert means["ranking/proposition_2_6"] == inside.mean()
    assert (ratios[(ref >= 0) & (losses <= 0.693147)] >= 0).all()
    if inside.any():
        assert means["ranking/proposition_2_6_right"] == (ratios[inside] >= 0).mean() == 1
    else:
        assert "ranking/proposition_2_6_right" not in means


def test_pairs_that_are_not_finite_are_wrong():
    """As in ranking accuracy, also where the dispreferred completion is impossible."""
    rows = [HAND[0], (-10, -math.inf, -12, -11, 5, 5), (-math.inf, -10, -12, -11, 5, 5)]
    values = values_of(rows)
    assert values["correct"].tolist() == values["correct_normalized"].tolist() == [1, 0, 0]
    assert values["meets_theorem_4_1"].tolist() == [1, 0, 0]
    evaluation = {"step": 1, "epoch": 0.1, "part": "train", "beta": 0.1, "gamma": 1.0}
    recorded = dynamics_rows(values, "abc", evaluation)
    groups = ["correct_to_correct", "incorrect_to_incorrect", "incorrect_to_incorrect"]
    assert [row["group"] for row in recorded] == groups
    assert [row["loss"] is None for row in recorded] == [False, True, True]
    found = summarize_flips(recorded)
    assert found["accuracy"]["k"] == 1 and found["n_against_theorem"] == 0


def test_hand_worked_proposition_2_6():
    """Losses at β = 0.1: 0.34, 1.39, 0.55, 0.31; the reference ranks the first two correctly."""
    means = summarize_pairs(values_of(HAND), 0.1)
    assert means["ranking/proposition_2_6"] == 0.25
    assert means["ranking/proposition_2_6_right"] == 1.0


def test_displacement_of_hand_worked_groups():
    """Changes of the chosen: 1, −19, 5, 2; of the rejected: −8, −8, 2, −8."""
    means = summarize_pairs(values_of(HAND), 0.1)
    names = ("chosen_fell", "rejected_fell", "both_fell", "mean_chosen_change",
             "mean_rejected_change")  # fmt: skip
    expected = {
        "": (0.25, 0.75, 0.25, -2.75, -5.5),
        "correct_to_correct_": (0, 1, 0, 1, -8),
        "correct_to_incorrect_": (1, 1, 1, -19, -8),
        "incorrect_to_correct_": (0, 0, 0, 5, 2),
        "incorrect_to_incorrect_": (0, 1, 0, 2, -8),
    }
    for group, numbers in expected.items():
        assert [means[f"displacement/{group}{name}"] for name in names] == pytest.approx(numbers)
    assert "displacement/n" not in means


def test_empty_groups_have_no_mean():
    means = summarize_pairs(values_of(HAND[:1]), 0.1)
    assert means["groups/incorrect_to_correct_share"] == 0.0
    assert "groups/incorrect_to_correct_loss" not in means
    assert "ranking/flipped_to_correct" not in means  # nothing was wrong


@given(
    st.lists(st.tuples(*[st.floats(-2000, -0.001)] * 4), min_size=1, max_size=20),
    st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    st.sampled_from([0.0, 0.25, 1.0, 2.0]),
)
def test_theorem_4_1_is_ranking_accuracy(logps, beta, gamma):
    """The required-loss condition and the ranking agree wherever their difference is resolvable."""
    rows = [(*four, 7, 9) for four in logps if four[0] == four[1] or abs(four[0] - four[1]) > 1e-9]
    if rows:
        values = values_of(rows, beta, gamma)
        assert (values["meets_theorem_4_1"] == values["correct"]).all()
        policy_logratios = values["chosen"] - values["rejected"]
        ref_logratios = values["ref_chosen"] - values["ref_rejected"]
        direct = -log_expit(beta * (policy_logratios - gamma * ref_logratios))
        assert values["loss"] == pytest.approx(direct, rel=1e-9, abs=1e-9)


def test_the_step_of_the_lowest_loss_has_all_losses():
    """One without any is not the first, one with a single small one not the lowest."""
    rows = evaluated_pairs()
    assert lowest_loss_step(rows) == 5
    without = [{**row, "loss": None if row["step"] == 0 else row["loss"]} for row in rows]
    assert lowest_loss_step(without) == 5
    one = [
        {**row, "loss": (0.01 if row["id"] == "0" else None) if row["step"] == 10 else row["loss"]}
        for row in rows
    ]
    assert lowest_loss_step(one) == 5
    always = [{**row, "loss": None if row["id"] == "3" else row["loss"]} for row in rows]
    assert lowest_loss_step(always) == 5  # of the three others: 0.7, 0.5, 0.67
    alone = [row for row in one if row["part"] == "train"]
    assert lowest_loss_step(alone) == 5


def test_the_lowest_loss_is_that_of_what_trains():
    """Eq. 4's is lowest at step 5; nulls count as there."""
    rows = [{**row, "trained_loss": 3.0 - 0.1 * row["step"]} for row in evaluated_pairs()]
    assert lowest_loss_step(rows) == 10
    for row in rows:
        if (row["step"], row["id"]) == (10, "3"):
            row["trained_loss"] = None
    assert lowest_loss_step(rows) == 5


def test_means_by_step():
    """Of the two correct and two wrong pairs at step 5, one each changes."""
    found = means_by_step(evaluated_pairs(), "train")
    assert list(found) == [0, 5, 10] and means_by_step(evaluated_pairs(), "test") == {}
    assert found[5]["n_wrong"] == 2 and found[5]["flipped"] == found[5]["accuracy"] == 0.5
    assert found[5]["share"] == {group: 0.25 for group in found[5]["counts"]}
    assert found[5]["loss"] == pytest.approx(0.55) and found[5]["reward_margin"] == 0.5
    assert found[5]["group_loss"]["incorrect_to_correct"] == 0.4
    assert math.isnan(found[10]["group_loss"]["correct_to_incorrect"])


def test_sweep_points_and_their_means_over_seeds():
    points = sweep_points([evaluated_pairs()], "lowest-loss")
    assert [(p["step"], p["accuracy"], p["flipped"]) for p in points] == [(5, 0.5, 0.5)] * 2
    other = [{**row, "squared_distance": None} for row in evaluated_pairs()]
    worse = [{**row, "group": row["group"].split("_to_")[0] + "_to_incorrect"} for row in other]
    train, validation = means_over_seeds(sweep_points([evaluated_pairs(), worse], "last"))
    assert (train["part"], train["n"], train["n_seeds"]) == ("train", 4, 2)
    assert train["accuracy"] == train["flipped"] == (0.5, 0.0, 1.0)
    assert train["squared_distance"] == (100.0, 100, 100) and validation["part"] == "validation"
    assert means_over_seeds(sweep_points([other]))[0]["squared_distance"] is None
