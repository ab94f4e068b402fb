"""Win rates at equal lengths, by order of asking, beside ranking accuracy."""

import pytest

from ranking.metrics.win_rate import (
    correlations,
    means_by_gamma,
    position_bias,
    summarize_win_rate,
)


def test_correlations_of_near_and_far_half():
    rows = [
        {"squared_distance": d, "ranking_accuracy": a, "win_rate": w, "judge": "openai:m"}
        for d, a, w in [
            (0, 0.1, 0.5),
            (1, 0.2, 0.6),
            (2, 0.3, 0.7),
            (5, 0.2, 0.9),
            (7, 0.3, 0.8),
            (9, 0.4, 0.7),
        ]
    ]
    everything, near, far = correlations(rows[::-1])
    assert (near["n"], near["spearmanr"]) == (3, pytest.approx(1.0))
    assert (far["n"], far["spearmanr"]) == (3, pytest.approx(-1.0))
    assert everything["n"] == 6 and -1 < everything["spearmanr"] < 1
    assert near["p_value"] == far["p_value"] == pytest.approx(2 / 6)  # two of the 3! orders
    wins = (0.1, 0.2, 0.3, 0.5, 0.4)  # of the 5! orders, 1 + 4 are as high and as many as low
    rows = [
        {"squared_distance": k, "ranking_accuracy": k / 9, "win_rate": w, "judge": "openai:m"}
        for k, w in enumerate(wins)
    ]
    assert correlations(rows)[0]["spearmanr"] == pytest.approx(0.9)
    assert correlations(rows)[0]["p_value"] == pytest.approx(10 / 120)


def test_win_rates_of_several_judges_are_not_put_together():
    rows = [
        {"squared_distance": k, "ranking_accuracy": 0.1 * k, "win_rate": 0.2 * k, "gamma": 1.0 * k,
         "judge": "openai:m" if k else "reward-model:m"}
        for k in range(4)
    ]  # fmt: skip
    assert len(correlations(rows[1:])) == 3 and len(means_by_gamma(rows[1:])) == 3
    for computed in (correlations, means_by_gamma):
        with pytest.raises(ValueError, match=r"different judges \(reward-model:m, openai:m\)"):
            computed(rows)


def test_shares_of_a_win_count_as_what_they_are_nearer_to():
    """0.9, 0.5 and 0.2: one win, one tie, one loss, and a win rate of 1.6 / 3."""
    rows = [
        {"prompt_id": str(k), "win": win, "policy_response": "a", "other_response": "b",
         "verdicts": verdicts}
        for k, (win, *verdicts) in enumerate([(0.9, 0.85, 0.05), (0.5, 0.5, 0.5), (0.2, 0.6, 1.0)])
    ]  # fmt: skip
    row = summarize_win_rate(rows, {}, 0)
    assert row["win_rate"] == pytest.approx(1.6 / 3)
    assert (row["n_wins"], row["n_ties"], row["n_losses"]) == (1, 1, 1)
    assert row["order_disagreement"] == pytest.approx(1 / 3)  # the last: 0.6, then 1 − 1
    assert row["first_reply_share"] == pytest.approx((0.85 + 0.05 + 1.0 + 1.6) / 6)
    assert row["length_controlled_win_rate"] == pytest.approx(1.6 / 3)  # all are of one length


def test_position_bias_is_of_clear_verdicts():
    bias = position_bias([(1.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5), (None, 1.0)])
    assert bias == {"order_disagreement": 0.5, "first_reply_share": 6 / 8}


def test_win_rates_by_group_leave_unclear_verdicts_out():
    """code: 1 and 1/2; chat: 0, and one that is unclear. The mean over both is 3/8."""
    judged = [("code", 1.0), ("code", 0.5), ("chat", 0.0), ("chat", None)]
    rows = [
        {"prompt_id": str(k), "win": win, "groups": {"domain": domain}, "policy_response": "a",
         "other_response": "b"}
        for k, (domain, win) in enumerate(judged)
    ]  # fmt: skip
    row = summarize_win_rate(rows, {}, 0)
    assert [(e["group"], e["n"], e["value"]) for e in row["by_group"]] == [
        ("chat", 1, 0.0), ("code", 2, 0.75)]  # fmt: skip
    assert row["by_group"][1]["bootstrap_95"] == [0.5, 1.0]
    assert [(e["n_groups"], e["value"]) for e in row["mean_over_groups"]] == [(2, 0.375)]
    plain = [{**row, "groups": {}} for row in rows]
    assert summarize_win_rate(plain, {}, 0)["by_group"] == []
