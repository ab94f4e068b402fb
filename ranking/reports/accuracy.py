"""Ranking accuracy as a table, a picture and wandb panels (Fig. 1, Tables 2-5)."""

import json
import logging
import sys
from itertools import groupby
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ranking.data.examples import dataset_label
from ranking.plumbing.result_files import Record, scoring_label
from ranking.reports.style import (
    BLUE,
    GREY,
    MODEL_COLOURS,
    MODEL_MARKERS,
    ORANGE,
    model_labels,
    plain,
    refuse_two_runs,
    save_figure,
    setting_labels,
    setting_of,
)


def print_table(rows: list[Record]) -> None:
    """dataset, K, n, R̃ and R with their 95 % Wilson intervals, chance, dropped, ties."""
    from rich.console import Console
    from rich.table import Table

    how = scoring_label(rows[0])
    table = Table(title="Ranking accuracy, % [95 % interval]" + (f"; {how}" if how else ""))
    for column in ("dataset", "K", "n", "R̃ (per token)", "R (summed)", "chance", "dropped", "ties"):
        table.add_column(column, justify="left" if column == "dataset" else "right")
    accuracies = [row for row in rows if row["distance_metric"] == "acc"]
    for _, pair in groupby(accuracies, key=lambda r: (r["dataset_name"], r["dataset_split"])):
        normalized, summed = pair
        low, high = summed["k_min"], summed["k_max"]
        table.add_row(
            dataset_label(summed["dataset_name"], summed["dataset_split"]),
            str(low) if low == high else f"{low}–{high}",
            str(summed["n"]),
            *(
                f"{100 * r['distance_metric_value_mean']:.1f} "
                f"[{100 * r['wilson_95'][0]:.1f}, {100 * r['wilson_95'][1]:.1f}]"
                for r in (normalized, summed)
            ),
            "–" if summed["chance"] is None else f"{100 * summed['chance']:.1f}",
            str(sum(summed["dropped"].values())),
            str(summed["n_examples_with_ties"]),
        )
    console = Console(width=None if sys.stdout.isatty() else 132, markup=False)
    console.print(table)
    for row in accuracies[::2]:
        where, n = dataset_label(row["dataset_name"], row["dataset_split"]), row["n_non_finite"]
        if n:
            console.print(
                f"{where}: {n} examples with a non-finite log-likelihood, counted as wrong"
            )
    report_exact_ties(rows)


def report_exact_ties(rows: list[Record]) -> None:
    """A line where untied pairs have exactly equal scores, and a warning where they decide."""
    for row in rows:
        metric, kind = row["distance_metric"], row["calib_property"].removeprefix("ranking_")
        where = f"{dataset_label(row['dataset_name'], row['dataset_split'])}, {kind}"
        value, strict = row["distance_metric_value_mean"], row["mean_if_exact_ties_are_wrong"]
        if metric == "acc" and row["n_exact_ties"]:
            print(f"{where}: {row['n_exact_ties']} untied pairs have exactly equal scores")
        if strict < value and (metric == "acc" or (metric == "pairwise_acc" and row["k_max"] > 2)):
            logging.warning(
                "%s: exact ties decide %s: %.1f %% as Def. 2.3 counts them (right), %.1f %% if "
                "they were wrong", where, metric, 100 * value, 100 * strict,
            )  # fmt: skip


def print_comparison(comparisons: list[Record], name: str) -> None:
    """McNemar's test against another run, and without exact ties where there are any."""
    if not comparisons:
        print(f"McNemar: no example of this run is in {name}")
    for row in comparisons:
        where = f"{dataset_label(row['dataset'], row['split'])}, {row['calib_property']}"
        kinds = [("", row)]
        if any(row["n_exact_ties"]):
            kinds.append((", exact ties counted as wrong", row["if_exact_ties_are_wrong"]))
        for kind, found in kinds:
            counts = [found[f"only_{side}_correct"] for side in ("this", "other")]
            print(
                f"McNemar, {where}{kind}: {counts[0]} only here, {counts[1]} only there, of "
                f"{row['n']}; exact p = {found['p_value']:.3g}"
            )


def log_to_wandb(run, rows: list[Record], records: list[Record], picture: Path) -> None:
    """Accuracies as summary values, the table, the picture and a per-example table."""
    import wandb

    columns = [
        "dataset_name",
        "dataset_split",
        "calib_property",
        "distance_metric",
        "distance_metric_value_mean",
        "n",
        "chance",
    ]
    splits = {(row["dataset_name"], row["dataset_split"]) for row in rows}
    names = [name for name, _ in splits]
    for row in rows:
        name = row["dataset_name"]
        if names.count(name) > 1:
            name = dataset_label(name, row["dataset_split"])
        key = f"{name}/{row['calib_property']}/{row['distance_metric']}"
        run.summary[key] = row["distance_metric_value_mean"]
    examples = [
        [r["dataset"], r["id"], r["prompt"], json.dumps(r["ranks"]),
         json.dumps([c["text"] for c in r["completions"]]),
         json.dumps([c["logp"] for c in r["completions"]]),
         json.dumps([c["n_tokens"] for c in r["completions"]])]
        for r in records
    ]  # fmt: skip
    titles = [
        "dataset",
        "id",
        "prompt",
        "ranks",
        "completions",
        "log-likelihoods (nats)",
        "n_tokens",
    ]
    run.log(
        {
            "ranking_accuracy": wandb.Table(
                columns=columns, data=[[row[c] for c in columns] for row in rows]
            ),
            "examples": wandb.Table(columns=titles, data=examples),
            "figure": wandb.Image(str(picture)),
        }
    )


