"""The theorems verified numerically, and properties of idealized accuracy."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit

from ranking.metrics.idealized import (
    critical_betas,
    curve_steps,
    idealized_correctness,
    preferred_proportion,
    required_loss,
    required_margin,
    summarize_idealized,
    summary_rows,
)


# ---------------------------------------------------------------------------- the theorems
def minimize_dpo(ref: np.ndarray, comparisons, beta: float) -> np.ndarray:
    """log π of the tabular softmax policy that minimizes the expected DPO loss (Newton's method).

    ref: (K,) log π_ref; comparisons: (i, j, weight, α_ij).
    """
    theta = ref.copy()
    for _ in range(200):
        gradient, hessian = np.zeros_like(theta), np.zeros((len(theta), len(theta)))
        for i, j, weight, alpha in comparisons:
            p = expit(beta * ((theta[i] - ref[i]) - (theta[j] - ref[j])))
            direction = np.zeros_like(theta)
            direction[i], direction[j] = 1, -1
            gradient += weight * beta * (p - alpha) * direction
            hessian += weight * beta**2 * p * (1 - p) * np.outer(direction, direction)
        step = np.linalg.pinv(hessian) @ gradient
        theta -= step * min(1.0, 2 / (beta * np.abs(step).max() + 1e-300))
    return log_softmax(theta)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_theorem_3_1_perfect_dpo(beta, seed):
    rng = np.random.default_rng(seed)
    ref = log_softmax(rng.uniform(0, 15, size=5))
    rewards = rng.uniform(-2, 2, size=5)
    edges = {(0, 1), (1, 2), (2, 3), (3, 4), (0, 3)}  # connects all completions
    alphas = {(i, j): expit(rewards[i] - rewards[j]) for i, j in combinations(range(5), 2)}
    policy = minimize_dpo(ref, [(i, j, rng.uniform(0.5, 2), alphas[i, j]) for i, j in edges], beta)
    for (i, j), alpha in alphas.items():
        closed_form = ref[i] - ref[j] + logit(alpha) / beta
        assert policy[i] - policy[j] == pytest.approx(closed_form, abs=1e-4)
        assert idealized_correctness([ref[i] - ref[j]], [alpha], beta)[0] == (policy[i] > policy[j])


@pytest.mark.parametrize("beta", [0.5, 1.0, 5.0])
def test_theorem_3_1_perfect_rlhf(beta):
    """The KL-regularized reward objective, maximized numerically, has the same log-ratios."""
    rng = np.random.default_rng(1)
    ref, rewards = log_softmax(rng.normal(size=4)), rng.uniform(-1, 1, size=4)

    def objective(theta):
        log_policy = log_softmax(theta)
        policy = np.exp(log_policy)
        inner = rewards - beta * (log_policy - ref)
        return -(policy @ inner), -policy * (inner - policy @ inner)

    found = minimize(objective, ref, jac=True, method="BFGS", options={"gtol": 1e-10})
    policy = log_softmax(found.x)
    for i, j in combinations(range(4), 2):
        alpha = expit(rewards[i] - rewards[j])
        assert policy[i] - policy[j] == pytest.approx(
            ref[i] - ref[j] + logit(alpha) / beta, abs=1e-4
        )


def test_theorem_3_1_needs_bradley_terry():
    """Cyclic preferences have no reward, and the closed form fails."""
    ref = log_softmax(np.array([0.0, 1.0, -1.0]))
    cycle = [(0, 1, 1.0, 0.8), (1, 2, 1.0, 0.8), (2, 0, 1.0, 0.8)]
    policy = minimize_dpo(ref, cycle, 1.0)
    errors = [abs(policy[i] - policy[j] - (ref[i] - ref[j] + logit(a))) for i, j, _, a in cycle]
    assert max(errors) > 1


def test_theorem_4_1_is_an_equivalence():
    rng = np.random.default_rng(0)
    policy, ref = rng.normal(scale=20, size=(2, 20_000))
    for beta in (0.01, 0.1, 1.0, 10.0):
        for gamma in (0.25, 1.0, 2.0):
            margins = beta * (policy - gamma * ref)
            correct = policy > 0
            assert np.array_equal(margins > required_margin(ref, beta, gamma), correct)
            if beta <= 0.1:  # where losses do not underflow
                losses = np.logaddexp(0, -margins)
                assert np.array_equal(losses < required_loss(ref, beta, gamma), correct)


def test_required_loss_by_hand():
    assert required_loss([0.0], 0.1)[0] == pytest.approx(math.log(2))
    assert required_loss([-30.0], 0.1)[0] == pytest.approx(-math.log(1 / (1 + math.exp(-3))))
    assert required_loss([-30.0], 0.1, gamma=2)[0] == pytest.approx(math.log1p(math.exp(-6)))
    assert required_loss([500.0], 10)[0] == pytest.approx(5000)


# ---------------------------------------------------------------------------- properties
RATIO = st.floats(-500, 500).map(lambda x: round(x, 3))
ALPHA = st.sampled_from([0.55, 2 / 3, 0.75, 0.9, 0.999])
PAIRS = st.lists(st.tuples(RATIO, ALPHA), min_size=1, max_size=30)


def brute_force(ratio, alpha, beta) -> bool:
    """The definition, multiplied by β and in exact rational arithmetic."""
    from fractions import Fraction

    log_odds = Fraction(float(np.log(alpha) - np.log1p(-alpha)))
    return Fraction(beta) * Fraction(ratio) + log_odds > 0


@settings(max_examples=200)
@given(PAIRS, st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=8))
def test_curve_agrees_with_brute_force_and_decreases(pairs, betas):
    ratios, alphas = map(np.array, zip(*pairs))
    critical = critical_betas(ratios, alphas)
    previous = 1.0
    for beta in sorted(betas):
        direct = idealized_correctness(ratios, alphas, beta)
        for k in range(len(ratios)):
            if abs(critical[k] / beta - 1) > 1e-12:  # at the breakpoint itself rounding decides
                assert direct[k] == (critical[k] > beta) == brute_force(ratios[k], alphas[k], beta)
        accuracy = (critical > beta).mean()
        assert accuracy <= previous
        previous = accuracy
    assert (critical > 1e-300).all()  # β → 0 without ties: 1
    assert (critical > 1e300).mean() == (ratios >= 0).mean()  # β → ∞: the reference's accuracy


@settings(max_examples=200)
@given(RATIO, st.floats(0.01, 0.99), st.floats(1e-3, 1e2))
def test_mirror_image_is_the_complement(ratio, alpha, beta):
    here = bool(idealized_correctness([ratio], [alpha], beta)[0])
    there = bool(idealized_correctness([-ratio], [1 - alpha], beta)[0])
    value = ratio + (math.log(alpha) - math.log1p(-alpha)) / beta
    if abs(value) > 1e-9 * (1 + abs(ratio)):
        assert here != there
        assert here == (value > 0)


def test_extreme_values_do_not_overflow():
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        assert idealized_correctness([-600.0, -700.0], [0.999, 0.999], 0.01).tolist() == [
            True,
            False,
        ]
        assert idealized_correctness([-1.0, 0.0, 0.0], [0.999, 0.5, 0.6], 1e-300).tolist() == [
            True,
            False,
            True,
        ]
        assert critical_betas([-1e-320, 0.0], [0.75, 0.5]).tolist() == [
            math.inf,
            0.0,
        ]
    assert preferred_proportion(4, 0) == 0.999 and preferred_proportion(3, 1) == 0.75
    with pytest.raises(ValueError, match="majority"):
        critical_betas([1.0], [0.4])


def test_curve_falls_by_one_pair_at_each_breakpoint():
    """Of four pairs one is wrong from β → 0 on, and one is never wrong."""
    curve = {"n": 4, "limit_beta_to_0": 0.75, "critical_betas": [0.1, 2.0]}
    assert curve_steps(curve).tolist() == [0.75, 0.5, 0.25]


@given(st.lists(st.tuples(RATIO, RATIO, ALPHA, st.sampled_from("ab")), min_size=2, max_size=20))
def test_each_group_is_what_its_pairs_alone_say(found):
    pairs = [
        {"record": {"prompt_id": str(k), "groups": {"g": name}}, "alpha": alpha, "tied": False,
         "ref_logratio length-normalized": ref, "policy_logratio length-normalized": policy}
        for k, (ref, policy, alpha, name) in enumerate(found)
    ]  # fmt: skip

    def rows_of(chosen):
        return summary_rows(
            summarize_idealized(chosen, "length-normalized", [0.1, 1, 5], 0),
            "length-normalized",
            {},
        )

    names = sorted({name for *_, name in found})
    alone = [rows_of([p for p in pairs if p["record"]["groups"]["g"] == name]) for name in names]
    for k, row in enumerate(rows_of(pairs)):
        assert [entry["group"] for entry in row["by_group"]] == names
        (mean,) = row["mean_over_groups"]
        for entry, rows in zip(row["by_group"], alone):
            assert entry["n"] == rows[k]["n"]
            assert entry["value"] == pytest.approx(rows[k]["distance_metric_value_mean"])
            for key in ("observed_accuracy", "gap", "min_median_max", "gap_to_median"):
                assert entry[key] == pytest.approx(rows[k][key]), key
        for key in ("observed_accuracy", "gap", "gap_to_median"):
            assert mean[key] == pytest.approx(np.mean([rows[k][key] for rows in alone])), key
