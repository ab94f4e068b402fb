"""The paper's figures from result files.

python plot_results.py ranking-accuracy results/gpt2.jsonl --output fig1.png
python plot_results.py dynamics DPO_DIR/ranking_dynamics.jsonl --output fig2.png
python plot_results.py win-rate results/win_rate.jsonl --output fig4.png
"""

import argparse
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from command_line import announce, make_parser, run_script
from ranking_dynamics import GROUPS, read_dynamics
from ranking_metrics import required_loss
from result_files import DATASET, SCORING, read_json_lines, scoring_label, values_of

Row = dict[str, Any]
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6E6E6E"  # Okabe-Ito: distinct for colour-blind readers
GREEN, PINK = "#009E73", "#CC79A7"
MODEL_COLOURS = (BLUE, ORANGE, GREEN, PINK, "#56B4E9", "#E69F00", "#000000")
MODEL_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GROUP_STYLES = {  # group → colour, marker
    "correct_to_correct": (BLUE, "o"),
    "correct_to_incorrect": (PINK, "v"),
    "incorrect_to_correct": (GREEN, "^"),
    "incorrect_to_incorrect": (ORANGE, "s"),
}
PARTS = ("train", "validation")
SAVE = {"dpi": 160, "bbox_inches": "tight", "metadata": {"Software": None}}


def plain(name: str) -> str:
    """A name that matplotlib prints as it stands: `$` opens no formula."""
    return name.replace("$", r"\$")


def draw(plot, rows: list[Row], path: Path) -> None:
    """Draw a picture beside results; where it cannot be drawn, a line says so, and they stay."""
    try:
        plot(rows, path)
    except ValueError as error:
        announce(f"no picture {path}: {str(error).splitlines()[0]}")


def setting_of(row: Row) -> tuple:
    """Dataset, its part, whether ties count, and how it was scored (not given: the default)."""
    return values_of(row, (*DATASET, "include_ties", *SCORING))


def setting_labels(rows: list[Row]) -> dict[tuple, str]:
    """setting → the dataset, with its split (a long one only beside another), its configuration
    where there are two, "ties", and how it was scored."""
    labels = {}
    for row in rows:
        name, config, split, ties = setting_of(row)[:4]
        parts = {key: {r.get(key) for r in rows if r["dataset_name"] == name} for key in DATASET}
        label = name if config is None or len(parts["dataset_config"]) < 2 else f"{name}:{config}"
        if split is not None and (len(split) <= 12 or len(parts["dataset_split"]) > 1):
            label += f", {split}"
        how = scoring_label(row, rows)
        labels[setting_of(row)] = plain(label) + (", ties" if ties else "") + (
            f",\n{plain(how)}" if how else ""
        )  # fmt: skip
    return labels


def model_labels(models: Iterable[str]) -> dict[str, str]:
    """The last part of each model's path, or all of it where two end alike."""
    ends = [Path(model).name for model in models]
    return {m: plain(e if ends.count(e) == 1 else m) for m, e in zip(models, ends)}


def refuse_two_runs(rows: list[Row], column: str) -> None:
    """Raise ValueError where two rows would be drawn over each other."""
    seen = set()
    for row in rows:
        key = (row["model"], row.get("reference_model"), setting_of(row), row[column])
        if key in seen:
            raise ValueError(f"two runs of {row['model']} on {row['dataset_name']}: give one")
        seen.add(key)


def plot_ranking_accuracy(rows: list[Row], path: Path) -> None:
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


def plot_ranking_accuracy_of_models(accuracies: list[Row], path: Path) -> None:
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


def plot_idealized_curves(curves: list[Row], path: Path) -> None:
    """R*(β) per dataset, model and normalization; observed accuracy dashed, the gap shaded."""
    refuse_two_runs(curves, "calib_property")
    models = model_labels(dict.fromkeys(curve["model"] for curve in curves))
    settings = setting_labels(curves)
    panels: dict[tuple, list[Row]] = {}
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


