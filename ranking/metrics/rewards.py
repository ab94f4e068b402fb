"""Implicit rewards of a tuned model against its reference, pair by pair (Remark 2.5).

The implicit reward of a completion is β log π_θ(y|x)/π_ref(y|x). That the preferred completion has
the larger one is not that it is the more likely one, which is what ranking accuracy asks. Nor does
either say that the preferred completion became more likely: where it did not, it was displaced.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from ranking.metrics.accuracy import (
    NORMALIZATIONS,
    ScoringColumns,
    SettingColumns,
    TextColumns,
    record_scores,
)
from ranking.metrics.ches import ches
from ranking.metrics.displacement import (
    LOGPS,
    Displacement,
    DisplacementWithIntervals,
    displacement,
    displacement_with_intervals,
    moves_of,
)
from ranking.metrics.dynamics import GROUPS, finite, rewards_moved
from ranking.metrics.groups import (
    GroupMean,
    Groups,
    GroupValue,
    accuracy_by_group,
    columns_of,
    record_groups,
)
from ranking.metrics.intervals import (
    auc,
    auc_95,
    bootstrap_95,
    correlation_test,
    exact_mcnemar,
    wilson_interval,
)
from ranking.metrics.length import LengthColumns, length_columns
from ranking.metrics.orders import untied_pairs

BETA = 0.1  # of implicit rewards, where none is given
ROUNDING = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}  # relative, of a dtype
CHES_FORMS = ("ches", "ches_normalized")

Shared = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]  # records of policy and reference


class RewardPair(TypedDict):
    """A line of NAME.rewards.jsonl: an untied pair of completions that both models scored.

    Log-likelihoods are in nats and summed; null where one is not finite.
    """

    id: str  # of the example, as in the examples file
    prompt_id: str
    dataset: str
    dataset_config: str | None
    split: str | None
    model: str
    reference_model: str
    groups: Groups
    winner: int  # position of the preferred completion among those of the example
    loser: int
    n_chosen: int  # tokens of the preferred completion
    n_rejected: int
    group: str  # correct_to_correct, …: ranked by the reference → by the policy (Def. 2.3)
    chosen: float | None  # log π_θ(y_w|x)
    rejected: float | None
    ref_chosen: float | None  # log π_ref(y_w|x)
    ref_rejected: float | None
    logratio: float | None  # log π_θ(y_w|x) − log π_θ(y_l|x)
    ref_logratio: float | None
    logratio_per_token: float | None  # the same, each log-likelihood divided by its tokens
    ref_logratio_per_token: float | None
    chosen_change: float | None  # log π_θ(y_w|x) − log π_ref(y_w|x)
    rejected_change: float | None
    beta: float
    reward_margin: float | None  # β (chosen_change − rejected_change)
    reward_margin_per_token: float | None  # the same, each change divided by its tokens
    ches: float | None  # of the reference's hidden states; null: it was scored without --ches
    ches_normalized: float | None


class ReferenceColumns(TypedDict, total=False):
    """What a summary line about implicit rewards says of the reference."""

    beta: float  # of β log π_θ/π_ref
    reference_model: str
    reference_revision: str | None
    reference_model_commit: str | None  # of a hub model
    reference_config_hash: str | None
    reference_dtype: str | None
    reference_examples_file: str | None  # null: the reference was scored by this run
    not_shared: dict[str, int]  # which model alone scored them → examples


class RankingAndReward(TypedDict):
    """How many pairs are ranked right (Def. 2.3), and how many rewarded right (>)."""

    n: int
    both_right: int
    only_ranking_right: int
    only_reward_right: int
    both_wrong: int
    mcnemar_p: float  # exact, two-sided: is one of them right more often; pairs are independent


class ChesPrediction(TypedDict):
    """How well a form of CHES says which preferred completions became less likely."""

    n: int  # pairs with both
    n_fell: int
    auc: float | None  # P(it is larger for one that fell than for one that did not)
    auc_95: list[float | None]  # over prompts
    spearman: float | None  # with the change of the preferred completion's log-likelihood
    spearman_p: float | None


class RewardGroupValue(GroupValue):
    """An entry of `by_group` of a `RewardRow`: reward accuracy in one group, and the rest of it."""

    mean_margin: float | None
    ranking_and_reward: RankingAndReward
    displacement: Displacement


class RewardRow(SettingColumns, TextColumns, ScoringColumns, ReferenceColumns, LengthColumns):
    """A line of NAME.jsonl of the ranking script: implicit rewards of one dataset, over its untied
    pairs; length-normalized: each completion's reward is divided by its number of tokens."""

    dropped: dict[str, int]  # reason → examples that the policy did not score
    joined_by: dict[str, int] | None
    config_hash: str | None
    calib_property: str
    distance_metric: str  # reward_acc
    distance_metric_value_mean: float  # share of pairs whose preferred completion has more reward
    n: int  # pairs
    n_examples: int
    n_clusters: int  # prompts
    k_min: int  # completions of an example
    k_max: int
    n_ties: int  # pairs whose rewards are exactly equal: wrong
    n_within_rounding: int | None  # equal but for what rounding makes; null: precision unknown
    range_within_rounding: list[float] | None  # accuracy if those are all wrong, or all right
    n_non_finite: int  # pairs with a log-likelihood that is not finite: wrong
    chance: float
    wilson_95: tuple[float, float] | tuple[None, None]  # null: several pairs of one example
    bootstrap_95: list[float | None]  # over prompts; [null, null]: one, or all alike
    by_group: list[RewardGroupValue]
    mean_over_groups: list[GroupMean]
    mean_margin: float | None  # of finite margins; β log-ratio, nats (per token)
    mean_margin_95: list[float | None]
    auc: float | None  # P(a preferred completion's reward > another's, drawn apart), ties half
    auc_95: list[float | None]
    ranking_and_reward: RankingAndReward
    displacement: DisplacementWithIntervals
    displacement_by_ranking_group: dict[str, Displacement]  # correct_to_correct, …
    ches: NotRequired[dict[str, ChesPrediction]]  # form → ; where the reference was given --ches
    example_distance_metric_values: list[float]  # of pairs, in the order of NAME.rewards.jsonl


