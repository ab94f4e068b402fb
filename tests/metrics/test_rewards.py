"""Implicit rewards, displacement and CHES by brute force over pairs, in float64."""

import math

import numpy as np
import pytest
from conftest import assert_documented
from result_rows import bootstrap_of_scipy, scored_record
from scipy import stats

from ranking.metrics.benchmarks import BenchmarkRow, summarize_benchmarks
from ranking.metrics.displacement import LOGPS, displacement_by_group
from ranking.metrics.intervals import auc, auc_95
from ranking.metrics.rewards import (
    ChesPrediction,
    DisplacementWithIntervals,
    RankingAndReward,
    RewardGroupValue,
    RewardPair,
    RewardRow,
    reward_pairs,
    reward_records,
    rounding_of,
    summarize_rewards,
)

BETA = 0.25
SETTING = {
    "model": "tuned", "revision": None, "dataset_name": "d", "dataset_config": None,
    "dataset_split": None, "dataset_commit": None, "include_ties": False, "seed": 0,
    "versions": {}, "dropped": {}, "joined_by": None, "config_hash": "h",
    "beta": BETA, "reference_model": "base",
}  # fmt: skip


def made(n=60, seed=0, k=2, with_products=False):
    """Records of policy and reference; some pairs tie exactly, one is not finite."""
    rng = np.random.default_rng(seed)
    shared = []
    for number in range(n):
        n_tokens = rng.integers(2, 40, k).tolist()
        before = rng.normal(-60, 12, k)
        after = before + rng.normal(-1, 12, k)
        if number % 10 == 3:
            after = before - 2.0  # all rewards alike
        ranks = rng.permutation(k).tolist() if number % 4 else [1] * (k - 1) + [2]
        logps = [None if number == 5 and i == 0 else float(x) for i, x in enumerate(after)]
        both = [
            {**scored_record(number, x, ranks, f"p{number // 2}", n_tokens=n_tokens), "model": m,
             "groups": {"domain": ("chat", "code")[number % 3 == 0]}}
            for x, m in ((logps, "tuned"), (before.tolist(), "base"))
        ]  # fmt: skip
        if with_products:
            states = rng.normal(size=(k, 3)) * np.array(n_tokens)[:, None]
            both[1]["hidden_products"] = (states @ states.T).tolist()
        shared.append(tuple(both))
    return shared


def by_hand(shared, per_token):
    """For each untied pair (winner's values, loser's values): log π, log π_ref, change, prompt,
    domain, in a loop over all pairs of positions."""
    found = []
    for policy, reference in shared:
        ranks = policy["ranks"]
        for i in range(len(ranks)):
            for j in range(i + 1, len(ranks)):
                if ranks[i] != ranks[j]:
                    sides = []
                    for own in (i, j) if ranks[i] < ranks[j] else (j, i):
                        a, b = (r["completions"][own]["logp"] for r in (policy, reference))
                        n = policy["completions"][own]["n_tokens"] if per_token else 1
                        a = math.nan if a is None else a
                        sides.append((a / n, b / n, (a - b) / n))
                    found.append((*sides, policy["prompt_id"], policy["groups"]["domain"]))
    return found


def rows_of(shared, rounding=2.0**-23):
    pairs = list(reward_pairs(shared, BETA))
    sizes = [len(record["ranks"]) for record, _ in shared]
    return pairs, summarize_rewards(pairs, sizes, SETTING, rounding, 0)


