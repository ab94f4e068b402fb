"""The paper's tables from result files: paper | ours | difference.

    python reproduce/tables.py ranking results/gpt2.jsonl
    python reproduce/tables.py idealized results/gpt2_idealized.jsonl --format latex

ranking (Tables 2-5): R̃ length-normalized (Eq. 15), R summed (Eq. 13), percent, 95 % Wilson
interval; differences whose published value lies outside the interval carry a *.
idealized (Tables 1, 6): R* by Corollary 3.3 over β = 0.01, 0.1, 1, 5, 10; gap to its median.
conventions, length: files of conventions.py and length_difference.py. dynamics, sweep: files
ranking_dynamics.jsonl of dpo.py. win-rate: a file of calculate_win_rate.py --checkpoints.
Models that the paper does not have are shown beside --beside MODEL, one that it has.
"""

import argparse
import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranking.data.hub import DATASETS
from ranking.metrics.dynamics import PARTS, lowest_loss_step, mean_of, means_by_step, sweep_points
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import (
    DATASET,
    SCORING,
    read_json_lines,
    scoring_label,
    values_of,
)
from ranking.reports.dynamics import read_dynamics

PUBLISHED = json.loads((Path(__file__).parent / "paper_tables.json").read_text())
HUB_NAMES = {  # of models that the tables call otherwise
    "alignment-handbook/zephyr-7b-sft-full": "zephyr-7b-sft",
    "alignment-handbook/zephyr-7b-dpo-full": "zephyr-7b-dpo",
    "allenai/OLMo-7B-hf": "allenai/OLMo-7B",
}
NORMALIZATIONS = {"length-normalized": "R̃", "non-length-normalized": "R"}
BETWEEN = " / "  # min / median / max over β
Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]  # columns, cells


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def with_interval(value: float, interval: list[float | None]) -> str:
    low, high = interval
    return (
        percent(value)
        if low is None or high is None
        else f"{percent(value)} [{100 * low:.0f}, {100 * high:.0f}]"
    )


def short(name: str) -> str:
    """The last part of a model's path, and its parent where that says the training step."""
    parts = Path(name).parts
    return "/".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]


SETTING = (*DATASET, "include_ties", *SCORING, "model")


def setting_of(row: Row) -> tuple:
    """What a row is about: dataset, its part, whether ties count, how it was scored (not given: the
    default), and the model."""
    return values_of(row, SETTING)


def dataset_label(row: Row, beside: list[Row]) -> str:
    """Dataset with its split and, unless the hub's default, its configuration; ties; how it was
    scored, where that is not the default or not as the rows `beside` it."""
    name, config, split, ties = setting_of(row)[:4]
    default = DATASETS[name].config if name in DATASETS else None
    parts = [name, *(x for x in (config, split) if x not in (None, default))]
    how = scoring_label(row, beside)
    return ":".join(parts) + (", ties included" if ties else "") + (f", {how}" if how else "")


def by_setting(rows: list[Row], column: str, prefix: str = "") -> dict[tuple, dict[str, Row]]:
    """setting → value of `column` → row. ValueError where two rows would fall together."""
    found: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        group = found.setdefault(setting_of(row), {})
        kind = row[column].removeprefix(prefix)
        if kind in group:
            raise ValueError(f"two runs of {row['model']} on {dataset_label(row, [])}: give one")
        group[kind] = row
    return found


# ---------------------------------------------------------------------------- evaluation
def published_pair(row: Row, beside: str | None) -> tuple[str, list[float]] | None:
    """(model, [R̃, R] in percent) that the paper has for a summary row, or for `beside`."""
    name = row["dataset_name"]
    if name in DATASETS and row.get("dataset_config") != DATASETS[name].config:
        return None  # a part of it only
    dataset = f"{name}:{row['dataset_split']}"
    dataset += " (ties included)" if row["include_ties"] else ""
    for model in (HUB_NAMES.get(row["model"], row["model"]), beside):
        found = PUBLISHED["ranking_accuracy"].get(model, {}).get(dataset)
        if found is not None:
            return model, found
    return None


