"""Benchmarks by their own protocols, as result rows."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from ranking.metrics.accuracy import (
    NORMALIZATIONS,
    ScoringColumns,
    SettingColumns,
    TextColumns,
    record_scores,
)
from ranking.metrics.intervals import interval_95, resampled_means, wilson_interval
from ranking.metrics.protocols import (
    PROTOCOLS,
    RM_BENCH,
    STYLES,
    Measured,
    WeightedPart,
    benchmark_of,
)
from ranking.metrics.rewards import ReferenceColumns

LIKELIHOOD, IMPLICIT_REWARD = "likelihood", "implicit reward"  # what ranks the completions


class BenchmarkPart(TypedDict):
    """An entry of `parts` of a `BenchmarkRow`."""

    kind: str  # what it is: subset, section, difficulty, group; score: all of the benchmark
    part: str
    n: int  # examples
    value: float  # share in [0, 1]
    chance: float | None  # in random order; null: it depends on margins
    wilson_95: tuple[float, float] | tuple[None, None]  # of shares of examples, each right or wrong
    bootstrap_95: list[float | None]  # over prompts; [null, null]: one, or all alike


class BenchmarkRow(SettingColumns, TextColumns, ScoringColumns, ReferenceColumns):
    """A line of NAME.jsonl of the ranking script: a benchmark by its own protocol.

    Several datasets of a run that are files of one benchmark make one line; columns in which they
    differ are null there.
    """

    dropped: dict[str, int]  # reason → examples that were not scored
    joined_by: dict[str, int] | None
    config_hash: str | None
    calib_property: str
    distance_metric: str  # benchmark
    distance_metric_value_mean: float  # the last of `parts`
    benchmark: str
    scored_by: str  # likelihood, or implicit reward, in the normalization of `calib_property`
    datasets: list[str]
    n: int  # examples
    n_left_out: int  # of these datasets, that do not have the benchmark's form
    chance: float | None
    bootstrap_95: list[float | None]
    missing: list[str]  # what the benchmark's mean is over, and these data lack
    parts: list[BenchmarkPart]
    matrix: NotRequired[list[list[float]]]  # RM-Bench: chosen style × rejected style


def summarize_benchmarks(
    datasets: Sequence[tuple[list[dict[str, Any]], Mapping[str, Any]]],
    seed: int,
    scored_by: str = LIKELIHOOD,
) -> list[BenchmarkRow]:
    """A row per benchmark and normalization; none where no record has the benchmark's form.

    datasets: for each dataset of a run its records, and what every row says of it. scored_by: what
    the records have as log-likelihoods: these, or rewards in their place (`reward_records`).
    """
    rows: list[Any] = []
    for name, records, columns in collect_benchmarks(datasets):
        for normalization in NORMALIZATIONS:
            row = benchmark_row(name, records, normalization, seed)
            if row is not None:
                rows.append(
                    {**common_to_all(columns), "calib_property": f"ranking_{normalization}",
                     "datasets": sorted({record["dataset"] for record in records}),
                     "scored_by": scored_by, **row}
                )  # fmt: skip
    return rows


def collect_benchmarks(
    datasets: Sequence[tuple[list[dict[str, Any]], Mapping[str, Any]]],
) -> list[tuple[str, list[dict[str, Any]], list[Mapping[str, Any]]]]:
    """Benchmark, records and the columns of their datasets. Datasets of one benchmark are parts of
    it (files, splits), unless they share an example: then each is one by itself."""
    found: list[tuple[str, list[dict[str, Any]], list[Mapping[str, Any]]]] = []
    for records, common in datasets:
        of_name: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            name = benchmark_of(record)
            if name is not None:
                of_name.setdefault(name, []).append(record)
        for name, chosen in of_name.items():
            ids = {record["id"] for record in chosen}
            for other, together, columns in found:
                if other == name and not ids & {record["id"] for record in together}:
                    together += chosen
                    columns.append(common)
                    break
            else:
                found.append((name, chosen, [common]))
    return found


def common_to_all(columns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns of several datasets: the value where it is the same for all, the sum of counts of
    drops, else None."""
    same = {
        key: value if all(other.get(key) == value for other in columns) else None
        for key, value in columns[0].items()
    }
    drops: Counter[str] = sum((Counter(c.get("dropped") or {}) for c in columns), Counter())
    return {**same, "dropped": dict(drops)}