@pytest.mark.parametrize("k", [2, 4])
def test_rows_equal_brute_force(k):
    shared = made(k=k)
    pairs, rows = rows_of(shared)
    assert_documented(pairs, RewardPair)
    assert_documented(rows, RewardRow)
    assert [row["calib_property"] for row in rows] == [
        "ranking_length-normalized", "ranking_non-length-normalized"]  # fmt: skip
    for row in rows:
        hand = by_hand(shared, per_token="_length" in row["calib_property"])
        margins = np.array([BETA * (a[2] - b[2]) for a, b, *_ in hand])
        right = np.array([a[2] > b[2] for a, b, *_ in hand])
        ranked = np.array([a[0] >= b[0] for a, b, *_ in hand])
        before = np.array([a[1] >= b[1] for a, b, *_ in hand])
        chosen, rejected = (np.array([pair[side][2] for pair in hand]) for side in (0, 1))
        prompts, domains = ([pair[i] for pair in hand] for i in (2, 3))
        known = np.isfinite(margins)
        assert row["n"] == len(hand) and row["n_clusters"] == len(set(prompts))
        assert row["n_examples"] == len(shared) and row["k_max"] == k
        assert row["n_non_finite"] == (~known).sum() > 0
        assert row["distance_metric_value_mean"] == pytest.approx(right.mean())
        assert row["example_distance_metric_values"] == right.tolist()
        peer = bootstrap_of_scipy(right, np.ones(len(right)), prompts)
        assert row["bootstrap_95"] == pytest.approx(peer, rel=1e-12)
        if k == 2:
            exact = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
            assert row["wilson_95"] == (exact.low, exact.high)
        else:  # several pairs of one example are not independent
            assert row["wilson_95"] == (None, None)
        assert row["mean_margin"] == pytest.approx(margins[known].mean())
        assert row["mean_margin_95"][0] < row["mean_margin"] < row["mean_margin_95"][1]
        x, y = chosen[known], rejected[known]
        larger = np.mean([(a > b) + 0.5 * (a == b) for a in x for b in y])
        assert row["auc"] == pytest.approx(larger)
        assert row["auc_95"][0] < row["auc"] < row["auc_95"][1]

        table = row["ranking_and_reward"]
        assert_documented([table], RankingAndReward)
        counts = [
            sum(bool(a) == x and bool(b) == y for a, b in zip(ranked, right))
            for x in (True, False) for y in (True, False)
        ]  # fmt: skip
        names = ("both_right", "only_ranking_right", "only_reward_right", "both_wrong")
        assert [table[name] for name in names] == counts and sum(counts) == table["n"]
        smaller, discordant = min(counts[1:3]), counts[1] + counts[2]
        tail = sum(math.comb(discordant, i) for i in range(smaller + 1)) / 2**discordant
        assert table["mcnemar_p"] == pytest.approx(min(1, 2 * tail))

        n_tokens = [(p["n_chosen"], p["n_rejected"]) for p in pairs]
        longer = np.mean([(a > b) + 0.5 * (a == b) for a, b in n_tokens])
        assert row["baselines"] == pytest.approx(
            {"random": 0.5, "shorter": 1 - longer, "longer": longer}
        )
        correlation = np.corrcoef(right, [a - b for a, b in n_tokens])[0, 1]
        assert row["length_correlation"] == pytest.approx(correlation)

        moved = row["displacement"]
        assert_documented([moved], DisplacementWithIntervals)
        assert moved["n"] == known.sum()
        assert moved["chosen_fell"] == pytest.approx(np.mean(x < 0))
        assert moved["rejected_fell"] == pytest.approx(np.mean(y < 0))
        assert moved["both_fell"] == pytest.approx(np.mean((x < 0) & (y < 0)))
        assert moved["mean_chosen_change"] == pytest.approx(x.mean())
        assert moved["mean_rejected_change"] == pytest.approx(y.mean())
        for name in ("chosen_fell", "rejected_fell", "both_fell", "mean_chosen_change"):
            assert moved[f"{name}_95"][0] < moved[name] < moved[f"{name}_95"][1]
        for name, old, new in (
            ("correct_to_correct", True, True), ("correct_to_incorrect", True, False),
            ("incorrect_to_correct", False, True), ("incorrect_to_incorrect", False, False),
        ):  # fmt: skip
            own = (before == old) & (ranked == new)
            entry = row["displacement_by_ranking_group"][name]
            assert entry["n"] == (own & known).sum() > 0
            assert entry["mean_chosen_change"] == pytest.approx(chosen[own & known].mean())
            assert entry["both_fell"] == pytest.approx(
                np.mean((chosen < 0)[own & known] & (rejected < 0)[own & known])
            )

        assert_documented(row["by_group"], RewardGroupValue)
        assert [entry["group"] for entry in row["by_group"]] == ["chat", "code"]
        for entry in row["by_group"]:
            own = np.array(domains) == entry["group"]
            assert (entry["n"], entry["chance"]) == (own.sum(), 0.5)
            assert entry["value"] == pytest.approx(right[own].mean())
            assert entry["mean_margin"] == pytest.approx(margins[own & known].mean())
            assert entry["ranking_and_reward"]["both_right"] == (ranked & right)[own].sum()
            fell = chosen[own & known] < 0
            assert entry["displacement"]["chosen_fell"] == pytest.approx(fell.mean())
        (over,) = row["mean_over_groups"]
        assert over["value"] == pytest.approx(np.mean([e["value"] for e in row["by_group"]]))


