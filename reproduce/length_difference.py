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
import math
from pathlib import Path
from typing import TypedDict

import numpy as np

from ranking.metrics.accuracy import NORMALIZATIONS, record_scores, untied_pairs
from ranking.metrics.intervals import wilson_interval
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import write_json_lines
from ranking.reports.length import length_table
from ranking.reports.tables import as_markdown
from reproduce.records import ScoredDataset, records_by_dataset, scored_dataset

N_BINS = 5
N_RESAMPLES = 1000


class LengthBin(TypedDict):
    """A fifth of the pairs, by the difference of lengths."""

    n: int
    mean_difference: float  # tokens, preferred minus dispreferred
    accuracy: float
    wilson_95: list[float]  # of the accuracy


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


def pairs_of(records: list[dict], normalization: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ranked correctly, difference of lengths in tokens, number of the prompt) of untied pairs
    with finite scores."""
    correct, differences, prompts = [], [], []
    for record in records:
        scores = record_scores(record, normalization)
        lengths = [completion["n_tokens"] for completion in record["completions"]]
        for w, l in untied_pairs(record["ranks"]):  # noqa: E741
            if math.isfinite(scores[w]) and math.isfinite(scores[l]):
                correct.append(float(scores[w] >= scores[l]))
                differences.append(lengths[w] - lengths[l])
                prompts.append(record["prompt_id"])
    return np.array(correct), np.array(differences), np.unique(prompts, return_inverse=True)[1]


def bootstrap_correlation(
    correct: np.ndarray, differences: np.ndarray, prompts: np.ndarray
) -> list[float]:
    """95 % interval of Pearson's correlation over resampled prompts, which keep their pairs."""
    rng = np.random.default_rng(0)
    n_prompts = prompts.max() + 1
    values = []
    for _ in range(N_RESAMPLES):
        weights = np.bincount(rng.integers(0, n_prompts, n_prompts), minlength=n_prompts)[prompts]
        centred = [x - np.average(x, weights=weights) for x in (correct, differences)]
        spread = np.sqrt(np.prod([np.average(x**2, weights=weights) for x in centred]))
        if spread > 0:
            values.append(np.average(centred[0] * centred[1], weights=weights) / spread)
    return np.percentile(values, [2.5, 97.5]).tolist()


def summarize(records: list[dict], normalization: str) -> dict:
    """The `LengthRow` of one dataset and normalization, without how it was scored."""
    from scipy import stats

    correct, differences, prompts = pairs_of(records, normalization)
    correlation: float | None = None
    interval: list[float | None] = [None, None]
    if len(correct) > 3 and len(set(correct)) > 1 and len(set(differences)) > 1:
        correlation = float(stats.pearsonr(correct, differences).statistic)
        interval = [*bootstrap_correlation(correct, differences, prompts)]
    bins = []
    for members in np.array_split(np.argsort(differences, kind="stable"), N_BINS):
        if len(members):
            n_correct = int(correct[members].sum())
            bins.append(
                {"n": len(members), "mean_difference": float(differences[members].mean()),
                 "accuracy": n_correct / len(members),
                 "wilson_95": list(wilson_interval(n_correct, len(members)))}
            )  # fmt: skip
    row = {
        **scored_dataset(records, normalization),
        "n": len(correct),
        "correlation": correlation,
        "correlation_95": interval,
    }
    for name, chosen in (("shorter", differences < 0), ("longer", differences > 0)):
        row[f"n_{name}"] = int(chosen.sum())
        row[f"accuracy_{name}"] = float(correct[chosen].mean()) if chosen.any() else None
    return {**row, "bins": bins}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--examples", required=True, nargs="+", help="examples files")
    parser.add_argument("--output", required=True, type=Path, help="JSON lines")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    rows = []
    for records, settings in records_by_dataset(args.examples):
        rows += [{**summarize(records, kind), **settings} for kind in NORMALIZATIONS]
    rows = [row for row in rows if row["n"]]
    if not rows:
        raise ValueError(f"{', '.join(args.examples)}: no untied pair")
    write_json_lines(args.output, rows)
    print(as_markdown(length_table(rows)))


if __name__ == "__main__":
    run_script(main, parse_args())
