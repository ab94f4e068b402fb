"""How rankings move while a model is tuned (§4, Fig. 2-7): the four groups, means over pairs."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from ranking.metrics.displacement import LOGPS, displacement_by_group, logp_columns
from ranking.metrics.idealized import required_margin
from ranking.metrics.losses import (
    EQUATION_4,
    PER_TOKEN,
    SUFFICIENT,
    dpop_penalties,
    lowest_loss_margin,
    pair_loss,
)

PROPOSITION_2_6 = 0.6  # nats, a loss of Eq. 4; any bound up to log 2 would do
PARTS = ("train", "validation")  # of the training data; evaluation sets have their own names
SWEPT = ("accuracy", "flipped", "loss", "squared_distance")  # quantities of a sweep over γ
# (ranked correctly by the reference, ranked correctly by the policy) → name
GROUPS = {
    (True, True): "correct_to_correct",
    (True, False): "correct_to_incorrect",
    (False, True): "incorrect_to_correct",
    (False, False): "incorrect_to_incorrect",
}


@np.errstate(invalid="ignore")  # NaN, of pairs that are not finite
def pair_values(
    logps: dict[str, np.ndarray],
    beta: float,
    gamma: float,
    loss_type: str | None = "alpha_scaling",
    *,
    label_smoothing: float = 0.0,
    discopop_tau: float = 0.05,
    target_margin: float = 0.0,
    dpop_lambda: float = 50.0,
) -> dict[str, np.ndarray]:
    """Everything that is logged about pairs, from their log-likelihoods, in float64.

    logps: chosen, rejected, ref_chosen, ref_rejected (n_pairs,), nats, summed (Eq. 13), and
    n_chosen, n_rejected, their numbers of tokens. The loss is Eq. 4; the reward margin is
    β log(π_θ(y_w)π_ref(y_l) / π_θ(y_l)π_ref(y_w)); `meets_theorem_4_1` is Theorem 4.1's
    condition L ≤ −log σ(γβc), compared as margins because losses underflow.
    loss_type: what trains, with what `pair_loss` takes beside it; None: something without a
    threshold. Its value is `trained_loss`, where that is another than Eq. 4's. `meets_threshold`
    is the condition of Remark 4.2 for it, which of SUFFICIENT losses not all pairs meet that are
    ranked rightly; and `wrong_at_lowest_loss`, where one margin has the lowest loss (not hinge,
    whose pairs of loss 0 can be on either side), whether a pair that has it is still ranked
    wrongly.
    Prop. 2.6: `in_proposition_2_6` is π_ref(y_w) ≥ π_ref(y_l) and L ≤ 0.6, of which follows that
    the pair is ranked correctly: L ≤ log 2 iff log-ratio ≥ γ reference log-ratio, which is ≥ 0.
    """
    policy_logratios = or_nan(logps["chosen"] - logps["rejected"])
    ref_logratios = or_nan(logps["ref_chosen"] - logps["ref_rejected"])
    needed = required_margin(ref_logratios, beta, gamma)
    margins = beta * policy_logratios + needed  # β(policy_logratio − γ ref_logratio)
    losses = np.logaddexp(0.0, -margins)
    per_token = {
        side: or_nan(
            logps[f"{side}chosen"] / logps["n_chosen"]
            - logps[f"{side}rejected"] / logps["n_rejected"]
        )
        for side in ("", "ref_")
    }
    values = {
        **logps,
        "loss": losses,
        "reward_margin": beta * (policy_logratios - ref_logratios),
        "tied": policy_logratios == 0,
        "tied_normalized": per_token[""] == 0,
        "correct": policy_logratios >= 0,
        "ref_correct": ref_logratios >= 0,
        "correct_normalized": per_token[""] >= 0,
        "ref_correct_normalized": per_token["ref_"] >= 0,
        "meets_theorem_4_1": margins >= needed,
        "in_proposition_2_6": (ref_logratios >= 0) & (losses <= PROPOSITION_2_6),
    }
    if loss_type is not None:
        policy, ref = policy_logratios, ref_logratios
        if loss_type in PER_TOKEN:
            policy, ref = per_token[""], per_token["ref_"]
        needed = required_margin(ref, beta, gamma, loss_type)
        margins, penalties = beta * policy + needed, np.zeros(len(policy))
        if loss_type in SUFFICIENT:
            penalties = dpop_penalties(logps["chosen"], logps["ref_chosen"], beta, dpop_lambda)
        values["meets_threshold"] = margins - penalties >= needed
        lowest = lowest_loss_margin(loss_type, label_smoothing)
        if math.isfinite(lowest) and loss_type != "hinge":
            values["wrong_at_lowest_loss"] = needed > lowest
        if loss_type not in EQUATION_4:
            values["trained_loss"] = pair_loss(
                margins, loss_type, beta=beta, label_smoothing=label_smoothing,
                discopop_tau=discopop_tau, target_margin=target_margin, penalties=penalties,
            )  # fmt: skip
    return values


def or_nan(values: np.ndarray) -> np.ndarray:
    """The values, NaN in place of infinite ones: a pair that is not finite is wrong on any side."""
    return np.where(np.isfinite(values), values, math.nan)


def rewards_moved(
    chosen, rejected, ref_chosen, ref_rejected, *, rounding: float, n_chosen=1, n_rejected=1
):
    """Whether the chosen completion's reward is the larger, and whether the two tie.

    log π_θ(y_w)/π_ref(y_w) − log π_θ(y_l)/π_ref(y_l) > τ, or within ±τ: what rounding makes of two
    equal models. Let S be the sum of the four |log-likelihoods|. τ = 16 · 2⁻²³ S + 4 · rounding √S:
    sums are float32, and the errors of their terms, of the forward pass's precision, add up as
    independent ones do. For S = 800 nats, τ is 0.002 nats in float32 and 0.9 in bfloat16.
    Log-likelihoods: (n_pairs,), nats, summed, arrays or tensors. n_chosen, n_rejected: numbers of
    tokens, to compare rewards per token, whose errors are divided by them. Returns two of bool.
    NaN: neither.
    """
    moved = (chosen - ref_chosen) / n_chosen - (rejected - ref_rejected) / n_rejected
    sizes = abs(chosen) + abs(ref_chosen), abs(rejected) + abs(ref_rejected)
    size = sizes[0] / n_chosen + sizes[1] / n_rejected
    squares = sizes[0] / n_chosen**2 + sizes[1] / n_rejected**2
    tolerance = 16 * 2.0**-23 * size + 4 * rounding * squares**0.5
    return moved > tolerance, abs(moved) <= tolerance


def summarize_pairs(
    values: dict[str, np.ndarray], beta: float, rounding: float = 2.0**-23
) -> dict[str, float]:
    """Means over pairs by their names on the dashboard; an empty group has no mean and no key.

    rounding: relative error of the forward pass's precision, for `rewards_moved` and `fell`.
    """
    correct, ref_correct = values["correct"], values["ref_correct"]
    chosen_rewards = beta * (values["chosen"] - values["ref_chosen"])
    rejected_rewards = beta * (values["rejected"] - values["ref_rejected"])
    better, same = rewards_moved(**{name: values[name] for name in LOGPS}, rounding=rounding)
    means = {
        "ranking/accuracy": correct,
        "ranking/accuracy_normalized": values["correct_normalized"],
        "ranking/exact_ties": values["tied"],  # which the accuracies count as right
        "ranking/exact_ties_normalized": values["tied_normalized"],
        "ranking/ref_accuracy": ref_correct,
        "ranking/ref_accuracy_normalized": values["ref_correct_normalized"],
        "ranking/meets_theorem_4_1": values["meets_theorem_4_1"],
        "ranking/proposition_2_6": values["in_proposition_2_6"],
        "rewards/accuracies": better,
        "rewards/ties": same,
        "rewards/margins": values["reward_margin"],
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "logps/chosen": values["chosen"],
        "logps/rejected": values["rejected"],
    }
    for name in ("meets_threshold", "wrong_at_lowest_loss"):
        if name in values:
            means[f"ranking/{name}"] = values[name]
    if values["in_proposition_2_6"].any():
        means["ranking/proposition_2_6_right"] = correct[values["in_proposition_2_6"]]
    if not ref_correct.all():
        means["ranking/flipped_to_correct"] = correct[~ref_correct]
    for (before, after), name in GROUPS.items():
        members = (ref_correct == before) & (correct == after)
        means[f"groups/{name}_share"] = members
        if members.any():
            means[f"groups/{name}_loss"] = values["loss"][members]
            means[f"groups/{name}_reward_margin"] = values["reward_margin"][members]
    groups = [GROUPS[bool(before), bool(after)] for before, after in zip(ref_correct, correct)]
    for name, displaced in displacement_by_group(values, groups, rounding).items():
        start = "" if name == "all" else f"{name}_"
        means |= {f"displacement/{start}{k}": v for k, v in displaced.items() if k != "n"}
    return {name: float(np.mean(value)) for name, value in means.items()}


def summary_names() -> list[str]:
    """All that `summarize_pairs` can give: of pairs of every group, by a loss that has all."""
    logps = {
        "chosen": [4.0, 1.0, 2.0, 1.0], "rejected": [1.0, 2.0, 1.0, 2.0],
        "ref_chosen": [2.0, 2.0, 1.0, 1.0], "ref_rejected": [1.0, 1.0, 2.0, 2.0],
        "n_chosen": [1.0] * 4, "n_rejected": [1.0] * 4,
    }  # fmt: skip
    values = pair_values({k: np.array(v) for k, v in logps.items()}, 1.0, 1.0, "ipo")
    return [*summarize_pairs(values, 1.0)]


def finite(value: float) -> float | None:
    """The number, or None (null) where it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None


