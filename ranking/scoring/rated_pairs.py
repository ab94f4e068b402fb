"""Scored examples → pairs that raters compared, with the log-ratios of reference and policy."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from ranking.data.cells import read_votes
from ranking.data.examples import Votes, counts_text, dataset_label
from ranking.metrics.accuracy import NORMALIZATIONS, record_scores
from ranking.metrics.idealized import preferred_proportion
from ranking.plumbing.outputs import dataset_key, row_key
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record


class PairRules(NamedTuple):
    """Which pairs count, and what α is."""

    include_ties: bool = False
    assumed_proportion: float | None = None  # α of pairs without votes; None: they do not count
    epsilon: float = 0.001  # unanimous votes: α = 1 − ε


def votes_of_record(record: Record) -> Votes:
    """The votes of a record's pairs; {} where it has none."""
    return read_votes(record["votes"] or {}, len(record["completions"]))


def pairs_of_record(record: Record, rules: PairRules) -> list[Record]:
    """Every pair of completions with votes: winner (the majority's choice), loser, α, tied.

    Of a pair without votes, α is the assumed proportion, and 1/2 where its ranks are equal.
    """
    ranks, votes = record["ranks"], votes_of_record(record)
    pairs = []
    for i, j in combinations(range(len(ranks)), 2):
        counts = votes.get((i, j))
        if counts is not None:
            lead = counts[0] - counts[1]
            alpha = preferred_proportion(max(counts), min(counts), rules.epsilon)
        elif rules.assumed_proportion is not None:
            lead = ranks[j] - ranks[i]
            alpha = min(rules.assumed_proportion, 1 - rules.epsilon) if lead else 0.5
        else:
            continue
        winner, loser = (i, j) if lead >= 0 else (j, i)
        pairs.append({"winner": winner, "loser": loser, "alpha": alpha,
                      "votes": list(counts) if counts else None, "tied": alpha == 0.5})  # fmt: skip
    return pairs


def usable_pairs(record: Record, rules: PairRules) -> tuple[list[Record], Counter[str]]:
    """The pairs of a record that count, and how many do not, by reason."""
    pairs = pairs_of_record(record, rules)
    usable = [pair for pair in pairs if rules.include_ties or not pair["tied"]]
    n_pairs = math.comb(len(record["completions"]), 2)
    return usable, Counter(
        {"no votes": n_pairs - len(pairs), "tied pair": len(pairs) - len(usable)}
    )


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


def no_usable_pair(drops: Counter[str]) -> ValueError:
    """The error where no pair counts. drops: how many do not, by reason."""
    lacks_votes = ": idealized accuracy needs votes, or --assumed-proportion"
    return ValueError(
        f"no usable pair ({counts_text(+drops)})" + lacks_votes * bool(drops["no votes"])
    )


def check_some_pair_counts(reference: Sequence[Record], rules: PairRules) -> None:
    """Raise ValueError where no pair of the examples can count, however they are scored."""
    counted = [usable_pairs(record, rules) for record in reference]
    if counted and not any(usable for usable, _ in counted):
        raise no_usable_pair(sum((drops for _, drops in counted), Counter()))


def check_assumed_proportion(reference: Sequence[Record], assumed: float | None) -> None:
    """Raise ValueError where every pair has votes; a line names the datasets where all have."""
    if assumed is None:
        return
    without = {
        dataset_key(r)
        for r in reference
        if len(votes_of_record(r)) < math.comb(len(r["completions"]), 2)
    }
    if not without:
        raise ValueError(f"--assumed-proportion {assumed} does nothing: every pair has votes")
    for key in dict.fromkeys(map(dataset_key, reference)):
        if key not in without:
            announce(f"--assumed-proportion does nothing for {dataset_label(*key)}: all have votes")


def rated_pairs(
    reference: Sequence[Record], policy: Sequence[Record], rules: PairRules
) -> tuple[list[Record], dict[tuple, Counter[str]]]:
    """Pairs with reference and policy log-ratios (both normalizations), nats; by dataset, how
    many pairs do not count, by reason.

    ValueError where nothing is left.
    """
    policy_of = {row_key(r): r for r in policy}
    pairs: list[Record] = []
    dropped: dict[tuple, Counter[str]] = {dataset_key(record): Counter() for record in reference}
    for record in reference:
        key = dataset_key(record)
        found, drops = usable_pairs(record, rules)
        if row_key(record) not in policy_of:
            drops["example not scored by the policy"] = len(found)
            found = []
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
        dropped[key] += drops  # of which those above 0 stay
    if not pairs:
        raise no_usable_pair(sum(dropped.values(), Counter()))
    return pairs, dropped
