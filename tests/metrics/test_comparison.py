"""Several models on the same examples, against statsmodels and by hand."""

import numpy as np
import pytest
from result_rows import scored_record
from statsmodels.stats.contingency_tables import mcnemar

from ranking.metrics.comparison import compare_models, holm


def random_records(seed, n=60, longest=3):
    rng = np.random.default_rng(seed)
    order = np.random.default_rng(99)  # the same human ranks for every model
    records = []
    for k in range(n):
        size = int(order.integers(2, longest + 1))
        logps = np.round(-5 * rng.random(size), 1).tolist()  # a tie now and then
        ranks = (1 + order.permutation(size)).tolist()
        records.append(
            scored_record(k, logps, ranks, prompt=str(k // 2), n_tokens=[2, 3, 4][:size])
        )
    return records


def is_right(record, per_token):
    """Def. 2.3 and A.8 by their words."""
    scores = [c["logp"] / (c["n_tokens"] if per_token else 1) for c in record["completions"]]
    in_order = [scores[k] for k in np.argsort(record["ranks"])]
    if len(scores) == 2:
        return in_order[0] >= in_order[1]
    return all(a > b for a, b in zip(in_order, in_order[1:]))


def test_three_models_by_mcnemar_and_holm():
    runs = {name: random_records(seed) for seed, name in enumerate("abc")}
    runs["c"] = runs["c"][:50]
    rows = compare_models(list(runs.items()), seed=0)
    assert [(row["calib_property"], row["n"]) for row in rows] == [
        ("ranking_length-normalized", 50), ("ranking_non-length-normalized", 50)]  # fmt: skip
    for row, per_token in zip(rows, (True, False)):
        right = {n: np.array([is_right(r, per_token) for r in rs[:50]]) for n, rs in runs.items()}
        for model in row["models"]:
            assert model["accuracy"] == pytest.approx(right[model["name"]].mean())
            assert model["n_left_out"] == (0 if model["name"] == "c" else 10)
        p_values = []
        assert [(t["first"], t["second"]) for t in row["tests"]] == [
            ("a", "b"),
            ("a", "c"),
            ("b", "c"),
        ]
        for test in row["tests"]:
            one, two = right[test["first"]], right[test["second"]]
            table = [
                [(one & two).sum(), (one & ~two).sum()],
                [(~one & two).sum(), (~one & ~two).sum()],
            ]
            assert test["p_value"] == pytest.approx(mcnemar(table, exact=True).pvalue)
            assert (test["only_first_right"], test["only_second_right"]) == (
                table[0][1],
                table[1][0],
            )
            assert test["difference"] == pytest.approx(two.mean() - one.mean())
            low, high = test["bootstrap_95"]
            assert low <= test["difference"] <= high
            p_values.append(test["p_value"])
        order = np.argsort(p_values)  # Holm by hand: the k-th smallest of m times m − k
        stepped = np.maximum.accumulate([(3 - k) * p_values[i] for k, i in enumerate(order)])
        corrected = {i: min(1.0, p) for i, p in zip(order, stepped)}
        assert [t["p_holm"] for t in row["tests"]] == pytest.approx(
            [corrected[i] for i in range(3)]
        )


def test_holm_corrects_over_all_datasets():
    one, two = (
        random_records(seed) + [{**r, "dataset": "e"} for r in random_records(seed + 5)]
        for seed in (0, 1)
    )
    rows = [
        r for r in compare_models([("a", one), ("b", two)], 0) if "non" not in r["calib_property"]
    ]
    assert [row["dataset_name"] for row in rows] == ["d", "e"]
    p_values = [row["tests"][0]["p_value"] for row in rows]
    small, large = min(p_values), max(p_values)
    expected = {small: min(1.0, 2 * small), large: max(min(1.0, 2 * small), large)}
    assert [row["tests"][0]["p_holm"] for row in rows] == pytest.approx(
        [expected[p] for p in p_values]
    )


def test_exact_ties_are_right_and_counted():
    tied = [scored_record(k, [-1.0, -1.0], [1, 2]) for k in range(8)]
    wrong = [scored_record(k, [-2.0, -1.0], [1, 2]) for k in range(8)]
    row = compare_models([("tied", tied), ("wrong", wrong)], 0)[1]
    assert [m["n_exact_ties"] for m in row["models"]] == [8, 0]
    assert row["tests"][0]["p_value"] == pytest.approx(2 * 0.5**8)
    assert row["tests"][0]["p_value_if_exact_ties_are_wrong"] == 1


def test_datasets_that_one_model_scored_alone_are_left_out():
    alone = [{**record, "dataset": "e"} for record in random_records(3, 5)]
    assert compare_models([("a", alone), ("b", random_records(4))], 0) == []
    assert holm([]) == []


def test_only_datasets_of_the_first_run_are_compared():
    """Nobody checked that the others scored the same texts of another one."""
    both = [{**record, "dataset": "e"} for record in random_records(3, 5)]
    runs = [("a", random_records(1)), ("b", random_records(2) + both), ("c", both)]
    rows = compare_models(runs, 0)
    assert {row["dataset_name"] for row in rows} == {"d"}
    assert all([m["name"] for m in row["models"]] == ["a", "b"] for row in rows)