def plot_required_loss(pairs: list[Row], path: Path) -> None:
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


def means_by_step(rows: list[Row], part: str) -> dict[int, dict[str, Any]]:
    """step → n, accuracy, loss, squared distance, and per group share, loss and reward margin."""
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        if row["part"] == part:
            by_step.setdefault(row["step"], []).append(row)
    summary = {}
    for step, chosen in sorted(by_step.items()):
        members = {name: [r for r in chosen if r["group"] == name] for name in GROUPS.values()}
        correct = len(members["correct_to_correct"]) + len(members["incorrect_to_correct"])
        summary[step] = {
            "n": len(chosen),
            "accuracy": correct / len(chosen),
            "loss": mean_of(chosen, "loss"),
            "squared_distance": chosen[0].get("squared_distance"),
            "share": {name: len(group) / len(chosen) for name, group in members.items()},
            "group_loss": {name: mean_of(group, "loss") for name, group in members.items()},
            "reward_margin": {n: mean_of(group, "reward_margin") for n, group in members.items()},
        }
    return summary


def mean_of(rows: list[Row], column: str) -> float:
    """Mean of the finite values of a column; NaN if there are none."""
    values = [row[column] for row in rows if row[column] is not None]
    return float(np.mean(values)) if values else float("nan")


def lowest_loss_step(rows: list[Row]) -> int:
    """The step with the lowest mean validation loss (training loss if nothing was validated)."""
    summary = means_by_step(rows, "validation") or means_by_step(rows, "train")
    return min(summary, key=lambda step: (summary[step]["loss"], step))


def plot_dynamics(rows: list[Row], path: Path) -> None:
    """Fig. 2, 5-7: share, mean loss and mean reward margin of the four groups against the step.

    One line of panels for the followed training pairs, one for validation; dashed: the step with
    the lowest validation loss.
    """
    parts = [part for part in PARTS if any(row["part"] == part for row in rows)]
    best = lowest_loss_step(rows)
    figure, grid = plt.subplots(
        len(parts), 3, figsize=(11, 0.6 + 2.7 * len(parts)), sharex=True, squeeze=False
    )
    panels = {"share": "share of pairs (%)", "group_loss": "mean loss (nats)",
              "reward_margin": "mean reward margin"}  # fmt: skip
    for line, part in zip(grid, parts):
        summary = means_by_step(rows, part)
        steps = list(summary)
        for axes, (quantity, label) in zip(line, panels.items()):
            for name, (colour, marker) in GROUP_STYLES.items():
                scale = 100 if quantity == "share" else 1
                axes.plot(
                    steps, [scale * summary[step][quantity][name] for step in steps],
                    color=colour, marker=marker, markersize=4, label=name.replace("_to_", " → "),
                )  # fmt: skip
            axes.axvline(best, color=GREY, linestyle="dashed", label="lowest validation loss")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        line[0].set_ylim(bottom=0)
        line[1].set_title(f"{part} pairs (n = {summary[steps[0]]['n']})", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.01), ncols=5, fontsize=8,
        title="ranked by the reference → by the policy", title_fontsize=8,
    )  # fmt: skip
    save_figure(figure, path)


