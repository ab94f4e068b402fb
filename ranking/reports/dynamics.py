"""Ranking dynamics as tables, pictures and trackers' panels (Fig. 2-8)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ranking.metrics.displacement import displacement_by_step
from ranking.metrics.dynamics import (
    GROUPS,
    PARTS,
    distances_by_step,
    loss_column,
    lowest_loss_step,
    means_by_step,
    means_over_seeds,
    parts_of,
    sweep_points,
)
from ranking.metrics.idealized import required_loss
from ranking.metrics.losses import EQUATION_4
from ranking.plumbing.result_files import Record, read_json_lines
from ranking.reports.pairs import Columns, followed_pair_table
from ranking.reports.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    legend_below,
    model_style,
    save_figure,
    subplots,
)
from ranking.reports.tables import Table, percent, show_table

DYNAMICS_FILE = "ranking_dynamics.jsonl"
DISPLACEMENT_STYLES = {  # of completions → colour, marker, key of the share and of the mean change
    "chosen": (BLUE, "o", "chosen_fell", "mean_chosen_change"),
    "rejected": (ORANGE, "s", "rejected_fell", "mean_rejected_change"),
    "both": (GREY, "^", "both_fell", None),
}
GROUP_STYLES = {  # group → colour, marker
    "correct_to_correct": (BLUE, "o"),
    "correct_to_incorrect": (PINK, "v"),
    "incorrect_to_correct": (GREEN, "^"),
    "incorrect_to_incorrect": (ORANGE, "s"),
}


def read_dynamics(path: Path) -> list[Record]:
    """Rows of a dynamics file; ValueError if it is something else."""
    rows = read_json_lines(path)
    needed = {"step", "part", "id", "group", "loss", "reward_margin", "beta", "gamma", "chosen"}
    if not rows or not all(needed <= row.keys() for row in rows):
        raise ValueError(f"{path}: not a {DYNAMICS_FILE} of dpo.py")
    return rows


# ---------------------------------------------------------------------------- tables
def dynamics_table(rows: Sequence[Record], alone: bool = False) -> Table:
    """Section 4: what became of the pairs that the reference ranks wrongly, and rightly, at the
    start, at the lowest validation loss, and at the end; `alone`: the share of each group."""
    best = lowest_loss_step(rows)
    columns = ["pairs", "step", "loss", "accuracy", "flipped to correct"]
    groups = [name.replace("_", " ") for name in GROUPS.values()]
    columns += groups if alone else ["→ incorrect", "reward margin"]
    lines = []
    for part in parts_of(rows):
        summary = means_by_step(rows, part)
        for step in sorted({min(summary), best, max(summary)} & summary.keys() if summary else ()):
            found = summary[step]
            n, n_wrong, counts = found["n"], found["n_wrong"], found["counts"]
            flipped = f"{counts['incorrect_to_correct']} of {n_wrong}"
            cells = [f"{part} ({n})", f"{step}{' (lowest)' if step == best else ''}",
                     f"{found['loss']:.{4 if alone else 3}f}", f"{percent(found['accuracy'])} %",
                     f"{flipped} ({percent(found['flipped'])} %)"]  # fmt: skip
            if alone:
                cells += [f"{percent(share)} %" for share in found["share"].values()]
            else:
                cells.append(f"{counts['correct_to_incorrect']} of {n - n_wrong}")
                cells.append(f"{round(found['reward_margin'], 2) + 0.0:.2f}")  # no -0.00
            lines.append(cells)
    return columns, lines


def sweep_table(files: Sequence[Sequence[Record]], at: str) -> Table:
    """Fig. 5-7 in numbers: mean over seeds (smallest to largest) of each γ."""
    columns = ["γ", "seeds", "pairs", "accuracy, %", "flipped to correct, %", "loss"]
    columns.append("‖θ − θ_ref‖²")

    def spread(found: tuple[float, float, float] | None, digits: int, scale: float = 1.0) -> str:
        if found is None:
            return "–"
        mean, low, high = (f"{scale * value:.{digits}f}" for value in found)
        return mean + f" ({low} to {high})" * (found[1] != found[2])

    lines = [
        [f"{row['gamma']:g}", str(row["n_seeds"]), f"{row['part']} ({row['n']})",
         spread(row["accuracy"], 1, 100), spread(row["flipped"], 1, 100), spread(row["loss"], 3),
         spread(row["squared_distance"], 2)]
        for row in means_over_seeds(sweep_points(files, at))
    ]  # fmt: skip
    return columns, lines


def displacement_table(rows: Sequence[Record], sortable: bool = False) -> Table:
    """Whose log-likelihoods fell below the reference's, with lines for the four groups: at the
    lowest validation loss and at the end; `sortable`: each line says of which part and step."""
    best = lowest_loss_step(rows)
    columns = ["part of the data", "ranking group"] if sortable else []
    columns += ["pairs", "step", "chosen fell", "rejected fell", "both fell", "chosen, nats"]
    columns.append("rejected, nats")
    shares = [share for *_, share, _ in DISPLACEMENT_STYLES.values()]
    changes = [change for *_, change in DISPLACEMENT_STYLES.values() if change]
    lines = []
    for part in parts_of(rows):
        found = displacement_by_step(rows, part)
        for step in sorted({best, max(found, default=best)} & found.keys()):
            for group in ("all", *GROUPS.values()):
                if (means := found[step].get(group)) is None:
                    continue
                label = "" if group == "all" else group.replace("_to_", " → ")
                when = f"{step}{' (lowest)' if step == best else ''}"
                cells = [f"  {label} ({means['n']:g})" if label else f"{part} ({means['n']:g})"]
                cells.append("" if label else when)
                if sortable:
                    cells = [part, label, f"{means['n']:g}", when]
                lines.append(
                    cells
                    + [f"{percent(means[share])} %" for share in shares]
                    + [f"{round(means[change], 2) + 0.0:+.2f}" for change in changes]  # no -0.00
                )
    return columns, lines


def show_dynamics(rows: Sequence[Record]) -> None:
    show_table(dynamics_table(rows, alone=True), "Ranking dynamics (reference → policy)")
    show_table(displacement_table(rows), "Likelihood displacement: log π_θ(y|x) − log π_ref(y|x)")


def other_losses(rows: Sequence[Record]) -> str:
    """The losses that trained these rows, where they are not Eq. 4's; else nothing."""
    trained = {row["loss_type"] for row in rows if row.get("loss_type")}  # older rows have none
    return ", ".join(sorted(trained - set(EQUATION_4)))


