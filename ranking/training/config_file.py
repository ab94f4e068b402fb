"""Flags of a YAML file (--config), as TRL's scripts and recipes have them, and --save_config."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ranking.plumbing.command_line import suggestion
from ranking.plumbing.processes import process_rank
from ranking.plumbing.result_files import write_text_atomically
from ranking.training.help_texts import is_neutral, of_other_script, successor

# keys of TRL's scripts and of the alignment-handbook that are called otherwise here
RECIPE_NAMES = {
    "dataset_train_split": "train_split", "dataset_test_split": "eval_split",
    "warmup_ratio": "warmup_steps",
}  # fmt: skip
# how many processes prepare the data: the results are the same
WORKERS = ("preprocessing_num_workers", "dataset_num_proc", "num_proc")
SWITCH_WORDS = {"on": "true", "off": "false"}  # YAML's, which argparse does not know
NOT_SAVED = {"config", "save_config"}
# 1e-5, which YAML 1.1 takes for text
FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")

# of a key: its text, None for null, a list of texts, or a mapping as YAML constructs it
Setting = str | list[str] | dict[str, Any] | None


def config_words(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    given: set[str],
    retired: Mapping[str, str],
    script: str,
) -> tuple[list[str], list[str]]:
    """The flags of the file that --config names, but for those `given` on the command line, as
    words of it; and notes on keys without effect. ValueError or OSError where it cannot be read,
    for unknown and retired keys, and for values of another type; they name file and key."""
    file = config_of(argv)
    if file is None:
        return [], []
    settings, called, notes = of_recipe(file, read_settings(file), given)
    actions = parser._option_string_actions
    words: list[str] = []
    seen: dict[str, str] = {}  # by flag, the key that sets it
    for name, setting in settings.items():
        key, action = called.get(name, name), actions.get(f"--{name}")
        if text := successor(name.replace("-", "_"), retired):
            if setting is not None and not (isinstance(setting, str) and is_neutral(name, setting)):
                raise ValueError(f"{file}: {key} cannot be honoured; use {text}")
            continue
        if action is None or action.dest in NOT_SAVED:
            known = [option[2:] for option in actions if re.fullmatch(r"--\w+", option)]
            hint = of_other_script(name, script) if action is None else ""
            raise ValueError(f"{file}: unknown key {key}{hint or suggestion(name, known)}")
        if action.dest in seen:
            raise ValueError(f"{file}: {key} and {seen[action.dest]} are one flag, give one")
        seen[action.dest] = key
        if setting is None or action.dest in given:
            continue
        own = words_of(file, key, action, setting)
        try:
            parser.parse_args(own)
        except ValueError as error:
            reason = re.sub(r"^--[^:]*: ", "", str(error))
            raise ValueError(f"{file}: {key}: {reason}") from None
        words += own
    return words, notes


def config_of(argv: Sequence[str]) -> str | None:
    """The file that --config names on a command line."""
    files = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    files += [file for word, file in zip(argv, argv[1:]) if word == "--config"]
    if len(files) > 1:
        raise ValueError(f"--config {files[1]}: give one file")
    return files[0] if files else None


def read_settings(file: str) -> dict[str, Setting]:
    """The keys of a YAML file; ValueError where it is no mapping, OSError where it is not there."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--config {file}: {reason}") from None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"--config {file}: not a YAML mapping of flags to values")
        settings: dict[str, Setting] = {}
        for key_node, value in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a key"
            if key in settings:
                raise ValueError(f"{file}: {key} is given twice")
            if isinstance(value, yaml.ScalarNode):
                settings[key] = None if value.tag.endswith(":null") else value.value
            elif isinstance(value, yaml.MappingNode):
                settings[key] = loader.construct_document(value)
            elif all(isinstance(item, yaml.ScalarNode) for item in value.value):
                settings[key] = [item.value for item in value.value]
            else:
                raise ValueError(f"{file}: {key}: a list of texts or numbers is needed")
        return settings
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"--config {file}: not YAML ({where}{reason})") from None


def words_of(file: str, key: str, action: argparse.Action, setting: Setting) -> list[str]:
    """A flag and its value on a command line."""
    name = action.option_strings[0]
    if action.dest == "columns" and isinstance(setting, dict):
        setting = [f"{target}={column}" for target, column in setting.items()]
    if isinstance(setting, dict):
        return [f"{name}={json.dumps(setting)}"]
    if isinstance(setting, list):
        if action.nargs != "+":
            raise ValueError(f"{file}: {key}: give one value, not a list")
        return [name, *setting] if setting else []
    text = str(setting)
    if action.nargs == "?" or action.type not in (None, str):
        text = SWITCH_WORDS.get(text.lower(), text)
    if action.choices is not None and text.lower() in ("no", "off", "false"):
        text = "no" if "no" in action.choices else text  # which YAML takes for false
    return [f"{name}={text}"]


