"""The output directory of a training run: claimed by one process, resumed by the same command.

`run_config.json` marks a directory as a run's own: it records the settings that a resumed run must
share, the wandb id, whether the run is finished, and which step its model is. Without it nothing is
ever discarded.
"""

import json
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from ranking.data.examples import PreferenceData, fingerprint
from ranking.plumbing.outputs import lock_outputs
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import write_text_atomically
from ranking.plumbing.wandb_runs import start_wandb
from ranking.scoring.models import model_fingerprint
from ranking.training.flags import DataArguments

RUN_FILE = "run_config.json"
TEST_FILE = "test_results.json"
# what a resumed run may change
HARMLESS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "run_name", "report_to",
    "wandb_project", "wandb_entity", "log_level", "log_level_replica", "disable_tqdm",
    "save_total_limit", "local_rank", "ddp_timeout", "dataloader_num_workers",
    "dataloader_pin_memory",
}  # fmt: skip


def run_description(
    *arguments,
    models: Sequence[tuple[str, str | None]],
    parts: dict[str, PreferenceData],
    refused: Iterable[str],
) -> dict[str, Any]:
    """Every setting a resumed run must share, with fingerprints of the models and the data.

    models: names with their revisions. refused: flags that cannot be given, whose values in
    `arguments` mean nothing.
    """
    settings: dict[str, Any] = {
        "model_fingerprints": [model_fingerprint(name, revision) for name, revision in models],
        "data_fingerprints": {part: fingerprint(data.examples) for part, data in parts.items()},
        "n_processes": PartialState().num_processes,  # a step's batch depends on it
    }
    for argument in arguments:
        values = argument.to_dict() if hasattr(argument, "to_dict") else vars(argument)
        names = {f.name for f in fields(argument)} - HARMLESS - set(refused)
        settings |= {name: values[name] for name in sorted(names & values.keys())}
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
    a finished run, or one with other settings. `checkpoint`: where a run that has none of its own
    starts. ValueError where the directory holds something else or a model that is read.
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
    differing = [k for k in settings if earlier and settings[k] != earlier["settings"].get(k)]
    state.wait_for_everyone()  # all have read before one writes
    if earlier is not None and overwrite and (earlier["finished"] or differing):
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


def read_run(folder: Path) -> dict[str, Any] | None:
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


def mark_run(folder: Path, settings: dict[str, Any], finished: bool, **results) -> None:
    """Record the run's settings, its wandb id, whether it is finished, and with what `results`."""
    earlier = read_run(folder)
    run_id = earlier["wandb_id"] if earlier else uuid.uuid4().hex[:8]
    record = {"finished": finished, "wandb_id": run_id, **results, "settings": settings}
    write_text_atomically(folder / RUN_FILE, json.dumps(record, indent=1) + "\n")


def write_test_results(folder: Path, metrics: dict[str, float], n: int, saved: dict) -> None:
    """The model on the test split: `n` pairs or texts, which step it is (`saved`), the metrics."""
    record = {"n": n, "model": saved, **metrics}
    write_text_atomically(folder / TEST_FILE, json.dumps(record, indent=1) + "\n")


def discard_run(folder: Path) -> None:
    """Delete what an earlier run wrote; its mark goes last, so that a kill leaves it a run's."""
    for old in checkpoints(folder):
        shutil.rmtree(old)
    shutil.rmtree(folder / "base", ignore_errors=True)
    for pattern in ("ranking_dynamics.jsonl", "trainer_state.json", "config.json", "adapter_*",
                    "model*.safetensors*", TEST_FILE, RUN_FILE):  # fmt: skip
        for old in folder.glob(pattern):
            old.unlink()


def check_no_model(folder: Path) -> None:
    """ValueError where a directory without a run's mark holds a model."""
    for name in ("config.json", "adapter_config.json", *(p.name for p in checkpoints(folder))):
        if (folder / name).exists():
            raise ValueError(
                f"{folder} holds a model ({name}) that no run of this script wrote: choose "
                "another --output_dir"
            )


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint directories of a run, newest first."""
    found = [p for p in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda path: -int(path.name.split("-")[1]))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that a run can go on from; those that are passed over are said."""
    for path in checkpoints(folder):
        fault = checkpoint_fault(path)
        if fault is None:
            return path
        announce(f"{path} {fault}: not resumed from")
    return None


def checkpoint_fault(path: Path) -> str | None:
    """Why nothing can be resumed from `path`, or None. Files are opened, their values not read."""
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # saved last
    except (OSError, ValueError):
        return "was not saved to the end"
    files = [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (SafetensorError, OSError):
                return f"has a damaged file ({file.name})"
        elif file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file):
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


class WandbConfig(TrainerCallback):
    """Writes what the run was over what Trainer knows of it: it says how TRL would cut texts."""

    def __init__(self, run, config: dict[str, Any]):
        self.run, self.config = run, config

    def on_train_begin(self, args, state, control, **kwargs):
        self.run.config.update(self.config, allow_val_change=True)


def start_training_wandb(args: DataArguments, training_args, default_project: str):
    """The wandb run the Trainer will log to, the same one after a resume; None without wandb.

    Offline as `wandb_runs.start_wandb` says.
    """
    if "wandb" not in training_args.report_to or not PartialState().is_main_process:
        return None
    folder = training_args.output_dir
    return start_wandb(
        project=args.wandb_project or os.environ.get("WANDB_PROJECT", default_project),
        entity=args.wandb_entity,
        name=training_args.run_name,
        id=read_run(Path(folder))["wandb_id"],
        resume="allow",
        dir=os.environ.get("WANDB_DIR", folder),
    )


def find_checkpoints(folder: Path) -> list[Path]:
    """checkpoint-* by step, else the model directories in `folder` by their γ and name."""
    models = [
        path
        for path in folder.iterdir()
        if any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    ]
    steps = [path for path in models if re.fullmatch(r"checkpoint-\d+", path.name)]
    if steps:
        return sorted(steps, key=lambda path: int(path.name.split("-")[1]))
    runs = [path for path in models if path.name != "base"]  # what adapters of dpo.py start from
    if not runs:
        raise ValueError(f"--checkpoints {folder}: no checkpoint-* and no model directories")
    return sorted(runs, key=lambda path: (gamma_of(path) or 0.0, path.name))


def gamma_of(folder: Path) -> float | None:
    """γ of a run of dpo.py, from its run_config.json."""
    file = folder / "run_config.json"
    return json.loads(file.read_text())["settings"].get("alpha") if file.is_file() else None
