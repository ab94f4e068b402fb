r"""How much of a published number is convention: the same log-likelihoods under different rules.

    python -m reproduce.conventions --examples results/votes.examples.jsonl \
        --output results/votes.conventions.jsonl

Ranking accuracy (Tables 2-5), where the data has what a rule is about:
- definition: Definitions 2.3 and A.8; with ties, a tied pair is right if its scores differ by less
  than 0.01.
- answers grouped by prompt: all pairs of one prompt count as one list, which is right if every pair
  is (the published SHP numbers look like that).
- tied lists are wrong: a list of K > 2 with equal human scores is never right, since no model gives
  equal likelihoods (the published UltraFeedback numbers, below chance).
- ties within 5 %: a tied pair is right if the quotient of its scores lies in [0.95, 1.05]. Score
  with --include-ties.
Idealized accuracy (Tables 1, 6), where there are votes:
- definition: Corollary 3.3 (log-ratio of the reference plus (1/β) log-odds of the votes > 0).
- quotient: the *quotient* log π_ref(y_w|x) / log π_ref(y_l|x) in place of the exponential of the
  log-ratio. Log-likelihoods are negative, so the quotient reverses the order and is close to 1:
  the votes decide nearly everything.
- votes sampled first: 1000 of AlpacaFarm's 2592 rater rows drawn before they are grouped into
  pairs. Most pairs then keep one or two votes and look unanimous; score with --include-ties, since
  tied pairs lose votes too. Half votes are left out.
"""

import argparse
from pathlib import Path

import numpy as np

from ranking.data.cells import read_votes
from ranking.metrics.accuracy import (
    NORMALIZATIONS,
    ranking_accuracy,
    ranking_accuracy_with_ties,
    record_scores,
)
from ranking.metrics.idealized import BETAS, idealized_correctness, preferred_proportion
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import write_json_lines
from ranking.reports.tables import as_markdown
from reproduce.records import (
    ScoredDataset,
    has_tied_examples,
    records_by_dataset,
    scored_dataset,
)
from reproduce.tables import conventions_table

SHARE_OF_VOTE_ROWS = 1000 / 2592
PUBLISHED_CONVENTIONS = {  # of ranking accuracy; the definition elsewhere
    "stanfordnlp/SHP": "answers grouped by prompt",
    "openbmb/UltraFeedback": "tied lists are wrong",
}
TIE_BAND = 0.05  # on the quotient of two scores


class ConventionRow(ScoredDataset, total=False):
    """A line of the output, with what `ScoredDataset` says of the data."""

    what: str  # "ranking accuracy" or "idealized"
    convention: str  # as above, or "both": quotient, of votes sampled first
    n: int  # examples (ranking accuracy; lists of a prompt where grouped) or untied pairs
    value: float | list[float]  # accuracy; of idealized: min, median, max over β
    published: bool  # whether published numbers of the dataset follow this convention


def quotient_correctness(
    preferred: np.ndarray, other: np.ndarray, alphas: np.ndarray, beta: float
) -> np.ndarray:
    """1[ (log π_ref(y_w) / log π_ref(y_l)) · (α/(1−α))^(1/β) > 1 ], decided in logs.

    preferred, other: log-likelihoods (n_pairs,), nats, both negative. Returns bool (n_pairs,).
    """
    return np.log(preferred / other) + (np.log(alphas) - np.log1p(-alphas)) / beta > 0


def sample_votes(records: list[dict], seed: int) -> list[dict]:
    """Records with a share of all single votes; pairs that keep no vote are left out."""
    ballots = [
        (number, key, side)
        for number, record in enumerate(records)
        for key, counts in record["votes"].items()
        for side in (0, 1)
        for _ in range(int(counts[side]))
    ]
    size = round(SHARE_OF_VOTE_ROWS * len(ballots))
    kept: dict[int, dict[str, list[float]]] = {}
    for index in np.random.default_rng(seed).choice(len(ballots), size, replace=False):
        number, key, side = ballots[index]
        kept.setdefault(number, {}).setdefault(key, [0.0, 0.0])[side] += 1
    return [{**records[number], "votes": votes} for number, votes in sorted(kept.items())]


