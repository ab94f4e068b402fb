"""ranking_dynamics.jsonl: the values of every followed pair at every evaluation."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ranking.metrics.dynamics import GROUPS, finite
from ranking.plumbing.result_files import (
    append_json_lines,
    drop_torn_line,
    read_json_lines,
    write_json_lines,
)


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
