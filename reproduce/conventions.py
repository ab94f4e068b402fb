"""How much of a published idealized accuracy is convention: the same log-likelihoods, three rules.

    python reproduce/conventions.py --examples results/votes.examples.jsonl

- definition: Corollary 3.3 (log-ratio of the reference plus (1/β) log-odds of the votes > 0).
- quotient: the *quotient* log π_ref(y_w|x) / log π_ref(y_l|x) in place of the exponential of the
  log-ratio. Log-likelihoods are negative, so the quotient reverses the order and is close to 1:
  the votes decide nearly everything.
- votes sampled first: 1000 of AlpacaFarm's 2592 rater rows drawn before they are grouped into
  pairs. Most pairs then keep one or two votes and look unanimous; score with --include-ties, since
  tied pairs lose votes too. Half votes are left out.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from calculate_calibration_metrics import NORMALIZATIONS, load_examples, record_scores, run_script
from calculate_upper_bound_rlhf import BETAS
from data_utils import read_votes
from ranking_metrics import idealized_correctness, preferred_proportion

SHARE_OF_VOTE_ROWS = 1000 / 2592


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


def accuracies(
    records: list[dict], normalization: str, quotient: bool
) -> tuple[int, float, list[float]]:
    """(pairs, share unanimous, idealized accuracy per β) over untied pairs."""
    preferred, other, alphas = [], [], []
    for record in records:
        scores = record_scores(record, normalization)
        for (i, j), (first, second) in read_votes(record["votes"], len(scores)).items():
            if first != second:
                winner, loser = (i, j) if first > second else (j, i)
                preferred.append(scores[winner])
                other.append(scores[loser])
                alphas.append(preferred_proportion(max(first, second), min(first, second)))
    w, l, a = (np.array(values) for values in (preferred, other, alphas))  # noqa: E741
    rows = [
        quotient_correctness(w, l, a, beta) if quotient else idealized_correctness(w - l, a, beta)
        for beta in BETAS
    ]
    return len(a), float((a > 0.99).mean()), [float(row.mean()) for row in rows]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--examples", required=True, type=Path, help="examples file with votes")
    parser.add_argument("--dataset", help="only this dataset of the file")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    records = [r for r in load_examples(str(args.examples)) if r["votes"]]
    records = [r for r in records if args.dataset in (None, r["dataset"])]
    if not records:
        raise ValueError(f"{args.examples}: no example with votes")
    sampled = sample_votes(records, args.seed)
    print("| convention | pairs | unanimous | R̃* min/med/max | R* min/med/max |")
    print("|---|---|---|---|---|")
    for name, used, quotient in (
        ("definition", records, False),
        ("quotient", records, True),
        ("votes sampled first", sampled, False),
        ("both", sampled, True),
    ):
        cells = []
        for normalization in NORMALIZATIONS:
            n, unanimous, values = accuracies(used, normalization, quotient)
            triple = (min(values), float(np.median(values)), max(values))
            cells.append(" / ".join(f"{100 * value:.1f}" for value in triple))
        print(f"| {name} | {n} | {100 * unanimous:.0f} % | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    run_script(main, parse_args())