def plot_ranking_accuracy(rows: list[Record], path: Path) -> None:
    """Fig. 1: ranking accuracy per dataset, per token and summed, 95 % intervals, chance marked."""
    accuracies = [row for row in rows if row["distance_metric"] == "acc"]
    refuse_two_runs(accuracies, "calib_property")
    if len({row["model"] for row in accuracies}) > 1:
        plot_ranking_accuracy_of_models(accuracies, path)
        return
    names = list(dict.fromkeys(setting_of(row) for row in accuracies))
    figure, axes = plt.subplots(figsize=(7, 1.3 + 0.55 * len(names)))
    styles = {
        "ranking_length-normalized": (BLUE, "o", -0.14, "length-normalized"),
        "ranking_non-length-normalized": (ORANGE, "s", 0.14, "summed"),
    }
    for property_name, (colour, marker, shift, label) in styles.items():
        chosen = [row for row in accuracies if row["calib_property"] == property_name]
        positions = [names.index(setting_of(row)) + shift for row in chosen]
        values = [100 * row["distance_metric_value_mean"] for row in chosen]
        errors = [
            [value - 100 * row["wilson_95"][0] for value, row in zip(values, chosen)],
            [100 * row["wilson_95"][1] - value for value, row in zip(values, chosen)],
        ]
        errors = [[max(0.0, e) for e in side] for side in errors]
        axes.errorbar(
            values, positions, xerr=errors, fmt=marker, color=colour, capsize=2, label=label
        )
    chance = {setting_of(row): row["chance"] for row in accuracies}
    marked = [(i, 100 * chance[name]) for i, name in enumerate(names) if chance[name] is not None]
    if marked:
        axes.vlines(
            [x for _, x in marked], [i - 0.36 for i, _ in marked], [i + 0.36 for i, _ in marked],
            colors=GREY, linestyles="dashed", label="chance",
        )  # fmt: skip
    sizes = {setting_of(row): row["n"] for row in accuracies}
    settings = setting_labels(accuracies)
    labels = [f"{settings[name]}\n(n = {sizes[name]})" for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("ranking accuracy (%), 95 % Wilson interval")
    axes.set_title(plain(accuracies[0]["model"]), fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.35 / figure.get_figheight() - 0.12),
        ncols=3,
        fontsize=8,
    )
    save_figure(figure, path)


def plot_ranking_accuracy_of_models(accuracies: list[Record], path: Path) -> None:
    """Fig. 1 for several models: a line per dataset, a mark per model; length-normalized (as in the
    paper) and summed side by side."""
    names = list(dict.fromkeys(setting_of(row) for row in accuracies))
    models = list(dict.fromkeys(row["model"] for row in accuracies))
    settings, short = setting_labels(accuracies), model_labels(models)
    figure, grid = plt.subplots(
        1, 2, figsize=(10, 1.6 + len(names) * max(0.75, 0.14 * len(models))), sharey=True
    )
    for axes, (kind, title) in zip(
        grid,
        (("length-normalized", "R̃, length-normalized"), ("non-length-normalized", "R, summed")),
    ):
        for k, model in enumerate(models):
            chosen = [
                row
                for row in accuracies
                if row["model"] == model and row["calib_property"] == f"ranking_{kind}"
            ]
            shift = 0.6 * ((k + 0.5) / len(models) - 0.5)
            y = [names.index(setting_of(row)) + shift for row in chosen]
            x = np.array([100 * row["distance_metric_value_mean"] for row in chosen])
            low, high = 100 * np.array([row["wilson_95"] for row in chosen]).T
            axes.errorbar(
                x, y, xerr=[np.maximum(0, x - low), np.maximum(0, high - x)], capsize=2,
                fmt=MODEL_MARKERS[(k + k // 7) % 7], color=MODEL_COLOURS[k % 7], markersize=5,
                label=short[model],
            )  # fmt: skip
        for i, name in enumerate(names):
            row = next(r for r in accuracies if setting_of(r) == name)
            if row["chance"] is not None:
                axes.vlines(
                    100 * row["chance"], i - 0.4, i + 0.4, colors=GREY, linestyles="dashed",
                    label="chance" if i == 0 else None,
                )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlim(0, 100)
        axes.set_xlabel("ranking accuracy (%), 95 % Wilson interval")
        axes.grid(axis="x", alpha=0.3)
    sizes = [max(r["n"] for r in accuracies if setting_of(r) == name) for name in names]
    grid[0].set_yticks(
        range(len(names)),
        [f"{settings[name]}\n(n = {n})" for name, n in zip(names, sizes)],
        fontsize=8,
    )
    grid[0].invert_yaxis()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.01), ncols=5, fontsize=8
    )
    save_figure(figure, path)