def test_pairs_have_what_their_texts_are_found_by_and_both_models_log_likelihoods():
    shared = made(4, k=3)
    pairs = list(reward_pairs(shared, BETA))
    for pair in pairs:
        policy, reference = shared[int(pair["id"])]
        w, l = pair["winner"], pair["loser"]  # noqa: E741
        assert policy["ranks"][w] < policy["ranks"][l]
        assert pair["ref_chosen"] == reference["completions"][w]["logp"]
        assert pair["rejected"] == policy["completions"][l]["logp"]
        assert pair["chosen_change"] == pytest.approx(pair["chosen"] - pair["ref_chosen"])
        n = [policy["completions"][i]["n_tokens"] for i in (w, l)]
        assert pair["ref_logratio_per_token"] == pytest.approx(
            pair["ref_chosen"] / n[0] - pair["ref_rejected"] / n[1]
        )
        assert (pair["model"], pair["reference_model"]) == ("tuned", "base")


def records_of(changes, reference=(-100.0, -100.0), n_tokens=(10, 20)):
    """Pairs whose log-likelihoods moved by (chosen, rejected) nats."""
    shared = []
    for number, moved in enumerate(changes):
        policy = [x + d for x, d in zip(reference, moved)]
        shared.append(
            tuple(
                scored_record(number, list(x), [1, 2], f"p{number}", n_tokens=list(n_tokens))
                for x in (policy, reference)
            )
        )
    return shared


def test_ties_are_wrong_and_what_rounding_could_decide_is_counted():
    """S = 400 nats and bfloat16 (2⁻⁷): τ = 16 · 2⁻²³ · 400 + 4 · 2⁻⁷ · 20 = 0.6258 nats; per token
    S = 200/10 + 200/20 = 30, √(200/10² + 200/20²) = 1.5811: τ = 0.0000572 + 0.0494."""
    shared = records_of([(0, 0), (0.5, 0), (0, 0.5), (0.7, 0), (0, 3)])
    _, (per_token, summed) = rows_of(shared, 2.0**-7)
    assert summed["n_ties"] == 1 and summed["n_within_rounding"] == 3
    assert summed["distance_metric_value_mean"] == 2 / 5
    assert summed["range_within_rounding"] == [1 / 5, 4 / 5]
    # per token 0, 0.05, −0.025, 0.07, −0.15: the second is outside, by 0.0005
    assert per_token["n_within_rounding"] == 2
    assert per_token["range_within_rounding"] == [2 / 5, 4 / 5]
    _, (_, unknown) = rows_of(shared, rounding_of("bfloat16", None))
    assert unknown["n_within_rounding"] is None and unknown["range_within_rounding"] is None
    assert rounding_of("float32", "bfloat16") == rounding_of("bfloat16") == 2.0**-7


