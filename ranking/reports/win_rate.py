"""Win rates as a table, a picture and wandb panels (Fig. 4, 9-12)."""

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from ranking.data.examples import dataset_label
from ranking.metrics.intervals import wilson_interval
from ranking.metrics.win_rate import WinRateRow, check_one_judge, means_by_gamma
from ranking.plumbing.result_files import Record
from ranking.reports.groups import groups_to_show
from ranking.reports.labels import plain, short
from ranking.reports.style import (
    BLUE,
    DISTANCE,
    GREY,
    ORANGE,
    WIDTH,
    percents,
    save_figure,
    subplots,
)
from ranking.reports.tables import (
    Table,
    chosen_columns,
    log_panels,
    percent,
    show_table,
    significant,
    with_interval,
)


def win_rate_table(rows: Sequence[WinRateRow], alone: bool = False) -> Table:
    """Win rates, and for checkpoints ranking accuracy and distance (Fig. 4, 9-12 in numbers), the
    nearest to the reference first, then the correlations.

    alone: the rows of one run, in its order, with all counts and a line for each group of prompts
    and for the mean over groups; intervals to a tenth. ValueError where several judges gave them.
    """
    checkpoints = all({"win_rate", "squared_distance"} <= row.keys() for row in rows)
    if not checkpoints and not alone:
        raise ValueError("not a summary of calculate_win_rate.py --checkpoints")
    check_one_judge(rows)
    twice = alone and any("order_disagreement" in row for row in rows)
    columns = ["model", *["‖θ − θ_ref‖²", "ranking accuracy"] * checkpoints, "win rate [95 %]"]
    columns += ["at equal lengths", "characters"]
    columns += ["n", "ties", "unclear"] * alone + ["orders disagree"] * twice
    lines = []
    ordered = rows if alone else sorted(rows, key=lambda row: row["squared_distance"])
    ends = Counter(Path(row["model"]).name for row in rows)
    for row in ordered:
        end = Path(row["model"]).name
        line = [end if ends[end] == 1 else short(row["model"])]
        if checkpoints:
            line += [significant(row["squared_distance"], 3), percent(row["ranking_accuracy"])]
        characters = f"{row['mean_characters_policy']:.0f}"
        if alone:
            characters += f" / {row['mean_characters_other']:.0f}"
        line += [
            with_interval(row["win_rate"], row["bootstrap_95"], digits=int(alone)),
            percent(row["length_controlled_win_rate"]),
            characters,
        ]
        if alone:
            line += [str(row["n"]), str(row["n_ties"]), str(row["n_unclear"])]
        if twice:
            line.append(percent(row.get("order_disagreement")))
        lines.append(line)
        lines += [
            group_line(label, entries, columns) for label, entries in groups_to_show([row]) if alone
        ]
    if not alone:
        blank = [""] * (len(columns) - 4)
        lines += [[text, "", "", value, *blank] for text, value in correlation_cells(rows)]
    return columns, lines


def group_line(label: str, entries: Sequence[Record], columns: Sequence[str]) -> list[str]:
    """A line of `win_rate_table` for a group, or a mean over groups: win rate and n."""
    cells = dict.fromkeys(columns, "")
    cells[columns[0]] = label
    for entry in entries:
        cells["win rate [95 %]"] = with_interval(entry["value"], entry["bootstrap_95"], digits=1)
        cells["n"] = str(entry.get("n", ""))
    return list(cells.values())


def correlation_cells(rows: Sequence[WinRateRow]) -> list[tuple[str, str]]:
    """What is correlated over how many checkpoints, and Spearman's coefficient with its p-value."""
    return [
        (
            f"Spearman, accuracy and win rate, {found['part']} ({found['n']})",
            "–"
            if found["spearmanr"] is None
            else f"{found['spearmanr']:+.2f} (p = {found['p_value']:.2g})",
        )
        for row in rows
        for found in row.get("correlations", [])
    ]


def win_rate_title(row: WinRateRow) -> str:
    """What a table of one run's rows is called: against whom, by which judge."""
    return f"Win rate against {row['against']}, by {row['judge']}, % [95 % interval]"


def show_win_rates(rows: Sequence[WinRateRow]) -> None:
    """The table of one run, and over checkpoints the correlations."""
    show_table(win_rate_table(rows, alone=True), win_rate_title(rows[0]))
    for text, value in correlation_cells(rows):
        print(f"{text}: {value}")


