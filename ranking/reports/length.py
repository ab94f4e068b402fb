"""Being ranked correctly and the lengths of completions, as tables and a picture."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from ranking.metrics.length import DIVIDED
from ranking.reports.groups import groups_to_show
from ranking.reports.labels import (
    SYMBOLS,
    ResultRow,
    by_normalization,
    dataset_of,
    model_labels,
    refuse_two_runs,
    setting_label,
    setting_labels,
    setting_of,
    short,
    symbol_of,
)
from ranking.reports.style import (
    GREY,
    model_style,
    percents,
    save_figure,
    subplots,
    wrapped,
)
from ranking.reports.tables import Table, percent, show_table, signed_with_interval, with_interval


def with_baselines(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows of ranking accuracy, of whole orders and of pairs, for which baselines are defined;
    those of pairs alone where whole orders have ties."""
    accuracies = [row for row in rows if row["distance_metric"] in ("acc", "pairwise_acc")]
    return [
        row for row in accuracies
        if row.get("baselines") and (row["distance_metric"] == "acc" or not is_whole_order(row))
    ]  # fmt: skip


def is_whole_order(pairs: ResultRow) -> bool:
    """Whether a row of untied pairs is of the same pairs as that of whole orders."""
    return pairs["k_max"] == 2 and not pairs["include_ties"]


def baseline_table(rows: Sequence[ResultRow]) -> Table:
    """Is it length? Beside each R̃ and R: what preferring the shorter or the longer completion would
    reach, the accuracy at equal length with its 95 % interval, and r, the correlation of being
    right with the difference of lengths.

    rows: of the ranking script. Lists of more than two have a second line, for their untied pairs;
    groups of examples have one each, without what is at equal length.
    """
    found = with_baselines(rows)
    if not found:
        raise ValueError("no baselines by length in these results: score them again")
    several = len({row["model"] for row in found}) > 1
    columns = ["dataset", *(["model"] if several else []), "shorter", "longer"]
    for symbol in SYMBOLS.values():
        columns += [symbol, f"{symbol} at equal length", f"r ({symbol})"]
    lines = []
    for pair in by_normalization(found, "distance_metric"):
        row = pair[0]
        label = setting_label(row, found) if several else dataset_of(row)
        of_pairs = row["distance_metric"] == "pairwise_acc"
        if of_pairs:
            label = f"{label}, untied pairs" if row["include_ties"] else "  untied pairs"
        model = [short(row["model"])] if several else []
        lines.append([label, *model, *baseline_cells(pair)])
        for of_group, values in [] if of_pairs else groups_to_show(pair):
            line = [of_group, *([""] if several else [])]
            line += baseline_cells(values) if values else []
            lines.append(line + [""] * (len(columns) - len(line)))
    return columns, lines


def baseline_cells(entries: Sequence[ResultRow]) -> list[str]:
    """Cells of a line of `baseline_table`; entries: for R̃ and R, rows or groups of rows."""
    cells = [percent(entries[0]["baselines"][name]) for name in ("shorter", "longer")]
    for entry in entries:
        if "at_equal_length" not in entry:
            cells += [percent(entry["value"]), "", ""]
            continue
        cells += [
            percent(entry["distance_metric_value_mean"]),
            with_interval(entry["at_equal_length"], entry["at_equal_length_95"], digits=1),
            signed_with_interval(entry["length_correlation"], [None, None]),
        ]
    return cells


def show_baselines(rows: Sequence[ResultRow]) -> None:
    """The table of one run, and lines that say why it has no value at equal length somewhere."""
    title = "Is it length? Accuracy, %; r: of being right, with preferred − other length"
    show_table(baseline_table(rows), title)
    for row in rows:
        if row["distance_metric"] == "pairwise_acc" and row["at_equal_length"] is None:
            symbol = symbol_of(row)
            why = row["at_equal_length_undefined"]
            if why == DIVIDED:
                enough = "short" if row["length_correlation"] < 0 else "long"
                why = (
                    f"{symbol} is decided by length there, right iff the preferred completion is "
                    f"{enough} enough against the other"
                )
            print(f"{dataset_of(row)}: no {symbol} at equal length, {why}")


def length_table(rows: Sequence[ResultRow]) -> Table:
    """Correlation of being ranked correctly with the difference of lengths."""
    if not all("correlation" in row for row in rows):
        raise ValueError("not a file of length_difference.py")
    columns = ["dataset", "model", "score", "pairs", "correlation [95 %]"]
    columns += ["preferred is shorter", "longer"]
    lines = []
    for row in rows:
        correlation = signed_with_interval(row["correlation"], row["correlation_95"])
        lines.append(
            [setting_label(row, rows), short(row["model"]), symbol_of(row),
             str(row["n"]), correlation,
             f"{percent(row['accuracy_shorter'])} (n = {row['n_shorter']})",
             f"{percent(row['accuracy_longer'])} (n = {row['n_longer']})"]
        )  # fmt: skip
    return columns, lines


def plot_length_difference(rows: Sequence[ResultRow], path: Path) -> None:
    """Ranking accuracy against how much longer the preferred completion is, in bins of equal size,
    with 95 % Wilson intervals; a column per dataset, R̃ above R (rows of length_difference.py)."""
    without = [row for row in rows if not row.get("include_ties")]
    rows = without or rows  # with ties, the untied pairs would be drawn twice
    refuse_two_runs(rows, "normalization")
    settings = setting_labels(rows)
    models = model_labels(row["model"] for row in rows)
    numbers = {model: k for k, model in enumerate(models)}
    figure, grid = subplots(
        2, len(settings), figsize=(0.6 + 2.15 * len(settings), 4.6), sharey=True, sharex="col",
        squeeze=False,
    )  # fmt: skip
    for (line, (score, symbol)), (column, setting) in product(
        zip(grid, SYMBOLS.items()), enumerate(settings)
    ):
        axes = line[column]
        chosen = [
            row for row in rows if (setting_of(row), row["normalization"]) == (setting, score)
        ]
        for row in chosen:
            x = [b["mean_difference"] for b in row["bins"]]
            y, bars = percents(
                [b["accuracy"] for b in row["bins"]], [b["wilson_95"] for b in row["bins"]]
            )
            axes.errorbar(
                x, y, yerr=bars, capsize=2, label=models[row["model"]],
                **model_style(numbers[row["model"]]),
            )  # fmt: skip
        if score == "length-normalized":
            n = max((row["n"] for row in chosen), default=0)
            axes.set_title(wrapped(f"{settings[setting]} (n = {n})", 2.15))
        else:
            axes.set_xlabel("tokens: preferred − dispreferred")
        if column == 0:
            axes.set_ylabel(f"{symbol}: ranking accuracy (%)")
        axes.axhline(50, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_ylim(-3, 103)
    save_figure(figure, path, ncols=3)