def test_a_fall_that_rounding_could_make_is_none():
    """As in the dynamics: of 200 nats, τ = 4 · 2⁻⁷ · √200 = 0.442 nats in bfloat16."""
    pairs, (per_token, summed) = rows_of(records_of([(-0.4, -0.5), (-0.6, 0.6)]), 2.0**-7)
    columns = {k: np.array([p[k] for p in pairs]) for k in LOGPS}
    groups = [pair["group"] for pair in pairs]
    peer = displacement_by_group(columns, groups, 2.0**-7)
    shares = ("chosen_fell", "rejected_fell", "both_fell")
    for row in (per_token, summed):
        assert [row["displacement"][name] for name in shares] == [0.5, 0.5, 0]
    for name, value in peer.pop("all").items():
        assert summed["displacement"][name] == pytest.approx(value)
    by_group = summed["displacement_by_ranking_group"]
    assert peer == {k: pytest.approx(entry) for k, entry in by_group.items() if entry["n"]}


def test_equal_models_neither_win_nor_move():
    _, rows = rows_of(records_of([(0, 0)] * 3))
    for row in rows:
        assert row["distance_metric_value_mean"] == 0 and row["n_ties"] == 3
        assert (row["auc"], row["mean_margin"]) == (0.5, 0)
        assert row["displacement"]["chosen_fell"] == row["displacement"]["both_fell"] == 0
        empty = row["displacement_by_ranking_group"]["incorrect_to_correct"]
        assert (empty["n"], empty["chosen_fell"], empty["mean_chosen_change"]) == (0, None, None)


def test_an_interval_of_each_group_and_none_that_has_no_width():
    """Groups of one pair an example get Wilson's, whatever another group has; a bootstrap of equal
    values is no interval."""
    lists = made(8, k=3, seed=2)
    pairs = records_of([(0, 1)] * 3)  # all wrong
    for number, both in enumerate(pairs):
        for record in both:
            record |= {"id": f"pair {number}", "groups": {"domain": "pairs"}}
    for both in lists:
        for record in both:
            record["groups"] = {}
    _, rows = rows_of([*lists, *pairs])
    _, alone = rows_of(pairs)
    for row, own in zip(rows, alone):
        mixed, by_pair = sorted(row["by_group"], key=lambda entry: entry["group"] or "")
        assert (mixed["group"], mixed["wilson_95"]) == (None, (None, None))
        assert (by_pair["group"], by_pair["value"], by_pair["n"]) == ("pairs", 0, 3)
        assert by_pair["wilson_95"] == own["wilson_95"] == pytest.approx((0, 0.5615), abs=1e-4)
        assert row["wilson_95"] == (None, None)
        assert by_pair["bootstrap_95"] == own["bootstrap_95"] == [None, None]
        assert own["mean_margin_95"] == own["displacement"]["chosen_fell_95"] == [None, None]


def test_nothing_finite_and_nothing_untied():
    shared = records_of([(math.nan, 0)])
    shared[0][0]["completions"][0]["logp"] = None
    _, rows = rows_of(shared)
    for row in rows:
        assert (row["n_non_finite"], row["distance_metric_value_mean"]) == (1, 0)
        assert row["mean_margin"] is row["auc"] is row["displacement"]["chosen_fell"] is None
        assert row["auc_95"] == row["displacement"]["both_fell_95"] == [None, None]
    tied = [tuple({**record, "ranks": [1, 1]} for record in both) for both in shared]
    assert rows_of(tied) == ([], [])


