"""Intervals and tests: Wilson, bootstrap over prompts, McNemar, exact rank correlations."""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, combinations, permutations

import numpy as np
from numpy.typing import ArrayLike

DRAWS_AT_ONCE = 2**20  # of a bootstrap: 24 MiB in all, whatever the number of clusters (up to it)
EXACT_UP_TO = 9  # values of a correlation: 9! orders take 0.1 s
EXACT_LISTS_UP_TO = 7  # completions: 7! orders take a millisecond, and there are many lists


def wilson_interval(n_correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion. n = 0 raises ValueError."""
    from scipy import stats

    interval = stats.binomtest(n_correct, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_95(
    numerators: ArrayLike, clusters: Sequence[str], seed: int, denominators: ArrayLike | None = None
) -> list[float | None]:
    """Percentile interval of Σ numerators / Σ denominators when whole clusters are resampled; as
    `interval_95`: [null, null] for a single cluster, and where no resample differs from another,
    which says nothing of how sure a value is.

    Without denominators, the interval of the mean of the numerators.
    """
    n = len(clusters)
    bottoms = np.ones(n) if denominators is None else denominators
    drawn = resampled_means(numerators, bottoms, clusters, np.zeros(n, dtype=int), 1, seed)
    return interval_95(drawn)


def has_width(low: float, high: float) -> bool:
    """Whether two bounds differ by more than the rounding of sums; NaN: no."""
    return high - low > 1e-12 * max(abs(low), abs(high))


def resampled_means(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Sequence[str],
    cells: ArrayLike,
    n_cells: int,
    seed: int = 0,
    n_resamples: int = 2000,
) -> np.ndarray:
    """Σ numerators / Σ denominators of every cell when whole clusters are resampled.

    cells: the cell of each value, 0 to n_cells − 1; a cluster may have values in several. One draw
    of clusters serves all cells, so that functions of several of them can be resampled too.
    Returns (n_resamples, n_cells), NaN where a resample has nothing of a cell, and everywhere for
    a single cluster.
    """
    from scipy import sparse

    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    n = int(owner.max(initial=-1)) + 1
    if n < 2:
        return np.full((n_resamples, n_cells), np.nan)
    place = (owner, np.asarray(cells))
    tops, bottoms = (
        sparse.coo_array((np.asarray(values, dtype=float), place), (n, n_cells)).tocsr()
        for values in (numerators, denominators)
    )
    means = np.empty((n_resamples, n_cells))
    for part, times in draw_clusters(n, seed, n_resamples, n):
        with np.errstate(divide="ignore", invalid="ignore"):
            means[part] = (times @ tops) / (times @ bottoms)
    return means


def draw_clusters(
    n: int, seed: int, n_resamples: int, width: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Which resamples, and how often each of n clusters is drawn in each of these: (size, n).

    So many at a time that `size` × `width` is at most DRAWS_AT_ONCE, which changes no draw.
    """
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // width)
    for start in range(0, n_resamples, at_once):
        size = min(at_once, n_resamples - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        yield slice(start, start + size), times.astype(float)


def interval_95(resampled: np.ndarray) -> list[float | None]:
    """Percentile interval of resampled values, NaN left out; [null, null] where all are NaN, or
    the bounds alike."""
    known = resampled[np.isfinite(resampled)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    return [float(low), float(high)] if has_width(low, high) else [None, None]


def auc(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """P(the score of a random positive > that of a random negative), equal ones counted half.

    scores: (n,), finite; positive: (n,) of bool. None where one of the two kinds is missing.
    """
    from scipy import stats

    values, kinds = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    n_positive = int(kinds.sum())
    if n_positive in (0, len(kinds)):
        return None
    rank_sum = float(stats.rankdata(values)[kinds].sum())
    below = rank_sum - n_positive * (n_positive + 1) / 2  # Mann-Whitney's U
    return below / (n_positive * (len(kinds) - n_positive))


def auc_95(
    scores: ArrayLike,
    positive: ArrayLike,
    clusters: Sequence[str],
    seed: int = 0,
    n_resamples: int = 2000,
) -> list[float | None]:
    """Percentile interval of `auc` when whole clusters are resampled; resamples of one kind only
    are left out. [null, null] for a single cluster, and where all are left out."""
    from scipy import sparse

    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    levels, level = np.unique(np.asarray(scores, dtype=float), return_inverse=True)
    kinds = np.asarray(positive, dtype=bool)
    shape = n, n_levels = int(owner.max(initial=-1)) + 1, len(levels)
    if n < 2:
        return [None, None]
    positives, negatives = (
        sparse.coo_array((np.ones(own.sum()), (owner[own], level[own])), shape).tocsr()
        for own in (kinds, ~kinds)
    )
    values = np.empty(n_resamples)
    for part, times in draw_clusters(n, seed, n_resamples, max(n, n_levels)):
        high, low = times @ positives, times @ negatives  # (size, n_levels), how many of each score
        below = low.cumsum(axis=1) - low / 2
        with np.errstate(invalid="ignore"):
            pairs = high.sum(axis=1) * low.sum(axis=1)
            values[part] = (high * below).sum(axis=1) / pairs
    return interval_95(values)


def exact_mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """(only first correct, only second correct, two-sided exact p) of two paired outcomes."""
    from scipy import stats

    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"paired outcomes of different length: {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_a + only_b
    return only_a, only_b, float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0


def rank_correlation(
    scores: Sequence[float], ranks: Sequence[int], kind: str
) -> tuple[float, float]:
    """(coefficient, p-value) between scores and human order; kind "spearmanr" or "kendalltau".

    The p-value is `correlation_test`'s (at K = 4 it cannot fall below 1/12). NaN where undefined:
    non-finite or constant scores, or all ranks tied.
    """
    if not np.all(np.isfinite(scores)) or len(set(ranks)) == 1 or len(set(scores)) == 1:
        return math.nan, math.nan
    return correlation_test(scores, -np.asarray(ranks), kind, EXACT_LISTS_UP_TO)


def correlation_test(
    x: Sequence[float], y: ArrayLike, kind: str, exact_up_to: int = EXACT_UP_TO
) -> tuple[float, float]:
    """(coefficient, two-sided p-value) of two lists; kind "spearmanr" or "kendalltau".

    Up to `exact_up_to` values the p-value is exact, over all orders; scipy's beyond.
    """
    from scipy import stats

    function = {"spearmanr": stats.spearmanr, "kendalltau": stats.kendalltau}[kind]
    result = function(x, y)
    if len(x) > exact_up_to:
        return float(result.statistic), float(result.pvalue)
    return float(result.statistic), permutation_p_value(x, y, kind)


@cache
def all_orders(n: int) -> np.ndarray:
    """The (n!, n) orders of n indices, the identity first."""
    indices = chain.from_iterable(permutations(range(n)))
    return np.fromiter(indices, np.int8, math.factorial(n) * n).reshape(-1, n)


def permutation_p_value(x: ArrayLike, y: ArrayLike, kind: str) -> float:
    """Share of all orders of y whose |Spearman or Kendall statistic| with x is as large."""
    from scipy import stats

    x_ranks, y_ranks = stats.rankdata(x), stats.rankdata(y)
    orders = y_ranks[all_orders(len(y_ranks))]  # (n!, n), the observed order first
    if kind == "spearmanr":
        statistics = orders @ (x_ranks - x_ranks.mean())
    else:
        statistics = np.zeros(len(orders))
        for i, j in combinations(range(len(x_ranks)), 2):
            statistics += np.sign(orders[:, i] - orders[:, j]) * np.sign(x_ranks[i] - x_ranks[j])
    return float((np.abs(statistics) >= np.abs(statistics[0]) - 1e-9).mean())
