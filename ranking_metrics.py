"""Ranking accuracy, chance, correlations and intervals. Pure numpy and scipy.

`scores` are log-likelihoods (nats), summed (Eq. 13) or length-normalized (Eq. 15), one per
completion; `ranks` the human order, 1 = best, equal = tied.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import chain, combinations, permutations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

TIE_EPSILON = 0.01  # Def. C.1
DRAWS_AT_ONCE = 2**20  # of a bootstrap: 24 MiB in all, whatever the number of clusters (up to it)
EXACT_UP_TO = 9  # values of a correlation: 9! orders take 0.1 s
EXACT_LISTS_UP_TO = 7  # completions: 7! orders take a millisecond, and there are many lists


def ranking_accuracy(scores: Sequence[float], ranks: Sequence[int]) -> bool:
    """Whether the scores order the completions as annotators did (Def. 2.3, Def. A.8).

    K = 2: score of the preferred ≥ score of the other. K > 2: every untied pair is strictly
    ordered. Tied pairs are ignored. Non-finite scores are wrong; no untied pair raises ValueError.
    """
    untied = untied_pairs(ranks)
    if not untied:
        raise ValueError("ranking accuracy needs at least one untied pair")
    if not np.all(np.isfinite(scores)):
        return False
    if len(scores) == 2:
        ((better, worse),) = untied
        return bool(scores[better] >= scores[worse])
    return all(scores[better] > scores[worse] for better, worse in untied)


def ranking_accuracy_with_ties(scores: Sequence[float], ranks: Sequence[int]) -> bool:
    """`ranking_accuracy` in which a tied pair is correct iff |Δ log-score| < 0.01 (Def. C.1).

    # DEVIATION: Def. C.1 compares probabilities; see `ranking_accuracy_with_literal_ties`.
    """
    return _with_ties(scores, ranks, np.asarray(scores, dtype=float))


def ranking_accuracy_with_literal_ties(scores: Sequence[float], ranks: Sequence[int]) -> bool:
    """Def. C.1 to the letter: a tied pair is correct iff |exp(score_i) − exp(score_j)| < 0.01."""
    return _with_ties(scores, ranks, np.exp(np.asarray(scores, dtype=float)))


def _with_ties(scores: Sequence[float], ranks: Sequence[int], compared: np.ndarray) -> bool:
    if not np.all(np.isfinite(scores)):
        return False
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] == ranks[j] and not abs(compared[i] - compared[j]) < TIE_EPSILON:
            return False
    return len(set(ranks)) == 1 or ranking_accuracy(scores, ranks)


def untied_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """(better, worse) index pairs whose ranks differ."""
    pairs = combinations(range(len(ranks)), 2)
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in pairs if ranks[i] != ranks[j]]


def chance_level(ranks: Sequence[int]) -> float:
    """Probability that a random order is correct: Π m_g! / K! over tie groups of size m_g."""
    sizes = Counter(ranks).values()
    return math.prod(math.factorial(m) for m in sizes) / math.factorial(len(ranks))


def pairwise_accuracy(scores: Sequence[float], ranks: Sequence[int]) -> tuple[int, int]:
    """(correct, all) untied pairs; each pair by Def. 2.3 (≥). Non-finite scores are wrong."""
    untied = untied_pairs(ranks)
    finite = np.isfinite(scores)
    correct = sum(
        bool(finite[better] and finite[worse] and scores[better] >= scores[worse])
        for better, worse in untied
    )
    return correct, len(untied)


def exact_ties(scores: Sequence[float], ranks: Sequence[int]) -> int:
    """Untied pairs whose finite scores are exactly equal. Def. 2.3 (≥) counts those of two
    completions, and those of `pairwise_accuracy`, as right; a longer list is wrong."""
    finite = np.isfinite(scores)
    return sum(bool(finite[i] and scores[i] == scores[j]) for i, j in untied_pairs(ranks))


def top1_accuracy(scores: Sequence[float], ranks: Sequence[int]) -> bool:
    """Whether the single highest-scored completion is (one of) the best ranked."""
    if not np.all(np.isfinite(scores)):
        return False
    best = np.flatnonzero(np.asarray(scores) == np.max(scores))
    return len(best) == 1 and ranks[best[0]] == min(ranks)


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
    x_ranks, y_ranks = stats.rankdata(x), stats.rankdata(y)
    orders = y_ranks[all_orders(len(y_ranks))]  # (n!, n), the observed order first
    if kind == "spearmanr":
        statistics = orders @ (x_ranks - x_ranks.mean())
    else:
        statistics = np.zeros(len(orders))
        for i, j in combinations(range(len(x_ranks)), 2):
            statistics += np.sign(orders[:, i] - orders[:, j]) * np.sign(x_ranks[i] - x_ranks[j])
    return float((np.abs(statistics) >= np.abs(statistics[0]) - 1e-9).mean())


def wilson_interval(n_correct: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion. n = 0 raises ValueError."""
    interval = stats.binomtest(n_correct, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def clustered_bootstrap_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Sequence[str],
    seed: int = 0,
    level: float = 0.95,
    n_resamples: int = 2000,
) -> tuple[float, float]:
    """Percentile interval of Σ numerators / Σ denominators when whole clusters are resampled.

    For a mean, the denominators are ones. A single cluster gives (NaN, NaN). Resamples are drawn
    `DRAWS_AT_ONCE` clusters at a time, which changes no random number.
    """
    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(owner, weights=np.asarray(numerators, dtype=float))
    counts = np.bincount(owner, weights=np.asarray(denominators, dtype=float))
    if len(sums) < 2:
        return math.nan, math.nan
    result = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=level,
        n_resamples=n_resamples,
        batch=max(1, DRAWS_AT_ONCE // len(sums)),
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def exact_mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """(only first correct, only second correct, two-sided exact p) of two paired outcomes."""
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"paired outcomes of different length: {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_a + only_b
    return only_a, only_b, float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0


# ---------------------------------------------------------------------------- idealized accuracy
def preferred_proportion(
    votes_preferred: float, votes_other: float, epsilon: float = 0.001
) -> float:
    """α, the share of raters who prefer y_w, kept within [ε, 1 − ε] (App. C.4)."""
    return min(max(votes_preferred / (votes_preferred + votes_other), epsilon), 1 - epsilon)


def idealized_correctness(
    ref_logratios: np.ndarray, alphas: np.ndarray, beta: float | np.ndarray
) -> np.ndarray:
    """Whether perfect RLHF or DPO would rank each pair correctly (Theorem 3.1, Corollary 3.3).

    1[ log π_ref(y_w|x) − log π_ref(y_l|x) + (1/β) log(α/(1−α)) > 0 ], decided by comparing β with
    the β at which the two terms cancel, so that 1/β never overflows.
    ref_logratios, alphas: (n_pairs,), nats and shares in (0, 1). beta > 0. Returns bool (n_pairs,).
    """
    ratios, alphas = np.asarray(ref_logratios, dtype=float), np.asarray(alphas, dtype=float)
    log_odds = np.log(alphas) - np.log1p(-alphas)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        crossing = np.abs(log_odds) / np.abs(ratios)
    above = (log_odds > 0) & ((ratios >= 0) | (np.asarray(beta) < crossing))
    below = (log_odds < 0) & (ratios > 0) & (np.asarray(beta) > crossing)
    return above | below | ((log_odds == 0) & (ratios > 0))


def critical_betas(ref_logratios: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """β* of each pair: correct under idealized tuning iff β < β* (Corollary 3.3), for α ≥ 1/2.

    log(α/(1−α)) / (log π_ref(y_l|x) − log π_ref(y_w|x)); ∞ where the reference is already right,
    0 for evenly split votes it ranks wrongly. Raises ValueError for α < 1/2: y_w is the
    majority's choice. Returns (n_pairs,).
    """
    ratios, alphas = np.asarray(ref_logratios, dtype=float), np.asarray(alphas, dtype=float)
    log_odds = np.log(alphas) - np.log1p(-alphas)
    if np.any(log_odds < 0):
        raise ValueError("critical β needs α ≥ 1/2: y_w is the majority's choice")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        crossing = log_odds / -ratios
    always = (ratios > 0) | ((ratios == 0) & (log_odds > 0))
    return np.where(always, np.inf, np.where(log_odds == 0, 0.0, crossing))


def required_margin(ref_logratios: np.ndarray, beta: float, gamma: float = 1.0) -> np.ndarray:
    """DPO^γ margin that ranks a pair correctly: γβc, c = −ref_logratio (Theorem 4.1)."""
    return -gamma * beta * np.asarray(ref_logratios, dtype=float)


def required_loss(ref_logratios: np.ndarray, beta: float, gamma: float = 1.0) -> np.ndarray:
    """DPO^γ loss below which a pair is ranked correctly: −log σ(γβc) (Theorem 4.1), nats.

    Underflows to 0 for γβc beyond about 745; compare `required_margin` instead of losses.
    """
    return np.logaddexp(0.0, -required_margin(ref_logratios, beta, gamma))
