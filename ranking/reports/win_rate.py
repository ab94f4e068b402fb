"""Win rates as a table, a picture and wandb panels (Fig. 4, 9-12)."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ranking.plumbing.result_files import Record
from ranking.reports.style import BLUE, GREY, ORANGE, save_figure


def print_table(rows: list[Record]) -> None:
    """Win rate with its interval, length-controlled win rate, ties, lengths, and what checkpoints
    add."""
    from rich.console import Console
    from rich.table import Table

    checkpoints = "ranking_accuracy" in rows[0]
    table = Table(title=f"Win rate against {rows[0]['against']}, % [95 % interval]")
    columns = ["policy", "n", "win rate", "length-controlled", "ties", "unclear", "characters"]
    judged_twice = any("order_disagreement" in row for row in rows)
    columns += ["order disagrees"] * judged_twice
    columns += ["ranking accuracy", "distance²"] * checkpoints
    for column in columns:
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in rows:
        low, high = row["bootstrap_95"]
        interval = "" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
        controlled = row["length_controlled_win_rate"]
        cells = [
            Path(row["model"]).name,
            str(row["n"]),
            "–" if row["win_rate"] is None else f"{100 * row['win_rate']:.1f}{interval}",
            "–" if controlled is None else f"{100 * controlled:.1f}",
            str(row["n_ties"]),
            str(row["n_unclear"]),
            f"{row['mean_characters_policy']:.0f} / {row['mean_characters_other']:.0f}",
        ]
        if judged_twice:
            share = row.get("order_disagreement")
            cells.append("–" if share is None else f"{100 * share:.1f}")
        if checkpoints:
            cells += [f"{100 * row['ranking_accuracy']:.1f}", f"{row['squared_distance']:.3g}"]
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 132, markup=False).print(table)


def log_to_wandb(run, rows: list[Record], judged: list[Record], picture: Path | None) -> None:
    """Win rates as summary values, the table and the pairs."""
    import wandb

    for row in rows:
        run.summary[f"{Path(row['model']).name}/win_rate"] = row["win_rate"]
    columns = ["model", "n", "win_rate", "length_controlled_win_rate", "n_ties", "n_unclear"]
    names = ["model", "prompt", "policy_response", "other_response", "win"]
    run.log(
        {
            "win_rate": wandb.Table(columns=columns, data=[[r[c] for c in columns] for r in rows]),
            "pairs": wandb.Table(columns=names, data=[[r[c] for c in names] for r in judged]),
        }
    )
    if picture is not None:
        run.log({"figure": wandb.Image(str(picture))})


def plot_win_rate(rows: list[Record], path: Path) -> None:
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
