"""Benchmarks by their own protocols, as tables."""

from collections.abc import Sequence

from ranking.metrics.benchmarks import IMPLICIT_REWARD, BenchmarkPart, BenchmarkRow
from ranking.reports.labels import by_normalization, refuse_two_runs, scoring_label, short
from ranking.reports.tables import Table, interval_of, percent, show_table, with_interval


def benchmarks_of(rows: Sequence) -> list[BenchmarkRow]:
    """The rows of benchmarks, among those of datasets."""
    return [row for row in rows if row.get("distance_metric") == "benchmark"]


def benchmark_table(rows: Sequence, alone: bool = False) -> Table:
    """Each part of a benchmark with R̃ and R in its sense, and the score last.

    alone: rows of one benchmark and model, which stand elsewhere; intervals to a tenth.
    """
    found = benchmarks_of(rows)
    if not found:
        raise ValueError(
            "no benchmark in these results: see docs/evaluation.md for which are known"
        )
    refuse_two_runs(found, "benchmark", "scored_by", "calib_property")
    columns = ["part", "what", "n", "chance", "per token", "summed"]
    if not alone:
        columns = ["benchmark", "model", *columns]
    lines = []
    for pair in by_normalization(found, "benchmark", "scored_by"):
        row = pair[1]
        by_reward = row["scored_by"] == IMPLICIT_REWARD
        how = f"by implicit reward from {short(row['reference_model'])}" if by_reward else ""
        model = ", ".join(filter(None, (short(row["model"]), how, scoring_label(row))))
        parts: list[list[BenchmarkPart]] = [of_kind["parts"] for of_kind in pair]
        for entries in zip(*parts):
            part = entries[0]
            line = [] if alone else [row["benchmark"], model]
            line += [part["part"], part["kind"], str(part["n"]), percent(part["chance"])]
            for entry in entries:
                line.append(with_interval(entry["value"], interval_of(entry), digits=int(alone)))
            lines.append(line)
    return columns, lines


def show_benchmarks(rows: Sequence) -> None:
    """A table for each benchmark of a run, and lines for what is missing or was left out."""
    for pair in by_normalization(benchmarks_of(rows), "benchmark", "scored_by"):
        row = pair[1]
        name = row["benchmark"]
        title = f"{name}, by {row['scored_by']}, % [95 % interval]"
        show_table(benchmark_table(pair, alone=True), title)
        if row["scored_by"] == IMPLICIT_REWARD:
            name += f", by {IMPLICIT_REWARD}"
        if row["missing"]:
            print(f"{name}: the mean is over what is there; missing: {', '.join(row['missing'])}")
        if row["n_left_out"]:
            print(f"{name}: {row['n_left_out']} examples are not of its form, and left out")
