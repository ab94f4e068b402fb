"""The output directory of a training run: claimed by one process, resumed by the same command.

`run_config.json` marks a directory as a run's own: it records the settings that a resumed run must
share, its id in trackers, whether it is finished, and which step its model is. Without it nothing
is ever discarded.
"""

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from accelerate import PartialState

from ranking.data.examples import PreferenceData, fingerprint
from ranking.plumbing.outputs import lock_outputs
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import read_config, write_json
from ranking.reports.dynamics import DYNAMICS_FILE
from ranking.reports.model_card import CARD_FILE, is_run_card
from ranking.scoring.models import model_fingerprint
from ranking.training.checkpoints import (
    SavedStep,
    checkpoint_fault,
    checkpoints,
    last_checkpoint,
    step_of,
)
from ranking.training.help_texts import successor

RUN_FILE = "run_config.json"
TEST_FILE = "test_results.json"
# beside an adapter: what it was trained on, and it merged into that
BASE, MERGED = "base", "merged"
BESIDE_ADAPTERS = (BASE, MERGED)
# what a resumed run may change
HARMLESS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "run_name", "report_to",
    "wandb_project", "wandb_entity", "log_level", "log_level_replica", "disable_tqdm",
    "save_total_limit", "merge_adapter", "local_rank", "ddp_timeout", "dataloader_num_workers",
    "dataloader_pin_memory", "project", "push_to_hub", "hub_model_id", "hub_strategy",
    "hub_private_repo", "hub_always_push", "hub_revision", "trackio_space_id",
    "trackio_bucket_id", "trackio_static_space_id", "tokens_per_batch",
}  # fmt: skip