def benchmark_row(
    name: str, records: Sequence[dict[str, Any]], normalization: str, seed: int
) -> Any | None:
    """A benchmark's parts with their intervals, over records of it; None where no record has the
    benchmark's form."""
    cells_of, parts_of, expected = PROTOCOLS[name]
    outcomes = list(cells_of([(r, record_scores(r, normalization)) for r in records]))
    if not outcomes:
        return None
    cells = list(dict.fromkeys(outcome.cell for outcome in outcomes))
    place = np.array([cells.index(outcome.cell) for outcome in outcomes])
    values = np.array([outcome.value for outcome in outcomes])
    clusters = [outcome.cluster for outcome in outcomes]
    drawn = resampled_means(values, np.ones(len(values)), clusters, place, len(cells), seed)
    means = dict(zip(cells, np.bincount(place, values) / np.bincount(place)))
    resampled = dict(zip(cells, drawn.T))
    parts = [summarize_part(part, outcomes, means, resampled) for part in parts_of(cells)]
    if not parts:
        return None
    score = parts[-1]
    there = {part["part"] for part in parts}
    examples = {outcome.example for outcome in outcomes}
    row = {
        "distance_metric": "benchmark",
        "distance_metric_value_mean": score["value"],
        "benchmark": name,
        "n": len(examples),
        "n_left_out": len(records) - len(examples),
        "chance": score["chance"],
        "bootstrap_95": score["bootstrap_95"],
        "missing": [part for part in expected if part not in there],
        "parts": parts,
    }
    if name == "RM-Bench":
        domains = [domain for domain in RM_BENCH if f"{domain} 0 0" in means]
        row["matrix"] = [
            [float(np.mean([means[f"{d} {i} {j}"] for d in domains])) for j in range(STYLES)]
            for i in range(STYLES)
        ]
    return row


def summarize_part(
    part: WeightedPart,
    outcomes: Sequence[Measured],
    means: Mapping[str, float],
    resampled: Mapping[str, np.ndarray],
) -> BenchmarkPart:
    """A weighted mean of cells. means: of all cells; resampled: the same in every resample."""
    own = [outcome for outcome in outcomes if outcome.cell in part.weights]
    drawn = sum(weight * resampled[cell] for cell, weight in part.weights.items())
    one_prompt = len({outcome.cluster for outcome in own}) == 1
    wilson: tuple = (None, None)
    if len(part.weights) == 1 and {outcome.value for outcome in own} <= {0, 1}:
        wilson = wilson_interval(round(sum(outcome.value for outcome in own)), len(own))
    return {
        "kind": part.kind,
        "part": part.name,
        "n": len({outcome.example for outcome in own}),
        "value": math.fsum(weight * means[cell] for cell, weight in part.weights.items()),
        "chance": chance_of(own, part.weights),
        "wilson_95": wilson,
        "bootstrap_95": [None, None] if one_prompt else interval_95(np.asarray(drawn)),
    }


def chance_of(outcomes: Sequence[Measured], weights: Mapping[str, float]) -> float | None:
    """The weighted mean over cells of the mean chance; None where a cell has none."""
    terms = []
    for cell, weight in weights.items():
        chances = [outcome.chance for outcome in outcomes if outcome.cell == cell]
        known = [chance for chance in chances if chance is not None]
        if len(known) < len(chances):
            return None
        terms.append(weight * float(np.mean(known)))
    return math.fsum(terms)
