"""Being ranked correctly against the difference of lengths, as a table and a picture."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from ranking.reports.labels import (
    SYMBOLS,
    ResultRow,
    model_labels,
    refuse_two_runs,
    setting_label,
    setting_labels,
    setting_of,
    short,
)
from ranking.reports.style import (
    GREY,
    legend_below,
    model_style,
    percents,
    save_figure,
    subplots,
)
from ranking.reports.tables import Table, percent, signed_with_interval


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
            [setting_label(row, rows), short(row["model"]), SYMBOLS[row["normalization"]],
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
    models = model_labels(dict.fromkeys(row["model"] for row in rows))
    numbers = {model: k for k, model in enumerate(models)}
    figure, grid = subplots(
        2, len(settings), figsize=(1 + 3.2 * len(settings), 6), sharey=True, sharex="col",
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
                x, y, yerr=bars, capsize=2, markersize=4, label=models[row["model"]],
                **model_style(numbers[row["model"]]),
            )  # fmt: skip
        if score == "length-normalized":
            n = max((row["n"] for row in chosen), default=0)
            axes.set_title(f"{settings[setting]} (n = {n})", fontsize=8)
        else:
            axes.set_xlabel("tokens: preferred − dispreferred")
        if column == 0:
            axes.set_ylabel(f"{symbol}: ranking accuracy (%)")
        axes.axhline(50, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_ylim(0, 102)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    legend_below(figure, grid[0][0], ncols=4)
    save_figure(figure, path)
