"""How rankings move while a model is tuned (§4, Fig. 2-4): the four groups, exact means over pairs,
the per-pair file, and the distance travelled in weight space."""

import copy
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ranking_metrics import required_margin
from result_files import append_json_lines, drop_torn_line, read_json_lines, write_json_lines

DYNAMICS_FILE = "ranking_dynamics.jsonl"
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


# ---------------------------------------------------------------------------- per-pair file
def dynamics_rows(
    values: dict[str, np.ndarray], ids: Iterable[str], facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row per pair and evaluation; `facts` (step, epoch, part, …) are the same in each."""
    columns = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    rows = []
    for k, pair in enumerate(ids):
        group = GROUPS[bool(values["ref_correct"][k]), bool(values["correct"][k])]
        rows.append(
            {
                **facts,
                "id": pair,
                "group": group,
                **{name: finite(values[name][k]) for name in columns},
                "n_chosen": int(values["n_chosen"][k]),
                "n_rejected": int(values["n_rejected"][k]),
                **{name: finite(values[name][k]) for name in ("loss", "reward_margin")},
            }
        )
    return rows


def finite(value: float) -> float | None:
    """The number, or None (null) where it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None


def append_dynamics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append the rows of one evaluation."""
    with path.open("ab") as file:
        append_json_lines(file, rows)


def forget_later_steps(path: Path, step: int) -> set[tuple[int, str]]:
    """Drop rows after `step` (and a torn last line); return the (step, part) that stay.

    A resumed run repeats the evaluations after its checkpoint and must not list them twice.
    """
    if not path.exists():
        return set()
    drop_torn_line(path)
    rows = read_json_lines(path)
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        write_json_lines(path, kept)
    return {(row["step"], row["part"]) for row in kept}


# ---------------------------------------------------------------------------- distance
def trained_weights(model) -> Iterator[tuple[str, Any]]:
    """Names and parameters that training can change (tied ones once), but for adapters.

    Names are those of the bare model, whatever checkpointing wraps around its layers.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            yield name.replace("_checkpoint_wrapped_module.", ""), parameter


def initial_weights(model) -> dict[str, Any]:
    """A CPU copy of the weights that training can change; adapters start at 0."""
    return {name: weight.detach().to("cpu", copy=True) for name, weight in trained_weights(model)}


def whole(tensor):
    """The tensor, gathered from all processes if they share it out (FSDP2)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def squared_distance(model, initial: dict[str, Any]) -> float:
    """‖θ − θ_0‖² of the effective weights: adapters merged, tied weights once (Fig. 4).

    Differences are taken in float32 (adapters: float64), the sum in float64. Where weights are
    sharded, all processes call this; those with an empty `initial` only help to gather.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what a forward pass leaves gathered may be in half precision
    total = 0.0
    with torch.no_grad():
        for name, parameter in trained_weights(model):
            current = whole(parameter)
            if initial:
                difference = current.float() - initial[name].to(current.device).float()
                total += float(difference.double().square().sum())
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer) and layer.active_adapters:
                merged = copy.deepcopy(layer).double()  # whatever LoRA variant: what it adds
                merged.merge()
                added = merged.get_base_layer().weight - layer.get_base_layer().weight.double()
                total += float(whole(added).square().sum())
    return total


def read_dynamics(path: Path) -> list[dict[str, Any]]:
    """Rows of a dynamics file; ValueError if it is something else."""
    rows = read_json_lines(path)
    needed = {"step", "part", "id", "group", "loss", "reward_margin", "beta", "gamma"}
    if not rows or not all(needed <= row.keys() for row in rows):
        raise ValueError(f"{path}: not a {DYNAMICS_FILE} of dpo.py")
    return rows
