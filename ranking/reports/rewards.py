"""Implicit rewards and displacement as tables, a picture and wandb panels (Remark 2.5)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ranking.data.examples import dataset_label
from ranking.metrics.rewards import RewardPair, RewardRow
from ranking.reports.dynamics import GROUP_STYLES
from ranking.reports.groups import groups_to_show
from ranking.reports.labels import (
    by_normalization,
    dataset_of,
    group_label,
    normalization_of,
    page_label,
    panel_names,
    plain,
    refuse_two_runs,
    run_label,
    setting_label,
    short,
)
from ranking.reports.style import (
    GREY,
    WIDTH,
    save_figure,
    subplots,
    wrapped,
)
from ranking.reports.tables import (
    BETWEEN,
    Table,
    bracketed,
    interval_of,
    log_panels,
    percent,
    show_table,
    signed_with_interval,
    significant,
    with_interval,
)

REWARD_KINDS = {"length-normalized": "per token", "non-length-normalized": "summed"}
CHES_COLUMNS = {"ches": "CHES, AUC", "ches_normalized": "CHES per token, AUC"}
CHANGE = r"$\log\,\pi/\pi_{\mathrm{ref}}$"
OUTCOMES = ("both_right", "only_ranking_right", "only_reward_right", "both_wrong")


def rewards_of(rows: Sequence[Any]) -> list[RewardRow]:
    """The rows of implicit rewards, among those of other metrics; ValueError where two runs are
    alike but for what they found."""
    found = [row for row in rows if row.get("distance_metric") == "reward_acc"]
    refuse_two_runs(found, "calib_property", "beta")
    return found


def reward_lines(
    rows: Sequence[Any], alone: bool, sortable: bool, summed_only: bool = False
) -> list[tuple[list[str], Mapping[str, Any]]]:
    """First cells of each line of a table about rewards, and the row or group that it shows.

    A line per dataset, models and normalization (`summed_only`: of one, which is not named); with
    `alone`, of one run whose models stand elsewhere, also one per group of pairs, and the second
    line of a dataset or group does not name it again; `sortable`: one per group, which stands in a
    cell of its own, after all that the line is about.
    """
    found = rewards_of(rows)
    if not found:
        raise ValueError(
            "no implicit rewards in these results: the ranking script had no reference"
        )
    lines: list[tuple[list[str], Mapping[str, Any]]] = []
    for pair in by_normalization(found, "beta"):
        both = pair[1:] if summed_only else pair
        hows = [[]] if summed_only else [[kind] for kind in REWARD_KINDS.values()]
        row = both[0]
        models = f"{short(row['reference_model'])} → {short(row['model'])}"
        groups = [
            (label, entries)
            for label, entries in groups_to_show(both)
            if entries and "displacement" in entries[0]
        ]
        if sortable:
            what = [page_label(row, found), models]
            for how, whole in zip(hows, both):
                lines.append(([*what, *how, ""], whole))
            for label, entries in groups:
                cells = [[*what, *how, label.strip()] for how in hows]
                lines += list(zip(cells, entries))
        elif alone:
            for label, entries in [(dataset_of(row), both), *groups]:
                labels = [label, *[""] * (len(both) - 1)]
                lines += [([x, *how], entry) for x, how, entry in zip(labels, hows, entries)]
        else:
            label = setting_label(row, found)
            lines += [([label, models, *how], entry) for how, entry in zip(hows, both)]
    return lines


def reward_table(rows: Sequence[Any], alone: bool = False, sortable: bool = False) -> Table:
    """Reward accuracy, beside what preferring the shorter or the longer completion would reach, the
    accuracy at equal lengths and r, the correlation of being right with the difference of lengths;
    mean margin and AUC.

    Shares and AUC in percent, margins in nats, per token where the line is. alone: as
    `reward_lines`, intervals to a tenth; sortable: also, and each column is one number.
    """
    lengths = ["shorter", "longer"]
    columns = ["dataset", "rewards", *["group"] * sortable, "pairs", "accuracy [95 %]"]
    columns += lengths if sortable else [BETWEEN.join(lengths)]
    columns += ["equal length", "r", "margin [95 %]", "AUC"]
    if not alone:
        columns.insert(1, "reference → model")
    lines = []
    for cells, found in reward_lines(rows, alone, sortable):
        is_group = "value" in found
        value = found["value"] if is_group else found["distance_metric_value_mean"]
        baselines = [percent(found["baselines"][length]) for length in lengths]
        lines.append(
            [
                *cells,
                str(found["n"]),
                with_interval(value, interval_of(found), digits=int(alone or sortable)),
                *(baselines if sortable else [BETWEEN.join(baselines)]),
                "" if is_group else percent(found["at_equal_length"]),
                "" if is_group else signed_with_interval(found["length_correlation"], (None, None)),
                two_digits_with_interval(found["mean_margin"], found.get("mean_margin_95")),
                "" if is_group else percent(found["auc"]),
            ]
        )
    return columns, lines


def reward_displacement_table(
    rows: Sequence[Any], alone: bool = False, sortable: bool = False
) -> Table:
    """How many preferred and dispreferred completions became less likely than the reference has
    them, in percent, and the mean changes of their log-likelihoods, in nats, summed; where it is
    known, how well CHES tells which preferred ones fall (AUC, percent).

    alone: as `reward_lines`, and a line for each way in which reference and model rank a pair.
    sortable: also, each column is one number, with its interval.
    """
    columns = ["dataset", "pairs", "fell: chosen / rejected / both"]
    columns.append("moved, nats: chosen / rejected")
    if sortable:
        columns = ["dataset", "group", "pairs", "chosen fell", "rejected fell", "both fell"]
        columns += ["chosen, nats", "rejected, nats"]
    at = -1 if sortable else 0  # where a line says of which group it is
    found_lines = reward_lines(rows, alone, sortable, summed_only=True)
    with_ches = any(row.get("ches") for _, row in found_lines)
    columns += list(CHES_COLUMNS.values()) * with_ches
    if not alone:
        columns.insert(1, "reference → model")
    lines = []
    for cells, row in found_lines:
        of_ranking = row.get("displacement_by_ranking_group", {}) if alone or sortable else {}
        indent = "  " * (not sortable)
        kinds = {f"{indent}{group_label(name)}": d for name, d in of_ranking.items() if d["n"]}
        for label, moved in ({cells[at]: row["displacement"]} | kinds).items():
            line = list(cells)
            line[at] = label
            line += [str(moved["n"]), *displacement_cells(moved, sortable)]
            if with_ches:
                of_row = (row.get("ches") or {}) if label == cells[at] else {}
                line += [percent(of_row[form]["auc"]) if of_row else "" for form in CHES_COLUMNS]
            lines.append(line)
    return columns, lines


def displacement_cells(moved: Mapping[str, Any], sortable: bool) -> list[str]:
    """Shares that fell and mean changes: two cells; `sortable`: five, with their intervals."""
    fell = [f"{side}_fell" for side in ("chosen", "rejected", "both")]
    changes = [f"mean_{side}_change" for side in ("chosen", "rejected")]
    if not sortable:
        shares = BETWEEN.join(percent(moved[name]) for name in fell)
        return [shares, BETWEEN.join(significant(moved[name], 3) for name in changes)]
    intervals = {name: moved.get(f"{name}_95") or (None, None) for name in fell}
    cells = [with_interval(moved[name], intervals[name], digits=1) for name in fell]
    return cells + [two_digits_with_interval(moved[c], moved.get(f"{c}_95")) for c in changes]


def ranking_and_reward_table(
    rows: Sequence[Any], alone: bool = False, sortable: bool = False
) -> Table:
    """Remark 2.5: pairs that are ranked right (≥) or wrong, by whether they are rewarded right (>)
    or wrong, in percent; and McNemar's exact p of the two wrong kinds. alone, sortable: as
    `reward_lines`."""
    columns = ["dataset", "rewards", *["group"] * sortable, "pairs", "both right", "only ranking"]
    columns += ["only reward", "both wrong", "McNemar p"]
    if not alone:
        columns.insert(1, "reference → model")
    lines = []
    for cells, found in reward_lines(rows, alone, sortable):
        table = found["ranking_and_reward"]
        shares = [percent(table[name] / table["n"]) for name in OUTCOMES]
        lines.append([*cells, str(table["n"]), *shares, f"{table['mcnemar_p']:.2g}"])
    return columns, lines


def two_digits_with_interval(value: float | None, interval: Sequence[float | None] | None) -> str:
    """Two digits each; without an interval where there is none."""
    return bracketed(value, interval, lambda x: significant(x, 2))


def show_rewards(rows: Sequence[Any]) -> None:
    """The tables of one run, and lines for ties and rounding."""
    found = rewards_of(rows)
    if not found:
        return
    first = found[0]
    how = run_label(found)
    models = f"β = {first['beta']:g}, {first['model']} against {first['reference_model']}"
    models += f"; {how}" if how else ""
    show_table(reward_table(found, alone=True), f"Implicit rewards, % and nats; {models}")
    show_table(
        reward_displacement_table(found, alone=True),
        "Likelihood displacement: % that fell, mean change; does CHES tell which?",
    )
    show_table(
        ranking_and_reward_table(found, alone=True),
        "Ranking by log-likelihood and by implicit reward, right or wrong, % of pairs",
    )
    for row in found:
        kind = REWARD_KINDS[normalization_of(row)]
        where = f"{dataset_of(row)}, rewards {kind}"
        n, n_within, n_ties = row["n_non_finite"], row["n_within_rounding"], row["n_ties"]
        if n:
            print(f"{where}: {n_pairs(n)} {'is' if n == 1 else 'are'} not finite, counted as wrong")
        if n_within:
            low, high = row["range_within_rounding"]
            differ = "differs" if n_within == 1 else "differ"
            print(
                f"{where}: {n_pairs(n_within)} {differ} by no more than rounding may make "
                f"({n_ties} not at all): accuracy {percent(low)} % if counted as wrong, "
                f"{percent(high)} % if as right"
            )
        elif n_ties:
            print(f"{where}: {n_pairs(n_ties)} with exactly equal rewards, counted as wrong")


def n_pairs(n: int) -> str:
    return f"{n} pair" if n == 1 else f"{n} pairs"


def log_rewards(run, rows: Sequence[Any], picture: Path | None) -> None:
    """Rewards as summary values of a wandb run, `DATASET/reward_…`, the tables and the picture
    in the section `rewards`; benchmarks by implicit reward too."""
    found = rewards_of(rows)
    if not found or picture is None:
        return
    names = panel_names(found)
    for row in found:
        counts: Mapping[str, Any] = row["ranking_and_reward"]
        end = "_per_token" if normalization_of(row) == "length-normalized" else ""
        values = {
            "accuracy": row["distance_metric_value_mean"],
            "margin": row["mean_margin"],
            "auc": row["auc"],
            **{k: v for k, v in row["displacement"].items() if not k.endswith("_95")},
            **{k: counts[k] / counts["n"] for k in OUTCOMES},
            **{f"{form}_auc": ches["auc"] for form, ches in row.get("ches", {}).items()},
        }
        for name, value in values.items():
            run.summary[f"{names[dataset_of(row)]}/reward_{name}{end}"] = value
    for row in rows:
        if row.get("distance_metric") == "benchmark" and "reference_model" in row:
            key = f"{row['benchmark']}/reward_{normalization_of(row)}"
            run.summary[key] = row["distance_metric_value_mean"]
    tables = {
        "rewards/table": reward_table(found),
        "rewards/displacement": reward_displacement_table(found),
        "rewards/ranking_and_reward": ranking_and_reward_table(found),
    }
    log_panels(run, tables, {"rewards/figure": picture})


# ---------------------------------------------------------------------------- picture
def plot_rewards(pairs: Sequence[RewardPair], path: Path) -> None:
    """A line of panels per dataset and models: pairs by ranking and reward (summed), right or
    wrong; how the log-likelihoods of both completions changed; the mean changes by ranking group.
    ValueError where a pair is there twice.
    """
    panels: dict[tuple, list[RewardPair]] = {}
    for pair in pairs:
        key = (pair["model"], pair["reference_model"], pair["dataset"], pair["split"],
               pair["dataset_config"])  # fmt: skip
        panels.setdefault(key, []).append(pair)
    for (model, _, *dataset), own in panels.items():
        if len({(pair["id"], pair["winner"], pair["loser"]) for pair in own}) < len(own):
            raise ValueError(f"two runs of {model} on {dataset_label(*dataset)}: give one")
    figure, grid = subplots(
        len(panels), 3, figsize=(WIDTH, 0.5 + 2.6 * len(panels)), squeeze=False,
        width_ratios=(1, 1.25, 1.25),
    )  # fmt: skip
    several = len({key[:2] for key in panels}) > 1
    for axes, ((model, reference, *dataset), own) in zip(grid, panels.items()):
        title = plain(dataset_label(*dataset))
        if several:
            title = f"{plain(short(model))} from {plain(short(reference))}, {title}"
        axes[0].set_title(wrapped(f"{title} (n = {len(own)} pairs)", 1.6), loc="left")
        draw_outcomes(axes[0], own)
        draw_changes(axes[1], own)
        draw_changes_by_group(axes[2], own)
    handles, labels = grid[0][1].get_legend_handles_labels()
    title = "ranking, reference → policy"
    figure.legend(handles, labels, ncols=4, title=title, loc="outside lower center")
    betas = dict.fromkeys(f"{pair['beta']:g}" for pair in pairs)
    how = rf"log-likelihoods summed over tokens, $\beta$ = {', '.join(betas)}"
    if not several:
        model, reference = next(iter(panels))[:2]
        how = f"{plain(short(model))} against {plain(short(reference))}; {how}"
    figure.suptitle(how)
    save_figure(figure, path)


def draw_outcomes(axes, pairs: Sequence[Mapping[str, Any]]) -> None:
    """The 2 × 2 table: ranking right or wrong down, reward right or wrong across."""
    ranked = np.array([pair["group"].endswith("_to_correct") for pair in pairs])
    rewarded = np.array([(pair["reward_margin"] or 0) > 0 for pair in pairs])
    counts = np.array([[(a & b).sum() for b in (rewarded, ~rewarded)] for a in (ranked, ~ranked)])
    axes.imshow(counts / len(pairs), cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    for i, j in np.ndindex(2, 2):
        share = counts[i, j] / len(pairs)
        axes.text(
            j, i, f"{100 * share:.1f} %\n{counts[i, j]}", ha="center", va="center",
            color="white" if share > 0.6 else "black",
        )  # fmt: skip
    axes.set_xticks([0, 1], ["right", "wrong"])
    axes.set_yticks([0, 1], ["right", "wrong"])
    axes.set_xlabel(rf"implicit reward, $\beta$ {CHANGE}")
    axes.set_ylabel(r"ranking, $\log\,\pi$")


def draw_changes(axes, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Change of the chosen completion's log-likelihood across, of the rejected one's up; below the
    diagonal the reward is right."""
    for group, (colour, marker) in GROUP_STYLES.items():
        own = [
            (pair["chosen_change"], pair["rejected_change"])
            for pair in pairs
            if pair["group"] == group and pair["reward_margin"] is not None
        ]
        axes.plot(
            [x for x, _ in own], [y for _, y in own], marker, color=colour, alpha=0.5, markersize=4,
            markeredgewidth=0, label=group_label(group),
        )  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.axline((0, 0), slope=1, color=GREY, linewidth=0.8, linestyle="dashed")
    known = [pair for pair in pairs if pair["reward_margin"] is not None]
    fell = [
        np.mean([pair[f"{side}_change"] < 0 for pair in known]) if known else np.nan
        for side in ("chosen", "rejected")
    ]
    axes.set_title(f"below 0: {100 * fell[0]:.0f} % of chosen, {100 * fell[1]:.0f} % of rejected")
    axes.set_xlabel(f"{CHANGE} of chosen (nats)")
    axes.set_ylabel(f"{CHANGE} of rejected (nats)")


def draw_changes_by_group(axes, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Mean change of the chosen and the rejected completion in each ranking group."""
    known = [pair for pair in pairs if pair["reward_margin"] is not None]
    of_group = {g: [pair for pair in known if pair["group"] == g] for g in GROUP_STYLES}
    for shift, side, colour in ((-0.2, "chosen", GREY), (0.2, "rejected", "silver")):
        means = [
            np.mean([pair[f"{side}_change"] for pair in own]) if own else 0.0
            for own in of_group.values()
        ]
        axes.barh(
            np.arange(len(means)) + shift, means, height=0.4, color=colour,
            label=side,
        )  # fmt: skip
    sizes = [sum(pair["group"] == group for pair in pairs) for group in GROUP_STYLES]
    labels = [group_label(group).replace("→ ", "→\n") for group in GROUP_STYLES]
    names = [f"{label}\n(n = {n})" for label, n in zip(labels, sizes)]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel(f"mean {CHANGE} (nats)")
    axes.legend()
    axes.grid(False, axis="y")
