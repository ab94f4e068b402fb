"""ranking_dynamics.jsonl: null for what is not finite; a resumed run lists nothing twice."""

import json
import math

import numpy as np
import pytest

from ranking.metrics.dynamics import pair_values
from ranking.reports.dynamics import read_dynamics
from ranking.training.dynamics_file import append_dynamics, dynamics_rows, forget_later_steps

NAMES = ("chosen", "rejected", "ref_chosen", "ref_rejected", "n_chosen", "n_rejected")
PAIRS = [(-10, -20, -11, -12, 5, 5), (-30, -20, -11, -12, 5, 4), (-10, -10, -15, -12, 10, 5),
         (-40, -20, -42, -12, 20, 5)]  # fmt: skip


def values_of(rows, **loss):
    return pair_values(dict(zip(NAMES, np.array(rows, dtype=float).T)), beta=0.1, gamma=1.0, **loss)


def test_non_finite_log_likelihoods_are_wrong():
    with np.errstate(invalid="ignore"):
        values = values_of([(math.nan, -1, -2, -3, 1, 1)])
    assert not values["correct"][0] and values["ref_correct"][0]
    (row,) = dynamics_rows(values, ["a"], {"step": 0})
    assert row["chosen"] is None and row["loss"] is None and row["group"] == "correct_to_incorrect"
    json.dumps(row, allow_nan=False)


def test_the_loss_that_trains_stands_beside_equation_4():
    """Log-ratios per token 2 − 0.2 of the first pair: IPO's target is 1/(2β) = 5."""
    (row, *_) = dynamics_rows(values_of(PAIRS, loss_type="ipo"), "abcd", {"step": 0})
    assert row["trained_loss"] == pytest.approx((1.8 - 5) ** 2)
    assert row["loss"] == pytest.approx(math.log1p(math.exp(-0.9)))
    for eq_4 in ("alpha_scaling", "sigmoid", None):
        (row, *_) = dynamics_rows(values_of(PAIRS, loss_type=eq_4), "abcd", {"step": 0})
        assert "trained_loss" not in row


def facts(step, part):
    return {
        "step": step,
        "epoch": 0.1,
        "part": part,
        "beta": 0.1,
        "gamma": 1.0,
        "squared_distance": None,
    }


def test_resume_forgets_later_steps_and_a_torn_line(tmp_path):
    path = tmp_path / "run" / "ranking_dynamics.jsonl"  # whose folder is not there yet
    assert forget_later_steps(path, 5) == set()
    for step in (0, 5, 10):
        for part in ("validation", "train"):
            append_dynamics(path, dynamics_rows(values_of(PAIRS), "abcd", facts(step, part)))
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"step": 10, "par')
    kept = forget_later_steps(path, 5)
    assert kept == {(0, "train"), (0, "validation"), (5, "train"), (5, "validation")}
    assert whole.startswith(path.read_bytes())
    assert [row["step"] for row in read_dynamics(path)] == [0] * 8 + [5] * 8
    assert forget_later_steps(path, 99) == kept
    assert forget_later_steps(path, -1) == set() and not path.exists()