def loss_label(rows: Sequence[Record]) -> str:
    """Of the column `loss`: that it is Eq. 4's, where another loss trains."""
    trained = other_losses(rows)
    return f"loss of Eq. 4 (nats)\nwhere {trained} is trained" if trained else "loss (nats)"


def best_label(rows: Sequence[Record]) -> str:
    """Of `lowest_loss_step`: whose loss that is, where another than Eq. 4's trains."""
    trained = other_losses(rows)
    whose = trained if loss_column(rows) == "trained_loss" else "Eq. 4"
    return f"lowest validation loss{f' of {whose}' * bool(trained)}"


# ---------------------------------------------------------------------------- trackers
def dynamics_panels(rows: Sequence[Record], texts: dict[str, dict]) -> dict[str, Columns]:
    """Tables for trackers, in sections `dynamics` and `examples`: the four groups, displacement,
    and the hardest, easiest and flipped pairs at the best step."""
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
    return {
        "dynamics/groups": dynamics_table(rows, alone=True),
        "dynamics/displacement": displacement_table(rows),
        "examples/pairs": followed_pair_table(kinds, texts),
    }


# ---------------------------------------------------------------------------- pictures
def draw_dynamics(rows: Sequence[Record], folder: Path) -> dict[str, Path]:
    """Fig. 2, Fig. 3, accuracy against distance and displacement, from the dynamics file."""
    plots = {
        "dynamics": (plot_dynamics, "ranking_dynamics.png"),
        "loss_against_reference": (plot_loss_against_reference, "loss_against_reference.png"),
        "accuracy_against_distance": (
            plot_accuracy_against_distance, "accuracy_against_distance.png"
        ),
        "displacement": (plot_displacement, "likelihood_displacement.png"),
    }  # fmt: skip
    for plot, file in plots.values():
        plot(rows, folder / file)
    return {name: folder / file for name, (_, file) in plots.items()}


