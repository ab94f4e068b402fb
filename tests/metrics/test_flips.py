"""Flips of wrongly ranked pairs equal counts by hand, and Theorem 4.1 holds in 500 digits."""

from decimal import Decimal, localcontext
from itertools import product

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


def test_shares_and_auc_equal_counts_by_hand():
    rows = tuned_rows()
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
    base = {"step": 1, "part": "train", "beta": 1.0, "gamma": 1.0, "ref_chosen": 0.0}
    rows = [
        {**base, "id": str(k), "ref_rejected": c, "rejected": c, "chosen": chosen,
         "group": GROUPS[False, chosen >= c]}
        for k, (c, chosen) in enumerate([(5.0, 6.0), (5.0, 1.0), (9.0, 1.0)])
    ]  # fmt: skip
    assert summarize_flips(rows)["auc"] == 0.75


@pytest.mark.parametrize(("beta", "gamma"), [(10, 1), (10, 2), (0.1, 0.5), (1, 0)])
def test_theorem_4_1_holds_where_losses_underflow(beta, gamma):
    """L ≤ −log σ(γβc) in 500 digits, iff the pair is ranked correctly; a wrong label is counted."""
    rows = tuned_rows(n=24, beta=beta, gamma=gamma)
    policy = np.array([row["chosen"] - row["rejected"] for row in rows])
    ref = np.array([row["ref_chosen"] - row["ref_rejected"] for row in rows])
    with localcontext() as context:
        context.prec = 500

        def loss(margin: Decimal) -> Decimal:
            return (1 + (-margin).exp()).ln()

        met = []
        for own, before in zip(policy.tolist(), ref.tolist()):
            needed = -Decimal(gamma) * Decimal(beta) * Decimal(before)
            met.append(loss(Decimal(beta) * Decimal(own) + needed) <= loss(needed))
    assert meets_theorem(policy, ref, beta, gamma).tolist() == met == (policy >= 0).tolist()
    assert summarize_flips(rows)["n_against_theorem"] == 0
    rows[3]["group"] = GROUPS[ref[3] >= 0, policy[3] < 0]
    assert summarize_flips(rows)["n_against_theorem"] == 1


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
