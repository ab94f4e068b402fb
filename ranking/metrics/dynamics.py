"""How rankings move while a model is tuned (§4, Fig. 2-7): the four groups, means over pairs."""

import math
from typing import Any

import numpy as np

from ranking.metrics.idealized import required_margin

# (ranked correctly by the reference, ranked correctly by the policy) → name
GROUPS = {
    (True, True): "correct_to_correct",
    (True, False): "correct_to_incorrect",
    (False, True): "incorrect_to_correct",
    (False, False): "incorrect_to_incorrect",
}


def pair_values(logps: dict[str, np.ndarray], beta: float, gamma: float) -> dict[str, np.ndarray]:
    """Everything that is logged about pairs, from their log-likelihoods, in float64.

    logps: chosen, rejected, ref_chosen, ref_rejected (n_pairs,), nats, summed (Eq. 13), and
    n_chosen, n_rejected, their numbers of tokens. The loss is Eq. 4; the reward margin is
    β log(π_θ(y_w)π_ref(y_l) / π_θ(y_l)π_ref(y_w)); `meets_theorem_4_1` is Theorem 4.1's
    condition L ≤ −log σ(γβc), compared as margins because losses underflow.
    """
    policy_logratios = logps["chosen"] - logps["rejected"]
    ref_logratios = logps["ref_chosen"] - logps["ref_rejected"]
    needed = required_margin(ref_logratios, beta, gamma)
    margins = beta * policy_logratios + needed  # β(policy_logratio − γ ref_logratio)
    per_token = {
        side: logps[f"{side}chosen"] / logps["n_chosen"]
        - logps[f"{side}rejected"] / logps["n_rejected"]
        for side in ("", "ref_")
    }
    return {
        **logps,
        "loss": np.logaddexp(0.0, -margins),
        "reward_margin": beta * (policy_logratios - ref_logratios),
        "tied": policy_logratios == 0,
        "tied_normalized": per_token[""] == 0,
        "correct": policy_logratios >= 0,
        "ref_correct": ref_logratios >= 0,
        "correct_normalized": per_token[""] >= 0,
        "ref_correct_normalized": per_token["ref_"] >= 0,
        "meets_theorem_4_1": margins >= needed,
    }


def rewards_moved(chosen, rejected, ref_chosen, ref_rejected, *, rounding: float):
    """Whether the chosen completion's reward is the larger, and whether the two tie.

    log π_θ(y_w)/π_ref(y_w) − log π_θ(y_l)/π_ref(y_l) > τ, or within ±τ: what rounding makes of two
    equal models. Let S be the sum of the four |log-likelihoods|. τ = 16 · 2⁻²³ S + 4 · rounding √S:
    sums are float32, and the errors of their terms, of the forward pass's precision, add up as
    independent ones do. For S = 800 nats, τ is 0.002 nats in float32 and 0.9 in bfloat16.
    Log-likelihoods: (n_pairs,), nats, summed, arrays or tensors. Returns two of bool. NaN: neither.
    """
    moved = (chosen - ref_chosen) - (rejected - ref_rejected)
    size = abs(chosen) + abs(rejected) + abs(ref_chosen) + abs(ref_rejected)
    tolerance = 16 * 2.0**-23 * size + 4 * rounding * size**0.5
    return moved > tolerance, abs(moved) <= tolerance


