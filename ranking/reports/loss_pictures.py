"""Training and test loss beside the validation loss (Fig. 9b): of one run, and across runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ranking.metrics.dynamics import lowest_loss_step, means_by_step, parts_of, sweep_points
from ranking.plumbing.result_files import Record
from ranking.reports.dynamics_pictures import (
    lowest_label,
    part_styles,
    run_caption,
    trained_loss,
)
from ranking.reports.style import (
    GREY,
    WIDTH,
    model_style,
    save_figure,
    subplots,
    whole_numbers,
)

OVER_RUNS = ("train", "test")  # whose losses stand against the lowest validation loss


def check_parts(runs: Mapping[str, Sequence[Record]]) -> None:
    """ValueError, naming the file, for a run that was not tested or not validated, or, of several,
    followed no training pairs."""
    needed = {"validation": "--eval_strategy=steps", "test": "--evaluate_test"}
    needed |= {"train": "--dynamics_sample_size above 0"} if len(runs) > 1 else {}
    for file, rows in runs.items():
        for part, flag in needed.items():
            if part not in parts_of(rows):
                raise ValueError(f"{file}: no losses of {part} pairs, run dpo.py with {flag}")


def plot_losses(runs: Mapping[str, Sequence[Record]], path: Path, run: str = "") -> None:
    """Fig. 9b of the rows of some dynamics files, by their names: of one, the losses of each
    evaluation; of several, training and test loss at the lowest validation loss."""
    check_parts(runs)
    if len(runs) == 1:
        plot_losses_of_run(next(iter(runs.values())), path, run)
    else:
        plot_losses_of_runs(runs, path, run)


def plot_losses_of_run(rows: Sequence[Record], path: Path, run: str = "") -> None:
    """Mean loss of training, validation and test pairs against the step, and the step with the
    lowest validation loss."""
    best = lowest_loss_step(rows)
    with_loss, loss_name = trained_loss(rows)
    figure, axes = subplots(figsize=(0.65 * WIDTH, 3.2))
    for part, style in part_styles(parts_of(rows)).items():
        summary = means_by_step(with_loss, part)
        n = next(iter(summary.values()))["n"]
        losses = [found["loss"] for found in summary.values()]
        axes.plot(list(summary), losses, label=f"{part} pairs (n = {n})", **style)
    axes.axvline(
        best, color=GREY, linestyle="dashed", zorder=1, label=f"{lowest_label(rows)}, step {best}"
    )
    axes.set_xlabel("training step")
    axes.set_ylabel(f"mean {loss_name}")
    whole_numbers(axes.xaxis)
    save_figure(figure, path, run_caption(rows, run), ncols=2)


def plot_losses_of_runs(runs: Mapping[str, Sequence[Record]], path: Path, run: str = "") -> None:
    """Mean loss of training pairs (hollow) and of test pairs (filled) at the step with the lowest
    validation loss, against that loss: a point of each run, by γ."""
    with_loss = [trained_loss(rows) for rows in runs.values()]
    names = dict.fromkeys(name for _, name in with_loss)
    if len(names) > 1:
        raise ValueError(f"runs of several losses, {' and '.join(names)}: draw them apart")
    points = [{point["part"]: point for point in sweep_points([rows])} for rows, _ in with_loss]
    gammas = sorted({of_run["validation"]["gamma"] for of_run in points})
    figure, axes = subplots(figsize=(0.6 * WIDTH, 3.6))
    for k, gamma in enumerate(gammas):
        style = model_style(k)
        own = [of_run for of_run in points if of_run["validation"]["gamma"] == gamma]
        for part in OVER_RUNS:
            axes.plot(
                [of_run["validation"]["loss"] for of_run in own],
                [of_run[part]["loss"] for of_run in own],
                linestyle="none", clip_on=False, zorder=3, label=rf"{part}, $\gamma$ = {gamma:g}",
                markerfacecolor="none" if part == "train" else style["color"], **style,
            )  # fmt: skip
    axes.axline((0, 0), slope=1, color=GREY, linestyle="dashed", label="equal losses", zorder=1)
    lowest, highest = axes.get_xlim()
    axes.set_xlim(max(0, lowest), highest)
    axes.set_ylim(0, 1.05 * max(max(axes.dataLim.intervaly), highest))
    axes.set_xlabel(f"mean {next(iter(names))} of validation pairs, the lowest of each run")
    axes.set_ylabel(f"mean {next(iter(names))} at that step")
    caption = run_caption([row for rows in runs.values() for row in rows], run)
    save_figure(figure, path, caption, ncols=min(5, len(gammas) + 1))  # a column of each γ
