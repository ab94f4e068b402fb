"""Ranking accuracy R and R̃ (Def. 2.3, A.8, C.1; Fig. 1, Tables 2-5), chance, companions.

`scores` are log-likelihoods (nats), summed (Eq. 13) or length-normalized (Eq. 15), one per
completion; `ranks` the human order, 1 = best, equal = tied.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ranking.metrics.intervals import (
    clustered_bootstrap_interval,
    exact_mcnemar,
    rank_correlation,
    wilson_interval,
)

TIE_EPSILON = 0.01  # Def. C.1


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


NORMALIZATIONS = ("length-normalized", "non-length-normalized")


def record_scores(record: dict[str, Any], normalization: str) -> list[float]:
    """Log-likelihoods (Eq. 13), or divided by the number of tokens (Eq. 15); null becomes NaN."""
    scores = []
    for completion in record["completions"]:
        logp = math.nan if completion["logp"] is None else completion["logp"]
        scores.append(
            logp / completion["n_tokens"] if normalization == "length-normalized" else logp
        )
    return scores


def example_metrics(
    records: list[dict[str, Any]], normalization: str, include_ties: bool
) -> dict[str, dict]:
    """metric → lists over examples: numerators, denominators (defined examples only), p-values, and
    what of the numerators is owed to exact ties."""
    accuracy = ranking_accuracy_with_ties if include_ties else ranking_accuracy
    metrics: dict[str, dict] = {}

    def add(
        name: str, record: dict[str, Any], numerator: float, denominator: float = 1,
        p: float | None = None, by_ties: float = 0,
    ):  # fmt: skip
        entry = metrics.setdefault(
            name, {"top": [], "bottom": [], "clusters": [], "p": [], "by_ties": 0}
        )
        entry["by_ties"] += by_ties
        entry["top"].append(float(numerator))
        entry["bottom"].append(float(denominator))
        entry["clusters"].append(record["prompt_id"])
        if p is not None:
            entry["p"].append(p)

    for record in records:
        scores, ranks = record_scores(record, normalization), record["ranks"]
        n_equal = exact_ties(scores, ranks)
        correct = accuracy(scores, ranks)
        add("acc", record, correct, by_ties=correct and n_equal > 0)
        if include_ties:
            literal = ranking_accuracy_with_literal_ties(scores, ranks)
            add("acc_literal_ties", record, literal, by_ties=literal and n_equal > 0)
        n_correct, n_pairs = pairwise_accuracy(scores, ranks)
        if n_pairs:
            add("pairwise_acc", record, n_correct, n_pairs, by_ties=n_equal)
            add("top1", record, top1_accuracy(scores, ranks))
        if len(ranks) > 2:
            for kind in ("spearmanr", "kendalltau"):
                value, p_value = rank_correlation(scores, ranks, kind)
                if math.isfinite(value):
                    add(kind, record, value, 1, p_value)
    return metrics


def is_cut(record: dict[str, Any]) -> bool:
    """Whether the prompt lost its beginning."""
    return any(completion.get("truncated") for completion in record["completions"])


def summarize_dataset(
    records: list[dict[str, Any]], common: dict[str, Any], include_ties: bool, seed: int
) -> list[dict[str, Any]]:
    """Summary rows of one dataset: normalization × metric, with chance and 95 % intervals."""
    n_non_finite = sum(any(c["logp"] is None for c in record["completions"]) for record in records)
    n_ties = sum(len(set(record["ranks"])) < len(record["ranks"]) for record in records)
    n_truncated = sum(is_cut(record) for record in records)
    sizes = [len(record["ranks"]) for record in records]
    chance = float(np.mean([chance_level(record["ranks"]) for record in records]))
    rows = []
    for normalization in NORMALIZATIONS:
        n_equal = sum(
            exact_ties(record_scores(record, normalization), record["ranks"]) for record in records
        )
        for metric, entry in example_metrics(records, normalization, include_ties).items():
            top, bottom = np.array(entry["top"]), np.array(entry["bottom"])
            values = (top / bottom).tolist()
            bootstrap = clustered_bootstrap_interval(
                entry["top"], entry["bottom"], entry["clusters"], seed
            )
            proportion = metric in ("acc", "acc_literal_ties", "top1")
            wilson = wilson_interval(int(top.sum()), len(top)) if proportion else (None, None)
            rows.append(
                {
                    **common,
                    "calib_property": f"ranking_{normalization}",
                    "distance_metric": metric,
                    "distance_metric_value_mean": float(top.sum() / bottom.sum()),
                    "n_exact_ties": n_equal,
                    "mean_if_exact_ties_are_wrong": float(
                        (top.sum() - entry["by_ties"]) / bottom.sum()
                    ),
                    "n": len(values),
                    "chance": chance if metric == "acc" and not include_ties else None,
                    "wilson_95": wilson,
                    "bootstrap_95": [None if math.isnan(x) else x for x in bootstrap],
                    "n_clusters": len(set(entry["clusters"])),
                    "k_min": min(sizes),
                    "k_max": max(sizes),
                    "n_examples_with_ties": n_ties,
                    "n_non_finite": n_non_finite,
                    "n_truncated_prompts": n_truncated,
                    "example_distance_metric_values": values,
                    "example_p_values": entry["p"] or None,
                    "share_p_below_0.05": float(np.mean(np.array(entry["p"]) < 0.05))
                    if entry["p"]
                    else None,
                }
            )
    return rows


def compare_runs(shared: list[tuple[dict, dict]]) -> list[dict[str, Any]]:
    """Exact McNemar test per dataset, split and normalization.

    shared: the records of two runs for each example that both scored; those without an untied pair
    are left out. `if_exact_ties_are_wrong` holds the counts and p-value without those of Def. 2.3.
    """
    groups: dict[tuple, list[tuple[dict, dict]]] = {}
    for pair in shared:
        if len(set(pair[0]["ranks"])) > 1:
            groups.setdefault((pair[0]["dataset"], pair[0]["split"]), []).append(pair)
    rows = []
    for (dataset, split), pairs in groups.items():
        for normalization in NORMALIZATIONS:
            correct: tuple[list[bool], list[bool]] = ([], [])
            equal: tuple[list[bool], list[bool]] = ([], [])
            for pair in pairs:
                for side, record in enumerate(pair):
                    scores = record_scores(record, normalization), record["ranks"]
                    correct[side].append(ranking_accuracy(*scores))
                    equal[side].append(exact_ties(*scores) > 0)
            strict = [np.array(c) & ~np.array(e) for c, e in zip(correct, equal)]
            names = ("only_this_correct", "only_other_correct", "p_value")
            rows.append(
                {
                    "dataset": dataset,
                    "split": split,
                    "calib_property": f"ranking_{normalization}",
                    "n": len(pairs),
                    **dict(zip(names, exact_mcnemar(*correct))),
                    "n_exact_ties": [sum(side) for side in equal],
                    "if_exact_ties_are_wrong": dict(zip(names, exact_mcnemar(*strict))),
                }
            )
    return rows
