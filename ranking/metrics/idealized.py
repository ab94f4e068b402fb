"""Idealized ranking accuracy R*(β), alignment gap, required loss (Thm 3.1, Cor. 3.3, Thm 4.1)."""

import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from ranking.metrics.accuracy import (
    TIE_EPSILON,
    ScoringColumns,
    SettingColumns,
    TextColumns,
)
from ranking.metrics.groups import (
    GroupColumns,
    GroupMeanColumns,
    Groups,
    group_means,
    record_groups,
    shares_of_groups,
)
from ranking.metrics.intervals import bootstrap_95
from ranking.metrics.losses import check_threshold

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)


def preferred_proportion(
    votes_preferred: float, votes_other: float, epsilon: float = 0.001
) -> float:
    """α, the share of raters who prefer y_w, kept within [ε, 1 − ε] (App. C.4)."""
    return min(max(votes_preferred / (votes_preferred + votes_other), epsilon), 1 - epsilon)


def idealized_correctness(
    ref_logratios: np.ndarray, alphas: np.ndarray, beta: float | np.ndarray
) -> np.ndarray:
    """Whether perfect RLHF or DPO would rank each pair correctly (Theorem 3.1, Corollary 3.3).

    1[ log π_ref(y_w|x) − log π_ref(y_l|x) + (1/β) log(α/(1−α)) > 0 ], decided by comparing β with
    the β at which the two terms cancel, so that 1/β never overflows.
    ref_logratios, alphas: (n_pairs,), nats and shares in (0, 1). beta > 0. Returns bool (n_pairs,).
    """
    ratios, alphas = np.asarray(ref_logratios, dtype=float), np.asarray(alphas, dtype=float)
    log_odds = np.log(alphas) - np.log1p(-alphas)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        crossing = np.abs(log_odds) / np.abs(ratios)
    above = (log_odds > 0) & ((ratios >= 0) | (np.asarray(beta) < crossing))
    below = (log_odds < 0) & (ratios > 0) & (np.asarray(beta) > crossing)
    return above | below | ((log_odds == 0) & (ratios > 0))


