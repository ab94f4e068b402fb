"""Which wrongly ranked pairs tuning flips, as a table and a picture (§4, Theorem 4.1)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ranking.metrics.dynamics import GROUPS, lowest_loss_step, parts_of
from ranking.metrics.flips import CountedShare, Flips, flipped_by_c, flips_of_run, wrong_pairs
from ranking.plumbing.result_files import Record
from ranking.reports.dynamics import DYNAMICS_FILE, GROUP_STYLES
from ranking.reports.dynamics_pictures import run_caption
from ranking.reports.style import (
    GREY,
    LOG_REF,
    WIDTH,
    percents,
    save_figure,
    subplots,
)
from ranking.reports.tables import Table, percent, signed_with_interval, with_interval

FLIPPED, STAYED = GROUPS[False, True], GROUPS[False, False]


def dynamics_names(files: Sequence[Path]) -> list[str]:
    """What tables call the runs of dynamics files: the folder of dpo.py, else the file's name."""
    names = [file.name.removesuffix(".gz") for file in files]
    return [
        file.resolve().parent.name if name == DYNAMICS_FILE else name.removesuffix(".jsonl")
        for file, name in zip(files, names)
    ]


def counted(share: CountedShare) -> str:
    """k of n, and the percentage with its 95 % interval."""
    return f"{share['k']} of {share['n']}: {with_interval(share['value'], share['wilson_95'], 1)}"


def flips_table(runs: Iterable[tuple[str, Sequence[Record]]]) -> Table:
    """Of each run, (name, rows), and part: how many wrongly ranked pairs flipped, at the lowest
    validation loss and at the end, whether small c flips first, and for how many Theorem 4.1 fails
    on the recorded losses (open: pairs whose loss cannot tell); 95 % intervals, Wilson's of shares,
    a bootstrap's of the AUC."""
    columns = ["run", "γ", "pairs", "step", "flipped to correct, %"]
    columns += ["flipped to incorrect, %", "ranking accuracy, %"]
    columns += ["reward accuracy, %", "small c first, AUC", "against Theorem 4.1"]
    lines = []
    for name, rows in runs:
        best = lowest_loss_step(rows)
        for found in flips_of_run(rows):
            lines.append(
                [name, f"{found['gamma']:g}", f"{found['part']} ({found['n']})",
                 f"{found['step']}{' (lowest)' if found['step'] == best else ''}",
                 *flip_cells(found)]
            )  # fmt: skip
    return columns, lines


def flip_cells(found: Flips) -> list[str]:
    """The cells of `flips_table` that follow the step."""
    accuracy, rewarded = found["accuracy"], found["reward_accuracy"]
    n_open = found["n_loss_cannot_tell"]
    ties = f", {percent(found['n_reward_ties'] / found['n'])} tied"
    return [
        counted(found["flipped_to_correct"]),
        counted(found["flipped_to_incorrect"]),
        with_interval(accuracy["value"], accuracy["wilson_95"], 1),
        with_interval(rewarded["value"], rewarded["wilson_95"], 1) + ties,
        signed_with_interval(found["auc"], found["auc_95"]).replace("+", ""),
        f"{found['n_against_theorem']}" + f", {n_open} open" * bool(n_open),
    ]


def plot_flips(rows: Sequence[Record], path: Path, at: str = "lowest-loss", run: str = "") -> None:
    """Of the pairs that the reference ranks wrongly: the policy's log-ratio against c, where those
    above 0 are flipped and those on the dashed line did not move; below, the share flipped of
    groups of c of like size."""
    step = lowest_loss_step(rows) if at == "lowest-loss" else max(row["step"] for row in rows)
    drawn = {
        part: wrong_pairs([row for row in rows if (row["part"], row["step"]) == (part, step)])
        for part in parts_of(rows)
    }
    drawn = {part: pairs for part, pairs in drawn.items() if len(pairs[0])}
    if not drawn:
        raise ValueError(f"no pair is ranked wrongly by the reference at step {step}")
    figure, grid = subplots(
        2, len(drawn), figsize=(WIDTH * (0.25 + 0.375 * len(drawn)), 4.6), sharex=True,
        sharey="row", squeeze=False, height_ratios=(3, 2),
    )  # fmt: skip
    for (upper, lower), (part, (cs, ratios)) in zip(grid.T, drawn.items()):
        flipped = ratios >= 0
        for members, group, label in (
            (flipped, FLIPPED, "flipped to correct"), (~flipped, STAYED, "still wrong"),
        ):  # fmt: skip
            colour, marker = GROUP_STYLES[group]
            upper.scatter(cs[members], ratios[members], s=9, color=colour, marker=marker,
                          alpha=0.6, linewidths=0, label=label)  # fmt: skip
        line = np.geomspace(cs[0], cs[-1], 200)
        upper.plot(line, -line, color="black", linestyle="dashed", label="as the reference")
        upper.axhline(0, color=GREY, linewidth=0.8)
        upper.set_title(f"{part}: {flipped.sum()} of {len(cs)} wrong pairs flipped")
        draw_flipped_by_c(lower, cs, ratios)
        lower.set_xlabel(f"$c$ = {LOG_REF % 'y_l'} − {LOG_REF % 'y_w'} (nats)")
    grid[0][0].set_xscale("log")
    grid[0][0].set_yscale("symlog", linthresh=1.0)
    grid[1][0].set_ylim(-3, 103)
    grid[0][0].set_ylabel(r"$\log \pi_\theta(y_w|x)$ − $\log \pi_\theta(y_l|x)$ (nats)")
    grid[1][0].set_ylabel("share flipped (%)")
    when = "the lowest validation loss" if at == "lowest-loss" else "the end"
    save_figure(
        figure, path, run_caption(rows, run), ncols=3,
        title=f"pairs that the reference ranks wrongly, at step {step} ({when}); "
        "bars: 95 % Wilson intervals",
    )  # fmt: skip


def draw_flipped_by_c(axes, cs: np.ndarray, ratios: np.ndarray) -> None:
    """The share flipped as a step over each group of c, with its interval at the middle."""
    groups = flipped_by_c(cs, ratios)
    shares, bars = percents([g["value"] for g in groups], [g["wilson_95"] for g in groups])
    colour, _ = GROUP_STYLES[FLIPPED]
    lowest = np.array([group["lowest"] for group in groups])
    highest = np.array([group["highest"] for group in groups])
    axes.hlines(shares, lowest, highest, colors=colour, linewidth=2.5)
    axes.errorbar(np.sqrt(lowest * highest), shares, yerr=bars, fmt="none", ecolor=colour,
                  elinewidth=0.8)  # fmt: skip