def ranking_table(rows: list[Row], beside: str | None = None) -> Table:
    """Tables 2-5: one line per dataset and model."""
    columns = ["dataset", "model", "n", "chance"]
    for symbol in NORMALIZATIONS.values():
        columns += [f"{symbol} paper", f"{symbol} ours [95 %]", "difference"]
    accuracies = [row for row in rows if row.get("distance_metric") == "acc"]
    if not all("wilson_95" in row for row in accuracies) or not accuracies:
        raise ValueError("not a summary of calculate_calibration_metrics.py")
    lines = []
    grouped = by_setting(accuracies, "calib_property", "ranking_")
    order = list(dict.fromkeys(key[:-1] for key in grouped))
    for key, pair in sorted(grouped.items(), key=lambda item: order.index(item[0][:-1])):
        model = key[-1]
        first = next(iter(pair.values()))
        cells = [dataset_label(first, accuracies), short(model), str(first["n"])]
        cells.append(percent(first["chance"]))
        published = published_pair(first, beside)
        for k, normalization in enumerate(NORMALIZATIONS):
            row = pair[normalization]
            value, interval = row["distance_metric_value_mean"], row["wilson_95"]
            ours = with_interval(value, interval)
            if published is None:
                cells += ["–", ours, "–"]
                continue
            paper = published[1][k]
            outside = not 100 * interval[0] <= paper <= 100 * interval[1]
            own = published[0] == HUB_NAMES.get(model, model)
            whose = "" if own else f" ({short(published[0])})"
            cells += [
                f"{paper:.1f}{whose}",
                ours,
                f"{100 * value - paper:+.1f}{' *' if outside else ''}",
            ]
        lines.append(cells)
    return columns, lines


def idealized_table(rows: list[Row], beside: str | None = None) -> Table:
    """Tables 1 and 6: observed and idealized accuracy, and the gap to the median over β."""
    if not all("min_median_max" in row for row in rows):
        raise ValueError("not a summary of calculate_upper_bound_rlhf.py")
    columns = ["dataset", "reference → model", "pairs"]
    for symbol in NORMALIZATIONS.values():
        columns += [symbol, f"{symbol}* min / med / max", "gap [95 %]"]
    lines = []
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(values_of(row, ("reference_model", *SETTING)), []).append(row)
    for (reference, *_, model), of_group in groups.items():
        by_kind = {row["calib_property"].removeprefix("ranks_"): row for row in of_group}
        if len({(row["calib_property"], row["beta"]) for row in of_group}) < len(of_group):
            raise ValueError(f"two runs of {model} on {dataset_label(of_group[0], [])}: give one")
        any_row = next(iter(by_kind.values()))
        models = short(model) if model == reference else f"{short(reference)} → {short(model)}"
        cells = [dataset_label(any_row, rows), models, str(any_row["n"])]
        for normalization in NORMALIZATIONS:
            row = by_kind[normalization]
            cells += [
                percent(row["observed_accuracy"]),
                BETWEEN.join(percent(x) for x in row["min_median_max"]),
                with_interval(row["gap_to_median"], row["gap_to_median_95"]),
            ]
        lines.append(cells)
    for ties, table in ((False, "idealized_table1"), (True, "idealized_table6_ties_included")):
        published = PUBLISHED[table] if any(row["include_ties"] == ties for row in rows) else {}
        for model, row in published.items():
            where = "AlpacaFarm, paper's convention" + (", ties included" if ties else "")
            cells = [where, f"paper: {short(model)}", "–"]
            for key in ("R_norm", "R"):
                median = row[f"{key}_star"][1]
                cells += [str(row[key]), BETWEEN.join(map(str, row[f"{key}_star"]))]
                cells.append(f"{median - row[key]:.0f}")
            lines.append(cells)
    return columns, lines


