"""Displacement against brute force over the rows of a dynamics file."""

import math

import numpy as np
import pytest

from ranking.metrics.displacement import displacement_by_group, fell
from ranking.metrics.dynamics import displacement_by_step

GROUPS = ("correct_to_correct", "incorrect_to_incorrect", "correct_to_incorrect")


def random_rows(n=50):
    rng = np.random.default_rng(0)
    rows = []
    for step in (10, 0, 5):
        for part in ("train", "validation"):
            for k in range(n):
                ref = rng.normal(-60, 20, size=2)
                moved = ref + rng.normal(0, 2, size=2) * (step > 0)
                rows.append({"step": step, "part": part, "id": str(k), "group": GROUPS[k % 3],
                             "chosen": moved[0] if k else None, "rejected": moved[1],
                             "ref_chosen": ref[0], "ref_rejected": ref[1]})  # fmt: skip
    return rows


def test_means_by_step_and_group_are_those_of_the_rows():
    rows = random_rows()
    found = displacement_by_step(rows, "validation")
    assert list(found) == [0, 5, 10]
    assert displacement_by_step(rows, "test") == {}
    for step, groups in found.items():
        assert set(groups) == {"all", *GROUPS}
        for group, means in groups.items():
            own = [r for r in rows if (r["step"], r["part"]) == (step, "validation")
                   and r["chosen"] is not None and group in ("all", r["group"])]  # fmt: skip
            changes = [
                (r["chosen"] - r["ref_chosen"], r["rejected"] - r["ref_rejected"]) for r in own
            ]
            n = len(own)
            assert means["n"] == n
            down = [(a < -1e-3, b < -1e-3) for a, b in changes]
            assert means["chosen_fell"] == sum(a for a, _ in down) / n
            assert means["rejected_fell"] == sum(b for _, b in down) / n
            assert means["both_fell"] == sum(a and b for a, b in down) / n
            assert means["mean_chosen_change"] == pytest.approx(
                math.fsum(a for a, _ in changes) / n
            )
            assert means["mean_rejected_change"] == pytest.approx(
                math.fsum(b for _, b in changes) / n
            )
    assert found[0]["all"]["chosen_fell"] == found[0]["all"]["mean_chosen_change"] == 0


def test_what_rounding_makes_is_no_fall():
    """S = 400 nats: τ is 0.00077 nats in float32 and 0.63 in bfloat16, as for rewards."""
    ref = np.full(5, -200.0)
    changes = np.array([-0.0005, -0.001, -0.6, -0.65, 1.0])
    assert fell(ref + changes, ref, 2.0**-23).tolist() == [False, True, True, True, False]
    assert fell(ref + changes, ref, 2.0**-7).tolist() == [False, False, False, True, False]


def test_without_a_finite_pair_there_are_no_means():
    logps = {
        name: np.array([math.nan]) for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")
    }
    assert displacement_by_group(logps, ["correct_to_correct"]) == {}