def test_ches_by_brute_force():
    shared = made(50, seed=3, with_products=True)
    pairs, rows = rows_of(shared)
    for row in rows:
        per_token = "_length" in row["calib_property"]
        assert_documented(row["ches"].values(), ChesPrediction)
        for form, found in row["ches"].items():
            values, changes = [], []
            for policy, reference in shared:
                w, l = np.argsort(policy["ranks"], kind="stable")  # noqa: E741
                products = np.array(reference["hidden_products"])
                n = [c["n_tokens"] for c in reference["completions"]]
                if form == "ches_normalized":
                    products = products / np.outer(n, n)
                a, b = (r["completions"][w]["logp"] for r in (policy, reference))
                other = policy["completions"][l]["logp"]
                if a is not None and other is not None:
                    values.append(products[w, l] - products[w, w])
                    changes.append((a - b) / (n[w] if per_token else 1))
            fell = np.array(changes) < 0
            high, low = np.array(values)[fell], np.array(values)[~fell]
            larger = np.mean([(a > b) + 0.5 * (a == b) for a in high for b in low])
            assert (found["n_fell"], found["n"]) == (fell.sum(), len(values))
            assert found["auc"] == pytest.approx(larger)
            assert found["auc_95"][0] < larger < found["auc_95"][1]
            peer = stats.spearmanr(values, changes)
            assert found["spearman"] == pytest.approx(peer.statistic)
            assert found["spearman_p"] == pytest.approx(peer.pvalue)
    assert "ches" not in rows_of(made(5))[1][0]


def test_auc_and_its_interval_equal_resampling_by_hand():
    """Against scipy's Mann-Whitney; the interval against copies of whole clusters, drawn alike."""
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 9, 40).astype(float)
    positive = rng.random(40) < scores / 9
    clusters = [f"c{k // 3}" for k in range(40)]
    names = sorted(set(clusters))
    found = auc(scores, positive)
    peer = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert found == pytest.approx(peer / positive.sum() / (~positive).sum())
    draws = np.random.default_rng(7).integers(len(names), size=(300, len(names)))
    values = []
    for draw in draws:
        own = [k for c in draw for k in range(40) if clusters[k] == names[c]]
        values.append(auc(scores[own], positive[own]))
    expected = np.percentile([v for v in values if v is not None], [2.5, 97.5])
    assert auc_95(scores, positive, clusters, 7, 300) == pytest.approx(expected.tolist())
    assert auc(scores, np.ones(40)) is None and auc([], []) is None
    assert auc_95(scores, positive, ["one"] * 40) == auc_95([], [], []) == [None, None]


def test_benchmark_by_implicit_reward():
    """LLMBar ranks by log-likelihood 1 of 2 right, by reward the other one, per token both."""
    changes = [(-3.0, -1.0), (2.0, -1.0)]
    shared = records_of(changes, reference=(-100.0, -99.5), n_tokens=(40, 10))
    for both in shared:
        for record in both:
            record["dataset"], record["split"] = "princeton-nlp/LLMBar", "Natural"
    shared[0][0]["completions"][0]["logp"] = -97.0  # right by likelihood, by reward too
    shared[0][1]["completions"][0]["logp"] = -90.0  # now it fell by 7, the other one by 1
    records = reward_records(shared, BETA)
    assert records[0]["completions"][0]["logp"] == BETA * -7
    common = {**SETTING, "reference_model": "base"}
    rows = summarize_benchmarks([(records, common)], 0, "implicit reward")
    assert_documented(rows, BenchmarkRow)
    found = {row["calib_property"]: row["distance_metric_value_mean"] for row in rows}
    # summed −7 < −1 wrong, 2 > −1 right; per token −7/40 < −1/10 wrong, right
    assert found == {"ranking_length-normalized": 0.5, "ranking_non-length-normalized": 0.5}
    assert {row["scored_by"] for row in rows} == {"implicit reward"}
    (likelihood,) = [
        row for row in summarize_benchmarks([([a for a, _ in shared], common)], 0)
        if row["calib_property"] == "ranking_non-length-normalized"
    ]  # fmt: skip
    assert (likelihood["scored_by"], likelihood["distance_metric_value_mean"]) == ("likelihood", 1)