def conventions_table(rows: list[Row], beside: str | None = None) -> Table:
    """The same log-likelihoods under the definition and under a published convention."""
    if not all("convention" in row for row in rows):
        raise ValueError("not a file of conventions.py")
    columns = ["what", "dataset", "model", "convention", "n", "R̃", "R", "paper R̃, R"]
    lines = []
    grouped: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        key = (*setting_of(row), row["what"], row["convention"])
        if row["normalization"] in grouped.setdefault(key, {}):
            raise ValueError(f"two runs of {row['model']} on {dataset_label(row, [])}: give one")
        grouped[key][row["normalization"]] = row
    for (*_, model, what, convention), by_kind in grouped.items():
        any_row = next(iter(by_kind.values()))
        cells = [what, dataset_label(any_row, rows), short(model), convention, str(any_row["n"])]
        for normalization in NORMALIZATIONS:
            value = by_kind[normalization]["value"]
            triple = isinstance(value, list)
            cells.append(BETWEEN.join(map(percent, value)) if triple else percent(value))
        published = None
        if what == "ranking accuracy" and any_row["published"]:
            published = published_pair(any_row, beside)
        paper = "–"
        if published:
            paper = ", ".join(f"{x:.1f}" for x in published[1]) + f" ({short(published[0])})"
        lines.append([*cells, paper])
    return columns, lines


def length_table(rows: list[Row], beside: str | None = None) -> Table:
    """Correlation of being ranked correctly with the difference of lengths."""
    if not all("correlation" in row for row in rows):
        raise ValueError("not a file of length_difference.py")
    columns = ["dataset", "model", "score", "pairs", "correlation [95 %]"]
    columns += ["preferred is shorter", "longer"]
    lines = []
    for row in rows:
        low, high = row["correlation_95"]
        correlation = "–"
        if row["correlation"] is not None:
            correlation = f"{row['correlation']:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(
            [dataset_label(row, rows), short(row["model"]), NORMALIZATIONS[row["normalization"]],
             str(row["n"]), correlation,
             f"{percent(row['accuracy_shorter'])} (n = {row['n_shorter']})",
             f"{percent(row['accuracy_longer'])} (n = {row['n_longer']})"]
        )  # fmt: skip
    return columns, lines


# ---------------------------------------------------------------------------- training
def dynamics_table(rows: list[Row]) -> Table:
    """Section 4: the four groups at the start, at the lowest validation loss, and at the end."""
    best = lowest_loss_step(rows)
    columns = ["pairs", "step", "loss", "accuracy", "flipped to correct", "→ incorrect"]
    columns.append("reward margin")
    lines = []
    for part in PARTS:
        summary = means_by_step(rows, part)
        for step in sorted({min(summary), best, max(summary)} & summary.keys() if summary else ()):
            chosen = [row for row in rows if (row["part"], row["step"]) == (part, step)]
            counts = {group: 0 for group in summary[step]["share"]}
            for row in chosen:
                counts[row["group"]] += 1
            wrong = counts["incorrect_to_correct"] + counts["incorrect_to_incorrect"]
            margin = mean_of(chosen, "reward_margin")
            flipped = counts["incorrect_to_correct"]
            lines.append(
                [f"{part} ({len(chosen)})", f"{step}{' (lowest)' if step == best else ''}",
                 f"{summary[step]['loss']:.3f}", f"{percent(summary[step]['accuracy'])} %",
                 f"{flipped} of {wrong} ({percent(flipped / wrong if wrong else None)} %)",
                 f"{counts['correct_to_incorrect']} of {len(chosen) - wrong}", f"{margin:.2f}"]
            )  # fmt: skip
    return columns, lines


def sweep_table(files: list[list[Row]], at: str) -> Table:
    """Fig. 5-7 in numbers: mean over seeds (smallest to largest) of each γ."""
    points = sweep_points(files, at)
    columns = ["γ", "seeds", "pairs", "accuracy, %", "flipped to correct, %", "loss"]
    columns.append("‖θ − θ_ref‖²")

    def spread(values: list[float | None], digits: int, scale: float = 1.0) -> str:
        known = [scale * value for value in values if value is not None]
        if not known:
            return "–"
        text = f"{sum(known) / len(known):.{digits}f}"
        different = len(known) > 1 and min(known) != max(known)
        return text + f" ({min(known):.{digits}f} to {max(known):.{digits}f})" * different

    lines = []
    for (gamma, part), group in groupby(points, key=lambda point: (point["gamma"], point["part"])):
        seeds = list(group)
        lines.append(
            [f"{gamma:g}", str(len(seeds)), f"{part} ({seeds[0]['n']})",
             spread([s["accuracy"] for s in seeds], 1, 100),
             spread([s["flipped"] for s in seeds], 1, 100), spread([s["loss"] for s in seeds], 3),
             spread([s["squared_distance"] for s in seeds], 2)]
        )  # fmt: skip
    return columns, lines


