"""Uploads to the hub: whether they can be, a checkpoint's, and a run's results at the end."""

import json
import shlex
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ranking.plumbing.command_line import Stopped
from ranking.plumbing.processes import announce

# what stays here: trackers' own records, checkpoints, and files that name local paths
STAYS = ("checkpoint-*", "wandb/*", "runs/*", "trackio/*", "mlflow.db", "mlartifacts/*",
         "run_config.json", "trainer_state.json", "training_args.bin", ".*", "_*")  # fmt: skip
# of a checkpoint: what only a resumed run needs
STATE = ("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json",
         "global_step*", "latest", "zero_to_fp32.py", "training_args.bin", "README.md")  # fmt: skip
ADAPTER_CONFIG = "adapter_config.json"


def check_hub_access() -> None:
    """ValueError where nothing can be pushed: without a token, or offline."""
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise ValueError("--push_to_hub: the environment variable HF_HUB_OFFLINE forbids it")
    if not get_token():
        raise ValueError(
            "--push_to_hub needs a token that may write: set HF_TOKEN, or run `hf auth login`"
        )


def hub_reason(error: BaseException) -> str:
    """The line of an error of the hub's client that says what the matter is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = getattr(error, "server_message", None) or (lines or [type(error).__name__])[0]
    return str(message).rstrip(".")


def open_repository(name: str, private: bool | None, revision: str | None) -> str:
    """The id of the repository to push to, which is created, with the branch, where it is not
    there. ValueError where it cannot be."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        repository = api.create_repo(name, private=private, exist_ok=True).repo_id
        if revision not in (None, "main"):
            api.create_branch(repository, branch=revision, exist_ok=True)
    except (HTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"--push_to_hub: cannot open {name} on the hub: {hub_reason(error)}"
        ) from None
    announce(f"hub: {repository} is open for the results")
    return repository


def public_adapter_config(folder: Path) -> bytes | None:
    """adapter_config.json of a directory whose adapter is on a model of this machine, with that
    one's name in place of its path (`base`, where it is pushed beside the adapter); else None."""
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if base is None or not Path(base).exists():
        return None
    named = {**config, "base_model_name_or_path": Path(base).resolve().name}
    return (json.dumps(named, indent=2) + "\n").encode()


def upload(
    api: Any, folder: Path, *, ignored: Sequence[str] = (), within: str | None = None, **how: Any
) -> list[Any]:
    """Upload a directory, into the directory `within` of a repository, without local paths of an
    adapter's base; what the hub's client returns. how: as it takes it."""
    config = public_adapter_config(folder)
    ignored = [*ignored, *([ADAPTER_CONFIG] if config else [])]
    done = [
        api.upload_folder(folder_path=folder, path_in_repo=within, ignore_patterns=ignored, **how)
    ]
    if config is not None:
        name = f"{within}/{ADAPTER_CONFIG}" if within else ADAPTER_CONFIG
        done.append(api.upload_file(path_or_fileobj=config, path_in_repo=name, **how))
    return done


def push_checkpoint(
    api: Any, folder: Path, repository: str, revision: str | None, state_as: str | None
) -> list[Future]:
    """Upload the model of a checkpoint in the background, and with it what a resumed run needs as
    the directory `state_as`, if that is given. api: one client for all checkpoints of a run, whose
    uploads it makes one after the other; those of two would overtake each other."""
    how: dict[str, Any] = {"repo_id": repository, "revision": revision, "run_as_future": True}
    step = folder.name.removeprefix("checkpoint-")
    message = f"Training in progress, step {step}"
    jobs = upload(api, folder, ignored=STATE, commit_message=message, **how)
    if state_as is not None:
        message += ", checkpoint"
        jobs += upload(
            api, folder, ignored=["training_args.bin"], within=state_as, commit_message=message,
            **how,
        )  # fmt: skip
    return jobs


def push_results(
    folder: Path, repository: str, revision: str | None, before: Sequence[Future]
) -> None:
    """Upload a finished run, when the uploads `before` are done. For when everything is on disk: a
    hub that cannot be reached costs a line that says how to push later."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    to = ["--revision", revision] if revision else []
    excluded = [word for pattern in STAYS for word in ("--exclude", pattern)]
    words = ["hf", "upload", repository, str(folder), ".", *to, *excluded]
    later = f"everything is in {folder}, push it with `{shlex.join(words)}`"
    if public_adapter_config(folder) is not None:
        later += f", which shows the local path in {ADAPTER_CONFIG} to all who may read it"
    try:
        for job in before:
            if (error := job.exception()) is not None:
                announce(f"hub: a checkpoint was not pushed: {hub_reason(error)}")
        upload(
            HfApi(), folder, ignored=STAYS, repo_id=repository, revision=revision,
            commit_message="End of training",
        )  # fmt: skip
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        announce(f"hub: {repository} was not pushed ({hub_reason(error)}); {later}")
    except Stopped as stop:
        announce(f"hub: push stopped by {signal.Signals(stop.number).name}; {later}")
        sys.exit(128 + stop.number)
    else:
        print(f"hub       {repository}")