# ---------------------------------------------------------------------------- others' recipes
def of_recipe(
    file: str, settings: Mapping[str, Setting], given: set[str]
) -> tuple[dict[str, Setting], dict[str, str], list[str]]:
    """Settings by names of ours; what such a name is called in the file, where it is otherwise;
    notes on keys without effect. ValueError for what has no meaning here, with what to use."""
    ours: dict[str, Setting] = {}
    called: dict[str, str] = {}
    notes: list[str] = []
    strategies = [settings.get(n) for n in ("eval_strategy", "evaluation_strategy")]
    evaluates = "eval_strategy" in given or any(s in ("steps", "epoch") for s in strategies)
    for key, setting in settings.items():
        if key in WORKERS and setting is not None:
            notes.append(f"{file}: {key} has no effect: one process prepares the data")
        elif key == "do_eval" and evaluates and str(setting).lower() in ("true", "yes", "on"):
            pass  # what eval_strategy asks for anyway
        elif key == "chat_template" and isinstance(setting, str) and "{" in setting:
            raise ValueError(f"{file}: chat_template is a mode here; use chat_template_file")
        else:
            for name, value in renamed(file, key, setting, settings):
                if name in ours:
                    raise ValueError(f"{file}: {key} and {called.get(name, name)} are one flag, "
                                     "give one")  # fmt: skip
                ours[name] = value
                if name != key:
                    called[name] = key
    return ours, called, notes


def renamed(
    file: str, key: str, setting: Setting, settings: Mapping[str, Setting]
) -> list[tuple[str, Setting]]:
    """The flags of ours that a key asks for, with their values."""
    if key in RECIPE_NAMES:
        return [(RECIPE_NAMES[key], setting)]
    if key == "use_flash_attention_2":
        on = str(setting).lower() in ("true", "yes", "on")
        return [("attn_implementation", "flash_attention_2" if on else None)]
    if key == "dataset_splits" and isinstance(setting, list):
        if len(setting) > 2:
            raise ValueError(f"{file}: dataset_splits: give one to train on and one to evaluate on")
        return list(zip(("train_split", "eval_split"), setting))
    if key == "dataset_mixer" and isinstance(setting, dict):
        for name, fraction in setting.items():
            check_whole(file, key, name, fraction)
        return [("dataset_name", list(setting))]
    if key == "dataset_mixture" and isinstance(setting, dict):
        return [("dataset_name", datasets_of_mixture(file, setting))]
    if key == "dataset_config" and setting is not None:
        return []  # dataset_name has it
    if key == "dataset_name" and isinstance(setting, str) and settings.get("dataset_config"):
        return [(key, f"{setting}:{settings['dataset_config']}")]
    return [(key, setting)]


def datasets_of_mixture(file: str, mixture: Mapping[str, Any]) -> list[str]:
    """The datasets of a `dataset_mixture`, as --dataset_name takes them."""
    names = []
    for part in mixture.get("datasets") or []:
        name = part.get("id") or part.get("path")
        check_whole(file, "dataset_mixture", name, part.get("weight"))
        words = [name, part.get("config") or part.get("name"), part.get("split")]
        names.append(":".join(str(word) for word in words if word))
        if unknown := part.keys() - {"id", "path", "weight", "config", "name", "split", "columns"}:
            raise ValueError(f"{file}: dataset_mixture: {min(unknown)} cannot be honoured")
    if unknown := mixture.keys() - {"datasets", "seed"}:
        instead = "eval_split" if "test_split_size" in unknown else "dataset_name"
        raise ValueError(
            f"{file}: dataset_mixture: {min(unknown)} cannot be honoured; use {instead}"
        )
    if not names:
        raise ValueError(f"{file}: dataset_mixture names no datasets")
    return names


def check_whole(file: str, key: str, name: str, fraction: Any) -> None:
    """ValueError where a recipe takes a fraction of a dataset, which is no share of a mixture."""
    if fraction not in (None, 1, 1.0):
        raise ValueError(
            f"{file}: {key} takes {fraction} of {name}: use dataset_name with max_train_samples, "
            "or with dataset_shares, which are shares of the mixture"
        )


# ---------------------------------------------------------------------------- --save_config
def check_saved(file: str | None, values: Mapping[str, Any]) -> None:
    """ValueError where --save_config names a file that holds something else."""
    if file is None or not Path(file).exists():
        return
    import yaml

    try:
        same = yaml.safe_load(Path(file).read_text(encoding="utf-8")) == values
    except (OSError, ValueError, yaml.YAMLError):
        same = False
    if not same:
        raise ValueError(f"--save_config {file} holds other settings: choose another file")


def save_config(file: str | None, values: Mapping[str, Any], script: str) -> None:
    """Write the flags given (`values`) as a file that --config takes, once for all processes;
    file None: do nothing. ValueError as `check_saved`."""
    if file is None or process_rank() > 0:
        return
    check_saved(file, values)
    import yaml

    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(Path(file), f"# python {script} --config {file}\n{text}")