def summarize_pairs(
    values: dict[str, np.ndarray], beta: float, rounding: float = 2.0**-23
) -> dict[str, float]:
    """Means over pairs by their names on the dashboard; an empty group has no mean and no key.

    rounding: relative error of the forward pass's precision, for `rewards_moved`.
    """
    correct, ref_correct = values["correct"], values["ref_correct"]
    chosen_rewards = beta * (values["chosen"] - values["ref_chosen"])
    rejected_rewards = beta * (values["rejected"] - values["ref_rejected"])
    logps = [values[name] for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")]
    better, same = rewards_moved(*logps, rounding=rounding)
    means = {
        "ranking/accuracy": correct,
        "ranking/accuracy_normalized": values["correct_normalized"],
        "ranking/exact_ties": values["tied"],  # which the accuracies count as right
        "ranking/exact_ties_normalized": values["tied_normalized"],
        "ranking/ref_accuracy": ref_correct,
        "ranking/ref_accuracy_normalized": values["ref_correct_normalized"],
        "ranking/meets_theorem_4_1": values["meets_theorem_4_1"],
        "rewards/accuracies": better,
        "rewards/ties": same,
        "rewards/margins": values["reward_margin"],
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "logps/chosen": values["chosen"],
        "logps/rejected": values["rejected"],
    }
    if not ref_correct.all():
        means["ranking/flipped_to_correct"] = correct[~ref_correct]
    for (before, after), name in GROUPS.items():
        members = (ref_correct == before) & (correct == after)
        means[f"groups/{name}_share"] = members
        if members.any():
            means[f"groups/{name}_loss"] = values["loss"][members]
            means[f"groups/{name}_reward_margin"] = values["reward_margin"][members]
    return {name: float(np.mean(value)) for name, value in means.items()}


def finite(value: float) -> float | None:
    """The number, or None (null) where it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None


PARTS = ("train", "validation")


def means_by_step(rows: list[dict[str, Any]], part: str) -> dict[int, dict[str, Any]]:
    """step → n, accuracy, loss, squared distance, and per group share, loss and reward margin."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["part"] == part:
            by_step.setdefault(row["step"], []).append(row)
    summary = {}
    for step, chosen in sorted(by_step.items()):
        members = {name: [r for r in chosen if r["group"] == name] for name in GROUPS.values()}
        correct = len(members["correct_to_correct"]) + len(members["incorrect_to_correct"])
        summary[step] = {
            "n": len(chosen),
            "accuracy": correct / len(chosen),
            "loss": mean_of(chosen, "loss"),
            "squared_distance": chosen[0].get("squared_distance"),
            "share": {name: len(group) / len(chosen) for name, group in members.items()},
            "group_loss": {name: mean_of(group, "loss") for name, group in members.items()},
            "reward_margin": {n: mean_of(group, "reward_margin") for n, group in members.items()},
        }
    return summary


def mean_of(rows: list[dict[str, Any]], column: str) -> float:
    """Mean of the finite values of a column; NaN if there are none."""
    values = [row[column] for row in rows if row[column] is not None]
    return float(np.mean(values)) if values else float("nan")


def lowest_loss_step(rows: list[dict[str, Any]]) -> int:
    """The step with the lowest mean validation loss (training loss if nothing was validated)."""
    summary = means_by_step(rows, "validation") or means_by_step(rows, "train")
    return min(summary, key=lambda step: (summary[step]["loss"], step))


def sweep_points(
    files: list[list[dict[str, Any]]], at: str = "lowest-loss"
) -> list[dict[str, Any]]:
    """Of each run (the rows of one ranking_dynamics.jsonl) and part: γ, accuracy, share of wrongly
    ranked pairs that are flipped, loss and squared distance, at the step of the lowest validation
    loss or at the last; ordered by γ and part."""
    points = []
    for rows in files:
        steps = {row["step"] for row in rows}
        step = lowest_loss_step(rows) if at == "lowest-loss" else max(steps)
        for part in PARTS:
            chosen = [row for row in rows if (row["part"], row["step"]) == (part, step)]
            wrong = [row for row in chosen if row["group"].startswith("incorrect")]
            if not chosen:
                continue
            flipped = [row for row in wrong if row["group"] == "incorrect_to_correct"]
            points.append(
                {"gamma": chosen[0]["gamma"], "part": part, "n": len(chosen), "step": step,
                 "accuracy": np.mean([r["group"].endswith("to_correct") for r in chosen]).item(),
                 "flipped": len(flipped) / len(wrong) if wrong else None,
                 "loss": mean_of(chosen, "loss"),
                 "squared_distance": next(
                     (r["squared_distance"] for r in rows
                      if r["step"] == step and r["squared_distance"] is not None), None)}
            )  # fmt: skip
    return sorted(points, key=lambda point: (point["gamma"], PARTS.index(point["part"])))
