"""The paper's tables from result files: paper | ours | difference.

    python -m reproduce.tables ranking results/gpt2.jsonl
    python -m reproduce.tables idealized results/gpt2_idealized.jsonl --format latex

ranking (Tables 2-5): R̃ length-normalized (Eq. 15), R summed (Eq. 13), percent, 95 % Wilson
interval; differences whose published value lies outside the interval carry a *.
idealized (Tables 1, 6): R* by Corollary 3.3 over β = 0.01, 0.1, 1, 5, 10; gap to its median.
idealized-by-dataset: the same of ours alone, a dataset's models side by side.
conventions, length: files of conventions.py and length_difference.py. dynamics, sweep: files
ranking_dynamics.jsonl of dpo.py. flips: of such files, which wrongly ranked pairs flipped, with
intervals, and whether those of small c flipped first (Theorem 4.1).
pairs (Tables 7-9): easy and hard pairs with their loss after tuning, from NAME.pairs.jsonl of
calculate_upper_bound_rlhf.py --dynamics (of several SFT seeds, several) and NAME.examples.jsonl.
win-rate: a file of calculate_win_rate.py --checkpoints.
benchmarks: RewardBench, RM-Bench and others by their own protocols, of the ranking script.
rewards, displacement, ranking-and-reward: implicit rewards, how likelihoods moved, and the 2 × 2
table of Remark 2.5, of the ranking script with a reference.
comparison, mcnemar: NAME.compare.jsonl of its --compare.
search: the points of reproduce.search. settings: paper_settings.jsonl, with each value's source.
Models that the paper does not have are shown beside --beside MODEL, one that it has.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from ranking.data.hub import ALPACA_FARM, DATASETS
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import Record, read_json_lines
from ranking.reports.accuracy import accuracy_table
from ranking.reports.benchmarks import benchmark_table
from ranking.reports.comparison import comparison_table, mcnemar_table
from ranking.reports.dynamics import (
    chosen_step_beside,
    dynamics_table,
    read_dynamics,
    sweep_table,
)
from ranking.reports.flips import dynamics_names, flips_table
from ranking.reports.hard_pairs import hard_pairs_table
from ranking.reports.idealized import idealized_table
from ranking.reports.labels import by_normalization, refuse_two_runs, setting_label, short
from ranking.reports.length import length_table
from ranking.reports.rewards import (
    ranking_and_reward_table,
    reward_displacement_table,
    reward_table,
)
from ranking.reports.tables import BETWEEN, Table, as_latex, as_markdown, percent
from ranking.reports.win_rate import win_rate_table
from reproduce.scales import SCALES
from reproduce.search import search_table
from reproduce.settings import settings_table

PUBLISHED = json.loads((Path(__file__).parent / "paper_tables.json").read_text())
HUB_NAMES = {  # of models that the tables call otherwise
    "alignment-handbook/zephyr-7b-sft-full": "zephyr-7b-sft",
    "alignment-handbook/zephyr-7b-dpo-full": "zephyr-7b-dpo",
    "allenai/OLMo-7B-hf": "allenai/OLMo-7B",
}


def published_accuracy(row: Any, beside: str | None) -> tuple[str, list[float]] | None:
    """(model, [R̃, R] in percent) that the paper has for a row's model and data, or for `beside`."""
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


def accuracy_beside_paper(rows: list[Any], beside: str | None = None) -> Table:
    """Tables 2-5: ours beside the paper's."""

    def published(row) -> tuple[str, list[float]] | None:
        found = published_accuracy(row, beside)
        if found is None:
            return None
        own = found[0] == HUB_NAMES.get(row["model"], row["model"])
        return "" if own else f" ({short(found[0])})", found[1]

    return accuracy_table(rows, published)


def idealized_beside_paper(rows: list[Any]) -> Table:
    """Tables 1 and 6: ours, then the paper's."""
    columns, lines = idealized_table(rows)
    for ties, model, row in published_idealized(rows):
        where = "AlpacaFarm, paper's convention" + (", ties included" if ties else "")
        mark = "†" if of_reference(model, ties) else ""
        cells = [where, f"paper: {short(model)}{mark}", "–"]
        for key in ("R_norm", "R"):
            median = row[f"{key}_star"][1]
            cells += [str(row[key]), BETWEEN.join(map(str, row[f"{key}_star"]))]
            cells.append(f"{median - row[key]:.0f}")
        lines.append(cells)
    return columns, lines


def idealized_by_dataset(rows: list[Any]) -> Table:
    """Ours alone: each dataset's models side by side, in the order of the files."""
    return idealized_table(sorted(rows, key=itemgetter("dataset_name")))


def published_idealized(rows: list[Any]) -> Iterator[tuple[bool, str, dict]]:
    """(with ties, model, values) of Tables 1 and 6, of those to which ours belong."""
    for ties, table in ((False, "idealized_table1"), (True, "idealized_table6_ties_included")):
        if any(row["include_ties"] == ties for row in rows):
            yield from ((ties, model, row) for model, row in PUBLISHED[table].items())


