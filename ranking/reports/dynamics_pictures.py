"""Pictures of ranking dynamics (Fig. 2-8): four groups, losses, distance, displacement, sweeps."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ranking.metrics.dynamics import (
    PARTS,
    displacement_by_step,
    distances_by_step,
    loss_column,
    lowest_loss_step,
    means_by_step,
    means_over_seeds,
    parts_of,
    sweep_points,
)
from ranking.metrics.idealized import required_loss
from ranking.metrics.intervals import wilson_interval
from ranking.plumbing.result_files import Record, read_config
from ranking.reports.dynamics import DISPLACEMENT_STYLES, GROUP_STYLES, other_losses
from ranking.reports.labels import group_label, plain, short, without_paths
from ranking.reports.style import (
    DISTANCE,
    GREY,
    LOG_REF,
    LOSS_NEEDED,
    WIDTH,
    draw,
    model_style,
    save_figure,
    subplots,
    whole_numbers,
)

FEW_PAIRS = 1000  # below which shares have their 95 % Wilson interval as a band
CHANGED = ("correct_to_incorrect", "incorrect_to_correct")  # hollow markers: often both at zero


def name_run(file: Path, with_seed: bool = True) -> str:
    """What pictures say of the run of dpo.py that a dynamics file is of, from the run_config.json
    beside it: model (and the one before SFT), data, seed, of paths the names; nothing without
    one."""
    settings = read_config(file.with_name("run_config.json")).get("settings", {})
    if "model_name_or_path" not in settings:
        return ""
    model = settings["model_name_or_path"]
    earlier = read_config(Path(model) / "run_config.json").get("settings", {})
    base = earlier.get("model_name_or_path")
    data = settings.get("dataset_name", [])
    parts = [short(model) + (f" (from {short(base)})" if base else "")]
    parts += [" + ".join(map(without_paths, [data] if isinstance(data, str) else data))]
    parts += [f"seed {settings['seed']}"] * (with_seed and "seed" in settings)
    return ", ".join(filter(None, parts))


def name_runs(files: Sequence[Path]) -> str:
    """The same of a sweep, without seeds, where all runs share it."""
    runs = {name_run(file, with_seed=False) for file in files}
    return runs.pop() if len(runs) == 1 else ""


def run_caption(rows: Iterable[Record], run: str) -> str:
    """What a picture is of: the run, the loss that trained where it is not Eq. 4's, β, and γ, the
    target margin and λ where there is one."""
    rows = list(rows)
    betas = dict.fromkeys(f"{row['beta']:g}" for row in rows)
    gammas = dict.fromkeys(f"{row['gamma']:g}" for row in rows)
    parts = [plain(run)] * bool(run)
    parts += [f"trained by {trained}"] if (trained := other_losses(rows)) else []
    parts.append(rf"$\beta$ = {', '.join(betas)}")
    parts += [rf"$\gamma$ = {gamma}" for gamma in gammas] * (len(gammas) == 1)
    for key, name in {"target_margin": "target margin", "dpop_lambda": r"$\lambda$"}.items():
        values = dict.fromkeys(f"{row[key]:g}" for row in rows if key in row)
        parts += [f"{name} = {value}" for value in values] * (len(values) == 1)
    return ", ".join(parts)


def loss_label(rows: Sequence[Record]) -> str:
    """Of the column `loss`: that it is Eq. 4's, where another loss trains."""
    return "loss of Eq. 4 (nats)" if other_losses(rows) else "loss (nats)"


def lowest_label(rows: Sequence[Record]) -> str:
    """Of `lowest_loss_step`: whose loss that is, where another than Eq. 4's trains."""
    trained = other_losses(rows)
    whose = trained if loss_column(rows) == "trained_loss" else "Eq. 4"
    return f"lowest validation loss{f' of {whose}' * bool(trained)}"


def trained_loss(rows: Sequence[Record]) -> tuple[list[Record], str]:
    """The rows with the loss that trained as `loss`, where they have it, and what it is called."""
    if loss_column(rows) == "loss":
        return list(rows), loss_label(rows)
    named = f"loss of {other_losses(rows)}"
    return [{**row, "loss": row["trained_loss"]} for row in rows], named


