"""Idealized accuracy as tables, pictures and wandb panels (Tables 1, 6; App. F)."""

import logging
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from ranking.data.examples import dataset_label
from ranking.metrics.idealized import BETAS, CurveRow, IdealizedRow, PairRow, curve_steps
from ranking.plumbing.outputs import dataset_key
from ranking.plumbing.result_files import Record
from ranking.reports.groups import (
    columns_to_show,
    entries_to_show,
    group_grid,
    groups_to_show,
)
from ranking.reports.labels import (
    SYMBOLS,
    by_normalization,
    dataset_of,
    model_labels,
    model_names,
    normalization_of,
    page_label,
    plain,
    refuse_two_runs,
    run_label,
    setting_label,
    setting_labels,
    setting_of,
    short,
)
from ranking.reports.style import (
    BLUE,
    GREY,
    LOG_REF,
    LOSS_NEEDED,
    MODEL_COLOURS,
    ORANGE,
    WIDTH,
    save_figure,
    subplots,
    wrapped,
)
from ranking.reports.tables import (
    BETWEEN,
    Table,
    chosen_columns,
    console,
    log_panels,
    percent,
    show_table,
    with_interval,
)

LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")


def idealized_table(
    rows: Sequence[IdealizedRow], alone: bool = False, sortable: bool = False
) -> Table:
    """Tables 1 and 6: observed and idealized accuracy (over β), and the gap to its median.

    alone: the rows of one run, whose models stand elsewhere; intervals to a tenth, and lines for
    the groups of pairs and for the mean over groups. sortable: each column is one number, intervals
    to a tenth.
    """
    if not all("min_median_max" in row for row in rows):
        raise ValueError("not a summary of calculate_upper_bound_rlhf.py")
    refuse_two_runs(rows, "calib_property", "beta")
    columns = ["dataset", "pairs"] if alone else ["dataset", "reference → model", "pairs"]
    over_betas = ["min", "med", "max"] if sortable else ["min / med / max"]
    for symbol in SYMBOLS.values():
        columns += [symbol, *(f"{symbol}* {name}" for name in over_betas), "gap [95 %]"]
    lines = []
    for pair in by_normalization(rows):
        row = pair[1]
        if alone:
            line = [dataset_of(row)]
        else:
            models = dict.fromkeys((row["reference_model"], row["model"]))
            where = (page_label if sortable else setting_label)(row, rows)
            line = [where, " → ".join(map(short, models))]
        line.append(str(row["n"]))
        lines.append(line + idealized_cells(pair, alone, sortable))
        for label, entries in groups_to_show(pair) if alone else []:
            line = [label, ""]
            if entries:
                line = [
                    label,
                    str(entries[0].get("n", "")),
                    *idealized_cells(entries, alone, sortable),
                ]
            lines.append(line + [""] * (len(columns) - len(line)))
    return columns, lines


def idealized_cells(both: Sequence, alone: bool, sortable: bool) -> list[str]:
    """Observed and idealized accuracy and the gap, by R̃ and R; both: rows, or entries of groups."""
    cells = []
    for found in both:
        over_betas = [percent(value) for value in found["min_median_max"]]
        gap = found["gap_to_median"], found["gap_to_median_95"]
        cells += [
            percent(found["observed_accuracy"]),
            *(over_betas if sortable else [BETWEEN.join(over_betas)]),
            with_interval(*gap, digits=int(alone or sortable)),
        ]
    return cells


def show_idealized(rows: Sequence[IdealizedRow]) -> None:
    """The table of one run."""
    observed = ", ".join(filter(None, (rows[0]["model"], run_label(rows))))
    show_table(
        idealized_table(rows, alone=True), f"Idealized ranking accuracy, %; observed: {observed}"
    )


