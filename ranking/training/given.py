"""How sft.py and dpo.py read their command lines, with the file that --config names."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ranking.plumbing.command_line import suggestion
from ranking.training.config_file import NOT_SAVED, config_words
from ranking.training.parsing import (
    FLAG_GROUPS,
    FlagParser,
    FlagSet,
    check_strays,
    name_of,
    of_other_script,
    successor,
    without_neutral,
)

SWITCHES = ("truth", "string_to_bool")  # types of flags that are true or false


class Given(NamedTuple):
    """A command line, read."""

    words: list[str]  # what of it, and of its --config file, is to be parsed
    names: set[str]  # of the flags given
    values: dict[str, Any]  # of these, as --save_config writes them
    notes: list[str]  # on keys of the file that have no effect


def read_given(parser: FlagParser, argv: Sequence[str], flags: FlagSet) -> Given:
    """The flags given on a command line and in its --config file; ValueError for unknown and
    retired ones, with what to use instead, and for values of another type.

    parser: one with all of `flags`.
    """
    retired = flags.retired
    parser.retired, parser.script = retired, flags.script
    parser.add_argument("--no_add_eos", "--no-add-eos", dest="add_eos", action="store_false",
                        default=None)  # fmt: skip
    for action in parser._actions:
        if action.nargs is None and getattr(action.type, "__name__", "") in SWITCHES:
            action.nargs, action.const = "?", True  # the bare flag switches on, as of other flags
    if "--help-all" in argv:
        print(parser.format_help(everything=True))
        raise SystemExit(0)
    actions = parser._option_string_actions
    argv = without_neutral(argv, retired)
    known = {option for option in actions if option.startswith("--")}
    names = set()
    for flag in flags_among(argv):
        if text := successor(name_of(flag), retired):
            raise ValueError(f"{flag} cannot be honoured; use {text}")
        if flag not in known:
            hint = of_other_script(name_of(flag), flags.script) or suggestion(flag, known)
            raise ValueError(f"unknown flag {flag}{hint}")
        names.add(actions[flag].dest)
    check_strays(parser, argv)
    of_file, notes = config_words(parser, argv, names, flags)
    words = [*of_file, *argv]
    names = {actions[flag].dest for flag in flags_among(words)}
    values = vars(parser.parse_args(words))
    order = [name for texts in FLAG_GROUPS.values() for name in texts]
    saved = [name for name in order if name in names] + sorted(names - {*order})
    return Given(
        words, names, {name: values[name] for name in saved if name not in NOT_SAVED}, notes
    )


def flags_among(words: Sequence[str]) -> list[str]:
    """The flags of a command line, without their values."""
    return [word.split("=")[0] for word in words if word.startswith("--")]
