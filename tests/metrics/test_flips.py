"""Flips of wrongly ranked pairs equal counts by hand, and Theorem 4.1 holds in 500 digits."""

import math
from decimal import Decimal, localcontext
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from result_rows import tuned_rows
from statsmodels.stats.proportion import proportion_confint

from ranking.metrics.dynamics import GROUPS
from ranking.metrics.flips import (
    MOST_GROUPS_BY_C,
    PAIRS_PER_GROUP_BY_C,
    flipped_by_c,
    flips_of_run,
    meets_theorem,
    summarize_flips,
    wrong_pairs,
)
from ranking.reports.dynamics import read_dynamics


def test_shares_and_auc_equal_counts_by_hand():
    rows = tuned_rows(loss=None)
    found = summarize_flips(rows)
    c = {row["id"]: row["ref_rejected"] - row["ref_chosen"] for row in rows}
    right = {row["id"]: row["chosen"] >= row["rejected"] for row in rows}
    wrong, others = [i for i in c if c[i] > 0], [i for i in c if c[i] <= 0]
    assert 10 < len(wrong) < 70
    for share, members in (
        (found["flipped_to_correct"], [right[i] for i in wrong]),
        (found["flipped_to_incorrect"], [not right[i] for i in others]),
        (found["accuracy"], [*right.values()]),
        (found["reward_accuracy"], [row["chosen"] > row["ref_chosen"] + 1e-2 for row in rows]),
    ):
        k, n = sum(members), len(members)
        assert (share["k"], share["n"]) == (k, n) and share["value"] == k / n
        assert share["wilson_95"] == pytest.approx(proportion_confint(k, n, method="wilson"))
    flipped, stayed = [i for i in wrong if right[i]], [i for i in wrong if not right[i]]
    lower = [(c[i] < c[j]) + (c[i] == c[j]) / 2 for i, j in product(flipped, stayed)]
    assert found["auc"] == pytest.approx(np.mean(lower))
    low, high = found["auc_95"]
    assert low < found["auc"] < high and found["n_against_theorem"] == 0


def test_nothing_flipped_and_nothing_wrong():
    rows = [{**row, "chosen": row["ref_chosen"]} for row in tuned_rows()]
    still = [{**r, "group": GROUPS[(r["ref_chosen"] >= r["ref_rejected"],) * 2]} for r in rows]
    found = summarize_flips(still)
    assert found["flipped_to_correct"]["k"] == found["reward_accuracy"]["k"] == 0
    assert found["n_reward_ties"] == len(still)
    assert found["auc"] is None and found["auc_95"] == [None, None]
    correct = [row for row in still if row["group"] == "correct_to_correct"]
    empty = summarize_flips(correct)["flipped_to_correct"]
    assert empty == {"k": 0, "n": 0, "value": None, "wilson_95": (None, None)}
    with pytest.raises(ValueError, match="no rows"):
        summarize_flips([])


def test_ties_of_c_count_half():
    """c = 5, 5, 9 of which the first flips: 1/2 against its equal and 1 against the other."""
    base = {"step": 1, "part": "train", "beta": 1.0, "gamma": 1.0, "ref_chosen": 0.0, "loss": None}
    rows = [
        {**base, "id": str(k), "ref_rejected": c, "rejected": c, "chosen": chosen,
         "group": GROUPS[False, chosen >= c]}
        for k, (c, chosen) in enumerate([(5.0, 6.0), (5.0, 1.0), (9.0, 1.0)])
    ]  # fmt: skip
    assert summarize_flips(rows)["auc"] == 0.75


def test_examples_are_told_apart_whatever_their_ids_are():
    """An id that the data give may hold a colon; only the places behind it are the pair's."""
    rows = tuned_rows()
    named = [{**row, "id": f"train:{row['id']}"} for row in rows]
    interval = summarize_flips(named)["auc_95"]
    assert interval == summarize_flips(rows)["auc_95"] and None not in interval
    apart = [{**row, "id": str(k)} for k, row in enumerate(rows)]  # no example with several pairs
    assert interval != summarize_flips(apart)["auc_95"]


