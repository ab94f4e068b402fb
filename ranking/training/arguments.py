"""The flags of sft.py and dpo.py as TRL's dataclasses have them."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import HfArgumentParser
from trl import ModelConfig

from ranking.plumbing.processes import announce
from ranking.training.flags import ModelFlags
from ranking.training.parsing import FlagFormatter, FlagParser, FlagSet, read_given


@dataclass
class ModelArguments(ModelFlags, ModelConfig):
    """TRL's model and LoRA flags, with the original spellings."""

    def __post_init__(self):
        self.check()
        super().__post_init__()
        targets = self.lora_target_modules
        if isinstance(targets, str) and targets.isidentifier():
            self.lora_target_modules = [targets]  # TRL makes a regular expression of a lone name


class TrainingParser(HfArgumentParser, FlagParser):
    """The parser that TRL's scripts have, with errors and --help as ours."""


def parse_flags(
    flags: FlagSet, types: Sequence[type], argv: Sequence[str], description: str
) -> tuple:
    """The values of a command line: an instance of `flags.data` and of each of `types`, which are
    TRL's ModelConfig and `flags.library` with our mixins. ValueError as `read_given` and where they
    are no values of a run."""
    parser = TrainingParser(  # type: ignore[call-arg]  # mypy does not see HfArgumentParser
        dataclass_types=[flags.data, *types], description=description, allow_abbrev=False,
        formatter_class=FlagFormatter,
    )  # fmt: skip
    given = read_given(parser, argv, flags)
    try:
        parsed = parser.parse_args_into_dataclasses(given.words, look_for_args_file=False)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ValueError(" ".join(str(error).split())) from error  # TRL's can have several lines
    parsed[0].given = given.values
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