def report_idealized_ties(rows: Sequence[IdealizedRow], same_model: bool) -> None:
    """A warning for each accuracy that exactly equal scores of untied pairs decide; same_model: the
    reference is the policy."""
    sides = [("observed", "observed_accuracy", "n_exact_ties")]
    if not same_model:
        sides.append(("reference's", "reference_accuracy", "reference_n_exact_ties"))
    for row in chain.from_iterable(by_normalization(rows)):
        for whose, accuracy, ties in sides:
            if row[ties]:
                value, strict = row[accuracy], row[accuracy] - row[ties] / row["n"]
                logging.warning(
                    "%s, %s: %d untied pairs have exactly equal scores: %s accuracy %.1f %% as "
                    "Def. 2.3 counts them (right), %.1f %% if they were wrong",
                    dataset_of(row), normalization_of(row), row[ties], whose, 100 * value,
                    100 * strict,
                )  # fmt: skip


def show_pairs(title: str, pairs: Sequence[Record]) -> None:
    """Prompt and completions of some pairs (App. F), with their loss after tuning where runs were
    joined."""
    from rich.table import Table as Grid
    from rich.text import Text

    table = Grid(title=title, show_lines=True)
    tuned = ["loss", "right"] * ("tuned_loss" in pairs[0])
    for column in ("c (nats)", "α", *tuned, "prompt", "preferred", "dispreferred"):
        table.add_column(column, overflow="fold")
    for pair in pairs:
        record = pair["record"]
        texts = [record["completions"][pair[side]]["text"] for side in ("winner", "loser")]
        cells = [text.strip() for text in (record["prompt"][-300:], *texts)]
        cells = [text if len(text) <= 300 else text[:299] + "…" for text in cells]
        numbers = [f"{-pair['ref_logratio non-length-normalized']:.1f}", f"{pair['alpha']:.3f}"]
        table.add_row(*numbers, *tuned_cells(pair)[: len(tuned)], *(Text(cell) for cell in cells))
    console().print(table)


def tuned_cells(pair: Record) -> list[str]:
    """Mean loss over the runs that follow a pair, and how many of them rank it correctly."""
    n_runs = pair.get("n_runs", 0)
    if not n_runs:
        return ["–", "–"]
    return [f"{pair['tuned_loss']:.3f}", f"{pair['flipped_in']} of {n_runs}"]


def show_selected_pairs(
    pairs: Sequence[Record], hardest: int, easiest: int, easiest_to_flip: int
) -> None:
    """So many pairs of each kind, by c = log π_ref(y_l|x) / π_ref(y_w|x)."""
    untied = [pair for pair in pairs if not pair["tied"]]
    ordered = sorted(untied, key=lambda pair: pair["ref_logratio non-length-normalized"])
    wrong = [pair for pair in ordered if pair["ref_logratio non-length-normalized"] < 0]
    for title, chosen in (
        ("Hardest to learn: largest c", ordered[:hardest]),
        ("Easiest: smallest c", ordered[::-1][:easiest]),
        ("Easiest to flip: smallest positive c", wrong[::-1][:easiest_to_flip]),
    ):
        if chosen:
            show_pairs(title, chosen)


def log_idealized(run, rows: Sequence[IdealizedRow], pictures: dict[str, Path]) -> None:
    """The table, that of every β, and the pictures by their names, in the section `idealized` of a
    wandb run."""
    columns = ("dataset_name", "dataset_split", "calib_property", "beta",
               "distance_metric_value_mean", "observed_accuracy", "gap", "n")  # fmt: skip
    tables = {"idealized/accuracy": idealized_table(rows, alone=True),
              "idealized/by_beta": chosen_columns(rows, columns)}  # fmt: skip
    log_panels(run, tables, {f"idealized/{name}": path for name, path in pictures.items()})