def plot_loss_against_reference(rows: list[Row], path: Path) -> None:
    """Fig. 3, 8: each pair's loss against the reference's log-ratio, at the lowest validation loss.

    The dashed line is the loss below which a pair is ranked correctly, −log σ(γβc) (Theorem 4.1).
    """
    best = lowest_loss_step(rows)
    parts = [part for part in PARTS if any(r["part"] == part and r["step"] == best for r in rows)]
    figure, grid = plt.subplots(
        1, len(parts), figsize=(5.2 * len(parts), 4), sharey=True, squeeze=False
    )
    for axes, part in zip(grid[0], parts):
        chosen = [
            r for r in rows if (r["part"], r["step"]) == (part, best) and r["loss"] is not None
        ]
        ratios = np.array([row["ref_chosen"] - row["ref_rejected"] for row in chosen])
        correct = np.array([row["group"].endswith("to_correct") for row in chosen])
        losses = np.array([row["loss"] for row in chosen])
        for ranked, colour, marker, label in (
            (True, BLUE, "o", "ranked correctly by the policy"),
            (False, ORANGE, "x", "ranked incorrectly"),
        ):
            inside = correct == ranked
            axes.scatter(
                ratios[inside], losses[inside], s=14, color=colour, marker=marker, alpha=0.7,
                linewidths=0.8, label=f"{label} ({inside.sum()})",
            )  # fmt: skip
        line = np.linspace(ratios.min(), ratios.max(), 200)
        beta, gamma = chosen[0]["beta"], chosen[0]["gamma"]
        axes.plot(
            line, required_loss(line, beta, gamma), color="black", linestyle="dashed",
            label="loss needed, −log σ(γβc)",
        )  # fmt: skip
        axes.set_xlabel("log π_ref(y_w|x) − log π_ref(y_l|x)  (nats)")
        axes.set_title(
            f"{part} (n = {len(chosen)}), step {best}, β = {beta:g}, γ = {gamma:g}", fontsize=9
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    highest = max(r["loss"] for r in rows if r["step"] == best and r["loss"] is not None)
    grid[0][0].set_ylim(0, 1.1 * highest)  # the loss needed goes on rising to the right
    grid[0][0].set_ylabel("loss (nats)")
    figure.tight_layout()
    save_figure(figure, path)


def plot_accuracy_against_distance(rows: list[Row], path: Path) -> None:
    """Ranking accuracy against the squared distance from the initial weights (cf. Fig. 4)."""
    distances = {
        r["step"]: r["squared_distance"] for r in rows if r["squared_distance"] is not None
    }
    figure, axes = plt.subplots(figsize=(6, 3.8))
    for part, colour, marker in (("train", BLUE, "o"), ("validation", ORANGE, "s")):
        summary = means_by_step(rows, part)
        steps = [step for step in summary if step in distances]
        if not steps:
            continue
        axes.plot(
            [distances[step] for step in steps],
            [100 * summary[step]["accuracy"] for step in steps],
            color=colour, marker=marker, label=f"{part} (n = {summary[steps[0]]['n']})",
        )  # fmt: skip
        for step in (steps[0], steps[-1]):
            axes.annotate(
                f"step {step}", (distances[step], 100 * summary[step]["accuracy"]), fontsize=7,
                xytext=(0, 7), textcoords="offset points", ha="center",
            )  # fmt: skip
    axes.margins(x=0.1, y=0.15)
    axes.set_xlabel("squared distance from the initial weights, ‖θ_t − θ_0‖²")
    axes.set_ylabel("ranking accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def plot_win_rate(rows: list[Row], path: Path) -> None:
    """Win rate (left axis) and ranking accuracy (right) of checkpoints against the squared distance
    from the reference, or of runs against γ (cf. Fig. 4, 9-12). Rows without a win rate are left
    out."""
    rows = [row for row in rows if row["win_rate"] is not None]
    by_step = all(row["step"] is not None for row in rows)
    by_gamma = not by_step and all(row["gamma"] is not None for row in rows)
    ordered = sorted(rows, key=lambda row: row["gamma"] if by_gamma else row["squared_distance"])
    x = [row["gamma" if by_gamma else "squared_distance"] for row in ordered]
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    right = axes.twinx()
    line = "none" if by_gamma else "solid"  # several seeds of one γ: a line through their means
    wins = np.array([100 * row["win_rate"] for row in ordered])
    bounds = [
        [100 * bound if bound is not None else win for bound in row["bootstrap_95"]]
        for row, win in zip(ordered, wins)
    ]
    low, high = np.array(bounds).T
    axes.errorbar(
        x, wins, yerr=[wins - low, high - wins], color=BLUE, marker="o", capsize=2, linestyle=line,
        label=f"win rate (n = {ordered[0]['n']}, 95 % interval)",
    )  # fmt: skip
    accuracy = np.array([100 * row["ranking_accuracy"] for row in ordered])
    right.plot(
        x, accuracy, color=ORANGE, marker="s", linestyle="none" if by_gamma else "dashed",
        label=f"ranking accuracy (n = {ordered[0]['n_ranked']})",
    )  # fmt: skip
    if by_gamma:
        places = sorted(set(x))
        for side, values, colour, style in (
            (axes, wins, BLUE, "solid"), (right, accuracy, ORANGE, "dashed")
        ):  # fmt: skip
            means = [values[np.array(x) == place].mean() for place in places]
            side.plot(places, means, color=colour, linestyle=style)
    axes.axhline(50, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel("γ" if by_gamma else "squared distance from the reference, ‖θ_t − θ_ref‖²")
    axes.set_ylabel("win rate (%)", color=BLUE)
    right.set_ylabel("ranking accuracy (%)", color=ORANGE)
    if by_step:
        for row, place in zip(ordered, x):
            axes.annotate(f"step {row['step']}", (place, 0.02), fontsize=6, rotation=90, color=GREY,
                          xycoords=("data", "axes fraction"), ha="center", va="bottom")  # fmt: skip
    handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize=8, loc="best")
    axes.margins(y=0.3)
    right.margins(y=0.3)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def save_figure(figure, path: Path) -> None:
    """Write a figure whole or not at all, and close it."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    figure.savefig(partial, **(SAVE if path.suffix == ".png" else {"bbox_inches": "tight"}))
    plt.close(figure)
    partial.replace(path)


def sweep_points(files: list[list[Row]], at: str = "lowest-loss") -> list[Row]:
    """Of each run (the rows of one ranking_dynamics.jsonl) and part: γ, accuracy, share of wrongly
    ranked pairs that are flipped, loss and squared distance, at the step of the lowest validation
    loss or at the last; ordered by γ and part."""
    points = []
    for rows in files:
        steps = {row["step"] for row in rows}
        step = lowest_loss_step(rows) if at == "lowest-loss" else max(steps)
        for part in PARTS:
            chosen = [row for row in rows if (row["part"], row["step"]) == (part, step)]
            wrong = [row for row in chosen if row["group"].startswith("incorrect")]
            if not chosen:
                continue
            flipped = [row for row in wrong if row["group"] == "incorrect_to_correct"]
            points.append(
                {"gamma": chosen[0]["gamma"], "part": part, "n": len(chosen), "step": step,
                 "accuracy": np.mean([r["group"].endswith("to_correct") for r in chosen]).item(),
                 "flipped": len(flipped) / len(wrong) if wrong else None,
                 "loss": mean_of(chosen, "loss"),
                 "squared_distance": next(
                     (r["squared_distance"] for r in rows
                      if r["step"] == step and r["squared_distance"] is not None), None)}
            )  # fmt: skip
    return sorted(points, key=lambda point: (point["gamma"], PARTS.index(point["part"])))


def plot_sweep(files: list[list[Row]], path: Path, at: str = "lowest-loss") -> None:
    """Fig. 5-7 across γ: accuracy, share flipped and squared distance; line: mean over seeds, band:
    smallest to largest."""
    points = sweep_points(files, at)
    panels = {
        "accuracy": ("ranking accuracy (%)", 100),
        "flipped": ("wrongly ranked pairs flipped (%)", 100),
        "squared_distance": ("‖θ − θ_ref‖²", 1),
    }
    figure, grid = plt.subplots(1, 3, figsize=(11, 3.4))
    for axes, (quantity, (label, scale)) in zip(grid, panels.items()):
        for part, colour, marker in (("train", BLUE, "o"), ("validation", ORANGE, "s")):
            if quantity == "squared_distance" and part == "validation":
                continue  # a property of the model
            by_gamma: dict[float, list[float]] = {}
            for point in points:
                if point["part"] == part and point[quantity] is not None:
                    by_gamma.setdefault(point["gamma"], []).append(scale * point[quantity])
            if not by_gamma:
                continue
            gammas = list(by_gamma)
            n = next(point["n"] for point in points if point["part"] == part)
            axes.plot(
                gammas, [np.mean(values) for values in by_gamma.values()], color=colour,
                marker=marker, label=f"{part} (n = {n})",
            )  # fmt: skip
            low, high = ([bound(v) for v in by_gamma.values()] for bound in (min, max))
            axes.fill_between(gammas, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xlabel("γ")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    grid[0].legend(fontsize=8)
    n_seeds = len(files) / len({point["gamma"] for point in points})
    when = "at the lowest validation loss" if at == "lowest-loss" else "after the last step"
    grid[1].set_title(f"{when}; mean and range of {n_seeds:g} seeds", fontsize=9)
    figure.tight_layout()
    save_figure(figure, path)


def plot_length_difference(rows: list[Row], path: Path) -> None:
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


SUMMARIES = {  # figure → function, columns its files have, where they come from
    "ranking-accuracy": (
        plot_ranking_accuracy, {"wilson_95"}, "calculate_calibration_metrics.py"
    ),
    "idealized-accuracy": (
        plot_idealized_curves, {"critical_betas"}, "calculate_upper_bound_rlhf.py, .curve.jsonl"
    ),
    "required-loss": (
        plot_required_loss, {"required_loss"}, "calculate_upper_bound_rlhf.py, .pairs.jsonl"
    ),
    "win-rate": (
        plot_win_rate, {"win_rate", "squared_distance"}, "calculate_win_rate.py --checkpoints"
    ),
    "length-difference": (plot_length_difference, {"bins"}, "reproduce/length_difference.py"),
}  # fmt: skip
DYNAMICS = {
    "dynamics": plot_dynamics,
    "loss-against-reference": plot_loss_against_reference,
    "accuracy-against-distance": plot_accuracy_against_distance,
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "figure", choices=(*SUMMARIES, "sweep", *DYNAMICS), help="which of the paper's figures"
    )
    parser.add_argument(
        "files", nargs="+", type=Path,
        help="summaries of one or several runs; one ranking_dynamics.jsonl; for sweep, several",
    )  # fmt: skip
    parser.add_argument(
        "--at", choices=("lowest-loss", "last"), default="lowest-loss",
        help="step of a sweep's runs: of the lowest validation loss (the paper's), or the last",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, help=".png or .pdf")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.output.suffix not in (".png", ".pdf") or not args.output.parent.is_dir():
        raise ValueError(f"--output {args.output}: give a .png or .pdf in a directory that exists")
    if args.figure in DYNAMICS:
        if len(args.files) > 1:
            raise ValueError(f"{args.figure} takes one dynamics file, found {len(args.files)}")
        DYNAMICS[args.figure](read_dynamics(args.files[0]), args.output)
        print(args.output)
        return
    if args.figure == "sweep":
        plot_sweep([read_dynamics(file) for file in args.files], args.output, args.at)
        print(args.output)
        return
    rows = [row for file in args.files for row in read_json_lines(file)]
    plot, columns, script = SUMMARIES[args.figure]
    if args.figure == "ranking-accuracy":  # its file has other metrics' rows too
        rows = [row for row in rows if row.get("distance_metric") == "acc"]
    if not rows or not all(columns <= row.keys() for row in rows):
        raise ValueError(f"{args.files[0]}: not a file of {script}")
    try:
        plot(rows, args.output)
    except KeyError as error:
        raise ValueError(f"{args.files[0]}: not a file of {script}: no {error}") from None
    print(args.output)


if __name__ == "__main__":
    run_script(main, parse_args())