def critical_betas(ref_logratios: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """β* of each pair: correct under idealized tuning iff β < β* (Corollary 3.3), for α ≥ 1/2.

    log(α/(1−α)) / (log π_ref(y_l|x) − log π_ref(y_w|x)); ∞ where the reference is already right,
    0 for evenly split votes it ranks wrongly. Raises ValueError for α < 1/2: y_w is the
    majority's choice. Returns (n_pairs,).
    """
    ratios, alphas = np.asarray(ref_logratios, dtype=float), np.asarray(alphas, dtype=float)
    log_odds = np.log(alphas) - np.log1p(-alphas)
    if np.any(log_odds < 0):
        raise ValueError("critical β needs α ≥ 1/2: y_w is the majority's choice")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        crossing = log_odds / -ratios
    always = (ratios > 0) | ((ratios == 0) & (log_odds > 0))
    return np.where(always, np.inf, np.where(log_odds == 0, 0.0, crossing))


def required_margin(
    ref_logratios: np.ndarray, beta: float, gamma: float = 1.0, loss_type: str = "alpha_scaling"
) -> np.ndarray:
    """Margin z from which on a pair is ranked correctly: γβc, c = −ref_logratio (Theorem 4.1).

    As z = β(logratio − γ ref_logratio), logratio ≥ 0 iff z ≥ −γβ ref_logratio, whatever function
    of z the loss is (Prop. A.7, Remark 4.2). Of PER_TOKEN losses, log-ratios and the ranking are
    per token (Eq. 15), as TRL has them; the same holds of IPO with sums. A target margin, and the
    penalty of alpha_scaling_dpop, are part of the loss and not of z. ValueError for losses of
    something else (NO_THRESHOLD says of what).
    """
    check_threshold(loss_type)
    return -gamma * beta * np.asarray(ref_logratios, dtype=float)


def required_loss(ref_logratios: np.ndarray, beta: float, gamma: float = 1.0) -> np.ndarray:
    """The loss L* of Eq. 4 at the required margin: −log σ(γβc) (Theorem 4.1), nats.

    L ≤ L* iff the pair is ranked correctly; what other losses say is in docs/reading.md.
    Underflows to 0 for γβc beyond about 745; compare `required_margin` instead of losses.
    """
    return np.logaddexp(0.0, -required_margin(ref_logratios, beta, gamma))


def observed_correctness(logratios: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """Def. 2.3 (≥), tied pairs by Def. C.1 (|Δ| < 0.01); non-finite log-ratios are wrong."""
    finite = np.isfinite(logratios)
    return finite & np.where(tied, np.abs(logratios) < TIE_EPSILON, logratios >= 0)


def tie_aware_critical_betas(ref_logratios, alphas, tied) -> np.ndarray:
    """Critical β; a tied pair keeps the reference's log-ratio at every β: always or never right."""
    with_ties = np.where(np.abs(ref_logratios) < TIE_EPSILON, np.inf, 0.0)
    return np.where(tied, with_ties, critical_betas(ref_logratios, alphas))


def summarize_idealized(
    pairs: list[dict[str, Any]], normalization: str, betas: Sequence[float], seed: int
) -> dict[str, Any]:
    """Arrays and accuracies of one dataset and normalization."""
    ref = np.array([pair[f"ref_logratio {normalization}"] for pair in pairs])
    policy = np.array([pair[f"policy_logratio {normalization}"] for pair in pairs])
    tied = np.array([pair["tied"] for pair in pairs])
    critical = tie_aware_critical_betas(ref, np.array([pair["alpha"] for pair in pairs]), tied)
    observed = observed_correctness(policy, tied)
    clusters = [pair["record"]["prompt_id"] for pair in pairs]
    groups = [record_groups(pair["record"]) for pair in pairs]
    by_beta: list[dict[str, Any]] = []
    for beta in sorted(betas):
        correct = critical > beta
        difference = correct.astype(float) - observed
        by_group, over_groups = idealized_groups(groups, clusters, seed, correct, observed)
        by_beta.append(
            {"beta": beta, "correct": correct, "accuracy": float(correct.mean()),
             "accuracy_95": bootstrap_95(correct, clusters, seed),
             "gap": float(difference.mean()),
             "gap_95": bootstrap_95(difference, clusters, seed),
             "by_group": by_group, "mean_over_groups": over_groups}
        )  # fmt: skip
    accuracies = [entry["accuracy"] for entry in by_beta]
    # R* falls with β: the median over β is the mean of the outcomes at the middle one or two
    middle = (by_beta[(len(by_beta) - 1) // 2]["correct"] * 0.5) + (
        by_beta[len(by_beta) // 2]["correct"] * 0.5
    )
    add_median_of_groups(by_beta, groups, clusters, seed, middle - observed)
    return {
        "ref": ref,
        "critical": critical,
        "observed": observed,
        "by_beta": by_beta,
        "accuracy": float(observed.mean()),
        "reference_accuracy": float(observed_correctness(ref, tied).mean()),
        "exact_ties": int((~tied & (policy == 0)).sum()),
        "reference_exact_ties": int((~tied & (ref == 0)).sum()),
        "min_median_max": [min(accuracies), float(np.median(accuracies)), max(accuracies)],
        "gap_to_median": float(np.median(accuracies) - observed.mean()),
        "gap_to_median_95": bootstrap_95(middle - observed, clusters, seed),
    }


def idealized_groups(
    groups: Sequence[Groups],
    clusters: Sequence[str],
    seed: int,
    correct: np.ndarray,
    observed: np.ndarray,
) -> tuple[list[Any], list[Any]]:
    """`group_means` of R* at one β, with the observed accuracy and the gap."""
    by_group, over_groups = found = group_means(groups, clusters, seed, correct)
    seen = shares_of_groups(groups, observed, np.ones(len(observed)))
    for entry in by_group:
        entry["observed_accuracy"] = seen[entry["column"], entry["group"]]
    for entry in over_groups:
        entry["observed_accuracy"] = seen.get((entry["column"],))
    gaps = group_means(groups, clusters, seed, correct.astype(float) - observed)
    for entry, gap in zip([*by_group, *over_groups], [*gaps[0], *gaps[1]]):
        entry["gap"], entry["gap_95"] = gap["value"], gap["bootstrap_95"]
    return found


def add_median_of_groups(
    by_beta: Sequence[dict[str, Any]],
    groups: Sequence[Groups],
    clusters: Sequence[str],
    seed: int,
    gap_to_middle: np.ndarray,
) -> None:
    """Add to every group what is over all β: minimum, median and maximum of R*, and the gap to the
    median, of which `gap_to_middle` is each pair's share."""
    for kind, gaps in zip(
        ("by_group", "mean_over_groups"), group_means(groups, clusters, seed, gap_to_middle)
    ):
        for entries, gap in zip(zip(*(at_beta[kind] for at_beta in by_beta)), gaps):
            values = [entry["value"] for entry in entries]
            known = None not in values  # of too many groups nothing is
            for entry in entries:
                entry["min_median_max"] = (
                    [min(values), float(np.median(values)), max(values)] if known else None
                )
                entry["gap_to_median"] = gap["value"]
                entry["gap_to_median_95"] = gap["bootstrap_95"]


class GapColumns(TypedDict):
    """What `by_group` and `mean_over_groups` of an `IdealizedRow` add to R*; null where `value` is.

    As in the row itself, but of the group, or the unweighted mean over groups.
    """

    observed_accuracy: float | None
    gap: float | None
    gap_95: list[float | None]
    min_median_max: list[float] | None
    gap_to_median: float | None
    gap_to_median_95: list[float | None]


class IdealizedGroup(GroupColumns, GapColumns):
    """An entry of `by_group` of an `IdealizedRow`: R* at its β among the pairs of one group."""


class IdealizedGroupMean(GroupMeanColumns, GapColumns):
    """An entry of `mean_over_groups` of an `IdealizedRow`."""


class IdealizedColumns(SettingColumns, TextColumns, ScoringColumns):
    """What the lines of NAME.jsonl and NAME.curve.jsonl say of the two models and their data.

    `revision`, `ScoringColumns` and `n_truncated_prompts` are the policy's; `dropped_examples` and
    `reference_model_commit` are there where a model was scored.
    """

    reference_model: str
    reference_revision: str | None
    reference_config_hash: str | None  # of the config beside its examples
    reference_model_commit: NotRequired[str | None]
    examples_file: NotRequired[str]  # where the policy's log-likelihoods were read from
    reference_examples_file: NotRequired[str]  # where the reference's were: --reference-examples
    simulate_proportion: float | None  # α of pairs without votes; null: they are left out
    epsilon: float  # unanimous votes: α = 1 − ε
    dropped_examples: NotRequired[dict[str, int] | None]  # reason → examples
    dropped_pairs: dict[str, int]  # reason → pairs
    n_truncated_prompts: int  # examples whose prompt lost its beginning
    reference_n_truncated_prompts: int
    calib_property: str  # ranks_length-normalized or ranks_non-length-normalized
    n: int  # pairs
    observed_accuracy: float  # of the policy, share in [0, 1]


class IdealizedRow(IdealizedColumns):
    """One line of NAME.jsonl of the idealized script: R* of a dataset and normalization at one β.

    Intervals are 95 % bootstrap intervals over prompts, [null, null] where there is but one, or
    all pairs are alike.
    """

    beta: float
    distance_metric: str  # acc
    distance_metric_value_mean: float  # R*(β), share in [0, 1]
    bootstrap_95: list[float | None]  # of R*(β)
    reference_accuracy: float
    n_exact_ties: int  # untied pairs whose scores by the policy are exactly equal
    reference_n_exact_ties: int
    gap: float  # R*(β) − observed accuracy, the alignment gap
    gap_95: list[float | None]
    min_median_max: list[float]  # of R* over the run's β
    gap_to_median: float  # of R* over β
    gap_to_median_95: list[float | None]
    by_group: list[IdealizedGroup]  # empty: the data have no groups
    mean_over_groups: list[IdealizedGroupMean]
    example_distance_metric_values: list[float]  # 1.0 or 0.0 per pair, as in NAME.pairs.jsonl


class CurveRow(IdealizedColumns):
    """One line of NAME.curve.jsonl: R*(β) for every β, of a dataset and normalization.

    R* falls from `limit_beta_to_0` by 1/n at each of `critical_betas`.
    """

    limit_beta_to_0: float
    limit_beta_to_infinity: float
    critical_betas: list[float]  # ascending, without 0 and ∞


class TunedColumns(TypedDict, total=False):
    """What `--dynamics` adds to a pair, at the lowest validation loss of each run."""

    tuned_loss: float | None  # of Eq. 4, nats, mean over the runs that follow it; null: none does
    n_runs: int  # that follow it
    flipped_in: int  # of these, those that rank it correctly (Def. 2.3)


class PairRow(TunedColumns):
    """One line of NAME.pairs.jsonl: a pair of completions of an example.

    Under the names of the two normalizations stand dicts of `ref_logratio` (nats, or nats per
    token), `critical_beta` (null: right at every β), `observed_correct`, and `idealized_correct`
    (β as text → bool). `TunedColumns` are there with --dynamics.
    """

    id: str  # of the example, as in the examples file
    prompt_id: str
    dataset: str
    dataset_config: str | None
    split: str | None
    reference_model: str
    winner: int  # index of the completion that most raters prefer
    loser: int
    alpha: float  # their share, within [ε, 1 − ε]
    votes: list[float] | None  # of the two completions, in the example's order; null: none
    tied: bool  # α = 1/2
    c: float  # log π_ref(y_l|x) − log π_ref(y_w|x), summed, nats
    gamma: float
    required_margin: dict[str, float]  # β as text → γβc (Theorem 4.1)
    required_loss: dict[str, float]  # β as text → −log σ(γβc), nats


def summary_rows(summary: dict, normalization: str, common: dict[str, Any]) -> list[IdealizedRow]:
    """One result line per β."""
    rows: list[Any] = [
        {
            **common,
            "beta": entry["beta"],
            "calib_property": f"ranks_{normalization}",
            "distance_metric": "acc",
            "distance_metric_value_mean": entry["accuracy"],
            "n": len(entry["correct"]),
            "observed_accuracy": summary["accuracy"],
            "reference_accuracy": summary["reference_accuracy"],
            "n_exact_ties": summary["exact_ties"],
            "reference_n_exact_ties": summary["reference_exact_ties"],
            "gap": entry["gap"],
            "bootstrap_95": entry["accuracy_95"],
            "gap_95": entry["gap_95"],
            "gap_to_median": summary["gap_to_median"],
            "gap_to_median_95": summary["gap_to_median_95"],
            "min_median_max": summary["min_median_max"],
            "by_group": entry["by_group"],
            "mean_over_groups": entry["mean_over_groups"],
            "example_distance_metric_values": entry["correct"].astype(float).tolist(),
        }
        for entry in summary["by_beta"]
    ]
    return rows


def curve_row(summary: dict, normalization: str, common: dict[str, Any]) -> CurveRow:
    """R*(β) = share of critical β above β: all finite breakpoints, and both limits."""
    critical = summary["critical"]
    finite = np.sort(critical[np.isfinite(critical) & (critical > 0)])
    row: Any = {
        **common,
        "calib_property": f"ranks_{normalization}",
        "n": len(critical),
        "limit_beta_to_0": float((critical > 0).mean()),
        "limit_beta_to_infinity": float(np.isinf(critical).mean()),
        "critical_betas": finite.tolist(),
        "observed_accuracy": summary["accuracy"],
    }
    return row


def curve_steps(curve: CurveRow) -> np.ndarray:
    """R*(β) of each stretch between breakpoints, from β → 0 on: (len(critical_betas) + 1,)."""
    n_lost = np.arange(len(curve["critical_betas"]) + 1)
    return curve["limit_beta_to_0"] - n_lost / curve["n"]


def pair_rows(
    pairs: list[dict[str, Any]],
    summaries: dict[str, dict[str, Any]],
    betas: Sequence[float],
    gamma: float,
) -> list[PairRow]:
    """Per pair: α, log-ratio, c, critical β, correctness per β, and what Theorem 4.1 asks for."""
    summed = np.array([pair["ref_logratio non-length-normalized"] for pair in pairs])
    losses = {beta: required_loss(summed, beta, gamma) for beta in betas}
    margins = {beta: required_margin(summed, beta, gamma) for beta in betas}
    rows = []
    for k, pair in enumerate(pairs):
        row: Any = {
            **{key: pair["record"][key] for key in ("id", "prompt_id", "dataset")},
            "dataset_config": pair["record"]["dataset_config"],
            "split": pair["record"]["split"],
            "reference_model": pair["record"]["model"],
            **{key: pair[key] for key in ("winner", "loser", "alpha", "votes", "tied")},
            **{key: pair[key] for key in TunedColumns.__annotations__ if key in pair},
            "c": -summed[k],
            "gamma": gamma,
            "required_margin": {str(beta): margins[beta][k] for beta in betas},
            "required_loss": {str(beta): losses[beta][k] for beta in betas},
        }
        for normalization, summary in summaries.items():
            critical = summary["critical"][k]
            row[normalization] = {
                "ref_logratio": summary["ref"][k],
                "critical_beta": None if math.isinf(critical) else critical,  # null: never wrong
                "observed_correct": bool(summary["observed"][k]),
                "idealized_correct": {
                    str(entry["beta"]): bool(entry["correct"][k]) for entry in summary["by_beta"]
                },
            }
        rows.append(row)
    return rows