def of_reference(model: str, ties: bool) -> tuple[str, list[float], list[float]] | None:
    """(reference, its R̃ and R in Tables 2-5, the model's there) where Table 1 or 6 has those of
    the reference for the model that was tuned from it; None where it has the model's own."""
    reference = SCALES["paper"].tuned_from.get(model)
    if reference is None:
        return None
    data = f"{ALPACA_FARM}:{DATASETS[ALPACA_FARM].config}" + " (ties included)" * ties
    row = PUBLISHED["idealized_table6_ties_included" if ties else "idealized_table1"][model]
    theirs, own = (PUBLISHED["ranking_accuracy"][name][data] for name in (reference, model))

    def rounds_to_it(values: list[float]) -> bool:
        return all(abs(x - row[key]) <= 0.5 for x, key in zip(values, ("R_norm", "R")))

    return (reference, theirs, own) if rounds_to_it(theirs) and not rounds_to_it(own) else None


def idealized_notes(rows: list[Any]) -> list[str]:
    """What the marks of `idealized_beside_paper` mean."""
    notes = []
    for ties, model, row in published_idealized(rows):
        if other := of_reference(model, ties):
            reference, theirs, own = (short(other[0]), *other[1:])
            notes.append(
                f"† {'Table 6' if ties else 'Table 1'} prints for {short(model)} the accuracies "
                f"({row['R_norm']}, {row['R']}) that Tables 2-5 have for {reference} "
                f"({theirs[0]}, {theirs[1]}); its own are {own[0]}, {own[1]}."
            )
    return notes


def conventions_table(rows: list[Record], beside: str | None = None) -> Table:
    """The same log-likelihoods under the definition and under a published convention."""
    if not all("convention" in row for row in rows):
        raise ValueError("not a file of conventions.py")
    refuse_two_runs(rows, "what", "convention", "normalization")
    columns = ["what", "dataset", "model", "convention", "n", "R̃", "R", "paper R̃, R"]
    lines = []
    for pair in by_normalization(rows, "what", "convention"):
        row = pair[1]
        line = [row["what"], setting_label(row, rows), short(row["model"]), row["convention"]]
        line.append(str(row["n"]))
        for value in (of_kind["value"] for of_kind in pair):
            values = value if isinstance(value, list) else [value]
            line.append(BETWEEN.join(map(percent, values)))
        published = None
        if row["what"] == "ranking accuracy" and row["published"]:
            published = published_accuracy(row, beside)
        paper = "–"
        if published:
            paper = ", ".join(f"{x:.1f}" for x in published[1]) + f" ({short(published[0])})"
        lines.append([*line, paper])
    return columns, lines


SUMMARIES: dict[str, Callable[..., Table]] = {  # table → its builder, from the rows of all files
    "ranking": accuracy_beside_paper,
    "idealized": idealized_beside_paper,
    "idealized-by-dataset": idealized_by_dataset,
    "conventions": conventions_table,
    "length": length_table,
    "pairs": hard_pairs_table,
    "win-rate": win_rate_table,
    "benchmarks": benchmark_table,
    "rewards": reward_table,
    "displacement": reward_displacement_table,
    "ranking-and-reward": ranking_and_reward_table,
    "comparison": comparison_table,
    "search": search_table,
    "settings": settings_table,
    "mcnemar": mcnemar_table,
}
BESIDE = ("ranking", "conventions")  # whose builders take --beside, too
FORMATS = {"markdown": as_markdown, "latex": as_latex}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "table", choices=(*SUMMARIES, "dynamics", "sweep", "flips"), help="which table"
    )
    parser.add_argument(
        "files", nargs="+", type=Path, help="summaries, ranking_dynamics.jsonl or pairs files"
    )
    parser.add_argument("--beside", metavar="MODEL", help="a model of the paper (gpt2, …)")
    parser.add_argument(
        "--at", choices=("lowest-loss", "last"), default="lowest-loss",
        help="step of a sweep's runs: of the lowest validation loss (the paper's), or the last",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=FORMATS, default="markdown",
        help="of what is printed (default: markdown)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.at == "last" and args.table != "sweep":
        parser.error(f"--at: {args.table} does not take it, sweep does")
    if args.beside and args.table not in BESIDE:
        parser.error(f"--beside: {args.table} does not take it, ranking and conventions do")
    return args


def main(args: argparse.Namespace) -> None:
    if args.beside is not None and args.beside not in PUBLISHED["ranking_accuracy"]:
        known = ", ".join(PUBLISHED["ranking_accuracy"])
        raise ValueError(f"--beside {args.beside}: the paper has {known}")
    if args.table == "dynamics":
        if len(args.files) > 1:
            raise ValueError(f"dynamics takes one file, found {len(args.files)}")
        saved = chosen_step_beside(args.files[0])
        table = dynamics_table(read_dynamics(args.files[0]), saved=saved)
    elif args.table == "sweep":
        table = sweep_table([read_dynamics(file) for file in args.files], args.at)
    elif args.table == "flips":
        names = dynamics_names(args.files)
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two files are called {twice[0]}: rename one, or give it once")
        table = flips_table((name, read_dynamics(f)) for name, f in zip(names, args.files))
    else:
        rows = [row for file in args.files for row in read_json_lines(file)]
        try:
            if not rows:
                raise ValueError("no rows")
            more = [args.beside] if args.table in BESIDE else []
            table = SUMMARIES[args.table](rows, *more)
        except (ValueError, KeyError) as error:
            what = f"no {error} in a line" if isinstance(error, KeyError) else error
            raise ValueError(f"{', '.join(map(str, args.files))}: {what}") from None
    print(FORMATS[args.format](table))
    for note in idealized_notes(rows) if args.table == "idealized" else []:
        print(f"\n{note}")


if __name__ == "__main__":
    run_script(main, parse_args())
