"""What of a command line can be wrong by itself, found before PyTorch and TRL are imported."""

import json
import os
from collections.abc import Container, Sequence
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

from ranking.data.hub import split_name
from ranking.data.sources import local_path
from ranking.plumbing.command_line import explaining_errors, print_any_text, with_underscores
from ranking.scoring.models import (
    OWN_CODE,
    adapter_base,
    adapter_base_revision,
    check_model_path,
    check_revision,
    is_local,
)
from ranking.training.config_file import check_saved
from ranking.training.flags import ModelFlags
from ranking.training.known_flags import (
    Known,
    KnownFlags,
    flags_of_class,
    make_parser_of,
    read_known_flags,
)
from ranking.training.parsing import FlagSet, read_given


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
    parser = make_parser_of(flags, known, description)
    given = read_given(parser, argv, flags)
    values = vars(parser.parse_args(given.words))
    data = flags.data(**{f.name: values[f.name] for f in fields(flags.data) if f.init})
    model = instance_of(ModelFlags, flags_of_class(known, "ModelConfig"), values)
    training = instance_of(flags.training, flags_of_class(known, flags.library), values)
    check_saved(data.save_config, given.values)
    model.check_given(given.names)
    check_paths(data, model, training, known["model_types"])


def instance_of(mixin: type, known: Known, values: dict[str, Any]) -> Any:
    """The values of a mixin's and of TRL's flags, as the mixin's methods take them; checked."""
    own = {f.name for f in fields(mixin)}
    others = {name: flags[0].get("default") for name, flags in known.items() if name not in own}
    kind = make_dataclass(
        mixin.__name__, [(name, Any, default_field(value)) for name, value in others.items()],
        bases=(mixin,), namespace={"__post_init__": lambda self: self.check()},
    )  # fmt: skip
    return kind(**{f.name: values[f.name] for f in fields(kind)})


def default_field(value: Any) -> Any:
    """A dataclass field of this default."""
    if isinstance(value, list | dict):
        return field(default_factory=lambda: value)
    return field(default=value)


def check_paths(data: Any, model: Any, training: Any, model_types: Container[str]) -> None:
    """ValueError or OSError for models, data, checkpoints and an output directory that are not what
    they should be, and models that only code of their own knows. model_types: those that
    transformers knows."""
    name, revision = model_source(model.model_name_or_path, model.model_revision)
    reference = getattr(data, "ref_model_name_or_path", None)
    if reference is not None:
        model_source(reference, data.ref_model_revision, "--ref_model_revision")
    if not training.trust_remote_code:
        check_own_code(name, revision, model_types)
        if reference is not None:
            check_own_code(reference, data.ref_model_revision, model_types)
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


def check_own_code(name: str, revision: str | None, model_types: Container[str]) -> None:
    """OSError where a model, or the base of an adapter, is of a type that only Python code which
    comes with it knows. For when that is not to be run: before transformers, which would say first
    that such a model may not work, reads it. Of the hub's, those whose config is in the cache."""
    base, adapter = name, file_of_model(name, "adapter_config.json", revision)
    if adapter is not None:
        folder = str(adapter.parent)
        base, revision = adapter_base(folder), adapter_base_revision(folder)
    if needs_code(file_of_model(base, "config.json", revision), model_types):
        newest = file_of_model(base, "config.json", revision, newest=True)
        if needs_code(newest, model_types):
            raise OSError(f"cannot load {name}: {OWN_CODE}")


def file_of_model(name: str, file: str, revision: str | None, newest: bool = False) -> Path | None:
    """A file of a local model, or of a hub model from the cache; None where it is not there.
    newest: as it is on the hub now, if that can be reached."""
    if is_local(name):
        path = Path(name) / file
        return path if path.is_file() else None
    if newest:
        try:
            return Path(hf_hub_download(name, file, revision=revision))
        except (errors.HTTPError, OSError, ValueError):
            pass
    cached = try_to_load_from_cache(name, file, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def needs_code(file: Path | None, model_types: Container[str]) -> bool:
    """Whether a config.json is of a model that only Python code which comes with it knows."""
    if file is None:
        return False
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        brings_code = "AutoConfig" in (config.get("auto_map") or {})
    except (ValueError, AttributeError, TypeError):
        return False  # transformers says what is wrong with it
    return brings_code and config.get("model_type") not in model_types


def model_source(
    name: str, revision: str | None, flag: str = "--model_revision"
) -> tuple[str, str | None]:
    """A model's name and revision, None for the main branch; an error where it cannot be there."""
    check_model_path(name)
    revision = None if revision == "main" else revision
    check_revision(flag, revision, name)
    return name, revision