def summarize_evaluation(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is shown of the pairs of one part at one step (rows of ranking_dynamics.jsonl).

    n, accuracy, mean loss (nats) and reward margin; n_wrong: pairs that the reference ranks
    wrongly; flipped: the share of them that is ranked correctly now, None without any; and by
    group: counts, share, mean group_loss and group_margin.
    """
    groups = {name: [row for row in rows if row["group"] == name] for name in GROUPS.values()}
    counts = {name: len(group) for name, group in groups.items()}
    n_flipped = counts["incorrect_to_correct"]
    n_wrong = n_flipped + counts["incorrect_to_incorrect"]
    return {
        "n": len(rows),
        "gamma": rows[0]["gamma"],
        "accuracy": (counts["correct_to_correct"] + n_flipped) / len(rows),
        "loss": mean_of(rows, "loss"),
        "reward_margin": mean_of(rows, "reward_margin"),
        "n_wrong": n_wrong,
        "flipped": n_flipped / n_wrong if n_wrong else None,
        "counts": counts,
        "share": {name: count / len(rows) for name, count in counts.items()},
        "group_loss": {name: mean_of(group, "loss") for name, group in groups.items()},
        "group_margin": {name: mean_of(group, "reward_margin") for name, group in groups.items()},
    }


def rows_by_step(rows: Sequence[dict[str, Any]], part: str) -> dict[int, list[dict[str, Any]]]:
    """step → the rows of a part, in the order of the steps."""
    ordered = sorted((row for row in rows if row["part"] == part), key=itemgetter("step"))
    return {step: list(evaluated) for step, evaluated in groupby(ordered, itemgetter("step"))}


def means_by_step(rows: Sequence[dict[str, Any]], part: str) -> dict[int, dict[str, Any]]:
    """step → `summarize_evaluation` of a part, in the order of the steps."""
    return {step: summarize_evaluation(own) for step, own in rows_by_step(rows, part).items()}


def displacement_by_step(
    rows: Sequence[dict[str, Any]], part: str
) -> dict[int, dict[str, Mapping[str, Any]]]:
    """step → `displacement_by_group` of a part, in the order of the steps. Older rows do not have
    the rounding of their run: that of float32."""
    return {
        step: displacement_by_group(
            logp_columns(own), [row["group"] for row in own], own[0].get("rounding", 2.0**-23)
        )
        for step, own in rows_by_step(rows, part).items()
    }


def mean_of(rows: list[dict[str, Any]], column: str) -> float:
    """Mean of the finite values of a column; NaN if there are none."""
    values = [row[column] for row in rows if row[column] is not None]
    return float(np.mean(values)) if values else float("nan")


def distances_by_step(rows: Sequence[dict[str, Any]]) -> dict[int, float]:
    """step → ‖θ_t − θ_0‖², where it is known; one part's rows have it."""
    return {r["step"]: r["squared_distance"] for r in rows if r["squared_distance"] is not None}


def parts_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The parts of the data that rows are of: PARTS, and named evaluation sets as they come."""
    found = dict.fromkeys(row["part"] for row in rows)
    return [part for part in dict.fromkeys((*PARTS, *found)) if part in found]


def loss_column(rows: Sequence[dict[str, Any]]) -> str:
    """The key of the loss that trained these rows; Eq. 4's where they do not have it."""
    return "trained_loss" if all("trained_loss" in row for row in rows) else "loss"


def lowest_loss_step(rows: Sequence[dict[str, Any]]) -> int:
    """The step with the lowest mean validation loss (of the first named set where the training
    data's own part is not validated, training loss if nothing is), of the loss that trained
    (`loss_column`).

    A null loss was not finite: a step with more of them than another has not the lower mean.
    """
    parts = parts_of(rows)
    part = next((p for p in ("validation", *parts) if p in parts and p != "train"), "train")
    column, losses = loss_column(rows), defaultdict(list)
    for row in rows:
        if row["part"] == part:
            losses[row["step"]].append(row[column])

    def order(step: int) -> tuple[int, float, int]:
        known = [loss for loss in losses[step] if loss is not None]
        mean = float(np.mean(known)) if known else math.inf
        return len(losses[step]) - len(known), mean, step

    return min(losses, key=order)


def sweep_points(
    files: Sequence[Sequence[dict[str, Any]]], at: str = "lowest-loss"
) -> list[dict[str, Any]]:
    """`summarize_evaluation` of each run (the rows of one ranking_dynamics.jsonl) and part, with
    part, step and squared_distance, at the step of the lowest validation loss or at the last;
    ordered by γ and part."""
    points, parts = [], parts_of([row for rows in files for row in rows])
    for rows in files:
        step = lowest_loss_step(rows) if at == "lowest-loss" else max(row["step"] for row in rows)
        distance = distances_by_step(rows).get(step)
        for part in parts:
            if chosen := rows_by_step(rows, part).get(step):
                points.append(
                    {**summarize_evaluation(chosen), "part": part, "step": step,
                     "squared_distance": distance}
                )  # fmt: skip
    return sorted(points, key=lambda point: (point["gamma"], parts.index(point["part"])))


def means_over_seeds(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the `sweep_points` of each γ and part: gamma, part, n, n_seeds, and of SWEPT quantities
    the (mean, smallest, largest) over seeds, None where no seed has one."""
    rows = []
    for (gamma, part), group in groupby(points, itemgetter("gamma", "part")):
        seeds = list(group)
        row = {"gamma": gamma, "part": part, "n": seeds[0]["n"], "n_seeds": len(seeds)}
        for quantity in SWEPT:
            known = [seed[quantity] for seed in seeds if seed[quantity] is not None]
            row[quantity] = (float(np.mean(known)), min(known), max(known)) if known else None
        rows.append(row)
    return rows
