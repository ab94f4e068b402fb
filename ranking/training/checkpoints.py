"""The checkpoints of a run: which of them are whole, and which step the saved model is."""

import json
import re
import zipfile
from pathlib import Path
from typing import NotRequired, TypedDict

from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ranking.plumbing.processes import announce


def step_of(folder: str | Path) -> int | None:
    """The step of a directory checkpoint-STEP; None where it is called otherwise."""
    found = re.fullmatch(r"checkpoint-(\d+)", Path(folder).name)
    return int(found[1]) if found else None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint directories of a run, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if step_of(path) is not None]
    return sorted(found, key=step_of, reverse=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that a run can go on from; those that are passed over are said."""
    for path in checkpoints(folder):
        fault = checkpoint_fault(path)
        if fault is None:
            return path
        announce(f"{path} {fault}: not resumed from")
    return None


def checkpoint_fault(path: Path) -> str | None:
    """Why nothing can be resumed from `path`, or None. Files are opened, weights not read."""
    try:
        json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # saved last
    except (OSError, ValueError):
        return "was not saved to the end"
    files = [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file):
                raise ValueError("no archive of torch")
        except (SafetensorError, OSError, ValueError):
            return f"has a damaged file ({file.name})"
    folders = [file for file in path.iterdir() if file.is_dir()]  # FSDP's and DeepSpeed's shards
    if not any(p.name.startswith(("optimizer", "global_step")) for p in (*files, *folders)):
        return "has no optimizer state (--save_only_model)"
    if not any(file.suffix == ".safetensors" for file in files) and not folders:
        return "has no weights"
    for index in path.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := [shard for shard in shards if not (path / shard).exists()]:
            return f"lacks {missing[0]}"
    return None


def checkpoint_state(path: str | Path) -> TrainerState:
    """Where the training stood that a checkpoint is of."""
    return TrainerState.load_from_json(str(Path(path) / TRAINER_STATE_NAME))


def best_metric_name(metric_for_best_model: str | None) -> str:
    """The logged name of --metric_for_best_model."""
    return f"eval_{(metric_for_best_model or 'loss').removeprefix('eval_')}"


class EarlyStop(TypedDict):
    """Where early stopping ended a run: after `patience` evaluations in which `metric` was not
    better than before, by more than `threshold`."""

    step: int
    metric: str
    patience: int
    threshold: float


class SavedStep(TypedDict):
    """Which step of a run its saved model is, and why (in run_config.json, test_results.json)."""

    step: int
    max_steps: int  # of the whole run
    chosen_by: str  # "last", or the metric whose best evaluation it is
    value: NotRequired[float]  # of that metric
    stopped_early: NotRequired[EarlyStop]


def saved_step(state: TrainerState, best_by: str | None, greater_is_better: bool) -> SavedStep:
    """Which step the saved model is. best_by: the metric that chose it, by its logged name, better
    if greater or smaller; None: the last step."""
    step: SavedStep = {
        "step": state.global_step, "max_steps": state.max_steps, "chosen_by": "last",
    }  # fmt: skip
    if best_by is None:
        return step
    if state.best_model_checkpoint is None:
        announce(f"no evaluation had a best {best_by}: the saved model is the last one")
        return step
    best = state.best_metric
    for entry in state.log_history:
        value = entry.get(best_by) if entry["step"] == 0 else None
        if value is not None and (value > best if greater_is_better else value < best):
            announce(
                f"{best_by} was {value:.4f} before training, better than at any evaluation of it: "
                "the saved model is the best of training"
            )
    chosen = step_of(state.best_model_checkpoint)
    return {**step, "step": chosen, "chosen_by": best_by, "value": best}


def describe_step(step: SavedStep) -> str:
    """`saved_step` in words."""
    why = "the last"
    if step["chosen_by"] != "last":
        why = f"the best {step['chosen_by']}, {step['value']:.4f}"
    text = f"step {step['step']} of {step['max_steps']}, {why}"
    if (stop := step.get("stopped_early")) is None:
        return text
    more = f" by more than {stop['threshold']:g}" if stop["threshold"] else ""
    n = stop["patience"]
    times = "the last evaluation" if n == 1 else f"the last {n} evaluations"
    return (
        f"{text}; stopped early at step {stop['step']}: {stop['metric']} was no better{more} in "
        f"{times}"
    )