def plot_dynamics(rows: Sequence[Record], path: Path) -> None:
    """Fig. 2, 5-7: share, mean loss and mean reward margin of the four groups against the step.

    One line of panels for the followed training pairs, one for validation and one for each named
    evaluation set; dashed: the step with the lowest validation loss.
    """
    parts = parts_of(rows)
    best = lowest_loss_step(rows)
    figure, grid = subplots(
        len(parts), 3, figsize=(11, 0.6 + 2.7 * len(parts)), sharex=True, squeeze=False
    )
    panels = {"share": "share of pairs (%)", "group_loss": f"mean {loss_label(rows)}",
              "group_margin": "mean reward margin"}  # fmt: skip
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
            axes.axvline(best, color=GREY, linestyle="dashed", label=best_label(rows))
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        line[0].set_ylim(bottom=0)
        line[1].set_title(f"{part} pairs (n = {summary[steps[0]]['n']})", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    figure.tight_layout()
    title = "ranked by the reference → by the policy"
    legend_below(figure, grid[0][0], ncols=5, title=title, title_fontsize=8)
    save_figure(figure, path)


def plot_loss_against_reference(rows: Sequence[Record], path: Path) -> None:
    """Fig. 3, 8: each pair's loss against the reference's log-ratio, at the lowest validation loss.

    The dashed line is the loss below which a pair is ranked correctly, −log σ(γβc) (Theorem 4.1).
    """
    best = lowest_loss_step(rows)
    parts = parts_of([row for row in rows if row["step"] == best])
    figure, grid = subplots(
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
    grid[0][0].set_ylabel(loss_label(rows))
    figure.tight_layout()
    save_figure(figure, path)


def part_styles(parts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and marker of each part: those of PARTS are the same in every picture."""
    known = enumerate(dict.fromkeys((*PARTS, *parts)))
    return {part: model_style(k) for k, part in known if part in parts}


def plot_accuracy_against_distance(rows: Sequence[Record], path: Path) -> None:
    """Ranking accuracy against the squared distance from the initial weights (cf. Fig. 4)."""
    distances = distances_by_step(rows)
    figure, axes = subplots(figsize=(6, 3.8))
    for part, style in part_styles(parts_of(rows)).items():
        summary = means_by_step(rows, part)
        steps = [step for step in summary if step in distances]
        if not steps:
            continue
        axes.plot(
            [distances[step] for step in steps],
            [100 * summary[step]["accuracy"] for step in steps],
            **style, label=f"{part} (n = {summary[steps[0]]['n']})",
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


def plot_displacement(rows: Sequence[Record], path: Path) -> None:
    """Mean change of the log-likelihoods since the reference, and the share of pairs whose
    log-likelihoods fell, against the step; dashed: the step with the lowest validation loss."""
    found = {part: displacement_by_step(rows, part) for part in parts_of(rows)}
    parts = [part for part in found if any(found[part].values())]
    if not parts:
        raise ValueError("no pair has finite log-likelihoods")
    best = lowest_loss_step(rows)
    figure, grid = subplots(
        len(parts), 2, figsize=(8.5, 0.6 + 2.7 * len(parts)), sharex=True, squeeze=False
    )
    for (left, right), part in zip(grid, parts):
        means = {step: groups["all"] for step, groups in found[part].items() if groups}
        for label, (colour, marker, share, change) in DISPLACEMENT_STYLES.items():
            style = {"color": colour, "marker": marker, "markersize": 4, "label": label,
                     "linestyle": "solid" if change else "dotted"}  # fmt: skip
            right.plot(means.keys(), [100 * m[share] for m in means.values()], **style)
            if change:
                left.plot(means.keys(), [m[change] for m in means.values()], **style)
        left.axhline(0, color=GREY, linewidth=0.8)
        left.set_ylabel("mean change (nats)")
        left.set_title(f"{part} pairs (n = {max(m['n'] for m in means.values())})", fontsize=10)
        right.set_ylabel("fell (% of pairs)")
        right.set_ylim(-3, 103)
        for axes in (left, right):
            axes.axvline(best, color=GREY, linestyle="dashed", label=best_label(rows))
            axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    figure.tight_layout()
    legend_below(
        figure, grid[0][1], ncols=4, title="log π_θ(y|x) − log π_ref(y|x)", title_fontsize=8
    )
    save_figure(figure, path)


def plot_sweep(files: Sequence[Sequence[Record]], path: Path, at: str = "lowest-loss") -> None:
    """Fig. 5-7 across γ: accuracy, share flipped and squared distance; line: mean over seeds, band:
    smallest to largest."""
    swept = means_over_seeds(sweep_points(files, at))
    panels = {
        "accuracy": ("ranking accuracy (%)", 100),
        "flipped": ("wrongly ranked pairs flipped (%)", 100),
        "squared_distance": ("‖θ − θ_ref‖²", 1),
    }
    styles = part_styles([row["part"] for row in swept])
    figure, grid = subplots(1, 3, figsize=(11, 3.4))
    for axes, (quantity, (label, scale)) in zip(grid, panels.items()):
        for part, style in styles.items():
            if quantity == "squared_distance" and part != next(iter(styles)):
                continue  # a property of the model
            rows = [row for row in swept if row["part"] == part and row[quantity] is not None]
            if not rows:
                continue
            gammas = [row["gamma"] for row in rows]
            mean, low, high = scale * np.array([row[quantity] for row in rows]).T
            axes.plot(gammas, mean, **style, label=f"{part} (n = {rows[0]['n']})")
            axes.fill_between(gammas, low, high, color=style["color"], alpha=0.2, linewidth=0)
        axes.set_xlabel("γ")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    grid[0].legend(fontsize=8)
    n_seeds = len(files) / len({row["gamma"] for row in swept})
    when = "at the lowest validation loss" if at == "lowest-loss" else "after the last step"
    grid[1].set_title(f"{when}; mean and range of {n_seeds:g} seeds", fontsize=9)
    figure.tight_layout()
    save_figure(figure, path)
