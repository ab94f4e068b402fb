"""Results by group against hand-worked values, the whole dataset's, and scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from result_rows import scored_record

from ranking.metrics.accuracy import summarize_dataset
from ranking.metrics.groups import MAX_GROUPS, group_means
from ranking.metrics.intervals import resampled_means, wilson_interval
from ranking.metrics.orders import chance_level

GROUPS = [{"domain": "b"}, {"domain": "a"}, {"domain": "b"}, {}, {"domain": "b"}]
PROMPTS = ["p", "q", "r", "s", "t"]


def test_means_of_groups_by_hand():
    """b: 1, 0, 1; a: 1; one example has no domain. The mean over groups is (1 + 2/3) / 2."""
    by_group, over_groups = group_means(GROUPS, PROMPTS, 0, [1, 1, 0, 0, 1])
    assert [(e["column"], e["group"], e["n"], e["value"]) for e in by_group] == [
        ("domain", "a", 1, 1.0), ("domain", "b", 3, pytest.approx(2 / 3)), ("domain", None, 1, 0.0)
    ]  # fmt: skip
    (mean,) = over_groups
    assert (mean["n_groups"], mean["value"]) == (2, pytest.approx(5 / 6))
    assert by_group[0]["bootstrap_95"] == [None, None]  # one prompt
    low, high = by_group[1]["bootstrap_95"]
    assert 0 <= low < 2 / 3 < high <= 1


def test_sums_of_pairs_and_several_columns():
    """Σ tops / Σ bottoms, not the mean of ratios: 1/1 and 1/3 make 2/4."""
    groups = [{"x": "1", "y": "u"}, {"x": "1", "y": "v"}]
    by_group, over_groups = group_means(groups, ["p", "q"], 0, [1, 1], [1, 3])
    assert [e["value"] for e in by_group] == pytest.approx([0.5, 1, 1 / 3])
    assert [e["value"] for e in over_groups] == pytest.approx([0.5, 2 / 3])
    assert group_means([{}, {}], ["p", "q"], 0, [1, 0]) == ([], [])


def test_a_column_of_too_many_values_is_named_without_them():
    n = MAX_GROUPS + 1
    by_group, (mean,) = group_means([{"id": str(k)} for k in range(n)], ["p"] * n, 0, [1] * n)
    assert by_group == [] and (mean["n_groups"], mean["value"]) == (n, None)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.sampled_from("pqrst")),
                min_size=1, max_size=30))  # fmt: skip
def test_groups_add_up_to_the_whole(examples):
    tops, names, prompts = zip(*examples)
    by_group, (mean,) = group_means([{"g": name} for name in names], prompts, 0, tops)
    assert sum(e["n"] * e["value"] for e in by_group) == pytest.approx(sum(tops))
    assert sum(e["n"] for e in by_group) == len(examples)
    assert mean["value"] == pytest.approx(np.mean([e["value"] for e in by_group]))
    for entry in by_group:
        low, high = entry["bootstrap_95"]
        assert (low is None) == (high is None) and (low is None or 0 <= low <= high <= 1)


def test_cells_of_one_draw_stay_together():
    """Two cells with the same values in the same clusters have the same mean in every resample."""
    clusters = ["a", "b", "c"] * 2
    drawn = resampled_means([1, 0, 0] * 2, np.ones(6), clusters, [0] * 3 + [1] * 3, 2)
    assert np.array_equal(drawn[:, 0], drawn[:, 1])
    assert set(np.round(3 * drawn[:, 0])) == {0, 1, 2, 3}  # how often the first of three is drawn


def test_rows_of_a_dataset_have_their_groups():
    """chat: 1 of 2 right, chance 1/2; math: lists of four, 0 of 1, chance 1/24."""
    records = [
        {**scored_record(0, [-1.0, -2.0], [1, 2], "p"), "groups": {"subset": "chat"}},
        {**scored_record(1, [-2.0, -1.0], [1, 2], "q"), "groups": {"subset": "chat"}},
        {**scored_record(2, [-4.0, -3.0, -2.0, -1.0], [1, 2, 3, 4], "r"),
         "groups": {"subset": "math"}},
    ]  # fmt: skip
    rows = summarize_dataset(records, {}, False, 0)
    acc = [row for row in rows if row["distance_metric"] == "acc"][0]
    chat, math = acc["by_group"]
    assert (chat["group"], chat["n"], chat["value"], chat["chance"]) == ("chat", 2, 0.5, 0.5)
    assert (math["group"], math["n"], math["value"]) == ("math", 1, 0.0)
    assert math["chance"] == pytest.approx(1 / 24)
    assert chat["wilson_95"] == wilson_interval(1, 2)
    (mean,) = acc["mean_over_groups"]
    assert (mean["value"], mean["n_groups"]) == (0.25, 2)
    assert mean["chance"] == pytest.approx((1 / 2 + 1 / 24) / 2)
    kendall = [row for row in rows if row["distance_metric"] == "kendalltau"][0]
    assert [(e["group"], e["value"], e["chance"]) for e in kendall["by_group"]] == [
        ("math", pytest.approx(-1), None)
    ]
    old = summarize_dataset([{k: v for k, v in r.items() if k != "groups"} for r in records], {}, False, 0)  # fmt: skip
    assert all(row["by_group"] == row["mean_over_groups"] == [] for row in old)


def test_lists_of_37_completions():
    """RewardBench 2's Ties: 1 right of 37, and 30 right of 37."""
    assert chance_level([1] + [2] * 36) == pytest.approx(1 / 37)
    assert chance_level([1] * 2 + [2] * 35) == pytest.approx(2 / (37 * 36))
    scores = [-float(k) for k in range(37)]
    record = scored_record(0, scores, [1] * 30 + [31] * 7)
    values = {
        row["distance_metric"]: row["distance_metric_value_mean"]
        for row in summarize_dataset([record], {}, False, 0)
    }
    assert values["acc"] == values["pairwise_acc"] == values["top1"] == 1
