"""Length baselines against hand-worked values, closed forms, scipy and statsmodels."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit, logit

from ranking.metrics.intervals import bootstrap_95
from ranking.metrics.length import (
    length_columns,
    length_correlation,
    pair_baselines,
    rate_at_equal_length,
)


def drawn_pairs(n=400, intercept=0.8, slope=-0.02, per_prompt=2):
    """Pairs whose odds of being right fall with the difference of lengths; a few share a prompt."""
    rng = np.random.default_rng(0)
    differences = rng.integers(-120, 120, n)
    right = rng.random(n) < expit(intercept + slope * differences)
    return right, differences, [str(k // per_prompt) for k in range(n)]


def test_baselines_of_pairs_by_hand():
    """Shorter, shorter, longer, equal: 2.5 and 1.5 of 4."""
    assert pair_baselines([-3, -1, 7, 0]) == {"random": 0.5, "shorter": 0.625, "longer": 0.375}
    with pytest.raises(ValueError, match="at least one pair"):
        pair_baselines([])


def test_two_lengths_have_a_closed_form():
    """Differences −d and d with shares p and q: the logit at 0 is the mean of both logits, and its
    variance, pairs being independent, the quarter of the sum of 1/(n p (1 − p))."""
    right = [1] * 8 + [0] * 2 + [1] * 3 + [0] * 7
    differences = [-5] * 10 + [5] * 10
    value, (low, high), undefined = rate_at_equal_length(
        right, differences, list(map(str, range(20)))
    )
    middle = (logit(0.8) + logit(0.3)) / 2
    assert value == pytest.approx(expit(middle)) and undefined is None
    variance = (1 / (10 * 0.8 * 0.2) + 1 / (10 * 0.3 * 0.7)) / 4
    half = 1.959964 * np.sqrt(variance * 20 / 19 * 19 / 18)  # statsmodels' correction of clusters
    assert (low, high) == pytest.approx(tuple(expit([middle - half, middle + half])), rel=1e-5)


def test_at_equal_length_is_statsmodels_logit():
    import statsmodels.formula.api as smf

    right, differences, prompts = drawn_pairs()
    x = np.tanh(differences / np.std(differences))
    frame = pd.DataFrame({"right": right.astype(float), "x": x})
    codes = np.unique(prompts, return_inverse=True)[1]
    fit = smf.logit("right ~ x", frame).fit(disp=0, cov_type="cluster", cov_kwds={"groups": codes})
    found = rate_at_equal_length(right, differences, prompts)
    assert found.value == pytest.approx(expit(fit.params["Intercept"]), abs=1e-6)
    assert found.interval == pytest.approx(list(expit(fit.conf_int().loc["Intercept"])), abs=1e-5)
    assert abs(found.value - right.mean()) > 0.01 and found.interval[0] < expit(0.8) < found.interval[1]  # fmt: skip


def test_the_interval_holds_the_truth_of_19_in_20_samples():
    """Prompts of four pairs that are all right or all wrong: naive intervals would be half as wide."""
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(200):
        right = np.repeat(rng.random(60) < 0.7, 4)
        differences = rng.normal(0, 30, 240)
        interval = rate_at_equal_length(
            right, differences, np.repeat(np.arange(60), 4).astype(str)
        ).interval
        inside.append(interval[0] <= 0.7 <= interval[1])
    assert 0.89 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize(
    ("right", "differences", "undefined"),
    [
        ([], [], "no pair"),
        ([1, 1], [1, -1], "all are right"),
        ([0, 0], [1, -1], "all are wrong"),
        ([1, 0, 0.5], [3, 3, 3], "all differences of length are to one side"),
        ([1, 0, 1, 0], [1900, 2000, 2100, 2050], "all differences of length are to one side"),
        ([1, 0, 1, 0], [-500, -600, -610, -400], "all differences of length are to one side"),
        ([1, 1, 0, 0], [-9, -8, 8, 9], "a difference of length divides right from wrong"),
        ([1, 1, 0, 0], [-9, 8, 8, 9], "a difference of length divides right from wrong"),
        ([1, 0.5, 0, 0], [9, 8, 8, -9], "a difference of length divides right from wrong"),
    ],
)
def test_no_finite_optimum_says_why(right, differences, undefined):
    prompts = [str(k) for k in range(len(right))]
    assert rate_at_equal_length(right, differences, prompts) == (None, [None, None], undefined)


def test_equal_lengths_and_one_prompt():
    """Without any difference the value is the mean; a single prompt has no interval."""
    value, interval, _ = rate_at_equal_length([1, 1, 0, 0.5], [0, 0, 0, 0], ["p", "q", "r", "s"])
    assert value == pytest.approx(0.625) and interval[0] < 0.625 < interval[1]
    value, interval, _ = rate_at_equal_length([1, 0, 1, 0], [-1, 1, 2, -2], ["p"] * 4)
    assert 0 < value < 1 and interval == [None, None]


def test_prompts_that_are_all_alike_have_no_interval():
    """One of two pairs right in every prompt: no resample of prompts differs from another."""
    right, prompts = [1, 0] * 10, [str(k // 2) for k in range(20)]
    for differences in ([0] * 20, [3, 3, -3, -3] * 5):
        assert rate_at_equal_length(right, differences, prompts) == (
            pytest.approx(0.5), [None, None], None
        )  # fmt: skip
        assert bootstrap_95(right, prompts, 0) == [None, None]


def test_differences_that_are_nearly_alike_are_no_error():
    """Beside one pair of equal length, all differ by 297 to 303 tokens, of which tanh says nothing."""
    differences = [0, *(297 + 5 * k % 7 for k in range(59))]
    right = [1, *(k % 2 == 0 for k in range(59))]
    assert rate_at_equal_length(right, differences).undefined == "the regression does not converge"


def test_ties_alone_are_one_half_without_a_warning(recwarn):
    for differences in ([-2, 0, 5, 9], [0, 0, 0, 0]):
        assert rate_at_equal_length([0.5] * 4, differences).value == pytest.approx(0.5)
    assert not recwarn.list


def test_correlation_is_pearsons():
    right, differences, prompts = drawn_pairs(per_prompt=1)
    value, interval = length_correlation(right, differences, prompts)
    truth = stats.pearsonr(right, differences)
    assert value == pytest.approx(truth.statistic) and value < -0.3
    assert interval == pytest.approx(list(truth.confidence_interval(0.95)), abs=0.03)
    assert length_correlation([1, 1], [3, 4], ["p", "q"]) == (None, [None, None])
    assert length_correlation([1, 0], [3, 3], ["p", "q"]) == (None, [None, None])


def test_resampled_correlations_are_those_of_the_resamples():
    """The vectorized bootstrap against scipy's own over clusters, pair by pair."""
    right, differences, prompts = drawn_pairs(n=60, per_prompt=3)
    owner = np.array([int(p) for p in prompts])

    def correlation(chosen):
        members = np.concatenate([np.flatnonzero(owner == k) for k in chosen])
        return stats.pearsonr(right[members], differences[members]).statistic

    truth = stats.bootstrap(
        (np.arange(20),), correlation, n_resamples=2000, method="percentile", vectorized=False,
        rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    _, interval = length_correlation(right, differences, prompts)
    assert interval == pytest.approx([truth.low, truth.high], abs=0.03)


def test_columns_of_pairs():
    right, differences, prompts = drawn_pairs()
    columns = length_columns(right, differences, prompts)
    assert columns["baselines"] == pair_baselines(differences)
    assert columns["length_correlation"] == length_correlation(right, differences, prompts)[0]
    assert columns["at_equal_length"] == rate_at_equal_length(right, differences).value