def idealized_accuracies(
    records: list[dict], normalization: str, quotient: bool
) -> tuple[int, list[float]]:
    """(pairs, idealized accuracy min, median, max over β) of untied pairs; (0, []) without any."""
    pairs = []  # scores of the preferred and the other, α
    for record in records:
        scores = record_scores(record, normalization)
        for (i, j), (first, second) in read_votes(record["votes"], len(scores)).items():
            if first != second:
                winner, loser = (i, j) if first > second else (j, i)
                alpha = preferred_proportion(max(first, second), min(first, second))
                pairs.append((scores[winner], scores[loser], alpha))
    if not pairs:
        return 0, []
    w, l, alphas = np.array(pairs).T  # noqa: E741
    correct = [
        quotient_correctness(w, l, alphas, beta)
        if quotient
        else idealized_correctness(w - l, alphas, beta)
        for beta in BETAS
    ]
    values = np.mean(correct, axis=1)
    return len(pairs), [float(f(values)) for f in (np.min, np.median, np.max)]


def tied_within_band(scores: list[float], ranks: list[int]) -> bool:
    """A tied pair by the 5 % rule; an untied one by the definition."""
    if ranks[0] != ranks[1]:
        return bool(ranking_accuracy(scores, ranks))
    return abs(scores[0] / scores[1] - 1) <= TIE_BAND


def ranking_conventions(records: list[dict], normalization: str) -> dict[str, list[float]]:
    """convention → correctness of each example (or list), of those that the data can tell apart."""
    accuracy = ranking_accuracy_with_ties if has_tied_examples(records) else ranking_accuracy
    scored = [(r, record_scores(r, normalization)) for r in records]
    correct = [float(accuracy(scores, record["ranks"])) for record, scores in scored]
    found = {"definition": correct}
    by_prompt: dict[str, list[float]] = {}
    for record, value in zip(records, correct):
        by_prompt.setdefault(record["prompt_id"], []).append(value)
    grouped = PUBLISHED_CONVENTIONS.get(records[0]["dataset"]) == "answers grouped by prompt"
    if grouped or len(records) >= 1.5 * len(by_prompt):  # else a prompt is repeated by chance
        found["answers grouped by prompt"] = [min(values) for values in by_prompt.values()]
    tied = [len(set(r["ranks"])) < len(r["ranks"]) for r in records]
    is_list = [len(r["ranks"]) > 2 for r in records]
    if any(t and many for t, many in zip(tied, is_list)):
        found["tied lists are wrong"] = [
            0.0 if t and many else value for t, many, value in zip(tied, is_list, correct)
        ]
    if any(t and not many for t, many in zip(tied, is_list)):
        found["ties within 5 %"] = [
            value if many else float(tied_within_band(scores, record["ranks"]))
            for (record, scores), many, value in zip(scored, is_list, correct)
        ]
    return found


def convention_rows(records: list[dict], normalization: str, seed: int) -> list[dict]:
    """All rows of one dataset: `ConventionRow`s without how it was scored."""
    published = PUBLISHED_CONVENTIONS.get(records[0]["dataset"], "definition")
    if has_tied_examples(records):
        published = "ties within 5 %"
    found: list[tuple] = [
        ("ranking accuracy", convention, len(values), float(np.mean(values)), published)
        for convention, values in ranking_conventions(records, normalization).items()
    ]
    if with_votes := [record for record in records if record["votes"]]:
        sampled = sample_votes(with_votes, seed)
        for convention, used, quotient in (
            ("definition", with_votes, False),
            ("quotient", with_votes, True),
            ("votes sampled first", sampled, False),
            ("both", sampled, True),
        ):
            n, triple = idealized_accuracies(used, normalization, quotient)
            found += [("idealized", convention, n, triple, "both")] if n else []
    about = scored_dataset(records, normalization)
    return [
        {**about, "what": what, "convention": convention, "n": n, "value": value,
         "published": convention == published}
        for what, convention, n, value, published in found
    ]  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--examples", required=True, nargs="+", help="examples files")
    parser.add_argument("--output", required=True, type=Path, help="JSON lines")
    parser.add_argument("--beside", metavar="MODEL", help="published numbers of this model")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled votes")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    rows = []
    for records, settings in records_by_dataset(args.examples):
        by_kind = [convention_rows(records, kind, args.seed) for kind in NORMALIZATIONS]
        rows += [{**row, **settings} for pair in zip(*by_kind) for row in pair]
    write_json_lines(args.output, rows)
    print(as_markdown(conventions_table(rows, args.beside)))


if __name__ == "__main__":
    run_script(main, parse_args())
