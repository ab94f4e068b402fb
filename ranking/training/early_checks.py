"""What of a command line can be wrong by itself, found before PyTorch and TRL are imported."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ranking.data.hub import split_name
from ranking.data.sources import local_path
from ranking.plumbing.command_line import explaining_errors, print_any_text, with_underscores
from ranking.scoring.models import check_model_path, check_revision
from ranking.training.config_file import check_saved
from ranking.training.flags import ModelFlags
from ranking.training.known_flags import KnownFlags, read_known_flags, stand_in
from ranking.training.parsing import FlagSet, read_flags


def check_flags(flags: FlagSet, argv: Sequence[str], description: str) -> None:
    """End a script whose flags are wrong with one line, or with the help that is asked for.

    What is right is parsed again, by TRL's dataclasses, which decide alone where other versions are
    installed than known_flags.json is of.
    """
    print_any_text()
    with explaining_errors(with_underscores, same_everywhere=True):
        known = read_known_flags()
        if known is not None:
            check_values(flags, known, argv, description)


def check_values(flags: FlagSet, known: KnownFlags, argv: Sequence[str], description: str) -> None:
    """ValueError or OSError for flags that no run can have."""
    model_type = stand_in(ModelFlags, "ModelConfig", known)
    training_type = stand_in(flags.training, flags.library, known)
    types = (flags.data, model_type, training_type)
    (data, model, training), names, _ = read_flags(flags, types, argv, description)
    check_saved(data.save_config, data.given)
    model.check_given(names)
    check_paths(data, model, training)


def check_paths(data: Any, model: Any, training: Any) -> None:
    """ValueError or OSError for models, data, checkpoints and an output directory that are not what
    they should be."""
    model_source(model.model_name_or_path, model.model_revision)
    reference = getattr(data, "ref_model_name_or_path", None)
    if reference is not None:
        model_source(reference, data.ref_model_revision, "--ref_model_revision")
    for spec in (*data.dataset_name, *(data.eval_dataset_name or ())):
        local_path(split_name(spec)[0], data.data_dir)
    folder = Path(training.output_dir)
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ValueError(f"--output_dir {folder}: {there} is no directory, choose another")
    checkpoint = training.resume_from_checkpoint
    if checkpoint is not None and not Path(checkpoint).is_dir():
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint} is no directory: leave the flag out, the same "
            "command resumes by itself"
        )


def model_source(
    name: str, revision: str | None, flag: str = "--model_revision"
) -> tuple[str, str | None]:
    """A model's name and revision, None for the main branch; an error where it cannot be there."""
    check_model_path(name)
    revision = None if revision == "main" else revision
    check_revision(flag, revision, name)
    return name, revision
