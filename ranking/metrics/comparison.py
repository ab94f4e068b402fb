"""Ranking accuracy of several models on the same examples, and whether it differs (McNemar)."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ranking.metrics.accuracy import (
    NORMALIZATIONS,
    exact_ties,
    ranking_accuracy,
    record_scores,
)
from ranking.metrics.intervals import bootstrap_95, exact_mcnemar, wilson_interval
from ranking.metrics.orders import chance_level


class ComparedModel(TypedDict):
    """An entry of `models` of a `ComparisonRow`."""

    name: str
    accuracy: float  # share in [0, 1] of the examples that all models scored
    wilson_95: tuple[float, float]
    n_exact_ties: int  # examples with untied pairs of exactly equal scores
    n_left_out: int  # examples of this model that another one lacks


class ComparedPair(TypedDict):
    """An entry of `tests` of a `ComparisonRow`: two of its models."""

    first: str
    second: str
    difference: float  # accuracy of the second minus that of the first
    bootstrap_95: list[float | None]  # of the difference, over prompts
    only_first_right: int  # examples
    only_second_right: int
    p_value: float  # exact McNemar, two-sided
    p_holm: float  # the same, corrected for all tests of the comparison and normalization
    p_value_if_exact_ties_are_wrong: float


class ComparisonRow(TypedDict):
    """A line of NAME.compare.jsonl: a dataset and a normalization."""

    dataset_name: str
    dataset_config: str | None
    dataset_split: str | None
    calib_property: str
    n: int  # examples that all models scored
    chance: float
    models: list[ComparedModel]  # this run's first
    tests: list[ComparedPair]  # every two models


class Outcomes(NamedTuple):
    """Of one model on the examples that all models scored: (n,) each."""

    correct: np.ndarray  # Def. 2.3, A.8
    tied: np.ndarray  # untied pairs have exactly equal scores


def ranking_outcomes(records: Sequence[dict[str, Any]], normalization: str) -> Outcomes:
    """Whether each example is ranked correctly, and whether exact ties are part of that."""
    scores = [record_scores(record, normalization) for record in records]
    correct = [ranking_accuracy(s, r["ranks"]) for s, r in zip(scores, records)]
    tied = [exact_ties(s, r["ranks"]) > 0 for s, r in zip(scores, records)]
    return Outcomes(np.array(correct), np.array(tied))


def records_by_dataset(records: Sequence[dict[str, Any]]) -> dict[tuple, dict[str, Any]]:
    """(dataset, split, configuration) → id → record, of examples with an untied pair."""
    found: dict[tuple, dict[str, Any]] = {}
    for record in records:
        if len(set(record["ranks"])) > 1:
            key = (record["dataset"], record["split"], record.get("dataset_config"))
            found.setdefault(key, {})[record["id"]] = record
    return found


def common_examples(
    runs: Sequence[tuple[str, Sequence[dict[str, Any]]]],
) -> dict[tuple, tuple[dict[str, dict[str, Any]], list[str]]]:
    """What can be compared of each dataset of the first run that another one scored too.

    The records of its models by id, and the ids of the examples that all of them scored, in the
    order of the first: none, where they share none with an untied pair.
    """
    by_run = {name: records_by_dataset(records) for name, records in runs}
    found = {}
    for key, first in by_run[runs[0][0]].items():
        of_model = {name: records[key] for name, records in by_run.items() if key in records}
        if len(of_model) > 1:
            found[key] = of_model, [i for i in first if all(i in r for r in of_model.values())]
    return found


def compare_models(
    runs: Sequence[tuple[str, Sequence[dict[str, Any]]]], seed: int
) -> list[ComparisonRow]:
    """A row per dataset that the first run and another one scored, and normalization.

    runs: the name and the records of each model, which scored the same texts as the first: others
    need not have scored the same texts of a dataset that it lacks. The examples of a dataset are
    those that all models of it scored and that have an untied pair; without one it has no row.
    """
    rows: list[ComparisonRow] = []
    for key, (of_model, shared) in common_examples(runs).items():
        if shared:
            rows += compare_on_dataset(key, of_model, shared, seed)
    for normalization in NORMALIZATIONS:
        tests = [
            test
            for row in rows
            if row["calib_property"] == f"ranking_{normalization}"
            for test in row["tests"]
        ]
        for test, corrected in zip(tests, holm([test["p_value"] for test in tests])):
            test["p_holm"] = corrected
    return rows


def compare_on_dataset(
    key: tuple, of_model: dict[str, dict[str, Any]], shared: Sequence[str], seed: int
) -> list[ComparisonRow]:
    """The rows of one dataset; shared: the ids of the examples that all models scored."""
    first = [next(iter(of_model.values()))[i] for i in shared]
    clusters = [record["prompt_id"] for record in first]
    rows: list[ComparisonRow] = []
    for normalization in NORMALIZATIONS:
        outcomes = {
            name: ranking_outcomes([records[i] for i in shared], normalization)
            for name, records in of_model.items()
        }
        rows.append(
            {
                "dataset_name": key[0],
                "dataset_config": key[2],
                "dataset_split": key[1],
                "calib_property": f"ranking_{normalization}",
                "n": len(shared),
                "chance": float(np.mean([chance_level(record["ranks"]) for record in first])),
                "models": [
                    {
                        "name": name,
                        "accuracy": float(outcome.correct.mean()),
                        "wilson_95": wilson_interval(int(outcome.correct.sum()), len(shared)),
                        "n_exact_ties": int(outcome.tied.sum()),
                        "n_left_out": len(of_model[name]) - len(shared),
                    }
                    for name, outcome in outcomes.items()
                ],
                "tests": [
                    compare_outcomes(one, two, outcomes[one], outcomes[two], clusters, seed)
                    for one, two in combinations(outcomes, 2)
                ],
            }
        )
    return rows


def compare_outcomes(
    first: str, second: str, one: Outcomes, two: Outcomes, clusters: Sequence[str], seed: int
) -> ComparedPair:
    """McNemar's test of two models; `p_holm` is that of a single test."""
    only_first, only_second, p_value = exact_mcnemar(one.correct.tolist(), two.correct.tolist())
    strict = exact_mcnemar(*((x.correct & ~x.tied).tolist() for x in (one, two)))
    difference = two.correct.astype(float) - one.correct
    return {
        "first": first,
        "second": second,
        "difference": float(difference.mean()),
        "bootstrap_95": bootstrap_95(difference, clusters, seed),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": p_value,
        "p_holm": p_value,
        "p_value_if_exact_ties_are_wrong": strict[2],
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's step-down method for being as many as they are."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []
