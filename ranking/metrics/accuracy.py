"""Ranking accuracy R and R̃ (Def. 2.3, A.8, C.1; Fig. 1, Tables 2-5), chance, companions.

`scores` are log-likelihoods (nats), summed (Eq. 13) or length-normalized (Eq. 15), one per
completion; `ranks` the human order, 1 = best, equal = tied.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np

from ranking.metrics.groups import (
    GroupMean,
    Groups,
    GroupValue,
    accuracy_by_group,
    record_groups,
)
from ranking.metrics.intervals import (
    bootstrap_95,
    rank_correlation,
    wilson_interval,
)
from ranking.metrics.length import NOT_OF_PAIRS, LengthColumns, length_columns
from ranking.metrics.orders import example_baselines, untied_pairs

TIE_EPSILON = 0.01  # Def. C.1
SHARES = ("acc", "acc_literal_ties", "top1")  # metrics that count examples
NORMALIZATIONS = ("length-normalized", "non-length-normalized")


def ranking_accuracy(scores: Sequence[float], ranks: Sequence[int]) -> bool:
    """Whether the scores order the completions as annotators did (Def. 2.3, Def. A.8).

    K = 2: score of the preferred ≥ score of the other. K > 2: every untied pair is strictly
    ordered. Tied pairs are ignored. Non-finite scores are wrong; no untied pair raises ValueError.
    """
    untied = untied_pairs(ranks)
    if not untied:
        raise ValueError("ranking accuracy needs at least one untied pair")
    if not np.all(np.isfinite(scores)):
        return False
    if len(scores) == 2:
        ((better, worse),) = untied
        return bool(scores[better] >= scores[worse])
    return all(scores[better] > scores[worse] for better, worse in untied)


def ranking_accuracy_with_ties(scores: Sequence[float], ranks: Sequence[int]) -> bool:
    """`ranking_accuracy` in which a tied pair is correct iff |Δ log-score| < 0.01 (Def. C.1).

    # DEVIATION: Def. C.1 compares probabilities; see `ranking_accuracy_with_literal_ties`.
    """
    return _with_ties(scores, ranks, np.asarray(scores, dtype=float))


def ranking_accuracy_with_literal_ties(scores: Sequence[float], ranks: Sequence[int]) -> bool:
    """Def. C.1 to the letter: a tied pair is correct iff |exp(score_i) − exp(score_j)| < 0.01."""
    return _with_ties(scores, ranks, np.exp(np.asarray(scores, dtype=float)))


def _with_ties(scores: Sequence[float], ranks: Sequence[int], compared: np.ndarray) -> bool:
    if not np.all(np.isfinite(scores)):
        return False
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] == ranks[j] and not abs(compared[i] - compared[j]) < TIE_EPSILON:
            return False
    return len(set(ranks)) == 1 or ranking_accuracy(scores, ranks)


def pairwise_accuracy(scores: Sequence[float], ranks: Sequence[int]) -> tuple[int, int]:
    """(correct, all) untied pairs; each pair by Def. 2.3 (≥). Non-finite scores are wrong."""
    untied = untied_pairs(ranks)
    finite = np.isfinite(scores)
    correct = sum(
        bool(finite[better] and finite[worse] and scores[better] >= scores[worse])
        for better, worse in untied
    )
    return correct, len(untied)


def exact_ties(scores: Sequence[float], ranks: Sequence[int]) -> int:
    """Untied pairs whose finite scores are exactly equal. Def. 2.3 (≥) counts those of two
    completions, and those of `pairwise_accuracy`, as right; a longer list is wrong."""
    finite = np.isfinite(scores)
    return sum(bool(finite[i] and scores[i] == scores[j]) for i, j in untied_pairs(ranks))


def top1_accuracy(scores: Sequence[float], ranks: Sequence[int]) -> bool:
    """Whether the single highest-scored completion is (one of) the best ranked."""
    if not np.all(np.isfinite(scores)):
        return False
    best = np.flatnonzero(np.asarray(scores) == np.max(scores))
    return len(best) == 1 and ranks[best[0]] == min(ranks)


def record_scores(record: dict[str, Any], normalization: str) -> list[float]:
    """Log-likelihoods (Eq. 13), or divided by the number of tokens (Eq. 15); null becomes NaN."""
    scores = []
    for completion in record["completions"]:
        logp = math.nan if completion["logp"] is None else completion["logp"]
        scores.append(
            logp / completion["n_tokens"] if normalization == "length-normalized" else logp
        )
    return scores


def ranked_pairs(
    records: Sequence[dict[str, Any]], normalization: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Every untied pair of the records: 1.0 where it is ranked right (Def. 2.3, as in
    `pairwise_accuracy`), else 0.0; its difference of lengths (tokens, preferred − other); its
    prompt."""
    right, differences, prompts = [], [], []
    for record in records:
        scores = record_scores(record, normalization)
        lengths = [completion["n_tokens"] for completion in record["completions"]]
        finite = np.isfinite(scores)
        for w, l in untied_pairs(record["ranks"]):  # noqa: E741
            right.append(float(finite[w] and finite[l] and scores[w] >= scores[l]))
            differences.append(lengths[w] - lengths[l])
            prompts.append(record["prompt_id"])
    return np.array(right), np.array(differences), prompts


def length_of_metrics(
    records: Sequence[dict[str, Any]], normalization: str, include_ties: bool, seed: int
) -> dict[str, LengthColumns]:
    """`length_columns` of the untied pairs, for the metrics that are a share of pairs."""
    right, differences, prompts = ranked_pairs(records, normalization)
    if not len(right):
        return {}
    columns = length_columns(right, differences, prompts, seed)
    only_pairs = not include_ties and all(len(record["ranks"]) == 2 for record in records)
    return dict.fromkeys(["pairwise_acc", "acc"] if only_pairs else ["pairwise_acc"], columns)


class Outcome(NamedTuple):
    """What one example adds to a metric, which is Σ top / Σ bottom over examples."""

    metric: str
    cluster: str  # the prompt
    top: float
    bottom: float = 1
    by_ties: float = 0  # of top: owed to exactly equal scores
    p_value: float | None = None  # of a correlation


def example_outcomes(
    record: dict[str, Any], normalization: str, include_ties: bool
) -> Iterator[Outcome]:
    """Every metric that is defined for a record."""
    scores, ranks, cluster = (
        record_scores(record, normalization),
        record["ranks"],
        record["prompt_id"],
    )
    n_equal = exact_ties(scores, ranks)
    rules = {"acc": ranking_accuracy}
    if include_ties:
        rules = {
            "acc": ranking_accuracy_with_ties,
            "acc_literal_ties": ranking_accuracy_with_literal_ties,
        }
    for metric, rule in rules.items():
        correct = rule(scores, ranks)
        yield Outcome(metric, cluster, correct, by_ties=correct and n_equal > 0)
    n_correct, n_pairs = pairwise_accuracy(scores, ranks)
    if n_pairs:
        yield Outcome("pairwise_acc", cluster, n_correct, n_pairs, by_ties=n_equal)
        yield Outcome("top1", cluster, top1_accuracy(scores, ranks))
    if len(ranks) > 2:
        for kind in ("spearmanr", "kendalltau"):
            value, p_value = rank_correlation(scores, ranks, kind)
            if math.isfinite(value):
                yield Outcome(kind, cluster, value, p_value=p_value)


def is_cut(record: dict[str, Any]) -> bool:
    """Whether the prompt lost its beginning."""
    return any(completion.get("truncated") for completion in record["completions"])


class SettingColumns(TypedDict):
    """What every summary line says of its model and its dataset."""

    model: str
    revision: str | None  # of the model, as asked for
    dataset_name: str
    dataset_config: str | None
    dataset_split: str | None
    dataset_commit: str | None  # of a hub dataset
    include_ties: bool
    seed: int  # of the bootstrap, and of the sample where it was drawn for this run
    versions: dict[str, str]  # library → version, of what scored; {}: not known
    examples_file: NotRequired[str]  # where log-likelihoods were read from: --policy-examples


class TextColumns(TypedDict, total=False):
    """How the texts were made; not there where an examples file has no configuration beside it."""

    chat_template: bool  # whether examples went through it: all, but for `in_template`
    in_template: int  # examples that did, where only dialogues do
    system: str  # message of dialogues that have none
    chat_template_kwargs: dict[str, Any]
    chat_template_file: str  # hash of the template that replaced the model's
    add_eos: bool  # the end of the text is scored too
    max_length: int | None  # tokens of prompt and completion; null: what the model takes
    sample_size: int | None  # examples asked for; null: all
    separator: str | None  # between prompt and completion; null: decided for each, or a template


class ScoringColumns(TypedDict, total=False):
    """How the model was run; of log-likelihoods from a file, what its own summary says."""

    dtype: str
    device: str
    device_map: str | None
    quantization: str | None
    trust_remote_code: bool
    path: str  # "segments", or "plain: " or "alone: " and why
    n_processes: int
    model_commit: str | None  # of a hub model


