"""Idealized accuracy as tables, pictures and wandb panels (Tables 1, 6; App. F)."""

import argparse
import logging
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from ranking.metrics.accuracy import NORMALIZATIONS
from ranking.plumbing.result_files import Record
from ranking.reports.style import (
    BLUE,
    GREY,
    ORANGE,
    model_labels,
    plain,
    refuse_two_runs,
    save_figure,
    setting_labels,
    setting_of,
)


def print_table(table_rows: list[tuple[str, int, dict[str, dict]]], title: str) -> None:
    """R̃, R̃* min/med/max, R, R* min/med/max and the gaps to the median, in percent."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Idealized ranking accuracy, %; observed: {title}")
    for column in ("dataset", "pairs", "R̃", "R̃* min/med/max", "gap", "R", "R* min/med/max", "gap"):
        table.add_column(column, justify="left" if column == "dataset" else "right")
    for dataset, n, summaries in table_rows:
        cells = []
        for normalization in NORMALIZATIONS:
            summary = summaries[normalization]
            low, high = (math.nan if x is None else x for x in summary["gap_to_median_95"])
            cells += [
                f"{100 * summary['accuracy']:.1f}",
                " / ".join(f"{100 * value:.1f}" for value in summary["min_median_max"]),
                f"{100 * summary['gap_to_median']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
            ]
        table.add_row(dataset, str(n), *cells)
    Console(width=None if sys.stdout.isatty() else 132, markup=False).print(table)


def report_exact_ties(table_rows: list[tuple[str, int, dict[str, dict]]], alone: bool) -> None:
    """A warning for each accuracy that exactly equal scores of untied pairs decide; `alone`: the
    reference is the policy."""
    sides = [("observed", "accuracy", "exact_ties")]
    if not alone:
        sides.append(("reference's", "reference_accuracy", "reference_exact_ties"))
    for dataset, n, summaries in table_rows:
        for normalization, summary in summaries.items():
            for whose, accuracy, ties in sides:
                if summary[ties]:
                    value, strict = summary[accuracy], summary[accuracy] - summary[ties] / n
                    logging.warning(
                        "%s, %s: %d untied pairs have exactly equal scores: %s accuracy %.1f %% as "
                        "Def. 2.3 counts them (right), %.1f %% if they were wrong", dataset,
                        normalization, summary[ties], whose, 100 * value, 100 * strict,
                    )  # fmt: skip


def print_pairs(title: str, pairs: list[Record]) -> None:
    """Prompt and completions of some pairs (App. F)."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, show_lines=True)
    for column in ("c (nats)", "α", "prompt", "preferred", "dispreferred"):
        table.add_column(column, overflow="fold")
    for pair in pairs:
        record = pair["record"]
        texts = [record["completions"][pair[side]]["text"] for side in ("winner", "loser")]
        cells = [text.strip() for text in (record["prompt"][-300:], *texts)]
        cells = [text if len(text) <= 300 else text[:299] + "…" for text in cells]
        numbers = (f"{-pair['ref_logratio non-length-normalized']:.1f}", f"{pair['alpha']:.3f}")
        table.add_row(*numbers, *(Text(cell) for cell in cells))
    Console(width=None if sys.stdout.isatty() else 132, markup=False).print(table)


def print_selected_pairs(pairs: list[Record], args: argparse.Namespace) -> None:
    """`--hardest`, `--easiest` and `--easiest-to-flip`, by c = log π_ref(y_l|x) / π_ref(y_w|x)."""
    untied = [pair for pair in pairs if not pair["tied"]]
    ordered = sorted(untied, key=lambda pair: pair["ref_logratio non-length-normalized"])
    wrong = [pair for pair in ordered if pair["ref_logratio non-length-normalized"] < 0]
    if args.hardest:
        print_pairs("Hardest to learn: largest c", ordered[: args.hardest])
    if args.easiest:
        print_pairs("Easiest: smallest c", ordered[::-1][: args.easiest])
    if args.easiest_to_flip:
        print_pairs("Easiest to flip: smallest positive c", wrong[::-1][: args.easiest_to_flip])


