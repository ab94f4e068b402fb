"""Ranking accuracy as a table, a picture and wandb panels (Fig. 1, Tables 2-5)."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ranking.metrics.accuracy import AccuracyRow
from ranking.metrics.groups import GroupValue
from ranking.metrics.rewards import RewardPair
from ranking.plumbing.result_files import Record
from ranking.reports.benchmarks import benchmark_table, benchmarks_of
from ranking.reports.groups import (
    columns_to_show,
    entries_to_show,
    group_grid,
    groups_to_show,
)
from ranking.reports.labels import (
    SYMBOLS,
    by_normalization,
    dataset_of,
    model_labels,
    normalization_of,
    panel_names,
    plain,
    refuse_two_runs,
    run_label,
    setting_label,
    setting_labels,
    setting_of,
    short,
    symbol_of,
)
from ranking.reports.length import baseline_table, show_baselines, with_baselines
from ranking.reports.pairs import Columns, pair_table
from ranking.reports.style import (
    BLUE,
    GREY,
    ORANGE,
    WIDTH,
    model_style,
    percents,
    save_figure,
    subplots,
)
from ranking.reports.tables import (
    Table,
    interval_of,
    log_panels,
    percent,
    show_table,
    with_interval,
)

ACROSS = "ranking accuracy (%),\n95 % Wilson interval"

Placed = Iterable[tuple[int, Mapping[str, Any]]]  # place on the y-axis; a row, or group of a row
# row → what the paper has of it: whose (" (gpt2)", "": the same model's) and R̃, R in percent
Published = Callable[[AccuracyRow], tuple[str, list[float]] | None]


def accuracies_of(rows: Sequence[AccuracyRow]) -> list[AccuracyRow]:
    """The rows of ranking accuracy itself, among those of other metrics."""
    return [row for row in rows if row.get("distance_metric") == "acc"]


def accuracy_table(rows: Sequence[AccuracyRow], published: Published | None = None) -> Table:
    """Tables 2-5: a line per dataset and model, R̃ and R with their 95 % Wilson intervals.

    With published numbers: those and the differences, with a * where the published number lies
    outside the interval. Without: as one run shows it, with K, what was dropped, ties, and a line
    for each group of examples and for the mean over groups.
    """
    accuracies = accuracies_of(rows)
    if not accuracies or not all("wilson_95" in row for row in accuracies):
        raise ValueError("not a summary of calculate_calibration_metrics.py")
    refuse_two_runs(accuracies, "calib_property")
    alone = published is None
    columns = ["dataset", "K", "n", "chance", "R̃ (per token)", "R (summed)", "dropped", "ties"]
    if not alone:
        columns = ["dataset", "model", "n", "chance"]
        for symbol in SYMBOLS.values():
            columns += [f"{symbol} paper", f"{symbol} ours [95 %]", "difference"]
    settings = list(dict.fromkeys(map(setting_of, accuracies)))
    lines = []
    for pair in sorted(
        by_normalization(accuracies), key=lambda pair: settings.index(setting_of(pair[0]))
    ):
        row = pair[1]
        if alone:
            name = dataset_of(row)
            sizes = dict.fromkeys((row["k_min"], row["k_max"]))
            line = [name, "–".join(map(str, sizes))]
        else:
            line = [setting_label(row, accuracies), short(row["model"])]
        line += [str(row["n"]), percent(row["chance"])]
        found = None if alone else published(row)
        for k, own in enumerate(pair):
            value = own["distance_metric_value_mean"]
            low, high = own["wilson_95"]
            ours = with_interval(value, (low, high), digits=int(alone))
            if alone:
                line.append(ours)
            elif found is None:
                line += ["–", ours, "–"]
            else:
                whose, paper = found[0], found[1][k]
                outside = " *" * (not 100 * low <= paper <= 100 * high)
                line += [f"{paper:.1f}{whose}", ours, f"{100 * value - paper:+.1f}{outside}"]
        if alone:
            line += [str(sum(row["dropped"].values())), str(row["n_examples_with_ties"])]
        lines.append(line)
        if alone:
            lines += group_lines(pair, len(columns))
    return columns, lines


def group_lines(pair: Sequence[AccuracyRow], width: int) -> list[list[str]]:
    """Lines of `accuracy_table` for the groups of one dataset; pair: its rows for R̃ and R."""
    lines = []
    for label, entries in groups_to_show(pair):
        line = [label]
        if entries:
            first = entries[0]
            line += ["", str(first.get("n", "")), percent(first["chance"])]
            for entry in entries:
                line.append(with_interval(entry["value"], interval_of(entry), digits=1))
        lines.append(line + [""] * (width - len(line)))
    return lines


def show_accuracy(rows: Sequence[AccuracyRow]) -> None:
    """The table of one run, that of length, and lines for scores that are not finite or equal."""
    how = run_label(rows)
    title = "Ranking accuracy, % [95 % interval]" + (f"; {how}" if how else "")
    show_table(accuracy_table(rows), title)
    if with_baselines(rows):
        show_baselines(rows)
    for row in accuracies_of(rows)[::2]:
        where, n = dataset_of(row), row["n_non_finite"]
        if n:
            examples = "example" if n == 1 else "examples"
            print(f"{where}: {n} {examples} with a non-finite log-likelihood, counted as wrong")
    report_accuracy_ties(rows)


def report_accuracy_ties(rows: Sequence[AccuracyRow]) -> None:
    """A line where untied pairs have exactly equal scores, and a warning where they decide."""
    for row in rows:
        if "n_exact_ties" not in row:
            continue  # a benchmark, which has rules of its own
        metric = row["distance_metric"]
        where = f"{dataset_of(row)}, {symbol_of(row)}"
        value, strict = row["distance_metric_value_mean"], row["mean_if_exact_ties_are_wrong"]
        if metric == "acc" and row["n_exact_ties"]:
            n = row["n_exact_ties"]
            pairs = "untied pair has" if n == 1 else "untied pairs have"
            print(f"{where}: {n} {pairs} exactly equal scores")
        if strict < value and (metric == "acc" or (metric == "pairwise_acc" and row["k_max"] > 2)):
            logging.warning(
                "%s: exact ties decide %s: %.1f %% as Def. 2.3 counts them (right), %.1f %% if "
                "they were wrong", where, metric, 100 * value, 100 * strict,
            )  # fmt: skip


def log_accuracy(
    run,
    rows: Sequence[AccuracyRow],
    records: Sequence[Record],
    picture: Path,
    groups: Path | None = None,
    pairs: Sequence[RewardPair] = (),
) -> None:
    """Accuracies as summary values of a wandb run; tables and pictures in the section `accuracy`,
    every pair with its texts in `examples`. pairs: with rewards, where a reference was scored."""
    rows = [row for row in rows if "reference_model" not in row]  # see `log_rewards`
    names = panel_names(rows)
    for row in rows:
        name = row.get("benchmark", names[dataset_of(row)])
        key = f"{name}/{row['calib_property']}/{row['distance_metric']}"
        run.summary[key] = row["distance_metric_value_mean"]
    tables: dict[str, Table | Columns] = {
        "accuracy/table": accuracy_table(rows),
        "accuracy/numbers": accuracy_numbers(rows),
        "examples/pairs": pair_table(records, pairs),
    }
    if with_baselines(rows):
        tables["accuracy/length"] = baseline_table(rows)
    if benchmarks_of(rows):
        tables["accuracy/benchmarks"] = benchmark_table(rows)
    log_panels(run, tables, {"accuracy/figure": picture, "accuracy/groups": groups})


def accuracy_numbers(rows: Sequence[AccuracyRow]) -> Columns:
    """Every metric of every dataset and group as numbers that a dashboard sorts and draws: shares
    in [0, 1]; of a group its column and value, of a mean over groups the column alone."""
    columns = ["model", "dataset", "column", "group", "normalization", "metric", "n", "value",
               "low", "high", "chance", "shorter", "longer", "at equal length"]  # fmt: skip
    lines = []
    for row in rows:
        if row["distance_metric"] == "benchmark":
            continue
        own = {**row, "value": row["distance_metric_value_mean"]}
        what = [row["model"], dataset_of(row)]
        entries: list[Any] = [own, *row.get("by_group", []), *row.get("mean_over_groups", [])]
        for entry in entries:
            low, high = interval_of(entry)
            baselines = entry.get("baselines") or {}
            lines.append(
                [*what, entry.get("column"), entry.get("group"), normalization_of(row),
                 row["distance_metric"], entry.get("n"), entry["value"], low, high,
                 entry.get("chance"), baselines.get("shorter"), baselines.get("longer"),
                 entry.get("at_equal_length")]
            )  # fmt: skip
    return columns, lines


def plot_ranking_accuracy(rows: Sequence[AccuracyRow], path: Path) -> None:
    """Fig. 1: ranking accuracy per dataset, per token and summed, 95 % intervals, chance marked."""
    accuracies = accuracies_of(rows)
    refuse_two_runs(accuracies, "calib_property")
    if len({row["model"] for row in accuracies}) > 1:
        plot_ranking_accuracy_of_models(accuracies, path)
        return
    labels = setting_labels(accuracies)
    places = list(labels)
    figure, axes = subplots(figsize=(WIDTH, 1.2 + 0.45 * len(places)))
    styles = {
        "length-normalized": (BLUE, "o", -0.14, "length-normalized"),
        "non-length-normalized": (ORANGE, "s", 0.14, "summed"),
    }
    for kind, (colour, marker, shift, label) in styles.items():
        chosen = [row for row in accuracies if normalization_of(row) == kind]
        x, bars = accuracy_bars(chosen)
        y = [places.index(setting_of(row)) + shift for row in chosen]
        axes.errorbar(x, y, xerr=bars, fmt=marker, color=colour, capsize=2, label=label)
    last = {setting_of(row): row for row in accuracies}
    placed = list(enumerate(last[setting] for setting in places))
    mark_chance(axes, placed, 0.36)
    mark_baselines(axes, placed)
    names = [f"{labels[setting]}\n(n = {last[setting]['n']})" for setting in places]
    axes.set_yticks(range(len(places)), names)
    axes.set_title(plain(short(accuracies[0]["model"])))
    finish_accuracy_axes(axes, len(places))
    save_figure(figure, path, ncols=3)


def mark_chance(axes, placed: Placed, half: float = 0.4) -> None:
    """A dashed line at chance, so far up and down from each place."""
    known = np.array([(y, 100 * e["chance"]) for y, e in placed if e["chance"] is not None])
    if len(known):
        y, x = known.T
        axes.vlines(x, y - half, y + half, colors=GREY, linestyles="dashed", label="chance")


def mark_baselines(axes, placed: Placed) -> None:
    """What preferring the shorter or the longer completion would reach."""
    known = [(place, entry["baselines"]) for place, entry in placed if entry.get("baselines")]
    places = [place for place, _ in known]
    shorter = [100 * reached["shorter"] for _, reached in known]
    longer = [100 * reached["longer"] for _, reached in known]
    for x, marker, name in ((shorter, "<", "shorter"), (longer, ">", "longer")):
        if known:
            axes.plot(
                x, places, marker, color="black", fillstyle="none", markersize=5,
                label=f"prefer the {name}", zorder=4, clip_on=False,
            )  # fmt: skip


def plot_ranking_accuracy_of_models(accuracies: Sequence[AccuracyRow], path: Path) -> None:
    """Fig. 1 for several models: a line per dataset, a mark per model; length-normalized (as in the
    paper) and summed side by side."""
    labels = setting_labels(accuracies)
    places = list(labels)
    models = model_labels(row["model"] for row in accuracies)
    height = 1.3 + len(places) * max(0.6, 0.11 * len(models))
    figure, grid = subplots(1, 2, figsize=(WIDTH, height), sharey=True)
    titles = {"length-normalized": "R̃, length-normalized", "non-length-normalized": "R, summed"}
    of_setting = {s: [row for row in accuracies if setting_of(row) == s] for s in places}
    for axes, (kind, title) in zip(grid, titles.items()):
        for k, (model, name) in enumerate(models.items()):
            chosen = [
                row for row in accuracies if row["model"] == model and normalization_of(row) == kind
            ]
            x, bars = accuracy_bars(chosen)
            shift = 0.6 * ((k + 0.5) / len(models) - 0.5)
            y = [places.index(setting_of(row)) + shift for row in chosen]
            axes.errorbar(
                x, y, xerr=bars, capsize=2, linestyle="none", label=name,
                **model_style(k),
            )  # fmt: skip
        mark_chance(axes, [(i, first) for i, (first, *_) in enumerate(of_setting.values())])
        axes.set_title(title)
        finish_accuracy_axes(axes, len(places))
    names = [f"{labels[s]}\n(n = {max(row['n'] for row in of_setting[s])})" for s in places]
    grid[0].set_yticks(range(len(places)), names)
    save_figure(figure, path, ncols=3)


def plot_accuracy_by_group(rows: Sequence[AccuracyRow], path: Path) -> None:
    """Ranking accuracy of each group (the 30 largest of a column), length-normalized and summed,
    with 95 % Wilson intervals, chance and what length alone reaches with the first model's tokens;
    a dotted line at the mean over groups; a mark per model.
    """
    accuracies = accuracies_of(rows)
    refuse_two_runs(accuracies, "calib_property")
    labels = setting_labels(accuracies)
    models = model_labels(row["model"] for row in accuracies)
    panels = [
        (column, [row for row in accuracies if setting_of(row) == setting])
        for setting in labels
        for column in columns_to_show(next(r for r in accuracies if setting_of(r) == setting))
    ]
    figure, grid = group_grid(
        [(labels[setting_of(chosen[0])], chosen[0], column) for column, chosen in panels],
        height=max(0.24, 0.13 * len(models)), across=ACROSS,
    )  # fmt: skip
    for line, (column, chosen) in zip(grid, panels):
        shown = [entry["group"] for entry in entries_to_show(chosen[0], column)]
        for row in chosen:
            axes = line[list(SYMBOLS).index(normalization_of(row))]
            draw_groups(axes, row, column, shown, models)
            if row["model"] == chosen[0]["model"]:
                placed = [(shown.index(e["group"]), e) for e in shown_groups(row, column, shown)]
                mark_baselines(axes, placed)
                mark_chance(axes, placed)
    save_figure(figure, path, ncols=3)


def shown_groups(row: AccuracyRow, column: str, shown: Sequence[str | None]) -> list[GroupValue]:
    """The groups of a column of one row, those of the names `shown`."""
    return [e for e in row["by_group"] if e["column"] == column and e["group"] in shown]


def draw_groups(
    axes, row: AccuracyRow, column: str, shown: Sequence[str | None], models: dict[str, str]
) -> None:
    """The groups of one row in a panel, at the places of their names in `shown`."""
    number = list(models).index(row["model"])
    entries = shown_groups(row, column, shown)
    x, bars = percents([e["value"] for e in entries], [e["wilson_95"] for e in entries])
    shift = 0.6 * ((number + 0.5) / len(models) - 0.5)
    axes.errorbar(
        x, [shown.index(e["group"]) + shift for e in entries], xerr=bars, capsize=2,
        linestyle="none", label=models[row["model"]], **model_style(number),
    )  # fmt: skip
    for mean in row["mean_over_groups"]:
        if mean["column"] == column and mean["value"] is not None:
            axes.axvline(
                100 * mean["value"], color=model_style(number)["color"], linestyle="dotted",
                label=f"{models[row['model']]}, mean over groups",
            )  # fmt: skip


def accuracy_bars(rows: Sequence[AccuracyRow]) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies in percent, and the lengths of their error bars."""
    values = [row["distance_metric_value_mean"] for row in rows]
    return percents(values, [row["wilson_95"] for row in rows])


def finish_accuracy_axes(axes, n_places: int) -> None:
    """Named, from 0 to 100 % with room for whole marks at both, a grid, the first place on top."""
    axes.set_xlim(-2, 102)
    axes.set_ylim(n_places - 0.4, -0.6)
    axes.set_xlabel(ACROSS)
    axes.grid(False, axis="y")
