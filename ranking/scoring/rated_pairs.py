"""Scored examples → pairs that raters compared, with the log-ratios of reference and policy, and
what tuning made of them, from dpo.py's dynamics files."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ranking.data.cells import read_votes
from ranking.data.conversions import pair_id
from ranking.data.examples import Votes, counts_text, dataset_label
from ranking.metrics.accuracy import NORMALIZATIONS, record_scores
from ranking.metrics.idealized import preferred_proportion
from ranking.metrics.tuned_loss import (
    BestStep,
    best_step,
    check_one_setting,
    matching_rows,
    tuned_columns,
)
from ranking.plumbing.outputs import dataset_key, row_key
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record
from ranking.reports.dynamics import read_dynamics


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


# ---------------------------------------------------------------------------- tuning
def read_runs(files: Sequence[str]) -> dict[str, BestStep]:
    """File → the run's pairs at its lowest validation loss. ValueError for runs of different
    settings, and for a file given twice."""
    if len({Path(file).resolve() for file in files}) < len(files):
        raise ValueError("--dynamics: a file is given twice, give each run once")
    runs = {file: best_step(read_dynamics(Path(file))) for file in files}
    check_one_setting(runs)
    return runs


def add_tuned_losses(pairs: Sequence[Record], runs: dict[str, BestStep]) -> None:
    """Give each pair its `TunedColumns`; lines say how many were joined. ValueError for a run of
    another reference, or of other pairs."""
    if not runs:
        return
    records = [pair["record"] for pair in pairs]
    ids = [
        pair_id(record["id"], len(record["completions"]), pair["winner"], pair["loser"])
        for record, pair in zip(records, pairs)
    ]
    logps = [
        [record["completions"][pair[side]]["logp"] for side in ("winner", "loser")]
        for record, pair in zip(records, pairs)
    ]
    found = []
    for file, run in runs.items():
        try:
            rows, n_left_out = matching_rows(ids, np.array(logps, dtype=float), run)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        found.append(rows)
        n_joined = sum(row is not None for row in rows)
        line = f"{file}: step {run.step}, {n_joined} of {len(pairs)} pairs joined"
        if n_left_out:
            line += f"; {n_left_out} left out: another reference log-likelihood, or no loss"
        announce(line)
    for pair, *rows_of_runs in zip(pairs, *found):
        pair.update(tuned_columns(rows_of_runs))
    if len(runs) > 1:
        n_joined = sum(pair["n_runs"] > 0 for pair in pairs)
        announce(f"{n_joined} of {len(pairs)} pairs are in at least one of the {len(runs)} runs")
