"""Intervals, tests and correlations against hand-worked values, brute force, scipy, statsmodels."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from result_rows import bootstrap_of_scipy
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from ranking.metrics.intervals import (
    DRAWS_AT_ONCE,
    bootstrap_95,
    correlation_test,
    exact_mcnemar,
    rank_correlation,
    resampled_means,
    wilson_interval,
)


def test_correlations_are_scipys_with_the_better_rank_higher():
    rng = np.random.default_rng(0)
    scores, ranks = rng.normal(size=6), [1, 2, 2, 4, 5, 6]
    value, p_value = rank_correlation(scores, ranks, "spearmanr")
    # by definition: Pearson's r of the ranks
    expected = np.corrcoef(stats.rankdata(scores), stats.rankdata([-r for r in ranks]))[0, 1]
    assert value == pytest.approx(expected) and 0 <= p_value <= 1
    concordant = sum(
        np.sign((scores[i] - scores[j]) * (ranks[j] - ranks[i]))
        for i, j in itertools.combinations(range(6), 2)
    )
    tau, _ = rank_correlation(scores, ranks, "kendalltau")
    assert tau == pytest.approx(concordant / math.sqrt(15 * 14))  # tau-b, one tied pair
    assert rank_correlation([3.0, 2.0, 1.0], [1, 2, 3], "kendalltau")[0] == pytest.approx(1.0)
    assert math.isnan(rank_correlation([1.0, 1.0, 1.0], [1, 2, 3], "spearmanr")[0])


@pytest.mark.parametrize("kind", ["spearmanr", "kendalltau"])
def test_p_values_of_short_lists_are_exact(kind):
    for k, smallest in ((3, 2 / 6), (4, 2 / 24), (5, 2 / 120)):
        assert rank_correlation(range(k), list(range(k, 0, -1)), kind) == pytest.approx(
            (1, smallest)
        )
    scores, ranks = [0.3, 2.0, 1.0, -1.0, 0.5], [2, 1, 4, 5, 3]
    expected = stats.kendalltau(scores, [-r for r in ranks], method="exact").pvalue
    assert rank_correlation(scores, ranks, "kendalltau")[1] == pytest.approx(expected)


def test_p_values_are_exact_with_ties_and_up_to_nine():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=9).tolist(), rng.permutation(9).tolist()
    expected = stats.kendalltau(x, y, method="exact").pvalue
    assert correlation_test(x, y, "kendalltau")[1] == pytest.approx(expected)
    x, y = [1.0, 2.0, 2.0, 3.0, 4.0, 4.0], [2, 1, 3, 3, 5, 4]
    for kind in ("spearmanr", "kendalltau"):
        statistic = getattr(stats, kind)
        found, p_value = correlation_test(x, y, kind)
        everyone = [statistic(x, order).statistic for order in itertools.permutations(y)]
        assert p_value == pytest.approx(np.mean(np.abs(everyone) >= abs(found) - 1e-9))


def test_clustered_bootstrap_sees_the_clusters():
    """50 clusters of 20 identical values are as uncertain as 50 values, not 1000."""
    values = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    one = bootstrap_95(values, [str(i) for i in range(50)], 0)
    many = bootstrap_95(np.repeat(values, 20), [str(i // 20) for i in range(1000)], 0)
    assert many == pytest.approx(one)
    standard_error = values.std() / math.sqrt(50)
    assert one[1] - one[0] == pytest.approx(2 * 1.96 * standard_error, rel=0.15)


def test_bootstrap_in_parts_draws_what_one_call_would():
    """Σ over resampled clusters, written out, and by scipy; more draws than are made at once."""
    rng = np.random.default_rng(3)
    tops, bottoms = rng.normal(size=700), rng.integers(1, 5, 700)
    draws = np.random.default_rng(7).integers(0, 700, (2000, 700))
    expected = np.percentile(tops[draws].sum(1) / bottoms[draws].sum(1), [2.5, 97.5])
    clusters = [f"{k:03}" for k in range(700)]
    found = bootstrap_95(tops, clusters, 7, bottoms)
    assert draws.size > DRAWS_AT_ONCE and found == pytest.approx(expected, rel=1e-12)
    assert found == pytest.approx(bootstrap_of_scipy(tops, bottoms, clusters, 7), rel=1e-12)


def test_bootstrap_memory_does_not_grow_with_the_resamples():
    n = 50_000
    clusters = [str(k) for k in range(n)]
    tracemalloc.start()
    resampled_means(np.ones(n), np.ones(n), clusters, np.zeros(n, int), 1, n_resamples=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * 2**20  # one call for all: 120 MB, at 2000 resamples 2.4 GB


def test_exact_mcnemar_is_a_sign_test_on_discordant_pairs():
    first = [True] * 8 + [False] * 2 + [True] * 5
    second = [False] * 8 + [True] * 2 + [True] * 5
    # two-sided binomial(10, 1/2): 2 (1 + 10 + 45) / 1024
    assert exact_mcnemar(first, second) == (8, 2, pytest.approx(112 / 1024))
    assert exact_mcnemar([True], [True]) == (0, 0, 1.0)
    with pytest.raises(ValueError, match="length"):
        exact_mcnemar([True], [True, False])


def test_bootstrap_of_result_files_is_null_without_two_clusters():
    assert bootstrap_95([], [], 0) == bootstrap_95([1.0, 0.0], ["a", "a"], 0) == [None, None]
    values, clusters = [1.0, 0.0, 1.0], ["a", "b", "c"]
    peer = bootstrap_of_scipy(values, [1] * 3, clusters, 5)
    assert bootstrap_95(values, clusters, 5) == pytest.approx(peer)


def test_intervals_and_tests_are_those_of_statsmodels():
    for k, n in ((0, 5), (3, 7), (96, 199), (1000, 1000)):
        assert wilson_interval(k, n) == pytest.approx(
            proportion_confint(k, n, method="wilson"), abs=1e-9
        )
    first, second = np.random.default_rng(0).random((2, 40)) < 0.6
    table = [[np.sum(first & second), np.sum(first & ~second)],
             [np.sum(~first & second), np.sum(~first & ~second)]]  # fmt: skip
    found = exact_mcnemar(first.tolist(), second.tolist())
    assert found[:2] == (table[0][1], table[1][0])
    assert found[2] == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_resamples_that_are_all_alike_are_no_interval():
    clusters = [f"p{k}" for k in range(6)]
    assert bootstrap_95(np.zeros(6), clusters, 0) == [None, None]  # the gap of two equal models
    assert bootstrap_95(np.full(6, 0.1), clusters, 0) == [None, None]  # their sums are rounded
    assert bootstrap_95([0, 0, 0, 0, 1, 1], clusters, 0) == [0, pytest.approx(2 / 3, abs=0.2)]