def plot_idealized_curves(curves: Sequence[CurveRow], path: Path) -> None:
    """R*(β) per dataset, model and normalization; observed accuracy dashed, the gap shaded."""
    refuse_two_runs(curves, "calib_property")
    panels = by_normalization(curves)
    models = model_labels(curve["model"] for curve in curves)
    settings = setting_labels(curves)
    n_references = len({curve.get("reference_model") for curve in curves})
    n_rows = math.ceil(len(panels) / 2)
    figure, grid = subplots(
        n_rows, min(2, len(panels)), figsize=(WIDTH if len(panels) > 1 else 4.1, 3.2 * n_rows),
        sharey=True, squeeze=False,
    )  # fmt: skip
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid.flat, panels):
        breakpoints = [beta for curve in panel for beta in curve["critical_betas"]]
        left = min([1e-3, *(beta / 2 for beta in breakpoints)])
        right = max([20.0, *(2 * beta for beta in breakpoints)])
        for curve, colour, label in zip(panel, (BLUE, ORANGE), ("length-normalized", "summed")):
            betas = [left, *curve["critical_betas"], right]
            steps = curve_steps(curve)
            values = 100 * np.append(steps, steps[-1])
            observed = 100 * curve["observed_accuracy"]
            axes.step(betas, values, where="post", color=colour, label=rf"$R^*$, {label}")
            axes.axhline(observed, color=colour, linestyle="dashed", label=f"observed, {label}")
            axes.fill_between(betas, values, observed, step="post", color=colour, alpha=0.12)
        axes.set_xscale("log")
        axes.set_xlim(left, min(right, 1000))
        axes.set_xlabel(r"$\beta$")
        axes.set_ylim(0, 102)
        first = panel[0]
        whose = f"{models[first['model']]}, " if len(models) > 1 else ""
        reference = first.get("reference_model")
        if n_references > 1 and reference != first["model"]:
            whose += f"from {plain(str(reference))}, "
        title = f"{whose}{settings[setting_of(first)]} (n = {first['n']} pairs)"
        axes.set_title(wrapped(title, 2.9))
    for axes in grid[:, 0]:
        axes.set_ylabel("ranking accuracy (%)")
    caption = ""
    names = dict.fromkeys((curve["model"], curve.get("reference_model")) for curve in curves)
    if len(names) == 1:
        ((model, reference),) = names
        whose = "" if reference in (model, None) else f", reference {plain(short(str(reference)))}"
        caption = plain(short(model)) + whose
    save_figure(figure, path, caption, ncols=2)


def plot_critical_betas(curves: Sequence[CurveRow], path: Path) -> None:
    """R*(β) of all datasets, a colour each, in a panel per normalization; references by line style.

    R*(β) is the share of pairs whose critical β is larger; β of Tables 1 and 6 are shaded.
    ValueError for more datasets than colours, or more references than line styles.
    """
    refuse_two_runs(curves, "calib_property")
    settings = setting_labels(curves)
    references = model_labels(str(c["reference_model"]) for c in curves)
    for what, found, most in (
        ("datasets", settings, MODEL_COLOURS), ("references", references, LINE_STYLES)
    ):  # fmt: skip
        if len(found) > len(most):
            raise ValueError(f"{len(found)} {what}, of which {len(most)} can be told apart")
    colours = dict(zip(settings, MODEL_COLOURS))
    styles = dict(zip(references, LINE_STYLES))
    titles = (
        r"$\tilde{R}^*(\beta)$: log-likelihoods per token",
        r"$R^*(\beta)$: summed log-likelihoods",
    )
    breakpoints = [beta for curve in curves for beta in curve["critical_betas"]]
    left = min([BETAS[0] / 4, *(beta / 1.5 for beta in breakpoints)])
    right = max([BETAS[-1] * 4, *(beta * 1.5 for beta in breakpoints)])
    figure, (row,) = subplots(1, 2, figsize=(WIDTH, 3.6), sharex=True, sharey=True, squeeze=False)
    for axes, title, of_kind in zip(row, titles, zip(*by_normalization(curves))):
        for curve in of_kind:
            steps = curve_steps(curve)
            axes.step(
                [left, *curve["critical_betas"], right], 100 * np.append(steps, steps[-1]),
                where="post", color=colours[setting_of(curve)],
                linestyle=styles[str(curve["reference_model"])],
            )  # fmt: skip
        axes.axvspan(BETAS[0], BETAS[-1], color=GREY, alpha=0.12, linewidth=0)
        axes.set_xlabel(r"$\beta$")
        axes.set_title(title)
    row[0].set_xscale("log")
    row[0].set_xlim(left, min(right, 1000))
    row[0].set_ylim(0, 102)
    row[0].set_ylabel(r"pairs whose critical $\beta$ is larger (%)")
    sizes: dict[tuple, list[int]] = {}
    for curve in curves:
        sizes.setdefault(setting_of(curve), []).append(curve["n"])
    for setting, colour in colours.items():
        n = ", ".join(map(str, dict.fromkeys(sizes[setting])))
        row[0].plot([], [], color=colour, label=f"{settings[setting]} (n = {n} pairs)")
    for reference, style in styles.items():
        row[0].plot([], [], color="black", linestyle=style, label=references[reference])
    row[0].fill_between([], [], color=GREY, alpha=0.12, label=r"$\beta$ of Tables 1 and 6")
    save_figure(figure, path, ncols=2)