class AccuracyRow(SettingColumns, TextColumns, ScoringColumns, LengthColumns):
    """One line of NAME.jsonl of the ranking script: a metric of one dataset and normalization.

    `share_p_below_0.05` is the share of `example_p_values` below 0.05, null without them.
    """

    dropped: dict[str, int]  # reason → examples that were not scored
    joined_by: dict[str, int] | None  # separator → completions; null: a chat template joins them
    config_hash: str  # of NAME.config.json
    calib_property: (
        str  # ranking_length-normalized (Eq. 15), ranking_non-length-normalized (Eq. 13)
    )
    distance_metric: str  # acc, acc_literal_ties, pairwise_acc, top1, spearmanr, kendalltau
    distance_metric_value_mean: float  # share in [0, 1], or mean coefficient
    n_exact_ties: int  # untied pairs whose scores are exactly equal
    mean_if_exact_ties_are_wrong: float  # the value with > in place of ≥ in Def. 2.3
    n: int  # examples for which the metric is defined
    chance: float | None  # share right in random order; null: another metric than acc, or ties
    wilson_95: tuple[float, float] | tuple[None, None]  # of shares of examples
    bootstrap_95: list[float | None]  # over prompts; [null, null]: one, or all alike
    n_clusters: int  # prompts
    by_group: list[GroupValue]  # empty: the data have no groups
    mean_over_groups: list[GroupMean]
    k_min: int  # completions of an example
    k_max: int
    n_examples_with_ties: int  # examples in which two human ranks are equal
    n_non_finite: int  # examples with a log-likelihood that is not finite: wrong
    n_truncated_prompts: int  # examples whose prompt lost its beginning
    # of the n examples, in the order of their `row` (then `id`) in NAME.examples.jsonl
    example_distance_metric_values: list[float]
    example_p_values: list[float] | None  # of correlations


def summarize_dataset(
    records: list[dict[str, Any]], common: dict[str, Any], include_ties: bool, seed: int
) -> list[AccuracyRow]:
    """Summary rows of one dataset: normalization × metric, with chance, 95 % intervals and what
    length alone would reach."""
    sizes = [len(record["ranks"]) for record in records]
    of_dataset = {
        "k_min": min(sizes),
        "k_max": max(sizes),
        "n_examples_with_ties": sum(len(set(r["ranks"])) < len(r["ranks"]) for r in records),
        "n_non_finite": sum(any(c["logp"] is None for c in r["completions"]) for r in records),
        "n_truncated_prompts": sum(is_cut(record) for record in records),
    }
    baselines = [
        example_baselines([c["n_tokens"] for c in r["completions"]], r["ranks"]) for r in records
    ]
    rows: list[Any] = []
    for normalization in NORMALIZATIONS:
        n_equal = sum(exact_ties(record_scores(r, normalization), r["ranks"]) for r in records)
        of_length = length_of_metrics(records, normalization, include_ties, seed)
        by_metric: dict[str, list[tuple[int, Outcome]]] = {}
        for k, record in enumerate(records):
            for outcome in example_outcomes(record, normalization, include_ties):
                by_metric.setdefault(outcome.metric, []).append((k, outcome))
        for metric, measured in by_metric.items():
            places, outcomes = zip(*measured)
            expected = None
            if metric in baselines[0] and not (metric == "acc" and include_ties):
                expected = [baselines[k][metric] for k in places]
            rows.append(
                {
                    **common,
                    "calib_property": f"ranking_{normalization}",
                    "distance_metric": metric,
                    "n_exact_ties": n_equal,
                    **of_length.get(metric, NOT_OF_PAIRS),
                    **summarize_metric(
                        metric, outcomes, [record_groups(records[k]) for k in places], expected,
                        seed,
                    ),
                    **of_dataset,
                }
            )  # fmt: skip
    return rows


def summarize_metric(
    metric: str,
    outcomes: Sequence[Outcome],
    groups: Sequence[Groups],
    expected: Sequence[dict[str, float]] | None,
    seed: int,
) -> dict[str, Any]:
    """The columns of an `AccuracyRow` that are of its metric.

    groups: of each example that has an outcome. expected: what the baselines add to each `top`.
    """
    clusters = [outcome.cluster for outcome in outcomes]
    top = np.array([outcome.top for outcome in outcomes], dtype=float)
    bottom = np.array([outcome.bottom for outcome in outcomes], dtype=float)
    by_ties = sum(outcome.by_ties for outcome in outcomes)
    p_values = [o.p_value for o in outcomes if o.p_value is not None]
    baselines = reached = None
    if expected is not None:
        baselines = {name: np.array([values[name] for values in expected]) for name in expected[0]}
        reached = {name: float(v.sum() / bottom.sum()) for name, v in baselines.items()}
    has_chance = metric == "acc" and baselines is not None
    by_group, over_groups = accuracy_by_group(
        groups, clusters, seed, top, bottom, baselines=baselines, has_chance=has_chance,
        alone=np.full(len(top), metric in SHARES),
    )  # fmt: skip
    wilson: tuple = (None, None)
    if metric in SHARES:
        wilson = wilson_interval(int(top.sum()), len(top))
    return {
        "distance_metric_value_mean": float(top.sum() / bottom.sum()),
        "mean_if_exact_ties_are_wrong": float((top.sum() - by_ties) / bottom.sum()),
        "n": len(outcomes),
        "chance": reached["random"] if has_chance else None,
        "baselines": reached,
        "wilson_95": wilson,
        "bootstrap_95": bootstrap_95(top, clusters, seed, bottom),
        "n_clusters": len(set(clusters)),
        "by_group": by_group,
        "mean_over_groups": over_groups,
        "example_distance_metric_values": (top / bottom).tolist(),
        "example_p_values": p_values or None,
        "share_p_below_0.05": float(np.mean(np.array(p_values) < 0.05)) if p_values else None,
    }
