"""Ranking dynamics as a table, pictures and wandb panels (Fig. 2-8)."""

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from ranking.metrics.dynamics import (
    GROUPS,
    PARTS,
    lowest_loss_step,
    mean_of,
    means_by_step,
    sweep_points,
)
from ranking.metrics.idealized import required_loss
from ranking.plumbing.result_files import Record, read_json_lines
from ranking.reports.style import BLUE, GREEN, GREY, ORANGE, PINK, save_figure

DYNAMICS_FILE = "ranking_dynamics.jsonl"


def read_dynamics(path: Path) -> list[dict[str, Any]]:
    """Rows of a dynamics file; ValueError if it is something else."""
    rows = read_json_lines(path)
    needed = {"step", "part", "id", "group", "loss", "reward_margin", "beta", "gamma"}
    if not rows or not all(needed <= row.keys() for row in rows):
        raise ValueError(f"{path}: not a {DYNAMICS_FILE} of dpo.py")
    return rows


def print_groups(rows: list[dict]) -> None:
    """Share, loss and reward margin of the four groups at the first, best and last evaluation."""
    best = lowest_loss_step(rows)
    table = Table(title="Ranking dynamics (reference → policy)")
    for column in (
        "part",
        "step",
        "n",
        "accuracy %",
        "flipped to correct",
        "loss",
        *GROUPS.values(),
    ):
        table.add_column(column.replace("_", " "), justify="left" if column == "part" else "right")
    steps = sorted({row["step"] for row in rows})
    for part in ("train", "validation"):
        for step in dict.fromkeys((steps[0], best, steps[-1])):
            chosen = [row for row in rows if (row["part"], row["step"]) == (part, step)]
            if not chosen:
                continue
            sizes = {g: sum(row["group"] == g for row in chosen) for g in GROUPS.values()}
            wrong = sizes["incorrect_to_correct"] + sizes["incorrect_to_incorrect"]
            correct = sizes["correct_to_correct"] + sizes["incorrect_to_correct"]
            table.add_row(
                part,
                f"{step}{' (lowest)' * (step == best)}",
                str(len(chosen)),
                f"{100 * correct / len(chosen):.1f}",
                f"{sizes['incorrect_to_correct']} of {wrong}",
                f"{mean_of(chosen, 'loss'):.4f}",
                *(f"{100 * n / len(chosen):.1f} %" for n in sizes.values()),
            )
    Console(width=None if sys.stdout.isatty() else 150, markup=False).print(table)


def draw_pictures(rows: list[dict], folder: Path) -> dict[str, Path]:
    """Fig. 2, Fig. 3 and accuracy against distance, from the dynamics file."""
    pictures = {
        "dynamics": folder / "ranking_dynamics.png",
        "loss_against_reference": folder / "loss_against_reference.png",
        "accuracy_against_distance": folder / "accuracy_against_distance.png",
    }
    plot_dynamics(rows, pictures["dynamics"])
    plot_loss_against_reference(rows, pictures["loss_against_reference"])
    plot_accuracy_against_distance(rows, pictures["accuracy_against_distance"])
    return pictures


class GroupedPanels(TrainerCallback):
    """Logs the metrics of an evaluation once more under names that wandb shows in sections of
    their own, e.g. `validation groups/…` and `train ranking/…`; Trainer puts all into `eval/`."""

    def __init__(self, run):
        self.run = run

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        names = {"eval_train_": "train ", "eval_": "validation ", "test_": "test "}
        grouped = {}
        for name, value in metrics.items():
            prefix = next((p for p in names if name.startswith(p)), None)
            if prefix and "/" in name:
                grouped[names[prefix] + name.removeprefix(prefix)] = value
        self.run.log({**grouped, "train/global_step": state.global_step})


def log_to_wandb(run, rows: list[dict], texts: dict[str, dict], pictures: dict[str, Path]) -> None:
    """Pictures, and a table of hardest, easiest and flipped pairs at the best step."""
    import wandb

    for name, path in pictures.items():
        run.log({f"figures/{name}": wandb.Image(str(path))})
    best = lowest_loss_step(rows)
    ranked = sorted(
        (
            row
            for row in rows
            if row["step"] == best and None not in (row["chosen"], row["rejected"])
        ),
        key=lambda row: row["chosen"] - row["rejected"],
    )
    kinds = {
        "hardest": ranked[:20],
        "easiest": ranked[-20:],
        "flipped to correct": [r for r in ranked if r["group"] == "incorrect_to_correct"][:50],
        "flipped to incorrect": [r for r in ranked if r["group"] == "correct_to_incorrect"][:50],
    }
    columns = ["kind", "part", "id", "prompt", "chosen", "rejected", "log-ratio (policy)",
               "log-ratio (reference)", "loss"]  # fmt: skip
    table = [
        [kind, row["part"], row["id"],
         *(texts[row["id"]][side] for side in ("prompt", "chosen", "rejected")),
         row["chosen"] - row["rejected"], row["ref_chosen"] - row["ref_rejected"], row["loss"]]
        for kind, chosen in kinds.items()
        for row in chosen
    ]  # fmt: skip
    run.log({"examples/pairs": wandb.Table(columns=columns, data=table)})


GROUP_STYLES = {  # group → colour, marker
    "correct_to_correct": (BLUE, "o"),
    "correct_to_incorrect": (PINK, "v"),
    "incorrect_to_correct": (GREEN, "^"),
    "incorrect_to_incorrect": (ORANGE, "s"),
}


def plot_dynamics(rows: list[Record], path: Path) -> None:
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


def plot_loss_against_reference(rows: list[Record], path: Path) -> None:
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


def plot_accuracy_against_distance(rows: list[Record], path: Path) -> None:
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


def plot_sweep(files: list[list[Record]], path: Path, at: str = "lowest-loss") -> None:
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
