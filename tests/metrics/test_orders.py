"""Orders at random and by length against all orders, one by one."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from result_rows import scored_record

from ranking.metrics.accuracy import (
    pairwise_accuracy,
    ranking_accuracy,
    summarize_dataset,
    top1_accuracy,
)
from ranking.metrics.length import pair_baselines
from ranking.metrics.orders import example_baselines, expected_right


def all_refinements(scores):
    """Every order of the completions that keeps the order of their scores, as distinct scores."""
    for places in itertools.permutations(range(len(scores))):
        values = [scores[k] for k in places]
        if values == sorted(values):
            refined = [0.0] * len(scores)
            for value, k in enumerate(places):
                refined[k] = float(value)
            yield refined


@given(st.integers(2, 5).flatmap(lambda k: st.tuples(
    st.lists(st.integers(1, 3), min_size=k, max_size=k),
    st.lists(st.integers(1, 3), min_size=k, max_size=k))))  # fmt: skip
def test_expectations_are_means_over_all_orders(lengths_and_ranks):
    lengths, ranks = lengths_and_ranks
    if len(set(ranks)) == 1:
        return
    orders = {"random": [0] * len(ranks), "shorter": [-n for n in lengths], "longer": lengths}
    found = example_baselines(lengths, ranks)
    for name, scores in orders.items():
        refined = list(all_refinements(scores))
        for metric, rule in (("acc", ranking_accuracy), ("top1", top1_accuracy),
                             ("pairwise_acc", lambda s, r: pairwise_accuracy(s, r)[0])):  # fmt: skip
            truth = np.mean([rule(order, ranks) for order in refined])
            assert found[metric][name] == pytest.approx(truth)


def test_tied_lengths_by_hand():
    """Lengths 5, 5, 9 of ranks 1, 2, 3: the shorter first is right in one of two orders, with half
    a pair of three wrong; the longer first never."""
    assert expected_right([-5, -5, -9], [1, 2, 3]) == {
        "acc": 0.5, "pairwise_acc": 2.5, "top1": 0.5}  # fmt: skip
    assert expected_right([5, 5, 9], [1, 2, 3]) == {"acc": 0.0, "pairwise_acc": 0.5, "top1": 0.0}
    assert expected_right([-5, -5, -9], [1, 1, 3])["acc"] == 1.0  # people tied these two
    assert expected_right([5, 5], [1, 2])["acc"] == 0.5


def rows_of(records, include_ties=False):
    found = summarize_dataset(records, {}, include_ties, 0)
    return {row["distance_metric"]: row for row in found if "non" in row["calib_property"]}


def test_rows_of_pairs():
    """Differences −2, +3, 0, −1: baselines 62.5 % and 37.5 %, in both groups and in all."""
    n_tokens = [(3, 5), (5, 2), (4, 4), (1, 2)]
    records = [
        {**scored_record(k, [-1.0, -2.0 + 3 * (k % 2)], [1, 2], str(k), n_tokens=n),
         "groups": {"domain": "ab"[k // 2]}}
        for k, n in enumerate(n_tokens)
    ]  # fmt: skip
    rows = rows_of(records)
    for metric in ("acc", "pairwise_acc"):
        row = rows[metric]
        assert row["baselines"] == pair_baselines([-2, 3, 0, -1])
        of_group = {entry["group"]: entry["baselines"] for entry in row["by_group"]}
        assert of_group == {"a": pair_baselines([-2, 3]), "b": pair_baselines([0, -1])}
        assert row["mean_over_groups"][0]["baselines"] == {
            "random": 0.5, "shorter": 0.625, "longer": 0.375}  # fmt: skip
        assert row["length_correlation"] == pytest.approx(
            np.corrcoef([1, 0, 1, 0], [-2, 3, 0, -1])[0, 1])  # fmt: skip
        assert row["at_equal_length"] == rows["acc"]["at_equal_length"] is not None
    assert rows["acc"]["chance"] == 0.5 and rows["pairwise_acc"]["chance"] is None


def test_rows_of_lists_and_of_ties():
    """Whole lists have baselines and no value at equal length; correlations have neither. With ties
    included an order by length is not defined for tied pairs, but for untied ones it is."""
    records = [
        scored_record(k, [-1.0, -3.0, -2.0], [1, 2, 3], str(k), n_tokens=(1 + k, 2, 3))
        for k in range(3)
    ]
    rows = rows_of(records)
    assert rows["acc"]["baselines"] == {  # whole orders: right, half right, wrong
        "random": pytest.approx(1 / 6), "shorter": pytest.approx(0.5), "longer": 0.0}  # fmt: skip
    assert rows["acc"]["at_equal_length"] is None
    assert rows["acc"]["at_equal_length_undefined"] == "of pairs: see pairwise_acc"
    assert rows["pairwise_acc"]["baselines"]["shorter"] == pytest.approx((3 + 2.5 + 1.5) / 9)
    assert rows["pairwise_acc"]["at_equal_length"] is not None
    assert rows["spearmanr"]["baselines"] is None
    tied = [
        scored_record(k, [-1.0, -2.0], [1, 1 + k % 2], str(k), n_tokens=(2, 3)) for k in range(4)
    ]
    rows = rows_of(tied, include_ties=True)
    assert rows["acc"]["baselines"] is None and rows["acc"]["at_equal_length"] is None
    assert rows["pairwise_acc"]["baselines"] == {"random": 0.5, "shorter": 1.0, "longer": 0.0}
    assert rows["pairwise_acc"]["at_equal_length_undefined"] == "all are right"
    assert "pairwise_acc" not in rows_of(
        [r for r in tied if r["ranks"] == [1, 1]], include_ties=True
    )


def test_non_finite_scores_are_wrong_at_any_length():
    records = [scored_record(k, [None if k < 2 else -1.0, -2.0], [1, 2], str(k), n_tokens=(k + 1, 3))
               for k in range(4)]  # fmt: skip
    row = rows_of(records)["pairwise_acc"]
    assert row["length_correlation"] == pytest.approx(np.corrcoef([0, 0, 1, 1], range(4))[0, 1])