def part_styles(parts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and marker of each part: those of PARTS are the same in every picture."""
    known = enumerate(dict.fromkeys((*PARTS, *parts)))
    return {part: model_style(k) for k, part in known if part in parts}


def mark_steps(axes, lowest: int, label: str, saved: int | None) -> None:
    """Lines at the step of the lowest validation loss and, where it is another, of the saved
    model."""
    axes.axvline(lowest, color=GREY, linestyle="dashed", label=label, zorder=1)
    if saved not in (None, lowest):
        axes.axvline(saved, color="black", linestyle="dotted", label="saved model", zorder=1)


def draw_share(axes, x: Iterable[float], counts: Sequence[int], ns: Sequence[int], **style) -> None:
    """Shares in percent, counts of ns, as a line that the axis does not cut; with their 95 % Wilson
    intervals as a band where pairs are few."""
    x, shares = list(x), 100 * np.array(counts) / np.array(ns)
    axes.plot(x, shares, clip_on=False, zorder=3, **style)
    if min(ns) < FEW_PAIRS:
        low, high = 100 * np.array([wilson_interval(*pair) for pair in zip(counts, ns)]).T
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def band_note(ns: Iterable[int]) -> str:
    """What the bands of `draw_share` are, where it draws some."""
    return "; bands: 95 % Wilson intervals" * (min(ns) < FEW_PAIRS)


def plot_dynamics(
    rows: Sequence[Record], path: Path, run: str = "", saved: int | None = None
) -> None:
    """Fig. 2, 5-7: share, mean loss and mean reward margin of the four groups against the step.

    A column of panels for the followed training pairs, one for validation and one for each named
    evaluation set, on the same axes; dashed: the step with the lowest validation loss; dotted: that
    of the saved model, where a metric chose another.
    """
    parts, best = parts_of(rows), lowest_loss_step(rows)
    with_loss, loss_name = trained_loss(rows)
    figure, grid = subplots(
        3, len(parts), figsize=(WIDTH * (0.25 + 0.375 * len(parts)), 6.6), sharex=True,
        sharey="row", squeeze=False,
    )  # fmt: skip
    sizes = []
    for column, part in zip(grid.T, parts):
        summary = means_by_step(with_loss, part)
        steps, n = list(summary), next(iter(summary.values()))["n"]
        sizes.append(n)
        for name, (colour, marker) in GROUP_STYLES.items():
            style = {"color": colour, "marker": marker, "label": group_label(name),
                     "markerfacecolor": "none" if name in CHANGED else colour}  # fmt: skip
            counts = [found["counts"][name] for found in summary.values()]
            draw_share(
                column[0], steps, counts, [found["n"] for found in summary.values()], **style
            )
            for axes, quantity in zip(column[1:], ("group_loss", "group_margin")):
                axes.plot(steps, [found[quantity][name] for found in summary.values()], **style)
        for axes in column:
            mark_steps(axes, best, lowest_label(rows), saved)
        column[0].set_title(f"{part} pairs (n = {n})")
        column[-1].set_xlabel("training step")
        whole_numbers(column[-1].xaxis)
    labels = ("share of pairs (%)", f"mean {loss_name}", "mean reward margin (nats)")
    for axes, label in zip(grid[:, 0], labels):
        axes.set_ylabel(label)
    highest = grid[0][0].get_ylim()[1]
    grid[0][0].set_ylim(-0.03 * highest, highest)
    title = "ranked by the reference → by the policy" + band_note(sizes)
    save_figure(figure, path, run_caption(rows, run), ncols=3, title=title)


def plot_loss_against_reference(
    rows: Sequence[Record], path: Path, run: str = "", saved: int | None = None
) -> None:
    """Fig. 3, 8: each pair's loss against the reference's log-ratio, at the lowest validation loss.

    The dashed line is the loss below which a pair is ranked correctly, −log σ(γβc) (Theorem 4.1).
    The legend's title names the step of the saved model, where a metric chose another.
    """
    best = lowest_loss_step(rows)
    known = [row for row in rows if row["step"] == best and row["loss"] is not None]
    if not known:
        raise ValueError(f"no pair has a finite loss at step {best}")
    parts = parts_of(known)
    figure, grid = subplots(
        1, len(parts), figsize=(WIDTH * (0.15 + 0.425 * len(parts)), 3.3), sharey=True, sharex=True,
        squeeze=False,
    )  # fmt: skip
    for axes, part in zip(grid[0], parts):
        chosen = [row for row in known if row["part"] == part]
        ratios = np.array([row["ref_chosen"] - row["ref_rejected"] for row in chosen])
        correct = np.array([row["group"].endswith("to_correct") for row in chosen])
        losses = np.array([row["loss"] for row in chosen])
        for ranked, colour, marker, label in (
            (True, GROUP_STYLES["correct_to_correct"][0], "o", "ranked correctly by the policy"),
            (False, GROUP_STYLES["incorrect_to_incorrect"][0], "x", "ranked incorrectly"),
        ):
            inside = correct == ranked
            axes.scatter(
                ratios[inside], losses[inside], s=9, color=colour, marker=marker, alpha=0.6,
                linewidths=0.8, label=label,
            )  # fmt: skip
        line = np.linspace(ratios.min(), ratios.max(), 400)
        beta, gamma = chosen[0]["beta"], chosen[0]["gamma"]
        axes.plot(
            line, required_loss(line, beta, gamma), color="black", linestyle="dashed",
            label=f"loss needed to rank a pair correctly, {LOSS_NEEDED}",
        )  # fmt: skip
        axes.set_xlabel(f"$-c$ = {LOG_REF % 'y_w'} − {LOG_REF % 'y_l'} (nats)")
        counted = f"n = {len(chosen)}, {correct.sum()} correct"
        axes.set_title(f"{part} pairs ({counted}), step {best}")
    highest = max(row["loss"] for row in known)
    grid[0][0].set_ylim(0, 1.1 * highest)  # the loss needed goes on rising to the right
    grid[0][0].set_ylabel(loss_label(rows))
    other = None if saved in (None, best) else f"the saved model is of step {saved}"
    save_figure(figure, path, run_caption(rows, run), ncols=3, title=other)


def plot_accuracy_against_distance(
    rows: Sequence[Record], path: Path, run: str = "", saved: int | None = None
) -> None:
    """Ranking accuracy against the squared distance from the initial weights (cf. Fig. 4); named
    are the first and the last step, and that of the saved model, where a metric chose it."""
    distances = distances_by_step(rows)
    figure, axes = subplots(figsize=(0.65 * WIDTH, 3.2))
    sizes = [FEW_PAIRS]
    for part, style in part_styles(parts_of(rows)).items():
        summary = {k: found for k, found in means_by_step(rows, part).items() if k in distances}
        if not summary:
            continue
        steps, ns = list(summary), [found["n"] for found in summary.values()]
        sizes += ns
        right = [round(found["accuracy"] * found["n"]) for found in summary.values()]
        label = f"{part} pairs (n = {ns[0]})"
        draw_share(axes, [distances[step] for step in steps], right, ns, label=label, **style)
        for step in sorted(summary.keys() & {steps[0], saved, steps[-1]}):
            above = step in (steps[0], steps[-1])  # another can lie close by
            axes.annotate(
                f"step {step}{' (saved)' * (step == saved)}",
                (distances[step], 100 * summary[step]["accuracy"]), fontsize=6,
                xytext=(0, 5 if above else -5), textcoords="offset points", ha="center",
                va="bottom" if above else "top",
            )  # fmt: skip
    axes.margins(x=0.1, y=0.15)
    axes.set_xlabel(r"squared distance from the initial weights, $\|\theta_t - \theta_0\|^2$")
    axes.set_ylabel("ranking accuracy (%)")
    title = band_note(sizes).removeprefix("; ") or None
    save_figure(figure, path, run_caption(rows, run), ncols=2, title=title)


def plot_displacement(
    rows: Sequence[Record], path: Path, run: str = "", saved: int | None = None
) -> None:
    """Mean change of the log-likelihoods since the reference, and the share of pairs whose
    log-likelihoods fell, against the step; lines at steps as in `plot_dynamics`."""
    found = {part: displacement_by_step(rows, part) for part in parts_of(rows)}
    parts = [part for part in found if any(found[part].values())]
    if not parts:
        raise ValueError("no pair has finite log-likelihoods")
    best = lowest_loss_step(rows)
    figure, grid = subplots(
        2, len(parts), figsize=(WIDTH * (0.25 + 0.375 * len(parts)), 4.8), sharex=True,
        sharey="row", squeeze=False,
    )  # fmt: skip
    sizes = []
    for (upper, lower), part in zip(grid.T, parts):
        means = {step: groups["all"] for step, groups in found[part].items() if groups}
        ns = [m["n"] for m in means.values()]
        sizes.append(min(ns))
        for label, (colour, marker, share, change) in DISPLACEMENT_STYLES.items():
            style = {"color": colour, "marker": marker, "label": label,
                     "linestyle": "solid" if change else "dotted"}  # fmt: skip
            counts = [round(m[share] * m["n"]) for m in means.values()]
            draw_share(lower, means, counts, ns, **style)
            if change:
                upper.plot(means.keys(), [m[change] for m in means.values()], **style)
        upper.axhline(0, color=GREY, linewidth=0.8)
        upper.set_title(f"{part} pairs (n = {max(ns)})")
        for axes in (upper, lower):
            mark_steps(axes, best, lowest_label(rows), saved)
        lower.set_xlabel("training step")
        whole_numbers(lower.xaxis)
    grid[1][0].set_ylim(-3, 103)
    grid[0][0].set_ylabel("mean change (nats)")
    grid[1][0].set_ylabel("pairs in which it fell (%)")
    title = rf"$\log \pi_\theta(y|x)$ − {LOG_REF % 'y'}" + band_note(sizes)
    save_figure(figure, path, run_caption(rows, run), ncols=4, title=title)


def plot_sweep(
    files: Sequence[Sequence[Record]],
    path: Path,
    at: str = "lowest-loss",
    run: str = "",
) -> None:
    """Fig. 5-7 across γ: accuracy, share flipped and squared distance; line: mean over seeds, band:
    smallest to largest."""
    swept = means_over_seeds(sweep_points(files, at))
    panels = {
        "accuracy": ("ranking accuracy (%)", 100),
        "flipped": ("wrong pairs flipped (%)", 100),
        "squared_distance": (DISTANCE, 1),
    }
    styles = part_styles([row["part"] for row in swept])
    figure, grid = subplots(1, 3, figsize=(WIDTH, 2.5))
    for axes, (quantity, (label, scale)) in zip(grid, panels.items()):
        for part, style in styles.items():
            if quantity == "squared_distance" and part != next(iter(styles)):
                continue  # a property of the model
            rows = [row for row in swept if row["part"] == part and row[quantity] is not None]
            if not rows:
                continue
            gammas = [row["gamma"] for row in rows]
            mean, low, high = scale * np.array([row[quantity] for row in rows]).T
            axes.plot(gammas, mean, **style, label=f"{part} pairs (n = {rows[0]['n']})")
            axes.fill_between(gammas, low, high, color=style["color"], alpha=0.2, linewidth=0)
        axes.set_xlabel(r"$\gamma$")
        axes.set_ylabel(label)
    numbers = sorted({row["n_seeds"] for row in swept})
    seeds = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    when = "at the lowest validation loss" if at == "lowest-loss" else "after the last step"
    save_figure(
        figure, path, run_caption((row for rows in files for row in rows), run), ncols=2,
        title=f"{when}; lines and bands: mean and range of {seeds} "
        f"seed{'s' * (seeds != '1')}",
    )  # fmt: skip


PICTURES_OF_RUN = {  # of a dynamics file: what draws it, and its file beside the rows
    "dynamics": (plot_dynamics, "ranking_dynamics.png"),
    "loss-against-reference": (plot_loss_against_reference, "loss_against_reference.png"),
    "accuracy-against-distance": (plot_accuracy_against_distance, "accuracy_against_distance.png"),
    "displacement": (plot_displacement, "likelihood_displacement.png"),
}


def draw_dynamics(
    rows: Sequence[Record], folder: Path, run: str, saved: int | None = None
) -> dict[str, Path]:
    """`PICTURES_OF_RUN`: those that could be drawn. saved: the step of the saved model, where a
    metric chose it."""
    return {
        name.replace("-", "_"): folder / file
        for name, (plot, file) in PICTURES_OF_RUN.items()
        if draw(partial(plot, run=run, saved=saved), rows, folder / file)
    }