def win_rate_table(rows: list[Row], beside: str | None = None) -> Table:
    """Fig. 4, 9-12 in numbers: nearest to the reference first."""
    if not all({"win_rate", "squared_distance"} <= row.keys() for row in rows):
        raise ValueError("not a summary of calculate_win_rate.py --checkpoints")
    columns = ["model", "‖θ − θ_ref‖²", "ranking accuracy", "win rate [95 %]"]
    columns += ["at equal lengths", "characters"]
    lines = []
    for row in sorted(rows, key=lambda row: row["squared_distance"]):
        wins = "–"
        if row["win_rate"] is not None:
            wins = with_interval(row["win_rate"], row["bootstrap_95"])
        lines.append(
            [Path(row["model"]).name, f"{row['squared_distance']:.3g}",
             percent(row["ranking_accuracy"]), wins, percent(row["length_controlled_win_rate"]),
             f"{row['mean_characters_policy']:.0f}"]
        )  # fmt: skip
    for found in [c for row in rows for c in row.get("correlations", [])]:
        value = "–"
        if found["spearmanr"] is not None:
            value = f"{found['spearmanr']:+.2f} (p = {found['p_value']:.2g})"
        part = f"Spearman, accuracy and win rate, {found['part']} ({found['n']})"
        lines.append([part, "", "", value, "", ""])
    return columns, lines


SUMMARIES = {
    "ranking": ranking_table,
    "idealized": idealized_table,
    "conventions": conventions_table,
    "length": length_table,
    "win-rate": win_rate_table,
}


def print_table(table: Table, style: str) -> None:
    """Markdown or LaTeX (booktabs) on stdout."""
    from tabulate import tabulate

    columns, lines = table
    if style == "latex":
        print(tabulate(lines, columns, tablefmt="latex_booktabs", disable_numparse=True))
        return
    for cells in (columns, ["---"] * len(columns), *lines):
        print(f"| {' | '.join(cells)} |")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("table", choices=(*SUMMARIES, "dynamics", "sweep"), help="which table")
    parser.add_argument(
        "files", nargs="+", type=Path, help="summaries, or ranking_dynamics.jsonl files"
    )
    parser.add_argument("--beside", metavar="MODEL", help="a model of the paper (gpt2, …)")
    parser.add_argument(
        "--at", choices=("lowest-loss", "last"), default="lowest-loss",
        help="step of a sweep's runs: of the lowest validation loss (the paper's), or the last",
    )  # fmt: skip
    parser.add_argument(
        "--format",
        choices=("markdown", "latex"),
        default="markdown",
        help="of what is printed (default: markdown)",
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.beside is not None and args.beside not in PUBLISHED["ranking_accuracy"]:
        known = ", ".join(PUBLISHED["ranking_accuracy"])
        raise ValueError(f"--beside {args.beside}: the paper has {known}")
    if args.table == "dynamics":
        if len(args.files) > 1:
            raise ValueError(f"dynamics takes one file, found {len(args.files)}")
        table = dynamics_table(read_dynamics(args.files[0]))
    elif args.table == "sweep":
        table = sweep_table([read_dynamics(file) for file in args.files], args.at)
    else:
        rows = [row for file in args.files for row in read_json_lines(file)]
        try:
            table = SUMMARIES[args.table](rows, args.beside)
        except ValueError as error:
            raise ValueError(f"{', '.join(map(str, args.files))}: {error}") from None
    print_table(table, args.format)


if __name__ == "__main__":
    run_script(main, parse_args())
