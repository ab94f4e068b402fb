"""Ranking dynamics as tables and trackers' panels (Fig. 2-8)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ranking.metrics.dynamics import (
    GROUPS,
    displacement_by_step,
    lowest_loss_step,
    means_by_step,
    means_over_seeds,
    parts_of,
    sweep_points,
)
from ranking.metrics.losses import EQUATION_4
from ranking.plumbing.result_files import Record, read_config, read_json_lines
from ranking.reports.labels import group_label
from ranking.reports.pairs import Columns, followed_pair_table
from ranking.reports.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
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


def chosen_step(model: Mapping[str, Any]) -> int | None:
    """The step of a saved model (`model` of run_config.json) that a metric chose; None: the last
    one is saved, or it is not known."""
    return model["step"] if model.get("chosen_by", "last") != "last" else None


def chosen_step_beside(file: Path) -> int | None:
    """The same of the run that a dynamics file is of, from the run_config.json beside it."""
    return chosen_step(read_config(file.with_name("run_config.json")).get("model", {}))


# ---------------------------------------------------------------------------- tables
def step_text(step: int, lowest: int, saved: int | None) -> str:
    """A step in a table: `(lowest)` where the validation loss is, `(saved)` where else the saved
    model is of."""
    return f"{step}{' (lowest)' if step == lowest else ' (saved)' if step == saved else ''}"


def fixed(value: float, digits: int) -> str:
    """So many decimals, without −0; – for NaN, of pairs that are not finite."""
    return "–" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def dynamics_table(rows: Sequence[Record], alone: bool = False, saved: int | None = None) -> Table:
    """Section 4: what became of the pairs that the reference ranks wrongly, and rightly, at the
    start, at the lowest validation loss, at the step of the `saved` model where a metric chose it
    (`chosen_step`), and at the end; `alone`: the share of each group."""
    best = lowest_loss_step(rows)
    columns = ["pairs", "step", loss_heading(rows), "accuracy", "flipped to correct"]
    groups = [name.replace("_", " ") for name in GROUPS.values()]
    columns += groups if alone else ["→ incorrect", "reward margin"]
    lines = []
    for part in parts_of(rows):
        summary = means_by_step(rows, part)
        for step in sorted(summary.keys() & {min(summary), best, saved, max(summary)}):
            found = summary[step]
            n, n_wrong, counts = found["n"], found["n_wrong"], found["counts"]
            flipped = f"{counts['incorrect_to_correct']} of {n_wrong}"
            cells = [f"{part} ({n})", step_text(step, best, saved),
                     fixed(found["loss"], 4 if alone else 3), f"{percent(found['accuracy'])} %",
                     f"{flipped} ({percent(found['flipped'])} %)"]  # fmt: skip
            if alone:
                cells += [f"{percent(share)} %" for share in found["share"].values()]
            else:
                cells.append(f"{counts['correct_to_incorrect']} of {n - n_wrong}")
                cells.append(fixed(found["reward_margin"], 2))
            lines.append(cells)
    return columns, lines


def sweep_table(files: Sequence[Sequence[Record]], at: str) -> Table:
    """Fig. 5-7 in numbers: mean over seeds (smallest to largest) of each γ; no loss where that of a
    seed is not finite."""
    columns = ["γ", "seeds", "pairs", "accuracy, %", "flipped to correct, %"]
    columns += [loss_heading([row for rows in files for row in rows]), "‖θ − θ_ref‖²"]

    def spread(found: tuple[float, float, float] | None, digits: int, scale: float = 1.0) -> str:
        if found is None or math.isnan(found[0]):
            return "–"
        mean, low, high = (fixed(scale * value, digits) for value in found)
        return mean + f" ({low} to {high})" * (found[1] != found[2])

    lines = [
        [f"{row['gamma']:g}", str(row["n_seeds"]), f"{row['part']} ({row['n']})",
         spread(row["accuracy"], 1, 100), spread(row["flipped"], 1, 100), spread(row["loss"], 3),
         spread(row["squared_distance"], 2)]
        for row in means_over_seeds(sweep_points(files, at))
    ]  # fmt: skip
    return columns, lines


def displacement_table(
    rows: Sequence[Record], sortable: bool = False, saved: int | None = None
) -> Table:
    """Whose log-likelihoods fell below the reference's, with lines for the four groups: at the
    lowest validation loss, at the step of the `saved` model where a metric chose it, and at the
    end; `sortable`: each line says of which part and step."""
    best = lowest_loss_step(rows)
    columns = ["part of the data", "ranking group"] if sortable else []
    columns += ["pairs", "step", "chosen fell", "rejected fell", "both fell", "chosen, nats"]
    columns.append("rejected, nats")
    shares = [share for *_, share, _ in DISPLACEMENT_STYLES.values()]
    changes = [change for *_, change in DISPLACEMENT_STYLES.values() if change]
    lines = []
    for part in parts_of(rows):
        found = displacement_by_step(rows, part)
        for step in sorted(found.keys() & {best, saved, max(found)}):
            for group in ("all", *GROUPS.values()):
                if (means := found[step].get(group)) is None:
                    continue
                label = "" if group == "all" else group_label(group)
                when = step_text(step, best, saved)
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


def show_dynamics(rows: Sequence[Record], saved: int | None) -> None:
    """Both tables on the screen."""
    groups, moved = dynamics_table(rows, True, saved), displacement_table(rows, saved=saved)
    show_table(groups, "Ranking dynamics (reference → policy)")
    show_table(moved, "Likelihood displacement: log π_θ(y|x) − log π_ref(y|x)")


def other_losses(rows: Sequence[Record]) -> str:
    """The losses that trained these rows, where they are not Eq. 4's; else nothing."""
    trained = {row["loss_type"] for row in rows if row.get("loss_type")}  # older rows have none
    return ", ".join(sorted(trained - set(EQUATION_4)))


def loss_heading(rows: Sequence[Record]) -> str:
    """What the column `loss` is called: Eq. 4's, where another loss trained."""
    return "loss (Eq. 4)" if other_losses(rows) else "loss"


# ---------------------------------------------------------------------------- trackers
def dynamics_panels(
    rows: Sequence[Record], texts: dict[str, dict], saved: int | None
) -> dict[str, Columns]:
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
        "dynamics/groups": dynamics_table(rows, True, saved),
        "dynamics/displacement": displacement_table(rows, saved=saved),
        "examples/pairs": followed_pair_table(kinds, texts),
    }
