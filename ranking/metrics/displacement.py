"""Likelihood displacement: completions that tuning made less likely than the reference has them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from ranking.metrics.intervals import bootstrap_95

LOGPS = ("chosen", "rejected", "ref_chosen", "ref_rejected")
MOVES = (  # columns of `Displacement`
    "chosen_fell", "rejected_fell", "both_fell", "mean_chosen_change", "mean_rejected_change",
)  # fmt: skip


class Displacement(TypedDict):
    """Where the log-likelihoods of some pairs went. Without pairs, shares and means are null."""

    n: int  # pairs whose changes are finite
    chosen_fell: float | None  # share whose preferred completion is less likely, beyond rounding
    rejected_fell: float | None
    both_fell: float | None
    mean_chosen_change: float | None  # nats; per token where the row is length-normalized
    mean_rejected_change: float | None


class DisplacementWithIntervals(Displacement):
    """`Displacement` of all pairs, with bootstrap intervals over prompts."""

    chosen_fell_95: list[float | None]
    rejected_fell_95: list[float | None]
    both_fell_95: list[float | None]
    mean_chosen_change_95: list[float | None]
    mean_rejected_change_95: list[float | None]


def logp_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """LOGPS of rows of pairs, (n_pairs,) each, nats, float64; null is NaN."""
    return {name: np.array([row[name] for row in rows], dtype=float) for name in LOGPS}


def fell(logps: np.ndarray, ref_logps: np.ndarray, rounding: float) -> np.ndarray:
    """Whether log π_θ(y|x) < log π_ref(y|x) − τ, the tolerance τ of `rewards_moved` with
    S = |log π_θ(y|x)| + |log π_ref(y|x)|: what rounding makes of two equal models. NaN: no."""
    size = abs(logps) + abs(ref_logps)
    return logps - ref_logps < -(16 * 2.0**-23 * size + 4 * rounding * size**0.5)


def moves_of(
    logps: Mapping[str, np.ndarray],
    rounding: float,
    n_chosen: np.ndarray | int = 1,
    n_rejected: np.ndarray | int = 1,
) -> dict[str, np.ndarray]:
    """MOVES of each pair, (n_pairs,): whether its completions fell, and by what they changed, nats.

    logps: LOGPS (n_pairs,), nats, summed (Eq. 13). n_chosen, n_rejected: what changes are divided
    by. rounding: relative error of the forward pass.
    """
    chosen, rejected = (
        fell(logps[side], logps[f"ref_{side}"], rounding) for side in ("chosen", "rejected")
    )
    return {
        "chosen_fell": chosen,
        "rejected_fell": rejected,
        "both_fell": chosen & rejected,
        "mean_chosen_change": (logps["chosen"] - logps["ref_chosen"]) / n_chosen,
        "mean_rejected_change": (logps["rejected"] - logps["ref_rejected"]) / n_rejected,
    }


def displacement(moves: Mapping[str, np.ndarray], members: np.ndarray) -> Displacement:
    """Of some pairs, without those that have a log-likelihood that is not finite.

    moves: of all pairs, as `moves_of`; members: (n_pairs,) of bool.
    """
    own = finite_members(moves, members)
    found: Any = {"n": int(own.sum())}
    return found | {name: float(moves[name][own].mean()) if own.any() else None for name in MOVES}


def displacement_with_intervals(
    moves: Mapping[str, np.ndarray], clusters: Sequence[str], seed: int
) -> DisplacementWithIntervals:
    """`displacement` of all pairs; clusters: their prompts, which the bootstrap draws."""
    everything = np.ones(len(clusters), dtype=bool)
    known = finite_members(moves, everything)
    own = [cluster for cluster, is_known in zip(clusters, known) if is_known]
    found: Any = displacement(moves, everything)
    for name in MOVES:
        found[f"{name}_95"] = bootstrap_95(moves[name][known], own, seed) if own else [None, None]
    return found


def finite_members(moves: Mapping[str, np.ndarray], members: np.ndarray) -> np.ndarray:
    """Which of the members have finite changes."""
    return members & np.isfinite(moves["mean_chosen_change"] + moves["mean_rejected_change"])


def displacement_by_group(
    logps: Mapping[str, np.ndarray], groups: Iterable[str], rounding: float = 2.0**-23
) -> dict[str, Mapping[str, Any]]:
    """`displacement` of `all` pairs and of each group that has some; without a finite pair, {}.

    logps, rounding: as `moves_of`. groups: of each pair.
    """
    moves = moves_of(logps, rounding)
    names = np.array(list(groups))
    members = {"all": np.ones(len(names), dtype=bool)}
    members |= {str(name): names == name for name in dict.fromkeys(names)}
    found = {name: displacement(moves, own) for name, own in members.items()}
    return {name: moved for name, moved in found.items() if moved["n"] > 0}
