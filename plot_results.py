"""The paper's figures from result files.

python plot_results.py ranking-accuracy results/gpt2.jsonl --output fig1.png
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from result_files import read_json_lines

Row = dict[str, Any]
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6E6E6E"  # Okabe-Ito: distinct for colour-blind readers
SAVE = {"dpi": 160, "bbox_inches": "tight", "metadata": {"Software": None}}


def plot_ranking_accuracy(rows: list[Row], path: Path) -> None:
    """Fig. 1: ranking accuracy per dataset, per token and summed, 95 % intervals, chance marked."""
    accuracies = [row for row in rows if row["distance_metric"] == "acc"]
    names = list(
        dict.fromkeys(
            (row["dataset_name"], row["dataset_split"], row["model"]) for row in accuracies
        )
    )
    n_models = len({row["model"] for row in accuracies})
    figure, axes = plt.subplots(figsize=(7, 1.3 + 0.55 * len(names)))
    styles = {
        "ranking_length-normalized": (BLUE, "o", -0.14, "length-normalized"),
        "ranking_non-length-normalized": (ORANGE, "s", 0.14, "summed"),
    }
    for property_name, (colour, marker, shift, label) in styles.items():
        chosen = [row for row in accuracies if row["calib_property"] == property_name]
        positions = [
            names.index((row["dataset_name"], row["dataset_split"], row["model"])) + shift
            for row in chosen
        ]
        values = [100 * row["distance_metric_value_mean"] for row in chosen]
        errors = [
            [value - 100 * row["wilson_95"][0] for value, row in zip(values, chosen)],
            [100 * row["wilson_95"][1] - value for value, row in zip(values, chosen)],
        ]
        errors = [[max(0.0, e) for e in side] for side in errors]
        axes.errorbar(
            values, positions, xerr=errors, fmt=marker, color=colour, capsize=2, label=label
        )
    chance = {(r["dataset_name"], r["dataset_split"], r["model"]): r["chance"] for r in accuracies}
    marked = [(i, 100 * chance[name]) for i, name in enumerate(names) if chance[name] is not None]
    if marked:
        axes.vlines(
            [x for _, x in marked], [i - 0.36 for i, _ in marked], [i + 0.36 for i, _ in marked],
            colors=GREY, linestyles="dashed", label="chance",
        )  # fmt: skip
    sizes = {(r["dataset_name"], r["dataset_split"], r["model"]): r["n"] for r in accuracies}
    axes.set_yticks(
        range(len(names)),
        [f"{n}{f', {m}' if n_models > 1 else ''}\n(n = {sizes[n, s, m]})" for n, s, m in names],
        fontsize=8,
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("ranking accuracy (%), 95 % Wilson interval")
    if n_models == 1:
        axes.set_title(accuracies[0]["model"], fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.35 / figure.get_figheight() - 0.12),
        ncols=3,
        fontsize=8,
    )
    save_figure(figure, path)


def plot_idealized_curves(curves: list[Row], path: Path) -> None:
    """R*(β) for every dataset and normalization; observed accuracy dashed, the gap shaded."""
    datasets = list(dict.fromkeys(curve["dataset_name"] for curve in curves))
    figure, grid = plt.subplots(
        1, len(datasets), figsize=(1.5 + 4.2 * len(datasets), 3.6), sharey=True, squeeze=False
    )
    for axes, dataset in zip(grid[0], datasets):
        chosen = [curve for curve in curves if curve["dataset_name"] == dataset]
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
        axes.set_title(f"{dataset} (n = {chosen[0]['n']} pairs)", fontsize=9)
        axes.grid(alpha=0.3)
    grid[0][0].set_ylabel("ranking accuracy (%)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, fontsize=8
    )
    save_figure(figure, path)


def plot_required_loss(pairs: list[Row], path: Path) -> None:
    """Theorem 4.1: the DPO loss that ranks a pair correctly, against c (cf. Fig. 3)."""
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


def save_figure(figure, path: Path) -> None:
    """Write a figure whole or not at all, and close it."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    figure.savefig(partial, **(SAVE if path.suffix == ".png" else {"bbox_inches": "tight"}))
    plt.close(figure)
    partial.replace(path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("figure", choices=("ranking-accuracy",))
    parser.add_argument("files", nargs="+", type=Path, help="summary files of one or several runs")
    parser.add_argument("--output", required=True, type=Path, help=".png or .pdf")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    rows = [row for file in args.files for row in read_json_lines(file)]
    if not any("wilson_95" in row for row in rows):
        raise ValueError(f"{args.files[0]}: not a summary of calculate_calibration_metrics.py")
    plot_ranking_accuracy(rows, args.output)
    print(args.output)


if __name__ == "__main__":
    try:
        main(parse_args())
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
