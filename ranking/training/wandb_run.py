"""The wandb run of a training."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from ranking.plumbing.wandb_runs import start_wandb
from ranking.training.run_directory import read_run


class WandbConfig(TrainerCallback):
    """Writes what the run was over what Trainer knows of it: it says how TRL would cut texts."""

    def __init__(self, run, config: dict[str, Any]):
        self.run, self.config = run, config

    def on_train_begin(self, args, state, control, **kwargs):
        self.run.config.update(self.config, allow_val_change=True)


def start_training_wandb(
    folder: Path,
    facts: dict[str, Any],
    *,
    report_to: Sequence[str],
    project: str | None,
    default_project: str,
    entity: str | None,
    name: str | None,
) -> tuple[Any, list[TrainerCallback]]:
    """The wandb run the Trainer will log to, the same one after a resume, and the callback that
    writes `facts` as its configuration; None and no callback where `report_to` is none.

    Offline as `wandb_runs.start_wandb` says.
    """
    if "wandb" not in report_to or not PartialState().is_main_process:
        return None, []
    run = start_wandb(
        project=project or os.environ.get("WANDB_PROJECT", default_project),
        entity=entity,
        name=name,
        id=read_run(folder)["wandb_id"],
        resume="allow",
        dir=os.environ.get("WANDB_DIR", str(folder)),
    )
    return run, [WandbConfig(run, facts)]
