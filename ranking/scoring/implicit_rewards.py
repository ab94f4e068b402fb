"""Implicit rewards of a policy's scored examples against its reference's (Remark 2.5)."""

from collections.abc import Mapping, Sequence
from typing import Any

from ranking.data.examples import dataset_label
from ranking.metrics.benchmarks import IMPLICIT_REWARD, summarize_benchmarks
from ranking.metrics.rewards import (
    RewardPair,
    reward_pairs,
    reward_records,
    rounding_of,
    summarize_rewards,
)
from ranking.plumbing.outputs import dataset_key
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record
from ranking.scoring.comparable import ScoringRun, announce_uneven_cuts, shared_examples
from ranking.scoring.models import commit_of
from ranking.scoring.runs import group_records, that_count


def implicit_rewards(
    parts: Sequence[tuple[list[Record], Record]],
    policy: ScoringRun,
    reference: ScoringRun,
    *,
    beta: float,
    include_ties: bool,
    seed: int,
) -> tuple[list[RewardPair], list[Any]]:
    """The pairs that both models scored, and lines of NAME.jsonl about their implicit rewards.

    parts: the policy's records of each dataset, and what every line says of it (`describe_run`).
    """
    of_reference = group_records(reference.records)
    about_reference = reference_columns(reference, beta)
    rounding = rounding_of(*((run.config or {}).get("dtype") for run in (policy, reference)))
    pairs: list[RewardPair] = []
    rows: list[Any] = []
    rewarded = []
    for records, common in parts:
        key = dataset_key(records[0])
        theirs = that_count(of_reference.get(key, []), include_ties)
        shared = shared_examples(records, theirs)
        alone = {"policy": len(records) - len(shared), "reference": len(theirs) - len(shared)}
        if any(alone.values()):
            said = ", ".join(f"{n} by the {which} only" for which, n in alone.items())
            announce(f"{dataset_label(*key)}: examples scored {said}: they have no rewards")
        elif not any(len(set(record["ranks"])) > 1 for record in records):
            announce(f"{dataset_label(*key)}: all examples are tied: they have no rewards")
        announce_uneven_cuts(shared)
        announce_uneven_tokens(shared)
        columns = {**common, **about_reference, "not_shared": alone}
        of_dataset = list(reward_pairs(shared, beta))
        pairs += of_dataset
        sizes = [len(record["ranks"]) for record, _ in shared]
        rows += summarize_rewards(of_dataset, sizes, columns, rounding, seed)
        if shared:
            rewarded.append((reward_records(shared, beta), columns))
    return pairs, rows + summarize_benchmarks(rewarded, seed, IMPLICIT_REWARD)


def reference_columns(reference: ScoringRun, beta: float) -> Record:
    """What every row about implicit rewards says of the reference (`ReferenceColumns`)."""
    config: Mapping[str, Any] = reference.config or {}
    first = reference.records[0]
    return {
        "beta": beta,
        "reference_model": first["model"],
        "reference_revision": config.get("revision"),
        "reference_model_commit": commit_of(config.get("model_fingerprint", "")),
        "reference_config_hash": first.get("config_hash"),
        "reference_dtype": config.get("dtype"),
        "reference_examples_file": reference.name if reference.found is None else None,
    }


def announce_uneven_tokens(shared: Sequence[tuple[Record, Record]]) -> None:
    """A line where two models cut a completion into different numbers of tokens."""
    n = sum(
        a["n_tokens"] != b["n_tokens"]
        for record, other in shared
        for a, b in zip(record["completions"], other["completions"])
    )
    if n:
        announce(
            f"{n} completions have more tokens in one of the two models than in the other: rewards "
            "per token are divided by the policy's"
        )
