"""Ranking accuracy and its companions against hand-worked values and brute force."""

import math

import pytest

from ranking.metrics.accuracy import (
    exact_ties,
    pairwise_accuracy,
    ranking_accuracy,
    ranking_accuracy_with_literal_ties,
    ranking_accuracy_with_ties,
    top1_accuracy,
)


@pytest.mark.parametrize(
    ("scores", "ranks", "correct"),
    [
        ([-1.0, -2.0], [1, 2], True),
        ([-1.0, -2.0], [2, 1], False),
        ([-1.0, -1.0], [1, 2], True),  # Def. 2.3: ≥
        ([-1.0, -2.0, -3.0], [1, 2, 3], True),
        ([-1.0, -3.0, -2.0], [1, 2, 3], False),
        ([-1.0, -1.0, -2.0], [1, 2, 3], False),  # K > 2: equal likelihoods are wrong
        ([-1.0, -2.0, -3.0], [1, 1, 3], True),  # partly tied: untied pairs only
        ([-2.0, -1.0, -3.0], [1, 1, 3], True),
        ([-1.0, -3.0, -2.0], [1, 1, 3], False),
        ([math.nan, -2.0], [1, 2], False),
        ([-1.0, -math.inf], [1, 2], False),
        ([-1.0, -2.0, math.nan], [1, 2, 3], False),
    ],
)
def test_ranking_accuracy(scores, ranks, correct):
    assert ranking_accuracy(scores, ranks) is correct


def test_all_tied_has_no_ranking_accuracy():
    with pytest.raises(ValueError, match="untied"):
        ranking_accuracy([-1.0, -2.0], [1, 1])


@pytest.mark.parametrize(
    ("scores", "ranks", "log_rule", "literal"),
    [
        ([-1.0, -1.005], [1, 1], True, True),  # |Δlog| = 0.005; |Δp| = 0.0018
        ([-1.0, -1.02], [1, 1], False, True),  # |Δlog| = 0.02; |Δp| = 0.0073
        ([-1.0, -1.5], [1, 1], False, False),
        ([-100.0, -200.0], [1, 1], False, True),  # all long texts tie in probability
        ([-100.0, -200.0], [1, 2], True, True),
        ([-1.0, -1.005, -3.0], [1, 1, 3], True, True),
        ([-1.0, -1.005, -0.5], [1, 1, 3], False, False),
        ([-1.0, -1.01], [1, 1], False, True),  # strictly below 0.01
        ([math.nan, math.nan], [1, 1], False, False),
    ],
)
def test_ties_included(scores, ranks, log_rule, literal):
    assert ranking_accuracy_with_ties(scores, ranks) is log_rule
    assert ranking_accuracy_with_literal_ties(scores, ranks) is literal


def test_pairwise_and_top1():
    assert pairwise_accuracy([-1.0, -3.0, -2.0], [1, 2, 3]) == (2, 3)
    assert pairwise_accuracy([-1.0, -1.0, -2.0], [1, 1, 2]) == (2, 2)
    assert pairwise_accuracy([math.nan, -1.0, -2.0], [1, 2, 3]) == (1, 3)
    assert top1_accuracy([-1.0, -3.0, -2.0], [1, 2, 3])
    assert top1_accuracy([-2.0, -1.0, -3.0], [1, 1, 3])  # either of the best will do
    assert not top1_accuracy([-1.0, -1.0], [1, 2])


def test_exact_ties_are_untied_pairs_of_equal_finite_scores():
    assert exact_ties([-1.0, -1.0], [1, 2]) == 1 and exact_ties([-1.0, -1.0], [1, 1]) == 0
    assert exact_ties([-1.0, -1.0, -1.0, -2.0], [1, 2, 2, 3]) == 2  # (0,1), (0,2); (1,2) is tied
    assert exact_ties([-math.inf, -math.inf], [1, 2]) == exact_ties([math.nan] * 2, [1, 2]) == 0
