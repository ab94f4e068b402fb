"""Which wrongly ranked pairs tuning flips (§4): how many, and whether those of small c come first.

c = log π_ref(y_l|x) − log π_ref(y_w|x), summed, nats; a pair with c > 0 is ranked wrongly by the
reference. By Theorem 4.1 the loss at which a pair is ranked correctly, −log σ(γβc), falls with c:
of pairs that reach like losses, those of small c flip.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from ranking.metrics.displacement import logp_columns
from ranking.metrics.dynamics import lowest_loss_step, parts_of, rewards_moved, rows_by_step
from ranking.metrics.idealized import required_margin
from ranking.metrics.intervals import auc, auc_95, wilson_interval

PAIRS_PER_GROUP_BY_C = 10  # at least, of groups by c
MOST_GROUPS_BY_C = 10
PLACES = re.compile(r":\d+>\d+$")  # behind an example's id, in that of one of its several pairs


class CountedShare(TypedDict):
    """k of n pairs, with Wilson's interval; of no pairs, null."""

    k: int
    n: int
    value: float | None
    wilson_95: tuple[float | None, float | None]


class Flips(TypedDict):
    """What became of the pairs of one part of the data at one step."""

    part: str  # train, validation, test, or the name of an evaluation set
    step: int
    gamma: float
    n: int
    flipped_to_correct: CountedShare  # of the pairs that the reference ranks wrongly
    flipped_to_incorrect: CountedShare  # of the pairs that it ranks correctly
    accuracy: CountedShare  # ranking accuracy, Def. 2.3
    reward_accuracy: CountedShare  # the chosen completion's reward is the larger, beyond rounding
    n_reward_ties: int  # rewards that differ by less than rounding makes of two equal models
    auc: float | None  # P(c of a flipped pair < c of one that stays wrong), ties half
    auc_95: list[float | None]  # bootstrap over examples
    n_against_theorem: int  # whose recorded loss says by Theorem 4.1 another ranking than they have
    n_loss_cannot_tell: int  # whose loss is within rounding of the threshold, or null


def share_of(members: np.ndarray) -> CountedShare:
    """How many of (n_pairs,) of bool are true."""
    k, n = int(members.sum()), len(members)
    if n == 0:
        return {"k": 0, "n": 0, "value": None, "wilson_95": (None, None)}
    return {"k": k, "n": n, "value": k / n, "wilson_95": wilson_interval(k, n)}


def logratios(logps: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The policy's and the reference's log π(y_w|x) − log π(y_l|x), (n_pairs,) each, nats."""
    return logps["chosen"] - logps["rejected"], logps["ref_chosen"] - logps["ref_rejected"]


def margins_of_losses(losses: np.ndarray) -> np.ndarray:
    """The margins m of Eq. 4's losses L = log(1 + e^(−m)), nats: m = −log(e^L − 1).

    As −L − log(1 − e^(−L)), which neither overflows nor cancels; L = 0: ∞. losses: (n_pairs,) ≥ 0.
    """
    with np.errstate(divide="ignore"):
        return -losses - np.log(-np.expm1(-losses))


def meets_theorem(
    losses: np.ndarray, ref_logratios: np.ndarray, beta: float, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Theorem 4.1's condition L ≤ −log σ(γβc), and where float64 cannot tell, (n_pairs,) of bool.

    losses: Eq. 4's, nats, as recorded; ref_logratios: −c, nats. Compared as margins, m ≥ γβc, with
    what rounding leaves open: m is between the margins of L ± 4 units in its last place (of L = 0,
    which underflowed, between 743 and ∞), γβc within 4 of its own. NaN: no, and cannot tell.
    """
    needed, rounding = required_margin(ref_logratios, beta, gamma), 4 * np.spacing(losses)
    lowest = margins_of_losses(losses + rounding)
    highest = margins_of_losses(np.maximum(losses - rounding, 0.0))
    open_by = 4 * np.spacing(abs(needed))
    meets, fails = lowest >= needed + open_by, highest < needed - open_by
    return meets, ~(meets | fails)


def summarize_flips(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> Flips:
    """`Flips` of rows of one part at one step; seed: of the bootstrap. Without rows: ValueError.

    A log-likelihood that is not finite: wrong, as `group` has it, and no part of the AUC where it
    is the reference's.
    """
    if not rows:
        raise ValueError("no rows of this part at this step")
    first, logps = rows[0], logp_columns(rows)
    policy, ref = logratios(logps)
    losses = np.array([row["loss"] for row in rows], dtype=float)
    meets, cannot_tell = meets_theorem(losses, ref, first["beta"], first["gamma"])
    groups = [row["group"].split("_to_") for row in rows]
    before, after = np.array([[side == "correct" for side in group] for group in groups]).T
    better, same = rewards_moved(**logps, rounding=first.get("rounding", 2.0**-23))
    wrong = ~before & np.isfinite(ref)
    examples = [PLACES.sub("", row["id"]) for row, is_wrong in zip(rows, wrong) if is_wrong]
    return {
        "part": first["part"],
        "step": first["step"],
        "gamma": first["gamma"],
        "n": len(rows),
        "flipped_to_correct": share_of(after[~before]),
        "flipped_to_incorrect": share_of(~after[before]),
        "accuracy": share_of(after),
        "reward_accuracy": share_of(better),
        "n_reward_ties": int(same.sum()),
        "auc": auc(ref[wrong], after[wrong]),  # of the log-ratio −c: larger for those of small c
        "auc_95": auc_95(ref[wrong], after[wrong], examples, seed),
        "n_against_theorem": int((~cannot_tell & (meets != (policy >= 0))).sum()),
        "n_loss_cannot_tell": int(cannot_tell.sum()),
    }


def flips_of_run(rows: Sequence[dict[str, Any]], seed: int = 0) -> list[Flips]:
    """`Flips` of each part of a run at the lowest validation loss, and at the last step of the part
    where that is another. rows: of ranking_dynamics.jsonl."""
    best, found = lowest_loss_step(rows), []
    for part in parts_of(rows):
        own = rows_by_step(rows, part)
        steps = sorted({best, max(own)} & own.keys())
        found += [summarize_flips(own[step], seed) for step in steps]
    return found


def wrong_pairs(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """c > 0 and the policy's log-ratio of the pairs that the reference ranks wrongly, both nats,
    ordered by c; pairs with a log-likelihood that is not finite are left out."""
    policy, ref = logratios(logp_columns(rows))
    own = np.flatnonzero((ref < 0) & np.isfinite(policy))
    own = own[np.argsort(-ref[own], kind="stable")]
    return -ref[own], policy[own]


def flipped_by_c(cs: np.ndarray, policy_logratios: np.ndarray) -> list[dict[str, Any]]:
    """Quantile groups of c: their `lowest`, `highest` c (nats), and the `CountedShare` flipped.

    cs: (n_wrong,), ascending, as `wrong_pairs` has them. As many groups of like size as have
    PAIRS_PER_GROUP_BY_C pairs each, MOST_GROUPS_BY_C at most.
    """
    n_groups = min(MOST_GROUPS_BY_C, max(1, len(cs) // PAIRS_PER_GROUP_BY_C))
    return [
        {"lowest": float(c[0]), "highest": float(c[-1]), **share_of(ratios >= 0)}
        for c, ratios in zip(
            np.array_split(cs, n_groups), np.array_split(policy_logratios, n_groups)
        )
        if len(c)
    ]
