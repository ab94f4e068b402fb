"""Ranking accuracy against the difference of lengths (Fig. 11 of the paper's appendix)."""

from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ranking.plumbing.result_files import Record
from ranking.reports.style import (
    GREY,
    MODEL_COLOURS,
    MODEL_MARKERS,
    model_labels,
    refuse_two_runs,
    save_figure,
    setting_labels,
    setting_of,
)


def plot_length_difference(rows: list[Record], path: Path) -> None:
    """Ranking accuracy against how much longer the preferred completion is, in bins of equal size,
    with 95 % Wilson intervals; a column per dataset, R̃ above R (rows of length_difference.py)."""
    without = [row for row in rows if not row.get("include_ties")]
    rows = without or rows  # with ties, the untied pairs would be drawn twice
    refuse_two_runs(rows, "normalization")
    datasets = list(dict.fromkeys(setting_of(row) for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    settings, short = setting_labels(rows), model_labels(models)
    scores = {"length-normalized": "R̃", "non-length-normalized": "R"}
    figure, grid = plt.subplots(
        2, len(datasets), figsize=(1 + 3.2 * len(datasets), 6), sharey=True, sharex="col",
        squeeze=False,
    )  # fmt: skip
    for (line, (score, symbol)), (column, dataset) in product(
        zip(grid, scores.items()), enumerate(datasets)
    ):
        axes = line[column]
        chosen = [
            row for row in rows if (setting_of(row), row["normalization"]) == (dataset, score)
        ]
        for row in chosen:
            k = models.index(row["model"])
            x = [b["mean_difference"] for b in row["bins"]]
            y = np.array([100 * b["accuracy"] for b in row["bins"]])
            low, high = 100 * np.array([b["wilson_95"] for b in row["bins"]]).T
            axes.errorbar(
                x, y, yerr=[np.maximum(0, y - low), np.maximum(0, high - y)], capsize=2,
                color=MODEL_COLOURS[k % 7], marker=MODEL_MARKERS[(k + k // 7) % 7], markersize=4,
                label=short[row["model"]],
            )  # fmt: skip
        if score == "length-normalized":
            n = max((row["n"] for row in chosen), default=0)
            axes.set_title(f"{settings[dataset]} (n = {n})", fontsize=8)
        else:
            axes.set_xlabel("tokens: preferred − dispreferred")
        if column == 0:
            axes.set_ylabel(f"{symbol}: ranking accuracy (%)")
        axes.axhline(50, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_ylim(0, 102)
        axes.grid(alpha=0.3)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.01), ncols=4, fontsize=8
    )
    save_figure(figure, path)
