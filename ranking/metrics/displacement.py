"""Likelihood displacement: completions that tuning made less likely than the reference has them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

LOGPS = ("chosen", "rejected", "ref_chosen", "ref_rejected")


def fell(logps: np.ndarray, ref_logps: np.ndarray, rounding: float) -> np.ndarray:
    """Whether log π_θ(y|x) < log π_ref(y|x) − τ, the tolerance τ of `rewards_moved` with
    S = |log π_θ(y|x)| + |log π_ref(y|x)|: what rounding makes of two equal models. NaN: no."""
    size = abs(logps) + abs(ref_logps)
    return logps - ref_logps < -(16 * 2.0**-23 * size + 4 * rounding * size**0.5)


def displacement_by_group(
    logps: Mapping[str, np.ndarray], groups: Iterable[str], rounding: float = 2.0**-23
) -> dict[str, dict[str, float]]:
    """Of `all` pairs and of each group that has some: n, the shares chosen_fell, rejected_fell and
    both_fell, and mean_chosen_change and mean_rejected_change, log π_θ − log π_ref, nats.

    logps: LOGPS (n_pairs,), nats, summed (Eq. 13). A pair with a value that is not finite is left
    out; without any there are no means, {}. rounding: relative error of the forward pass.
    """
    chosen_fell = fell(logps["chosen"], logps["ref_chosen"], rounding)
    rejected_fell = fell(logps["rejected"], logps["ref_rejected"], rounding)
    columns = {
        "chosen_fell": chosen_fell,
        "rejected_fell": rejected_fell,
        "both_fell": chosen_fell & rejected_fell,
        "mean_chosen_change": logps["chosen"] - logps["ref_chosen"],
        "mean_rejected_change": logps["rejected"] - logps["ref_rejected"],
    }
    known = np.isfinite([logps[name] for name in LOGPS]).all(axis=0)
    names = np.array(list(groups))
    members = {"all": known} | {name: known & (names == name) for name in dict.fromkeys(names)}
    return {
        str(name): {"n": int(own.sum()), **{k: float(v[own].mean()) for k, v in columns.items()}}
        for name, own in members.items()
        if own.any()
    }


def displacement_by_step(
    rows: Sequence[Mapping[str, Any]], part: str
) -> dict[int, dict[str, dict[str, float]]]:
    """step → `displacement_by_group` of a part, from the rows of ranking_dynamics.jsonl, in the
    order of the steps. Older rows do not have the rounding of their run: that of float32."""
    ordered = sorted((row for row in rows if row["part"] == part), key=itemgetter("step"))
    found = {}
    for step, evaluated in groupby(ordered, itemgetter("step")):
        pairs = list(evaluated)
        logps = {name: np.array([pair[name] for pair in pairs], dtype=float) for name in LOGPS}
        rounding = pairs[0].get("rounding", 2.0**-23)
        found[step] = displacement_by_group(logps, (pair["group"] for pair in pairs), rounding)
    return found
