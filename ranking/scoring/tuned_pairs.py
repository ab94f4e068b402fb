"""Rated pairs joined with what tuning made of them, from dpo.py's dynamics files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ranking.data.conversions import pair_id
from ranking.metrics.tuned_loss import (
    BestStep,
    best_step,
    check_one_setting,
    matching_rows,
    tuned_columns,
)
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record
from ranking.reports.dynamics import read_dynamics


def read_runs(files: Sequence[str]) -> dict[str, BestStep]:
    """File → the run's pairs at its lowest validation loss. ValueError for runs of different
    settings, and for a file given twice."""
    if len({Path(file).resolve() for file in files}) < len(files):
        raise ValueError("--dynamics: a file is given twice, give each run once")
    runs = {file: best_step(read_dynamics(Path(file))) for file in files}
    check_one_setting(runs)
    return runs


def add_tuned_losses(pairs: Sequence[Record], runs: dict[str, BestStep]) -> None:
    """Give each pair its `TunedColumns`; lines say how many were joined. ValueError for a run of
    another reference, or of other pairs."""
    if not runs:
        return
    records = [pair["record"] for pair in pairs]
    ids = [
        pair_id(record["id"], len(record["completions"]), pair["winner"], pair["loser"])
        for record, pair in zip(records, pairs)
    ]
    logps = [
        [record["completions"][pair[side]]["logp"] for side in ("winner", "loser")]
        for record, pair in zip(records, pairs)
    ]
    found = []
    for file, run in runs.items():
        try:
            rows, n_left_out = matching_rows(ids, np.array(logps, dtype=float), run)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        found.append(rows)
        n_joined = sum(row is not None for row in rows)
        line = f"{file}: step {run.step}, {n_joined} of {len(pairs)} pairs joined"
        if n_left_out:
            line += f"; {n_left_out} left out: another reference log-likelihood, or no loss"
        announce(line)
    for pair, *rows_of_runs in zip(pairs, *found):
        pair.update(tuned_columns(rows_of_runs))
    if len(runs) > 1:
        n_joined = sum(pair["n_runs"] > 0 for pair in pairs)
        announce(f"{n_joined} of {len(pairs)} pairs are in at least one of the {len(runs)} runs")