def log_win_rates(
    run, rows: Sequence[WinRateRow], judged: Sequence[Record], picture: Path | None
) -> None:
    """Win rates as summary values of a wandb run, `win_rate/MODEL`; the table and the picture in
    the same section, the judged answers in `examples`."""
    for row in rows:
        run.summary[f"win_rate/{Path(row['model']).name}"] = row["win_rate"]
    texts = ("model", "prompt", "policy_response", "other_response", "win")
    tables = {"win_rate/table": win_rate_table(rows, alone=True),
              "examples/judged": chosen_columns(judged, texts)}  # fmt: skip
    log_panels(run, tables, {"win_rate/figure": picture})


def plot_win_rate(rows: Sequence[WinRateRow], path: Path) -> None:
    """Win rate and ranking accuracy of checkpoints against the squared distance from the reference,
    or of runs against γ, with a line through the means over seeds (cf. Fig. 4, 9-12), with 95 %
    intervals. Rows without a win rate are left out. ValueError where all are, or where several
    judges gave them."""
    check_one_judge(rows)
    rows = [row for row in rows if row["win_rate"] is not None]
    if not rows:
        raise ValueError("no clear verdict: no win rate to draw")
    by_step = all(row["step"] is not None for row in rows)
    by_gamma = not by_step and all(row["gamma"] is not None for row in rows)
    across = "gamma" if by_gamma else "squared_distance"
    ordered: list[Any] = sorted(rows, key=itemgetter(across))
    x = [row[across] for row in ordered]
    right = [round(row["ranking_accuracy"] * row["n_ranked"]) for row in ordered]
    accuracy = [wilson_interval(k, row["n_ranked"]) for k, row in zip(right, ordered)]
    figure, axes = subplots(figsize=(0.75 * WIDTH, 3.4))
    styles = (
        ("win_rate", [row["bootstrap_95"] for row in ordered], BLUE, "o", "solid",
         f"win rate (n = {ordered[0]['n']}, bootstrap)"),
        ("ranking_accuracy", accuracy, ORANGE, "s", "dashed",
         f"ranking accuracy (n = {ordered[0]['n_ranked']}, Wilson)"),
    )  # fmt: skip
    means = means_by_gamma(ordered) if by_gamma else {}
    for number, (name, intervals, colour, marker, line, label) in enumerate(styles):
        y, bars = percents([row[name] for row in ordered], intervals)
        axes.errorbar(
            x, y, yerr=bars, color=colour, marker=marker, capsize=2, elinewidth=0.7, label=label,
            linestyle="none" if by_gamma else line,
        )  # fmt: skip
        if means:
            over_seeds = [100 * values[number] for values in means.values()]
            axes.plot(list(means), over_seeds, color=colour, linestyle=line)
    axes.axhline(50, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel(r"$\gamma$" if by_gamma else f"squared distance from the reference, {DISTANCE}")
    axes.set_ylabel("share (%), 95 % interval")
    if by_step:
        marked = [(x[0], ordered[0]["step"])]  # those that have room
        for row, place in zip(ordered, x):
            if place - marked[-1][0] > 0.03 * (x[-1] - x[0]):
                marked.append((place, row["step"]))
        for place, step in marked:
            axes.annotate(f"step {step}", (place, 0.02), fontsize=6, rotation=90, color=GREY,
                          xycoords=("data", "axes fraction"), ha="center", va="bottom")  # fmt: skip
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.15 * (high - low), high)
    save_figure(figure, path, win_rate_caption(rows), ncols=2)


def win_rate_caption(rows: Sequence[WinRateRow]) -> str:
    """Whose answers are judged by whom, on which data."""
    first = rows[0]
    models = {str(Path(row["model"]).parent) for row in rows}
    names = [short(models.pop())] if len(models) == 1 else []
    where = dataset_label(first["dataset_name"], first["dataset_split"])
    against = "the preferred answers" if first["against"] == "chosen" else short(first["against"])
    kind, _, judge = first["judge"].partition(":")
    parts = [*names, f"against {against}", where, f"judge: {kind} {short(judge)}"]
    return plain(", ".join(filter(None, parts)))