# ---------------------------------------------------------------------------- pairs
def reward_pairs(shared: Shared, beta: float) -> Iterator[RewardPair]:
    """Every untied pair of the examples that both models scored.

    shared: the records of policy and reference for each example.
    """
    for record, reference in shared:
        records = dict(record), dict(reference)
        logps, ref_logps = (record_scores(r, "non-length-normalized") for r in records)
        means, ref_means = (record_scores(r, "length-normalized") for r in records)
        n_tokens, ref_n_tokens = ([c["n_tokens"] for c in r["completions"]] for r in records)
        changes = [logp - ref_logp for logp, ref_logp in zip(logps, ref_logps)]
        products = reference.get("hidden_products")
        for w, l in untied_pairs(record["ranks"]):  # noqa: E741
            logratio, ref_logratio = logps[w] - logps[l], ref_logps[w] - ref_logps[l]
            similarity: tuple = (None, None)
            if products is not None:
                similarity = tuple(map(finite, ches(products, ref_n_tokens, w, l)))
            yield {
                "id": record["id"],
                "prompt_id": record["prompt_id"],
                "dataset": record["dataset"],
                "dataset_config": record.get("dataset_config"),
                "split": record["split"],
                "model": record["model"],
                "reference_model": reference["model"],
                "groups": record_groups(record),
                "winner": w,
                "loser": l,
                "n_chosen": n_tokens[w],
                "n_rejected": n_tokens[l],
                "group": GROUPS[is_right(ref_logratio), is_right(logratio)],
                "chosen": finite(logps[w]),
                "rejected": finite(logps[l]),
                "ref_chosen": finite(ref_logps[w]),
                "ref_rejected": finite(ref_logps[l]),
                "logratio": finite(logratio),
                "ref_logratio": finite(ref_logratio),
                "logratio_per_token": finite(means[w] - means[l]),
                "ref_logratio_per_token": finite(ref_means[w] - ref_means[l]),
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


def reward_records(shared: Shared, beta: float) -> list[dict[str, Any]]:
    """The policy's records with rewards β log π_θ/π_ref in the place of log-likelihoods, for what
    ranks completions by these. Not finite: null."""
    records = []
    for record, reference in shared:
        logps, ref_logps = (
            record_scores(dict(source), "non-length-normalized") for source in (record, reference)
        )
        completions = [
            {**completion, "logp": finite(beta * (logp - ref_logp))}
            for completion, logp, ref_logp in zip(record["completions"], logps, ref_logps)
        ]
        records.append({**record, "completions": completions})
    return records


def rounding_of(*dtypes: str | None) -> float | None:
    """Relative rounding error of the coarsest of some dtypes; None where one is not known."""
    errors = [ROUNDING.get(dtype or "") for dtype in dtypes]
    known = [error for error in errors if error is not None]
    return max(known) if len(known) == len(errors) else None


# ---------------------------------------------------------------------------- summaries
def pair_column(pairs: Sequence[RewardPair], name: str) -> np.ndarray:
    """(n_pairs,) of floats; null is NaN."""
    values = [pair[name] for pair in pairs]  # type: ignore[literal-required]
    return np.array(values, dtype=float)


def ranking_and_reward(ranked: np.ndarray, rewarded: np.ndarray) -> RankingAndReward:
    """The 2 × 2 table of pairs that are ranked right and rewarded right, (n_pairs,) of bool."""
    only_ranked, only_rewarded, p_value = exact_mcnemar(ranked.tolist(), rewarded.tolist())
    return {
        "n": len(ranked),
        "both_right": int((ranked & rewarded).sum()),
        "only_ranking_right": only_ranked,
        "only_reward_right": only_rewarded,
        "both_wrong": int((~ranked & ~rewarded).sum()),
        "mcnemar_p": p_value,
    }


def ches_prediction(
    similarities: np.ndarray,
    changes: np.ndarray,
    has_fallen: np.ndarray,
    clusters: Sequence[str],
    seed: int,
) -> ChesPrediction:
    """How CHES goes with the change of the preferred completion, and whether it fell, (n_pairs,)
    each; NaN is left out.

    Razin et al. find that the likelihood falls most where CHES is large: an AUC above 1/2, a
    negative correlation.
    """
    known = np.isfinite(similarities) & np.isfinite(changes)
    x, y, fallen = similarities[known], changes[known], has_fallen[known]
    own = [cluster for cluster, is_known in zip(clusters, known) if is_known]
    spearman = p_value = None
    if len(set(x)) > 1 and len(set(y)) > 1:
        spearman, p_value = correlation_test(x.tolist(), y, "spearmanr")
    return {
        "n": len(x),
        "n_fell": int(fallen.sum()),
        "auc": auc(x, fallen),
        "auc_95": auc_95(x, fallen, own, seed),
        "spearman": spearman,
        "spearman_p": p_value,
    }


class RewardArrays(NamedTuple):
    """What a row is made of: each (n_pairs,), divided by lengths where it is length-normalized."""

    logps: dict[str, np.ndarray]  # LOGPS, summed, nats
    lengths: tuple[np.ndarray, np.ndarray]  # of chosen and rejected: tokens, or ones
    moves: dict[str, np.ndarray]  # MOVES
    margins: np.ndarray  # of rewards, nats; NaN: not finite
    right: np.ndarray  # by reward (>)
    ranked: np.ndarray  # right by the policy (≥)
    ref_ranked: np.ndarray  # right by the reference
    clusters: list[str]  # prompts


def reward_arrays(pairs: Sequence[RewardPair], normalization: str, rounding: float) -> RewardArrays:
    """Columns of the pairs; rounding: beyond which a completion fell. Not finite: wrong."""
    per_token = normalization == "length-normalized"
    suffix = "_per_token" if per_token else ""
    n_chosen, n_rejected = (
        pair_column(pairs, name) if per_token else np.ones(len(pairs))
        for name in ("n_chosen", "n_rejected")
    )
    logps = {name: pair_column(pairs, name) for name in LOGPS}
    moves = moves_of(logps, rounding, n_chosen, n_rejected)
    return RewardArrays(
        logps,
        (n_chosen, n_rejected),
        moves,
        margins=pair_column(pairs, f"reward_margin{suffix}"),
        right=moves["mean_chosen_change"] > moves["mean_rejected_change"],
        ranked=pair_column(pairs, f"logratio{suffix}") >= 0,
        ref_ranked=pair_column(pairs, f"ref_logratio{suffix}") >= 0,
        clusters=[pair["prompt_id"] for pair in pairs],
    )


def rounding_columns(found: RewardArrays, rounding: float | None) -> dict[str, Any]:
    """How many rewards rounding could turn round, and the accuracy if it did."""
    if rounding is None:
        return {"n_within_rounding": None, "range_within_rounding": None}
    n_chosen, n_rejected = found.lengths
    _, within = rewards_moved(
        **found.logps, rounding=rounding, n_chosen=n_chosen, n_rejected=n_rejected
    )
    low, high = (found.right & ~within).mean(), (found.right | within).mean()
    return {
        "n_within_rounding": int(within.sum()),
        "range_within_rounding": [float(low), float(high)],
    }


def margin_columns(found: RewardArrays, beta: float, seed: int) -> dict[str, Any]:
    """Mean margin and AUC of the pairs that are finite, with intervals over prompts."""
    known = np.isfinite(found.margins)
    prompts = [cluster for cluster, is_known in zip(found.clusters, known) if is_known]
    margins = found.margins[known]
    changes = [found.moves[f"mean_{side}_change"][known] for side in ("chosen", "rejected")]
    rewards = beta * np.concatenate(changes)
    is_chosen = np.repeat([True, False], len(margins))
    return {
        "n_non_finite": int((~known).sum()),
        "mean_margin": float(margins.mean()) if prompts else None,
        "mean_margin_95": bootstrap_95(margins, prompts, seed) if prompts else [None, None],
        "auc": auc(rewards, is_chosen),
        "auc_95": auc_95(rewards, is_chosen, prompts * 2, seed),
    }


def reward_groups(
    pairs: Sequence[RewardPair],
    found: RewardArrays,
    differences: np.ndarray,
    alone: np.ndarray,
    seed: int,
) -> tuple[list[RewardGroupValue], list[GroupMean]]:
    """`by_group` and `mean_over_groups` of a row; differences: of lengths, tokens;
    alone: whether the pair is all of its example."""
    groups = [pair["groups"] for pair in pairs]
    longer = (1 + np.sign(differences)) / 2
    summarized: Any = accuracy_by_group(
        groups, found.clusters, seed, found.right, np.ones(len(pairs)),
        baselines={"random": np.full(len(pairs), 0.5), "shorter": 1 - longer, "longer": longer},
        has_chance=True, alone=alone,
    )  # fmt: skip
    known = np.isfinite(found.margins)
    by_group, over_groups = summarized
    named = {c: np.array([own.get(c) for own in groups], object) for c in columns_of(groups)}
    for entry in by_group:
        own = named[entry["column"]] == entry["group"]
        is_any = (own & known).any()
        entry["mean_margin"] = float(found.margins[own & known].mean()) if is_any else None
        entry["ranking_and_reward"] = ranking_and_reward(found.ranked[own], found.right[own])
        entry["displacement"] = displacement(found.moves, own)
    return by_group, over_groups


def reward_row(
    pairs: Sequence[RewardPair],
    normalization: str,
    common: Mapping[str, Any],
    rounding: float | None,
    seed: int,
) -> RewardRow:
    """The implicit rewards of pairs of one dataset; `pairs`, not empty; the rest as
    `summarize_rewards`."""
    found = reward_arrays(pairs, normalization, rounding or ROUNDING["float32"])
    right, clusters, moves = found.right, found.clusters, found.moves
    sizes = Counter(pair["id"] for pair in pairs)  # pairs of an example
    alone = np.array([sizes[pair["id"]] == 1 for pair in pairs])
    differences = pair_column(pairs, "n_chosen") - pair_column(pairs, "n_rejected")
    by_group, over_groups = reward_groups(pairs, found, differences, alone, seed)
    row: Any = {
        **common,
        "calib_property": f"ranking_{normalization}",
        "distance_metric": "reward_acc",
        "distance_metric_value_mean": float(right.mean()),
        "n": len(pairs),
        "n_examples": len(sizes),
        "n_clusters": len(set(clusters)),
        "n_ties": int((moves["mean_chosen_change"] == moves["mean_rejected_change"]).sum()),
        **rounding_columns(found, rounding),
        "chance": 0.5,
        **length_columns(right, differences, clusters, seed),
        "wilson_95": wilson_interval(int(right.sum()), len(right)) if alone.all() else (None, None),
        "bootstrap_95": bootstrap_95(right, clusters, seed),
        "by_group": by_group,
        "mean_over_groups": over_groups,
        **margin_columns(found, pairs[0]["beta"], seed),
        "ranking_and_reward": ranking_and_reward(found.ranked, right),
        "displacement": displacement_with_intervals(moves, clusters, seed),
        "displacement_by_ranking_group": {
            name: displacement(moves, (found.ref_ranked == before) & (found.ranked == after))
            for (before, after), name in GROUPS.items()
        },
        "example_distance_metric_values": right.astype(float).tolist(),
    }
    if any(pair["ches"] is not None for pair in pairs):
        row["ches"] = {
            form: ches_prediction(
                pair_column(pairs, form), moves["mean_chosen_change"], moves["chosen_fell"],
                clusters, seed,
            )
            for form in CHES_FORMS
        }  # fmt: skip
    return row


def summarize_rewards(
    pairs: Sequence[RewardPair],
    sizes: Sequence[int],
    common: Mapping[str, Any],
    rounding: float | None,
    seed: int,
) -> list[RewardRow]:
    """A row per normalization about the pairs of one dataset; none without pairs.

    sizes: numbers of completions of its examples. common: what each row says of dataset, models and
    scoring. rounding: relative, of the coarser of the two runs' precisions; None: not known.
    """
    if not pairs:
        return []
    columns = {**common, "k_min": min(sizes), "k_max": max(sizes)}
    return [reward_row(pairs, kind, columns, rounding, seed) for kind in NORMALIZATIONS]
