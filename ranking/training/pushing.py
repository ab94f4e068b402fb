"""Checkpoints on the hub, as they are saved: when a run uploads them; `model_hub` uploads."""

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub import HfApi
from transformers import TrainerCallback

from ranking.plumbing.model_hub import open_repository, push_checkpoint
from ranking.plumbing.processes import announce


class PushCheckpoints(TrainerCallback):
    """Uploads each checkpoint in the background by --hub_strategy: its model (every_save), with it
    the state to resume from, as last-checkpoint (checkpoint) or under its name (all_checkpoints),
    or nothing (end). One that is saved before the last upload is done is passed over, unless
    `always`.

    Trainer's own pushes would upload the trackers' files too, and the results before they are
    there.
    """

    def __init__(self, repository: str, strategy: str, always: bool, revision: str | None):
        self.repository, self.revision = repository, revision
        self.strategy, self.always = strategy, always
        self.jobs: list[Future] = []
        self.api = HfApi()

    def on_save(self, args, state, control, **kwargs):
        waiting = not all(job.done() for job in self.jobs)
        if self.strategy == "end" or not state.is_world_process_zero:
            return
        if waiting and not self.always:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        places = {"checkpoint": "last-checkpoint", "all_checkpoints": folder.name}
        self.jobs += push_checkpoint(
            self.api, folder, self.repository, self.revision, places.get(self.strategy)
        )


def start_pushing(
    hub: Mapping[str, Any] | None, local_base: str | None = None
) -> list[PushCheckpoints]:
    """In the main process, what pushes checkpoints to the repository that is opened here; nothing
    where `hub` is None. hub: its name, private, revision; strategy, always. local_base: the model
    of this machine, if it is one, without which what is pushed is of no use."""
    if hub is None or not PartialState().is_main_process:
        return []
    if local_base is not None:
        announce(
            f"--push_to_hub: the adapter's base, {local_base}, is no model of the hub, from which "
            "the adapter alone cannot be loaded: --merge_adapter pushes the whole model too"
        )
    repository = open_repository(hub["name"], hub["private"], hub["revision"])
    return [PushCheckpoints(repository, hub["strategy"], hub["always"], hub["revision"])]
