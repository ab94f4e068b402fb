"""The loss that several runs of one setting leave each pair with (Tables 7 to 9, App. F)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ranking.metrics.dynamics import lowest_loss_step
from ranking.metrics.idealized import PairRow, TunedColumns

SETTING = {"beta": "β", "gamma": "γ", "loss_type": "loss", "target_margin": "target margin",
           "dpop_lambda": "λ"}  # fmt: skip


class BestStep(NamedTuple):
    """The rows of a run's ranking_dynamics.jsonl at the step with the lowest validation loss."""

    step: int
    rows: dict[str, Mapping[str, Any]]  # by id of the pair, of both parts


def best_step(rows: Sequence[Mapping[str, Any]]) -> BestStep:
    step = lowest_loss_step([dict(row) for row in rows])
    return BestStep(step, {row["id"]: row for row in rows if row["step"] == step})


def check_one_setting(runs: Mapping[str, BestStep]) -> None:
    """ValueError where runs, by their files, differ in β, γ or loss: no seeds of one setting."""
    first: dict[str, tuple[str, Any]] = {}
    for file, run in runs.items():
        row = next(iter(run.rows.values()))
        for key, name in SETTING.items():
            if row.get(key) is None:
                continue  # older files do not name the loss, and others have no λ
            other, value = first.setdefault(key, (file, row[key]))
            if value != row[key]:
                raise ValueError(
                    f"{other} has {name} {value}, {file} {row[key]}: a mean is over runs of one "
                    "setting, give those of one"
                )


def contradicts(logps: np.ndarray, others: np.ndarray, width: float = 8.0) -> np.ndarray:
    """Whether two log-likelihoods of a text under one model differ by more than bfloat16 makes.

    |a − b| > width · 2⁻⁷ √S, S = |a| + |b|: 1.5 nats for S = 600 (seen: 1 to 3 at most). NaN: yes.
    """
    return ~(abs(logps - others) <= width * 2.0**-7 * (abs(logps) + abs(others)) ** 0.5)


def matching_rows(
    ids: Sequence[str], ref_logps: np.ndarray, run: BestStep
) -> tuple[list[Mapping[str, Any] | None], int]:
    """The row of a run for each pair (None: not followed), and how many others were left out.

    ref_logps: (n_pairs, 2), of the preferred and the other completion, nats, summed. Left out are
    pairs whose reference log-likelihoods contradict these widely (seen: 5 of 54 of one model in
    bfloat16 contradict those in float32, by up to 1.8 times what `contradicts` allows), and those
    without a loss. ValueError where no pair is followed, and where most contradict: that is another
    reference.
    """
    found = [run.rows.get(pair) for pair in ids]
    places = [k for k, row in enumerate(found) if row is not None]
    if not places:
        raise ValueError("none of its pairs is among the examples (ids differ): tune on these data")
    rows = [run.rows[ids[k]] for k in places]
    own = np.array([[row["ref_chosen"], row["ref_rejected"]] for row in rows], dtype=float)
    wrong = contradicts(own, ref_logps[places]).any(axis=1)
    if wrong.mean() > 0.5:
        apart = np.nanmedian(abs(own - ref_logps[places])[wrong])
        raise ValueError(
            f"its reference log-likelihoods of {wrong.sum()} of {len(places)} pairs are not those "
            f"of the examples (median difference {apart:.2g} nats): another reference, or its "
            "texts were made otherwise (end of text, template)"
        )
    cut_otherwise = contradicts(own, ref_logps[places], width=24).any(axis=1)
    left_out = cut_otherwise | np.array([row["loss"] is None for row in rows])
    for k, is_out in zip(places, left_out):
        if is_out:
            found[k] = None
    return found, int(left_out.sum())


def tuned_columns(rows_of_runs: Sequence[Mapping[str, Any] | None]) -> TunedColumns:
    """Of one pair, from its row in each run."""
    rows = [row for row in rows_of_runs if row is not None]
    return {
        "tuned_loss": float(np.mean([row["loss"] for row in rows])) if rows else None,
        "n_runs": len(rows),
        "flipped_in": sum(row["group"].endswith("_to_correct") for row in rows),
    }


class FollowedPair(TypedDict):
    """A pair that runs followed, over the references from which they started (SFT seeds)."""

    id: str  # of the example
    winner: int
    loser: int
    c: float  # mean over references, nats
    tuned_loss: float  # mean over runs
    n_runs: int
    flipped_in: int  # of these, those that rank it correctly


def followed_pairs(rows: Sequence[PairRow]) -> list[FollowedPair]:
    """The untied pairs that a run follows, of NAME.pairs.jsonl files, one of each reference.

    ValueError for rows written without --dynamics, of several γ, or of which none is followed.
    """
    if not all("n_runs" in row for row in rows):
        raise ValueError("pairs without losses: run calculate_upper_bound_rlhf.py with --dynamics")
    if len({row["gamma"] for row in rows}) > 1:
        raise ValueError("pairs of several γ: give files of one")
    by_pair = defaultdict(list)
    for row in rows:
        if row["n_runs"] and not row["tied"]:
            by_pair[row["id"], row["winner"], row["loser"]].append(row)
    if not by_pair:
        raise ValueError("no pair is followed by a run")
    return [
        {"id": id_, "winner": winner, "loser": loser,
         "c": float(np.mean([row["c"] for row in own])),
         "tuned_loss": float(np.average(
             np.array([row["tuned_loss"] for row in own], dtype=float),
             weights=[row["n_runs"] for row in own],
         )),
         "n_runs": sum(row["n_runs"] for row in own),
         "flipped_in": sum(row["flipped_in"] for row in own)}
        for (id_, winner, loser), own in by_pair.items()
    ]  # fmt: skip


def pairs_by_kind(pairs: Sequence[FollowedPair], n: int) -> dict[str, list[FollowedPair]]:
    """Tables 7 to 9: the n pairs of smallest c, of largest c, and of smallest c > 0."""
    ordered = sorted(pairs, key=itemgetter("c"))
    return {
        "easy": ordered[:n],
        "hard": ordered[::-1][:n],
        "easy to flip": [pair for pair in ordered if pair["c"] > 0][:n],
    }
