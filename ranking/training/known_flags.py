"""The flags of TRL's and transformers' dataclasses, without importing these.

    python -m ranking.training.known_flags

writes known_flags.json anew, after a change of their versions. Where other versions are installed
than the file was written with, nothing is known, and the dataclasses decide.
"""

import importlib.metadata
import json
from dataclasses import MISSING, Field, field, fields, make_dataclass
from enum import Enum, EnumType
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args, get_origin

KNOWN_FILE = Path(__file__).with_name("known_flags.json")
FLAG_LIBRARIES = ("transformers", "trl")
KINDS: dict[str, Any] = {  # of values; other ones are checked as text
    "int": int, "float": float, "dict": dict, "str": str, "bool": bool, "bool | None": bool | None,
    "list[str]": list[str], "list[float]": list[float],
}  # fmt: skip

# by field: its `type` of KINDS, its `default`, and its metadata (help, choices, …)
Known = dict[str, dict[str, Any]]


class KnownFlags(TypedDict):
    """known_flags.json."""

    versions: dict[str, str]  # of FLAG_LIBRARIES
    flags: dict[str, Known]  # by dataclass; TrainingArguments: what SFTConfig and DPOConfig share


def read_known_flags() -> KnownFlags | None:
    """What the file says; None where it is of other versions than those installed."""
    known = json.loads(KNOWN_FILE.read_text(encoding="utf-8"))
    return known if known["versions"] == installed_versions() else None


def installed_versions() -> dict[str, str]:
    """Of FLAG_LIBRARIES, without importing them."""
    return {name: importlib.metadata.version(name) for name in FLAG_LIBRARIES}


def stand_in(mixin: type, library: str, known: KnownFlags) -> type:
    """A dataclass of a mixin's flags and those of TRL's class `library`, as the class itself would
    be with the mixin, whose `check` it has."""
    shared = {} if library == "ModelConfig" else known["flags"]["TrainingArguments"]
    of_library = make_dataclass(
        library,
        [(name, KINDS[how["type"]], known_field(how))
         for name, how in {**shared, **known["flags"][library]}.items()],
    )  # fmt: skip
    return make_dataclass(
        mixin.__name__, [], bases=(mixin, of_library),
        namespace={"__post_init__": lambda self: self.check()},
    )  # fmt: skip


def known_field(how: dict[str, Any]) -> Any:
    """A dataclass field of the file."""
    default = how["default"]
    metadata = {name: value for name, value in how.items() if name not in ("type", "default")}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


# ---------------------------------------------------------------------------- the file anew
def describe_field(one: Field) -> dict[str, Any]:
    """A field of the file, of one whose type HfArgumentParser has resolved."""
    kind: Any = one.type
    how = dict(one.metadata)
    if isinstance(one.type, EnumType):
        how["choices"] = [choice.value for choice in kind]
    elif get_origin(kind) is Literal:
        how["choices"] = get_args(kind)
    if "choices" in how:
        how["choices"] = [str(choice) for choice in how["choices"]]
    default = one.default if one.default_factory is MISSING else one.default_factory()
    default = default.value if isinstance(default, Enum) else default
    return {"type": name_of_kind(kind), "default": default, **how}


def name_of_kind(kind: Any) -> str:
    """What KINDS calls it."""
    if get_origin(kind) is list:
        return f"list[{name_of_kind(get_args(kind)[0])}]"
    found = (name for name, known in KINDS.items() if known in (kind, get_origin(kind)))
    return next(found, "str")


def find_flags() -> KnownFlags:
    """What the installed dataclasses have."""
    import trl
    from transformers import HfArgumentParser

    every: dict[str, Known] = {}
    for name in ("ModelConfig", "SFTConfig", "DPOConfig"):
        HfArgumentParser(getattr(trl, name))  # which resolves the types of the fields
        own = fields(getattr(trl, name))
        every[name] = {one.name: describe_field(one) for one in own if one.init}
    sft, dpo = every["SFTConfig"], every["DPOConfig"]
    shared = {name: how for name, how in sft.items() if dpo.get(name) == how}
    classes = {"ModelConfig": every["ModelConfig"], "TrainingArguments": shared}
    for name in ("SFTConfig", "DPOConfig"):
        classes[name] = {k: v for k, v in every[name].items() if k not in shared}
    return {"versions": installed_versions(), "flags": classes}


def write_known_flags() -> None:
    """Write the file, a line for each field."""
    found = find_flags()
    parts = []
    for name, flags in found["flags"].items():
        lines = [f"{json.dumps(field)}: {json.dumps(how)}" for field, how in flags.items()]
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    versions = json.dumps(found["versions"])
    text = f'{{"versions": {versions},\n"flags": {{\n' + ",\n".join(parts)
    KNOWN_FILE.write_text(text + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    write_known_flags()