def run_description(
    flags: Sequence[Mapping[str, Any]],
    models: Sequence[tuple[str, str | None]],
    parts: dict[str, PreferenceData],
    retired: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Every setting a resumed run must share, with fingerprints of the models and the data.

    flags: the values of data, model and training flags; those `retired` cannot be given, so that
    theirs mean nothing. models: names with their revisions. Their order is that of the file, which
    a fingerprint of the directory covers.
    """
    settings: dict[str, Any] = {
        "model_fingerprints": [model_fingerprint(name, revision) for name, revision in models],
        "data_fingerprints": {part: fingerprint(data.examples) for part, data in parts.items()},
        "n_processes": PartialState().num_processes,  # a step's batch depends on it
    }
    for values in flags:
        for name in sorted(values.keys() - HARMLESS):
            if successor(name, retired or {}) is None:
                settings[name] = values[name]
    return json.loads(json.dumps(settings, default=str))


def claim_directory(
    folder: Path,
    settings: dict[str, Any],
    overwrite: bool,
    checkpoint: str | None,
    model_names: Sequence[str],
) -> str | None:
    """Claim the directory; return the checkpoint to resume from, or None to start from scratch.

    The same command resumes an unfinished run from its last whole checkpoint. `overwrite` discards
    a finished run, or one with other settings, which gives way by itself where it trained nothing.
    `checkpoint`: where a run that has none of its own starts. ValueError where the directory holds
    something else or a model that is read.
    """
    state = PartialState()
    for name in model_names:
        path = Path(name).resolve()
        if path.exists() and folder.resolve() in (path, *path.parents):
            raise ValueError(f"the model {name} lies in --output_dir {folder}: choose another")
    asked = Path(checkpoint).resolve() if checkpoint else None
    if asked is not None:
        fault = checkpoint_fault(asked) if asked.is_dir() else "is no directory"
        if fault is None and overwrite and asked.parent == folder.resolve():
            fault = "would be discarded by --overwrite_output_dir"
        if fault is not None:
            raise ValueError(
                f"--resume_from_checkpoint {checkpoint} {fault}: leave the flag out, the same "
                "command resumes by itself"
            )
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        lock_outputs(folder / RUN_FILE)
    earlier = read_run(folder)
    known = earlier["settings"] if earlier else settings
    differing = [  # what an earlier version did not record was not set
        name for name, value in settings.items()
        if (value != known[name] if name in known else bool(value))
    ]  # fmt: skip
    gives_way = bool(differing) and not trained_names(folder)
    state.wait_for_everyone()  # all have read before one writes
    if gives_way:
        announce(
            f"{folder}: the run there had other settings ({', '.join(differing)}) and trained "
            "nothing: starting anew"
        )
        if state.is_main_process:
            (folder / RUN_FILE).unlink()
        earlier = None
    elif earlier is not None and overwrite and (earlier["finished"] or differing):
        if state.is_main_process:
            discard_run(folder)
        earlier = None
    elif earlier is None:
        check_no_model(folder)
    elif earlier["finished"]:
        raise ValueError(
            f"{folder} holds a finished run: choose another --output_dir, or pass "
            "--overwrite_output_dir"
        )
    elif differing:
        raise ValueError(
            f"{folder} holds an unfinished run with other settings ({', '.join(differing)} "
            "differ): use the same flags, another --output_dir, or --overwrite_output_dir"
        )
    if earlier is not None:
        own = last_checkpoint(folder)
        if own and asked and asked.parent == folder.resolve() and asked != own.resolve():
            raise ValueError(
                f"{own} is newer than --resume_from_checkpoint {checkpoint}: leave the flag out "
                "to go on from there, or delete it to go back"
            )
        checkpoint = str(own) if own else checkpoint
        announce(
            f"resuming from {checkpoint}" if checkpoint else "no checkpoint yet: starting over"
        )
        return checkpoint
    state.wait_for_everyone()
    if state.is_main_process:
        mark_run(folder, settings, finished=False)
    state.wait_for_everyone()
    return checkpoint


class TrainingRun(TypedDict):
    """run_config.json."""

    finished: bool  # trained, evaluated and saved to the end
    wandb_id: str  # of the run in trackers, with which a resumed run goes on
    model: NotRequired[SavedStep]  # of a finished run
    diverged: NotRequired[int]  # of an unfinished run: the step whose loss was not finite
    settings: dict[str, Any]  # `run_description`: what a resumed run must share


class Results(TypedDict):
    """test_results.json. Beside these keys, the metrics of the test split by Trainer's
    names: test_loss, and of dpo.py test_ranking/accuracy, test_rewards/margins, …"""

    n: int  # pairs or texts
    model: SavedStep


def read_run(folder: Path) -> TrainingRun | None:
    """What `mark_run` wrote, or None; ValueError where the file is something else."""
    path = folder / RUN_FILE
    if not path.exists():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        known = {"finished": bool, "settings": dict, "wandb_id": str}
        if all(isinstance(run[key], kind) for key, kind in known.items()):
            return run
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is not what a training run wrote: choose another --output_dir")


def mark_run(
    folder: Path, settings: dict[str, Any], finished: bool, model: SavedStep | None = None
) -> None:
    """Record the run's settings, its wandb id, whether it is finished, and with which model."""
    earlier = read_run(folder)
    record: dict[str, Any] = {
        "finished": finished,
        "wandb_id": earlier["wandb_id"] if earlier else uuid.uuid4().hex[:8],
        **({"model": model} if model else {}),
        "settings": settings,
    }
    write_json(folder / RUN_FILE, record)


def mark_diverged(folder: Path, step: int) -> None:
    """Record that an unfinished run met a loss that is not finite; the same command meets it
    again."""
    run = read_run(folder)
    if run is not None:
        run["diverged"] = step
        write_json(folder / RUN_FILE, run)


def finish_run(
    folder: Path, settings: dict[str, Any], model: SavedStep, test: dict[str, float], n: int
) -> None:
    """Write the metrics of the `n` pairs or texts of the test split, and mark the run finished."""
    results: Results = {"n": n, "model": model}
    write_json(folder / TEST_FILE, {**results, **test})
    mark_run(folder, settings, finished=True, model=model)


def discard_run(folder: Path) -> None:
    """Delete what an earlier run wrote; its mark goes last, so that a kill leaves it a run's."""
    for old in checkpoints(folder):
        shutil.rmtree(old)
    for name in (*BESIDE_ADAPTERS, "trackio", "mlartifacts"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if has_run_card(folder):
        (folder / CARD_FILE).unlink()
    for pattern in (DYNAMICS_FILE, "trainer_state.json", "config.json", "adapter_*",
                    "model*.safetensors*", "runs/events.out.tfevents.*", "mlflow.db", TEST_FILE,
                    RUN_FILE):  # fmt: skip
        for old in folder.glob(pattern):
            old.unlink()


def trained_names(folder: Path) -> list[str]:
    """The checkpoints, model and results that a run left in its directory."""
    patterns = ("config.json", "model*.safetensors*", "adapter_*", DYNAMICS_FILE, TEST_FILE)
    found = [path for pattern in patterns for path in folder.glob(pattern) if path.stat().st_size]
    return [path.name for path in (*checkpoints(folder), *found)]


def check_no_model(folder: Path) -> None:
    """ValueError where a directory without a run's mark holds a model, or results."""
    if names := trained_names(folder):
        what = "results" if names[0] in (DYNAMICS_FILE, TEST_FILE) else "a model"
        raise ValueError(
            f"{folder} holds {what} ({names[0]}) that no run of this script wrote: choose another "
            "--output_dir"
        )


def has_run_card(folder: Path) -> bool:
    """Whether README.md is there, and what a run or its library wrote."""
    card = folder / CARD_FILE
    return card.is_file() and is_run_card(card.read_text(encoding="utf-8", errors="replace"))


def find_checkpoints(folder: Path) -> list[Path]:
    """checkpoint-* by step, else the model directories in `folder` by their γ and name."""
    models = [
        path
        for path in folder.iterdir()
        if any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    ]
    steps = [path for path in models if step_of(path) is not None]
    if steps:
        return sorted(steps, key=step_of)
    runs = [path for path in models if path.name not in BESIDE_ADAPTERS]
    if not runs:
        raise ValueError(f"--checkpoints {folder}: no checkpoint-* and no model directories")
    return sorted(runs, key=lambda path: (gamma_of(path) or 0.0, path.name))


def gamma_of(folder: Path) -> float | None:
    """γ of a run of dpo.py, from its run_config.json; None where it says none."""
    settings = read_config(folder / RUN_FILE).get("settings")
    return settings.get("alpha") if isinstance(settings, dict) else None
