"""Scored examples → pairs that raters compared, with the log-ratios of reference and policy."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from ranking.data.cells import read_votes
from ranking.data.examples import dataset_label
from ranking.metrics.accuracy import NORMALIZATIONS, record_scores
from ranking.metrics.idealized import preferred_proportion
from ranking.plumbing.outputs import row_key
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record


class PairRules(NamedTuple):
    """Which pairs count, and what α is."""

    include_ties: bool = False
    assumed_proportion: float | None = None  # α of pairs without votes; None: they do not count
    epsilon: float = 0.001  # unanimous votes: α = 1 − ε


def pairs_of_record(record: Record, rules: PairRules) -> list[Record]:
    """Every pair of completions with votes: winner (the majority's choice), loser, α, tied.

    Without votes, the assumed proportion is the α of every pair whose ranks differ.
    """
    n = len(record["completions"])
    pairs = []
    if record["votes"]:
        for (i, j), (first, second) in read_votes(record["votes"], n).items():
            winner, loser = (i, j) if first >= second else (j, i)
            alpha = preferred_proportion(max(first, second), min(first, second), rules.epsilon)
            pairs.append(
                {"winner": winner, "loser": loser, "alpha": alpha, "votes": [first, second]}
            )
    elif rules.assumed_proportion is not None:
        ranks = record["ranks"]
        alpha = min(rules.assumed_proportion, 1 - rules.epsilon)
        for i, j in combinations(range(n), 2):
            winner, loser = (i, j) if ranks[i] <= ranks[j] else (j, i)
            share = 0.5 if ranks[i] == ranks[j] else alpha
            pairs.append({"winner": winner, "loser": loser, "alpha": share, "votes": None})
    return [{**pair, "tied": pair["alpha"] == 0.5} for pair in pairs]


def usable_pairs(record: Record, rules: PairRules) -> tuple[list[Record], int]:
    """The pairs of a record that count, and how many tied ones do not."""
    pairs = pairs_of_record(record, rules)
    untied = [pair for pair in pairs if not pair["tied"]]
    return (pairs, 0) if rules.include_ties else (untied, len(pairs) - len(untied))


def dataset_key(record: Record) -> tuple[str, str | None, str | None]:
    """What results are grouped by: dataset, split and configuration."""
    return record["dataset"], record["split"], record.get("dataset_config")


def check_all_scored(
    reference: Sequence[Record], policy: Sequence[Record], rules: PairRules
) -> None:
    """Raise ValueError where the policy's examples lack one of the reference's that counts."""
    keys = {row_key(record) for record in policy}
    missing = [r for r in reference if row_key(r) not in keys and usable_pairs(r, rules)[0]]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(reference)} reference examples have no policy log-likelihood "
            f"(first: {missing[0]['dataset']}, row {missing[0]['row']}): score the same data"
        )


def check_assumed_proportion(reference: Sequence[Record], assumed: float | None) -> None:
    """Raise ValueError where every example has votes; a line names the datasets where all have."""
    if assumed is None:
        return
    without = {dataset_key(r) for r in reference if not r["votes"]}
    if not without:
        raise ValueError(f"--assumed-proportion {assumed} does nothing: every example has votes")
    for key in dict.fromkeys(map(dataset_key, reference)):
        if key not in without:
            announce(f"--assumed-proportion does nothing for {dataset_label(*key)}: all have votes")


def rated_pairs(
    reference: Sequence[Record], policy: Sequence[Record], rules: PairRules
) -> tuple[list[Record], dict[tuple, Counter[str]]]:
    """Pairs with reference and policy log-ratios (both normalizations), nats; drops by dataset.

    ValueError where nothing is left.
    """
    policy_of = {row_key(r): r for r in policy}
    pairs: list[Record] = []
    dropped: dict[tuple, Counter[str]] = {dataset_key(record): Counter() for record in reference}
    for record in reference:
        drops = dropped[dataset_key(record)]
        found, n_tied = usable_pairs(record, rules)
        if n_tied:
            drops["tied pair"] += n_tied
        elif not found:
            drops["no votes"] += 1
        if found and row_key(record) not in policy_of:
            drops["example not scored by the policy"] += 1
            continue
        for pair in found:
            sides = {"ref_logratio": record, "policy_logratio": policy_of[row_key(record)]}
            for name, source in sides.items():
                for normalization in NORMALIZATIONS:
                    scores = record_scores(source, normalization)
                    pair[f"{name} {normalization}"] = scores[pair["winner"]] - scores[pair["loser"]]
            if math.isfinite(pair["ref_logratio non-length-normalized"]):
                pairs.append({"record": record, **pair})
            else:
                drops["non-finite reference"] += 1
    if not pairs:
        total = sum(dropped.values(), Counter())
        counts = ", ".join(f"{reason}: {n}" for reason, n in total.items())
        raise ValueError(
            f"no usable pair ({counts}): idealized accuracy needs votes, or --assumed-proportion"
        )
    return pairs, dropped
