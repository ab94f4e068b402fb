"""ranking_dynamics.jsonl: the values of every followed pair at every evaluation."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from ranking.metrics.dynamics import GROUPS, finite
from ranking.plumbing.result_files import (
    append_json_lines,
    drop_torn_line,
    read_json_lines,
    write_json_lines,
)


class Evaluation(TypedDict):
    """What the pairs of one evaluation share."""

    step: int
    epoch: float
    part: str  # train, validation, test, or the name of an evaluation set
    beta: float  # β of Eq. 4
    gamma: float  # γ of Eq. 4
    squared_distance: float | None  # ‖θ_t − θ_0‖² (Fig. 4); null: unknown
    loss_type: NotRequired[str]  # what trains, as --loss_type names it; several are joined by +
    target_margin: NotRequired[float]  # of alpha_scaling_norm
    dpop_lambda: NotRequired[float]  # λ of alpha_scaling_dpop
    rounding: NotRequired[float]  # relative error of forward passes, policy's or reference's


class DynamicsRow(Evaluation):
    """A line of ranking_dynamics.jsonl: one pair at one evaluation; null: not finite."""

    id: str
    group: str  # correct_to_correct, …: whether reference and policy rank the pair correctly
    chosen: float | None  # log π_θ(y_w|x), nats, summed over tokens (Eq. 13)
    rejected: float | None  # log π_θ(y_l|x)
    ref_chosen: float | None  # log π_ref(y_w|x)
    ref_rejected: float | None  # log π_ref(y_l|x)
    n_chosen: int  # tokens
    n_rejected: int
    loss: float | None  # of Eq. 4, nats, whichever loss_type trains
    trained_loss: NotRequired[float | None]  # of loss_type alone, where it is a pair's, not Eq. 4's
    reward_margin: float | None  # β (policy log-ratio − reference log-ratio)


def dynamics_rows(
    values: dict[str, np.ndarray], ids: Iterable[str], evaluation: Evaluation
) -> list[DynamicsRow]:
    """A row of each pair, from `pair_values`."""
    rows: list[DynamicsRow] = [
        {
            **evaluation,
            "id": pair,
            "group": GROUPS[bool(values["ref_correct"][k]), bool(values["correct"][k])],
            "chosen": finite(values["chosen"][k]),
            "rejected": finite(values["rejected"][k]),
            "ref_chosen": finite(values["ref_chosen"][k]),
            "ref_rejected": finite(values["ref_rejected"][k]),
            "n_chosen": int(values["n_chosen"][k]),
            "n_rejected": int(values["n_rejected"][k]),
            "loss": finite(values["loss"][k]),
            "reward_margin": finite(values["reward_margin"][k]),
        }
        for k, pair in enumerate(ids)
    ]
    for row, loss in zip(rows, values.get("trained_loss", [])):
        row["trained_loss"] = finite(loss)
    return rows


def append_dynamics(path: Path, rows: Sequence[DynamicsRow]) -> None:
    """Append the rows of one evaluation, of a run whose folder may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        append_json_lines(file, rows)


def forget_later_steps(path: Path, step: int) -> set[tuple[int, str]]:
    """Drop rows after `step` (and a torn last line), a file of no others too; return the
    (step, part) that stay.

    A resumed run repeats the evaluations after its checkpoint and must not list them twice.
    """
    if not path.exists():
        return set()
    drop_torn_line(path)
    rows = read_json_lines(path)
    kept = [row for row in rows if row["step"] <= step]
    if not kept:
        path.unlink()
    elif len(kept) < len(rows):
        write_json_lines(path, kept)
    return {(row["step"], row["part"]) for row in kept}
