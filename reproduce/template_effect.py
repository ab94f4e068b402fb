r"""What does the chat template change? The same examples scored as text and in the template.

    python -m reproduce.template_effect --text results/text.examples.jsonl \
        --template results/template.examples.jsonl

The files are those of two runs of the ranking script, with --chat-template never and always;
several of each may be given. For every dataset: ranking accuracy R̃ and R of either, how many
examples are right in one of them only (with the p-value of McNemar's exact test), and by how many
nats a token of the completions became more likely in the template.
"""

import argparse

import numpy as np

from ranking.metrics.accuracy import NORMALIZATIONS, ranking_accuracy, record_scores
from ranking.metrics.comparison import compare_models
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.processes import announce
from ranking.reports.labels import SYMBOLS, short
from ranking.reports.tables import Table, as_markdown, percent
from ranking.scoring.comparable import label_of, shared_examples
from ranking.scoring.examples_file import load_examples


def nats_per_token(record: dict) -> float:
    """Mean log-likelihood of a token of the record's completions, nats; NaN: one is not finite."""
    n_tokens = sum(completion["n_tokens"] for completion in record["completions"])
    return sum(record_scores(record, "non-length-normalized")) / n_tokens


def effect_table(shared: list[tuple[dict, dict]]) -> Table:
    """A line for each dataset. shared: the records of an example as text and in the template."""
    columns = ["dataset", "model", "n"]
    for symbol in SYMBOLS.values():
        columns += [f"{symbol} text", f"{symbol} template", "right in one only (p)"]
    lines = []
    for dataset in dict.fromkeys(label_of(text) for text, _ in shared):
        pairs = [pair for pair in shared if label_of(pair[0]) == dataset]
        text, template = zip(*pairs)
        compared = compare_models([("text", text), ("template", template)], seed=0)
        tests = {row["calib_property"]: row["tests"][0] for row in compared}
        line = [dataset, short(pairs[0][0]["model"]), str(len(pairs))]
        for normalization in NORMALIZATIONS:
            right = [
                [ranking_accuracy(record_scores(r, normalization), r["ranks"]) for r in side]
                for side in zip(*pairs)
            ]
            test = tests[f"ranking_{normalization}"]
            only = f"{test['only_first_right']}, {test['only_second_right']}"
            line += [percent(float(np.mean(side))) for side in right]
            line.append(f"{only} ({test['p_value']:.2g})")
        change = np.nanmean([nats_per_token(b) - nats_per_token(a) for a, b in pairs])
        lines.append([*line, f"{change:+.2f}"])
    return [*columns, "nats a token"], lines


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--text", required=True, nargs="+", metavar="EXAMPLES", help="examples files of text"
    )
    parser.add_argument(
        "--template", required=True, nargs="+", metavar="EXAMPLES", help="those in the template"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    sides = [
        [record for file in files for record in load_examples(file)]
        for files in (args.text, args.template)
    ]
    shared = shared_examples(*sides)
    untied = [pair for pair in shared if len(set(pair[0]["ranks"])) > 1]
    alone, tied = sum(map(len, sides)) - 2 * len(shared), len(shared) - len(untied)
    if alone or tied:
        announce(f"left out: {alone} examples of one side only, {tied} without a preference")
    if not untied:
        raise ValueError("no example with a preference is in both")
    print(as_markdown(effect_table(untied)))


if __name__ == "__main__":
    run_script(main, parse_args())
