"""Orders of completions: that of people, at random, and by length.

`ranks` are the human order, 1 = best, equal = tied.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import TypedDict


class Baselines(TypedDict):
    """What orders that do not look at the text reach under a metric, as shares in [0, 1]."""

    random: float  # chance
    shorter: float  # shorter completions first, those of equal length in random order
    longer: float


def untied_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """(better, worse) index pairs whose ranks differ."""
    pairs = combinations(range(len(ranks)), 2)
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in pairs if ranks[i] != ranks[j]]


def chance_level(ranks: Sequence[int]) -> float:
    """Probability that a random order is correct: Π m_g! / K! over tie groups of size m_g."""
    sizes = Counter(ranks).values()
    return math.prod(math.factorial(m) for m in sizes) / math.factorial(len(ranks))


def expected_right(scores: Sequence[float], ranks: Sequence[int]) -> dict[str, float]:
    """What the order of finite scores adds to each accuracy of an example, in expectation over
    random orders of equal scores.

    acc: the probability that the whole order is right (Def. A.8), 0 where an untied pair is in the
    wrong order, else Π `chance_level` over groups of equal scores. pairwise_acc: untied pairs in
    the right order. top1: the probability that the first is (one of) the best ranked.
    """
    lead = [scores[better] - scores[worse] for better, worse in untied_pairs(ranks)]
    of_score: dict[float, list[int]] = {}
    for score, rank in zip(scores, ranks):
        of_score.setdefault(score, []).append(rank)
    first = of_score[max(of_score)]
    wrong = any(difference < 0 for difference in lead)
    return {
        "acc": 0.0 if wrong else math.prod(map(chance_level, of_score.values())),
        "pairwise_acc": sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in lead),
        "top1": first.count(min(ranks)) / len(first),
    }


def example_baselines(lengths: Sequence[int], ranks: Sequence[int]) -> dict[str, dict[str, float]]:
    """What each of `Baselines` adds to each accuracy of an example: metric → baseline → value."""
    orders = {"random": [0] * len(ranks), "shorter": [-n for n in lengths], "longer": lengths}
    of_order = {name: expected_right(scores, ranks) for name, scores in orders.items()}
    return {
        metric: {name: values[metric] for name, values in of_order.items()}
        for metric in of_order["random"]
    }