def plot_idealized_by_group(rows: Sequence[IdealizedRow], path: Path) -> None:
    """Observed accuracy of each group (the 30 largest of a column), and from least to most R* over
    the run's β, with its median; rows of one policy."""
    refuse_two_runs(rows, "calib_property", "beta")
    if len({(row["model"], row.get("reference_model")) for row in rows}) > 1:
        raise ValueError("groups of several models: draw each file by itself")
    labels = setting_labels(rows)
    panels = [
        (pair, column) for pair in by_normalization(rows) for column in columns_to_show(pair[0])
    ]
    figure, grid = group_grid(
        [(labels[setting_of(pair[0])], pair[0], column) for pair, column in panels],
        height=0.24, across="ranking accuracy (%)",
    )  # fmt: skip
    for line, (pair, column) in zip(grid, panels):
        for axes, row, colour in zip(line, pair, (BLUE, ORANGE)):
            entries = entries_to_show(row, column)
            places = np.arange(len(entries))
            least, median, most = 100 * np.array([e["min_median_max"] for e in entries]).T
            axes.hlines(
                places, least, most, colors=colour, linewidth=5, alpha=0.35,
                label=r"$R^*$, over $\beta$",
            )  # fmt: skip
            axes.vlines(
                median, places - 0.3, places + 0.3, colors=colour, label=r"its median over $\beta$"
            )
            observed = [100 * entry["observed_accuracy"] for entry in entries]
            axes.plot(observed, places, "o", color="black", markersize=4, label="observed")
    save_figure(figure, path, ncols=3)


def plot_required_loss(pairs: Sequence[PairRow], path: Path) -> None:
    """Theorem 4.1: the DPO loss that ranks a pair correctly, against c (cf. Fig. 3)."""
    import matplotlib

    if len({(pair["gamma"], *pair["required_loss"]) for pair in pairs}) > 1:
        raise ValueError("pairs of several γ or β: draw each file by itself")
    ordered = sorted((pair for pair in pairs if not pair["tied"]), key=lambda pair: pair["c"])
    lowest = 1e-4  # nats
    figure, axes = subplots(figsize=(0.75 * WIDTH, 3.4))
    betas = sorted(pairs[0]["required_loss"], key=float)
    colours = matplotlib.colormaps["viridis"]
    for k, beta in enumerate(betas):
        losses = [pair["required_loss"][beta] for pair in ordered]
        below = ", below the axis" if max(losses, default=1.0) < lowest else ""
        axes.plot(
            [pair["c"] for pair in ordered], losses,
            marker=".", markersize=3, linewidth=0.8, linestyle="dashed",
            color=colours(0.9 * k / max(1, len(betas) - 1)), label=rf"$\beta$ = {beta}{below}",
        )  # fmt: skip
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yscale("log")
    largest = max((p["required_loss"][beta] for p in ordered for beta in betas), default=1.0)
    axes.set_ylim(lowest, 2 * max(largest, 1.0))
    axes.set_xlabel(f"$c$ = {LOG_REF % 'y_l'} − {LOG_REF % 'y_w'} (nats)")
    axes.set_ylabel(f"loss needed, {LOSS_NEEDED} (nats)")
    axes.set_title(f"right of 0: the reference ranks the pair wrongly (n = {len(ordered)})")
    axes.legend()
    datasets = dict.fromkeys(dataset_label(*dataset_key(pair)) for pair in pairs)
    with_names = [pair["reference_model"] for pair in pairs if "reference_model" in pair]  # newer
    references = model_names(with_names).values()
    whose = f", reference {', '.join(references)}" if references else ""
    named = plain(", ".join(datasets) + whose)
    save_figure(figure, path, rf"{named}, $\gamma$ = {pairs[0]['gamma']:g}")
