"""Implicit rewards of a tuned model against its reference, pair by pair (Remark 2.5).

The implicit reward of a completion is β log π_θ(y|x)/π_ref(y|x). That the preferred completion has
the larger one is not that it is the more likely one, which is what ranking accuracy asks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from ranking.metrics.accuracy import record_scores
from ranking.metrics.ches import ches
from ranking.metrics.dynamics import GROUPS, finite
from ranking.metrics.groups import Groups, record_groups
from ranking.metrics.orders import untied_pairs


class RewardPair(TypedDict):
    """A line of NAME.rewards.jsonl: an untied pair of completions that both models scored.

    Log-likelihoods are in nats and summed; null where one is not finite.
    """

    id: str  # of the example, as in the examples file
    prompt_id: str
    dataset: str
    dataset_config: str | None
    split: str | None
    groups: Groups
    winner: int  # position of the preferred completion among those of the example
    loser: int
    n_chosen: int  # tokens of the preferred completion
    n_rejected: int
    group: str  # correct_to_correct, …: ranked by the reference → by the policy (Def. 2.3)
    logratio: float | None  # log π_θ(y_w|x) − log π_θ(y_l|x)
    ref_logratio: float | None
    chosen_change: float | None  # log π_θ(y_w|x) − log π_ref(y_w|x)
    rejected_change: float | None
    beta: float
    reward_margin: float | None  # β (chosen_change − rejected_change)
    reward_margin_per_token: float | None  # the same, each change divided by its tokens
    ches: float | None  # of the reference's hidden states; null: it was scored without --ches
    ches_normalized: float | None


def reward_pairs(
    shared: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], beta: float
) -> Iterator[RewardPair]:
    """Every untied pair of the examples that both models scored.

    shared: the records of policy and reference for each example.
    """
    for record, reference in shared:
        logps, ref_logps = (
            record_scores(dict(source), "non-length-normalized") for source in (record, reference)
        )
        n_tokens = [completion["n_tokens"] for completion in record["completions"]]
        changes = [logp - ref_logp for logp, ref_logp in zip(logps, ref_logps)]
        products = reference.get("hidden_products")
        for w, l in untied_pairs(record["ranks"]):  # noqa: E741
            logratio, ref_logratio = logps[w] - logps[l], ref_logps[w] - ref_logps[l]
            similarity: tuple = (None, None)
            if products is not None:
                similarity = tuple(map(finite, ches(products, n_tokens, w, l)))
            yield {
                "id": record["id"],
                "prompt_id": record["prompt_id"],
                "dataset": record["dataset"],
                "dataset_config": record.get("dataset_config"),
                "split": record["split"],
                "groups": record_groups(record),
                "winner": w,
                "loser": l,
                "n_chosen": n_tokens[w],
                "n_rejected": n_tokens[l],
                "group": GROUPS[is_right(ref_logratio), is_right(logratio)],
                "logratio": finite(logratio),
                "ref_logratio": finite(ref_logratio),
                "chosen_change": finite(changes[w]),
                "rejected_change": finite(changes[l]),
                "beta": beta,
                "reward_margin": finite(beta * (changes[w] - changes[l])),
                "reward_margin_per_token": finite(
                    beta * (changes[w] / n_tokens[w] - changes[l] / n_tokens[l])
                ),
                "ches": similarity[0],
                "ches_normalized": similarity[1],
            }


def is_right(logratio: float) -> bool:
    """Def. 2.3 (≥) of a pair's log-ratio; one that is not finite is wrong."""
    return math.isfinite(logratio) and logratio >= 0