def exact_loss(margin: Decimal) -> Decimal:
    return (1 + (-margin).exp()).ln()


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
def test_theorem_4_1_of_recorded_losses(gamma):
    """L ≤ −log σ(γβc) in 500 digits, of margins from −700 to 700, of pairs on both sides of the
    threshold by 10⁻¹⁸ to 100 nats: what is told is right, and what is not is within rounding."""
    rng = np.random.default_rng(0)
    ref = np.concatenate([rng.normal(0, 30, 100), rng.uniform(-300, 300, 100)])
    policy = rng.choice([-1, 1], 200) * 10 ** rng.uniform(-18, 2, 200)
    losses = np.logaddexp(0, -(policy - gamma * ref))
    with localcontext() as context:
        context.prec = 500
        needed = [-Decimal(gamma) * Decimal(x) for x in ref.tolist()]
        exact = [
            exact_loss(Decimal(own) + z) <= exact_loss(z) for own, z in zip(policy.tolist(), needed)
        ]
    meets, open_ = meets_theorem(losses, ref, 1.0, gamma)
    assert exact == (policy >= 0).tolist()  # Theorem 4.1
    assert (meets == exact)[~open_].all() and not meets[open_].any()
    assert open_.sum() > 0 and (abs(policy)[open_] < 1e-14 * (10 + gamma * abs(ref[open_]))).all()


def test_losses_that_cannot_tell():
    """Losses that underflow, at the threshold, null; at c = ±30, where L is near 30 or e⁻³⁰."""
    at_30, at_minus_30 = math.log1p(math.exp(-30)), 30 + math.log1p(math.exp(-30))
    expected = [
        (0.0, 700, True), (0.0, 800, None), (1e-300, 700, False), (5e-324, 746, None),
        (math.log(2), 0, None), (0.6931, 0, True), (0.6932, 0, False), (None, 3, None),
        (at_30, 30, None), (at_30 * (1 - 1e-12), 30, True), (at_30 * (1 + 1e-12), 30, False),
        (at_minus_30, -30, None), (at_minus_30 - 1e-12, -30, True),
        (at_minus_30 + 1e-12, -30, False), (2000.0, -1999, False), (2000.0, -2001, True),
    ]  # fmt: skip
    losses, c, met = (np.array(column, dtype=float) for column in zip(*expected))
    meets, open_ = meets_theorem(losses, -c, 1.0, 1.0)
    assert np.where(open_, np.nan, meets) == pytest.approx(met, nan_ok=True)


def test_the_recorded_losses_decide_what_is_against_the_theorem():
    """Of a real run none, and many once all losses are 2 nats."""
    rows = read_dynamics(Path("reproduce/results/smollm2_dpo_dynamics.jsonl"))
    last = [row for row in rows if row["step"] == max(row["step"] for row in rows)]
    found = summarize_flips(last)
    assert len(last) > 100 and found["n_against_theorem"] == found["n_loss_cannot_tell"] == 0
    nonsense = [{**row, "loss": 2.0} for row in last]
    by_hand = [
        (math.log1p(math.exp(row["beta"] * (row["ref_chosen"] - row["ref_rejected"]))) >= 2.0)
        != (row["chosen"] >= row["rejected"])
        for row in last  # γ = 1
    ]
    assert summarize_flips(nonsense)["n_against_theorem"] == sum(by_hand) > 10
    null = [{**row, "loss": None} for row in last]
    found = summarize_flips(null)
    assert (found["n_against_theorem"], found["n_loss_cannot_tell"]) == (0, len(last))


def test_steps_of_a_run():
    """The validation loss is lowest at step 7 of three; the test part is not evaluated at 9."""
    rows = [
        row
        for part in ("train", "validation", "test")
        for step, loss in ((0, 0.7), (7, 0.5), (9, 0.6))
        if (part, step) != ("test", 9)
        for row in tuned_rows(10, step=step, part=part, loss=loss)
    ]
    found = [(flips["part"], flips["step"]) for flips in flips_of_run(rows)]
    assert found == [("train", 7), ("train", 9), ("validation", 7), ("validation", 9), ("test", 7)]


def test_groups_of_c_hold_all_wrong_pairs_in_order():
    rows = tuned_rows(n=400)
    rows[0]["chosen"] = None
    cs, ratios = wrong_pairs(rows)
    wrong = sorted(
        (row["ref_rejected"] - row["ref_chosen"], row["chosen"] - row["rejected"])
        for row in rows[1:]
        if row["ref_chosen"] < row["ref_rejected"]
    )
    assert list(zip(cs, ratios)) == wrong
    groups = flipped_by_c(cs, ratios)
    assert len(groups) == MOST_GROUPS_BY_C
    for group in groups:
        inside = [ratio >= 0 for c, ratio in wrong if group["lowest"] <= c <= group["highest"]]
        assert (group["k"], group["n"]) == (sum(inside), len(inside))
    assert max(g["n"] for g in groups) - min(g["n"] for g in groups) <= 1
    assert sum(group["n"] for group in groups) == len(wrong)
    few = flipped_by_c(cs[: 2 * PAIRS_PER_GROUP_BY_C + 1], ratios[: 2 * PAIRS_PER_GROUP_BY_C + 1])
    assert len(few) == 2 and flipped_by_c(cs[:0], ratios[:0]) == []
