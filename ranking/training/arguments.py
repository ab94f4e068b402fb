"""The flags of sft.py and dpo.py as TRL's dataclasses have them."""

from collections.abc import Sequence
from dataclasses import dataclass

from trl import ModelConfig

from ranking.plumbing.processes import announce
from ranking.training.flags import ModelFlags
from ranking.training.parsing import FlagSet, read_flags


@dataclass
class ModelArguments(ModelFlags, ModelConfig):
    """TRL's model and LoRA flags, with the original spellings."""

    def __post_init__(self):
        self.check()
        super().__post_init__()
        targets = self.lora_target_modules
        if isinstance(targets, str) and targets.isidentifier():
            self.lora_target_modules = [targets]  # TRL makes a regular expression of a lone name


def parse_flags(
    flags: FlagSet, types: Sequence[type], argv: Sequence[str], description: str
) -> tuple:
    """The values of a command line: an instance of `flags.data` and of each of `types`, which are
    TRL's ModelConfig and `flags.library` with our mixins. ValueError as `read_flags`."""
    parsed, given = read_flags(flags, (flags.data, *types), argv, description)
    for note in given.notes:
        announce(note)
    for checked in parsed[1:]:
        checked.check_given(given.names)
    check_launch(parsed[-1].n_gpu, flags.script)
    return parsed


def check_launch(n_gpu: int, script: str) -> None:
    """ValueError where one process sees several GPUs, among which Trainer would split its batches
    by nn.DataParallel: said before the reference is scored, which may take hours."""
    if n_gpu > 1:
        raise ValueError(
            f"{n_gpu} GPUs are visible to one process: start one for each (torchrun "
            f"--nproc_per_node {n_gpu} {script} ...), or choose one GPU (CUDA_VISIBLE_DEVICES=0)"
        )
