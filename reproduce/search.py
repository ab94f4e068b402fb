r"""The runs of a search side by side, of which the lowest validation loss chooses one (App. D.1).

    python -m reproduce.search RUN_DIR RUN_DIR --output results/paper/search/gpt2_dpo.jsonl

RUN_DIR: finished or diverged runs of one script on one model, data and seed, as the step `search`
of `python -m reproduce.run` makes them. The output has a row for each, which `python -m
reproduce.tables search` shows; step `training` takes the chosen one's learning rate, batch and β.
--link LINK: a link to the chosen run, so that DPO and step `training` start from it.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any, TypedDict

from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import write_json_lines
from ranking.reports.labels import short
from ranking.reports.tables import Table, show_table
from reproduce.steps import RUN_FILE, has_diverged, is_finished

VARIED = ("learning_rate", "batch_size", "beta")
OF_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "n_processes")


class SearchPoint(TypedDict):
    """A row: one run."""

    model: str
    folder: str
    seed: int
    learning_rate: float
    batch_size: int  # texts or pairs a step, of all processes
    beta: float | None  # of DPO
    lowest_loss: float | None  # of its evaluations on validation; null: it diverged
    step: int | None  # of that evaluation, the first if several
    max_steps: int | None
    diverged: bool  # the loss of a training step, or of all evaluations, was not finite
    chosen: bool


def search_point(folder: Path) -> SearchPoint:
    """What a run was and how low its validation loss fell (step 0, before training, apart).
    ValueError where it has neither ended nor diverged, or was not evaluated."""
    file = folder / RUN_FILE
    diverged = has_diverged(file)
    if not diverged and not is_finished(file):
        raise ValueError(f"{folder} has not ended: the same command of reproduce.run goes on")
    settings = json.loads(file.read_text())["settings"]
    lowest, step, max_steps = None, None, None
    if not diverged:
        state = json.loads((folder / "trainer_state.json").read_text())
        max_steps = state["max_steps"]
        losses: dict[int, float] = {}
        for entry in state["log_history"]:
            if "eval_loss" in entry and entry["step"] > 0:
                # a second one of the last step is of the best model, loaded at the end
                losses.setdefault(entry["step"], entry["eval_loss"])
        if not losses:
            raise ValueError(f"{folder}: no validation loss in trainer_state.json")
        finite = [(loss, step) for step, loss in losses.items() if math.isfinite(loss)]
        diverged = not finite
        lowest, step = min(finite, default=(None, None))
    return {
        "model": settings["model_name_or_path"], "folder": str(folder), "seed": settings["seed"],
        "learning_rate": settings["learning_rate"],
        "batch_size": math.prod(settings[name] for name in OF_BATCH),
        "beta": settings.get("beta"), "lowest_loss": lowest, "step": step, "max_steps": max_steps,
        "diverged": diverged, "chosen": False,
    }  # fmt: skip


def choose(points: list[SearchPoint]) -> SearchPoint:
    """The point of the lowest validation loss, the first of equal ones; diverged ones do not count.
    ValueError where all diverged, or where they differ in more than what is searched for."""
    for key in ("model", "seed"):
        if len({point[key] for point in points}) > 1:
            raise ValueError(f"runs of several values of {key}: a search is of one")
    losses = [(p["lowest_loss"], k) for k, p in enumerate(points) if p["lowest_loss"] is not None]
    if not losses:
        raise ValueError(f"all {len(points)} runs diverged: search smaller learning rates")
    return points[min(losses)[1]]


def search_table(rows: list[Any]) -> Table:
    """The points, best first, those that diverged last. The losses of DPO at different β are of
    different functions; the paper compares them all the same, and so does this."""
    if not all("lowest_loss" in row and "chosen" in row for row in rows):
        raise ValueError("not a file of reproduce.search")
    shown = [name for name in VARIED if any(row[name] is not None for row in rows)]
    columns = ["model", *(name.replace("_", " ") for name in shown)]
    columns += ["lowest validation loss", "step", "chosen"]
    lines = []
    for row in sorted(rows, key=lambda row: (row["diverged"], row["lowest_loss"] or 0)):
        values = ["–" if row[name] is None else f"{row[name]:g}" for name in shown]
        line = [short(row["model"]), *values]
        if row["diverged"]:
            line += ["diverged", "–"]
        else:
            line += [f"{row['lowest_loss']:.4f}", f"{row['step']} of {row['max_steps']}"]
        lines.append([*line, "yes" if row["chosen"] else ""])
    return columns, lines


def replace_link(link: Path, target: Path) -> None:
    """A relative link, so that both may be moved together. ValueError where something else is."""
    if link.exists() and not link.is_symlink():
        raise ValueError(f"--link {link} is a folder of its own: move it away")
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN_DIR", help="output directories of runs")
    add("--output", type=Path, required=True, help="JSON lines, a row for each run")
    add("--link", type=Path, help="a link to make, to the chosen run")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    points = [search_point(folder) for folder in args.runs]
    chosen = choose(points)
    if args.link is not None:
        replace_link(args.link, Path(chosen["folder"]))
    for point in points:
        point["chosen"] = point is chosen
    show_table(search_table(points), "Lowest validation loss of each run")
    if len({point["beta"] for point in points}) > 1:
        print("Losses at different β are of different functions; the paper chooses by them, too.")
    n_diverged = sum(point["diverged"] for point in points)
    write_json_lines(args.output, points)
    print(f"{args.output}: {len(points)} runs, {n_diverged} diverged, chosen: {chosen['folder']}")


if __name__ == "__main__":
    run_script(main, parse_args())
