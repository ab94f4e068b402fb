r"""Is a pair ranked correctly because its preferred completion is the shorter one?

    python -m reproduce.length_difference --examples results/gpt2.examples.jsonl \
        --output results/gpt2.length.jsonl

For every dataset and normalization: the correlation over untied pairs of being ranked correctly
with the difference of lengths (tokens of the preferred minus the dispreferred completion; Pearson's
for a 0/1 variable, with a 95 % bootstrap interval over prompts), the accuracy where the preferred
completion is shorter, where it is longer, and in five bins of equal size. Draw the file with
`python plot_results.py length-difference`.
"""

import argparse
from pathlib import Path

from ranking.metrics.accuracy import NORMALIZATIONS, ranked_pairs
from ranking.metrics.length import LengthBin, length_bins, length_correlation
from ranking.metrics.orders import untied_pairs
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import write_json_lines
from ranking.reports.length import length_table
from ranking.reports.tables import as_markdown
from ranking.scoring.comparable import label_of
from reproduce.records import ScoredDataset, records_by_dataset, scored_dataset


class LengthRow(ScoredDataset, total=False):
    """A line of the output. null: not defined."""

    n: int  # untied pairs
    correlation: float | None
    correlation_95: list[float | None]
    n_shorter: int  # pairs whose preferred completion is the shorter one
    accuracy_shorter: float | None  # of these
    n_longer: int
    accuracy_longer: float | None
    bins: list[LengthBin]


def summarize(records: list[dict], normalization: str) -> dict:
    """The `LengthRow` of one dataset and normalization, without how it was scored."""
    right, differences, prompts = ranked_pairs(records, normalization)
    correlation, interval = length_correlation(right, differences, prompts)
    row = {
        **scored_dataset(records, normalization),
        "n": len(right),
        "correlation": correlation,
        "correlation_95": interval,
    }
    for name, chosen in (("shorter", differences < 0), ("longer", differences > 0)):
        row[f"n_{name}"] = int(chosen.sum())
        row[f"accuracy_{name}"] = float(right[chosen].mean()) if chosen.any() else None
    return {**row, "bins": length_bins(right, differences)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--examples", required=True, nargs="+", help="examples files")
    parser.add_argument("--output", required=True, type=Path, help="JSON lines")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    rows = []
    for records, settings in records_by_dataset(args.examples):
        if not any(untied_pairs(record["ranks"]) for record in records):
            announce(f"{label_of(records[0])}: no untied pair, left out")
            continue
        rows += [{**summarize(records, kind), **settings} for kind in NORMALIZATIONS]
    if not rows:
        raise ValueError(f"{', '.join(args.examples)}: no untied pair")
    write_json_lines(args.output, rows)
    print(as_markdown(length_table(rows)))


if __name__ == "__main__":
    run_script(main, parse_args())