def log_to_wandb(run, rows: list[Record], files: dict[str, Path]) -> None:
    """The table per β and both pictures."""
    import wandb

    columns = ["dataset_name", "dataset_split", "calib_property", "beta",
               "distance_metric_value_mean", "gap", "n"]  # fmt: skip
    data = [[row[column] for column in columns] for row in rows]
    run.log(
        {
            "idealized_accuracy": wandb.Table(columns=columns, data=data),
            "curve": wandb.Image(str(files["picture"])),
            "required_loss": wandb.Image(str(files["losses"])),
        }
    )


def plot_idealized_curves(curves: list[Record], path: Path) -> None:
    """R*(β) per dataset, model and normalization; observed accuracy dashed, the gap shaded."""
    refuse_two_runs(curves, "calib_property")
    models = model_labels(dict.fromkeys(curve["model"] for curve in curves))
    settings = setting_labels(curves)
    panels: dict[tuple, list[Record]] = {}
    for curve in curves:
        key = (setting_of(curve), curve.get("reference_model"), curve["model"])
        panels.setdefault(key, []).append(curve)
    figure, grid = plt.subplots(
        1, len(panels), figsize=(1.5 + 4.2 * len(panels), 3.6), sharey=True, squeeze=False
    )
    n_references = len({curve.get("reference_model") for curve in curves})
    for axes, ((setting, reference, model), chosen) in zip(grid[0], panels.items()):
        breakpoints = [beta for curve in chosen for beta in curve["critical_betas"]]
        left = min([1e-3, *(beta / 2 for beta in breakpoints)])
        right = max([20.0, *(2 * beta for beta in breakpoints)])
        for curve in chosen:
            summed = "non-length" in curve["calib_property"]
            colour, label = (ORANGE, "summed") if summed else (BLUE, "length-normalized")
            steps = [left, *curve["critical_betas"], right]
            share = 100 / curve["n"]
            values = [100 * curve["limit_beta_to_0"] - share * k for k in range(len(steps) - 1)]
            values.append(values[-1])
            observed = 100 * curve["observed_accuracy"]
            axes.step(steps, values, where="post", color=colour, label=f"R*, {label}")
            axes.axhline(observed, color=colour, linestyle="dashed", label=f"observed, {label}")
            axes.fill_between(steps, values, observed, step="post", color=colour, alpha=0.12)
        axes.set_xscale("log")
        axes.set_xlim(left, min(right, 1000))
        axes.set_xlabel("β")
        axes.set_ylim(0, 102)
        whose = f"{models[model]}, " if len(models) > 1 else ""
        whose += f"from {plain(str(reference))}, " if n_references > 1 else ""
        axes.set_title(f"{whose}{settings[setting]} (n = {chosen[0]['n']} pairs)", fontsize=9)
        axes.grid(alpha=0.3)
    grid[0][0].set_ylabel("ranking accuracy (%)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=8
    )
    save_figure(figure, path)


def plot_required_loss(pairs: list[Record], path: Path) -> None:
    """Theorem 4.1: the DPO loss that ranks a pair correctly, against c (cf. Fig. 3)."""
    if len({(pair["gamma"], *pair["required_loss"]) for pair in pairs}) > 1:
        raise ValueError("pairs of several γ or β: draw each file by itself")
    ordered = sorted((pair for pair in pairs if not pair["tied"]), key=lambda pair: pair["c"])
    figure, axes = plt.subplots(figsize=(6.5, 4))
    betas = sorted(pairs[0]["required_loss"], key=float)
    colours = plt.get_cmap("viridis")
    for k, beta in enumerate(betas):
        axes.plot(
            [pair["c"] for pair in ordered],
            [pair["required_loss"][beta] for pair in ordered],
            marker=".", markersize=3, linewidth=0.8, linestyle="dashed",
            color=colours(0.9 * k / max(1, len(betas) - 1)), label=f"β = {beta}",
        )  # fmt: skip
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yscale("log")
    largest = max((p["required_loss"][beta] for p in ordered for beta in betas), default=1.0)
    axes.set_ylim(1e-4, 2 * max(largest, 1.0))
    axes.set_xlabel("c = log π_ref(y_l|x) − log π_ref(y_w|x)  (nats)")
    axes.set_ylabel("loss needed, −log σ(γβc)  (nats)")
    axes.set_title(
        f"right of 0: the reference ranks the pair wrongly (n = {len(ordered)})", fontsize=9
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)
