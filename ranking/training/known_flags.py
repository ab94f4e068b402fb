"""A parser with the flags of TRL's and transformers' dataclasses, without importing these.

    python -m ranking.training.known_flags

writes known_flags.json anew, after a change of their versions. Where other versions are installed
than the file was written with, nothing is known, and the dataclasses decide.
"""

import argparse
import importlib.metadata
import json
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, TypedDict, get_args, get_origin, get_type_hints

from ranking.training.flags import ModelFlags
from ranking.training.parsing import FlagFormatter, FlagParser, FlagSet

KNOWN_FILE = Path(__file__).with_name("known_flags.json")
FLAG_LIBRARIES = ("transformers", "trl")
TYPES = {"int": int, "float": float, "dict": dict}  # of values; other ones are checked as text


class KnownFlag(TypedDict, total=False):
    """A flag as argparse takes it; what is not there has argparse's default."""

    options: list[str]
    default: Any
    choices: list[str]
    type: str  # bool, or one of TYPES
    nargs: str
    const: Any
    action: str
    help: str


Known = dict[str, list[KnownFlag]]  # by field, of which true ones are switched off by a flag more


class KnownFlags(TypedDict):
    """known_flags.json."""

    versions: dict[str, str]  # of FLAG_LIBRARIES
    model_types: list[str]  # of the models whose code transformers has
    flags: dict[str, Known]  # by dataclass; TrainingArguments: what SFTConfig and DPOConfig share


def read_known_flags() -> KnownFlags | None:
    """What the file says; None where it is of other versions than those installed."""
    known = json.loads(KNOWN_FILE.read_text(encoding="utf-8"))
    return known if known["versions"] == installed_versions() else None


def installed_versions() -> dict[str, str]:
    """Of FLAG_LIBRARIES, without importing them."""
    return {name: importlib.metadata.version(name) for name in FLAG_LIBRARIES}


def flags_of_class(known: KnownFlags, name: str) -> Known:
    """The flags of ModelConfig, SFTConfig or DPOConfig, inherited ones too."""
    flags = known["flags"]
    return flags[name] if name == "ModelConfig" else {**flags["TrainingArguments"], **flags[name]}


def truth(text: str) -> bool:
    """An argparse type: yes, true, t, y, 1 or no, false, f, n, 0, as transformers reads them."""
    word = text.lower()
    if word not in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        raise argparse.ArgumentTypeError(f"{text}: give true or false")
    return word in ("yes", "true", "t", "y", "1")


def add_known(parser: argparse.ArgumentParser, name: str, flag: KnownFlag) -> None:
    """Give the parser a flag of the file."""
    how: dict[str, Any] = {key: value for key, value in flag.items() if key != "options"}
    if "type" in how:
        how["type"] = truth if how["type"] == "bool" else TYPES[how["type"]]
    parser.add_argument(*flag["options"], dest=name, **how)


def make_parser_of(flags: FlagSet, known: KnownFlags, description: str) -> FlagParser:
    """A parser that takes what HfArgumentParser takes of the dataclasses."""
    parser = FlagParser(description=description, allow_abbrev=False, formatter_class=FlagFormatter)
    for kind, library in ((flags.data, None), (ModelFlags, "ModelConfig"),
                          (flags.training, flags.library)):  # fmt: skip
        own = {f.name: f for f in fields(kind) if f.init}
        hints = get_type_hints(kind)
        for name, known_flags in (flags_of_class(known, library) if library else {}).items():
            for one in known_flags if name not in own else []:
                add_known(parser, name, one)
        for name, its_field in own.items():
            add_field(parser, its_field, hints[name])
    return parser


def add_field(parser: argparse.ArgumentParser, its_field: Field, kind: Any) -> None:
    """Give the parser a field of ours as a flag, by the rules of HfArgumentParser."""
    name = its_field.name
    how = dict(its_field.metadata)
    options = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}", *how.pop("aliases", [])])
    default = its_field.default
    if its_field.default_factory is not MISSING:
        default = its_field.default_factory()
    how["default"] = default
    if isinstance(kind, UnionType):  # X | None
        (kind,) = (k for k in get_args(kind) if k is not type(None))
    if kind is bool:
        how["type"] = truth
        if default is not None:
            how |= {"nargs": "?", "const": True}
    elif get_origin(kind) is list:
        how |= {"type": get_args(kind)[0], "nargs": "+"}
    else:
        how["type"] = kind
    parser.add_argument(*options, **how)
    if default is True:
        off = (f"--no_{name}", f"--no-{name.replace('_', '-')}")
        parser.add_argument(*off, dest=name, action="store_false", default=False)


# ---------------------------------------------------------------------------- the file anew
def describe_flag(action: argparse.Action) -> KnownFlag:
    """A flag of HfArgumentParser's."""
    kind = getattr(action.type, "__name__", "str")
    flag = KnownFlag(options=list(action.option_strings))
    if action.default is not None:
        default = action.default
        flag["default"] = default.value if isinstance(default, Enum) else default
    if action.choices is not None:
        flag["choices"] = [str(choice) for choice in action.choices]
    if kind == "string_to_bool" or kind in TYPES:
        flag["type"] = "bool" if kind == "string_to_bool" else kind
    if isinstance(action, argparse._StoreFalseAction):
        flag["action"] = "store_false"
    elif action.nargs is not None:
        flag["nargs"] = str(action.nargs)
        if action.const is not None:
            flag["const"] = action.const
    if action.help:
        flag["help"] = action.help
    return flag


def find_flags() -> KnownFlags:
    """What the installed dataclasses have."""
    import trl
    from transformers import CONFIG_MAPPING, HfArgumentParser

    every: dict[str, Known] = {}
    for name in ("ModelConfig", "SFTConfig", "DPOConfig"):
        parser = HfArgumentParser(getattr(trl, name), add_help=False)
        every[name] = {}
        for action in parser._actions:
            every[name].setdefault(action.dest, []).append(describe_flag(action))
    sft, dpo = every["SFTConfig"], every["DPOConfig"]
    shared = {name: flags for name, flags in sft.items() if dpo.get(name) == flags}
    classes = {"ModelConfig": every["ModelConfig"], "TrainingArguments": shared}
    for name in ("SFTConfig", "DPOConfig"):
        classes[name] = {k: v for k, v in every[name].items() if k not in shared}
    types = sorted(CONFIG_MAPPING.keys())
    return {"versions": installed_versions(), "model_types": types, "flags": classes}


def write_known_flags() -> None:
    """Write the file, a line for each field."""
    found = find_flags()
    parts = []
    for name, flags in found["flags"].items():
        lines = [f"{json.dumps(field)}: {json.dumps(how)}" for field, how in flags.items()]
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    versions, types = json.dumps(found["versions"]), json.dumps(found["model_types"])
    text = f'{{"versions": {versions},\n"model_types": {types},\n"flags": {{\n' + ",\n".join(parts)
    KNOWN_FILE.write_text(text + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    write_known_flags()
