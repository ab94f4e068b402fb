"""Idealized ranking accuracy R*(β), alignment gap, required loss (Thm 3.1, Cor. 3.3, Thm 4.1)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ranking.metrics.accuracy import TIE_EPSILON
from ranking.metrics.intervals import clustered_bootstrap_interval

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


def required_margin(ref_logratios: np.ndarray, beta: float, gamma: float = 1.0) -> np.ndarray:
    """DPO^γ margin that ranks a pair correctly: γβc, c = −ref_logratio (Theorem 4.1)."""
    return -gamma * beta * np.asarray(ref_logratios, dtype=float)


def required_loss(ref_logratios: np.ndarray, beta: float, gamma: float = 1.0) -> np.ndarray:
    """DPO^γ loss below which a pair is ranked correctly: −log σ(γβc) (Theorem 4.1), nats.

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


def paired_interval(values: np.ndarray, clusters: list[str], seed: int) -> list[float | None]:
    """95 % bootstrap interval of a mean over pairs by prompt; null for a single prompt."""
    interval = clustered_bootstrap_interval(values, np.ones(len(values)), clusters, seed)
    return [None if math.isnan(x) else x for x in interval]


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
    by_beta: list[dict[str, Any]] = []
    for beta in sorted(betas):
        correct = critical > beta
        difference = correct.astype(float) - observed
        interval = paired_interval(difference, clusters, seed)
        by_beta.append(
            {"beta": beta, "correct": correct, "accuracy": float(correct.mean()),
             "gap": float(difference.mean()),
             "gap_95": interval,
             "accuracy_95": paired_interval(correct, clusters, seed)}
        )  # fmt: skip
    accuracies = [entry["accuracy"] for entry in by_beta]
    # R* falls with β: the median over β is the mean of the outcomes at the middle one or two
    middle = (by_beta[(len(by_beta) - 1) // 2]["correct"] * 0.5) + (
        by_beta[len(by_beta) // 2]["correct"] * 0.5
    )
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
        "gap_to_median_95": paired_interval(middle - observed, clusters, seed),
    }


def summary_rows(summary: dict, normalization: str, common: dict[str, Any]) -> list[dict[str, Any]]:
    """One result line per β."""
    return [
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
            "example_distance_metric_values": entry["correct"].astype(float).tolist(),
        }
        for entry in summary["by_beta"]
    ]


def curve_row(summary: dict, normalization: str, common: dict[str, Any]) -> dict[str, Any]:
    """R*(β) = share of critical β above β: all finite breakpoints, and both limits."""
    critical = summary["critical"]
    finite = np.sort(critical[np.isfinite(critical) & (critical > 0)])
    return {
        **common,
        "calib_property": f"ranks_{normalization}",
        "n": len(critical),
        "limit_beta_to_0": float((critical > 0).mean()),
        "limit_beta_to_infinity": float(np.isinf(critical).mean()),
        "critical_betas": finite.tolist(),
        "observed_accuracy": summary["accuracy"],
    }


def pair_rows(
    pairs: list[dict[str, Any]],
    summaries: dict[str, dict[str, Any]],
    betas: Sequence[float],
    gamma: float,
) -> list[dict[str, Any]]:
    """Per pair: α, log-ratio, c, critical β, correctness per β, and what Theorem 4.1 asks for."""
    summed = np.array([pair["ref_logratio non-length-normalized"] for pair in pairs])
    losses = {beta: required_loss(summed, beta, gamma) for beta in betas}
    margins = {beta: required_margin(summed, beta, gamma) for beta in betas}
    rows = []
    for k, pair in enumerate(pairs):
        row = {
            "id": pair["record"]["id"],
            "prompt_id": pair["record"]["prompt_id"],
            "dataset": pair["record"]["dataset"],
            "split": pair["record"]["split"],
            "winner": pair["winner"],
            "loser": pair["loser"],
            "alpha": pair["alpha"],
            "votes": pair["votes"],
            "tied": pair["tied"],
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
