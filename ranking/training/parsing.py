"""How sft.py and dpo.py read their command lines, with the file that --config names."""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ranking.plumbing.command_line import HelpFormatter, suggestion
from ranking.plumbing.processes import announce
from ranking.training.config_file import NOT_SAVED, config_words
from ranking.training.help_texts import (
    FLAG_GROUPS,
    METAVARS,
    is_neutral,
    of_other_script,
    successor,
)


class FlagFormatter(HelpFormatter):
    """Flags once, as `--max_length, --seq_length N`."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, max_help_position=32, **kwargs)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(name for name in action.option_strings if "-" not in name.lstrip("-"))
        few = action.choices is not None and len(list(action.choices)) <= 5
        if action.nargs in (0, "?") or few:  # a switch, or its choices are in the text
            return names
        default = "N" if action.type in (int, float) else "NAME"
        several = " …" if action.nargs == "+" else ""
        return f"{names} {METAVARS.get(action.dest, default)}{several}"


class FlagSet(NamedTuple):
    """What a script's flags are of, beside those of its model: dataclasses of ours."""

    data: type
    training: type  # a mixin of what `library` names
    library: str
    retired: Mapping[str, str]
    script: str  # sft.py or dpo.py


class FlagParser(HfArgumentParser):
    """The parser that TRL's scripts have. Errors are raised as ValueError; --help shows
    FLAG_GROUPS, --help-all all flags."""

    retired: Mapping[str, str] = {}
    script = ""

    def error(self, message: str):
        raise ValueError(re.sub(r"^argument (--\w+)[^:]*: ", r"\1: ", message))

    def format_help(self, everything: bool = False) -> str:
        formatter = self._get_formatter()
        formatter.add_text(f"usage: {self.script} --model_name_or_path NAME --output_dir DIR …")
        formatter.add_text(self.description)
        rest = {action: action for action in self._actions}
        for title, texts in FLAG_GROUPS.items():
            formatter.start_section(title)
            for name, text in texts.items():
                actions = [action for action in self._actions if action.dest == name]
                for action in actions:  # --no_NAME among them
                    action.help = text if isinstance(text, str) else text[self.script]
                for action in actions[:1]:
                    formatter.add_arguments([rest.pop(action)])
            formatter.end_section()
        if everything:
            formatter.start_section("of transformers and TRL")
            formatter.add_arguments(
                [a for a in rest if a.dest != "help" and successor(a.dest, self.retired) is None]
            )
            formatter.end_section()
        else:
            formatter.add_text("--help-all: also the flags of transformers and TRL, which work too")
        return formatter.format_help()


def parse_flags(
    flags: FlagSet, types: Sequence[type], argv: Sequence[str], description: str
) -> tuple:
    """The values of a command line: an instance of `flags.data` and of each of `types`, which are
    TRL's ModelConfig and `flags.library` with our mixins. ValueError as `read_flags`."""
    parsed, names, notes = read_flags(flags, (flags.data, *types), argv, description)
    for note in notes:
        announce(note)
    for checked in parsed[1:]:
        checked.check_given(names)
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


def read_flags(
    flags: FlagSet, types: Sequence[type], argv: Sequence[str], description: str
) -> tuple[tuple, set[str], list[str]]:
    """The values of a command line and its --config file, an instance of each of `types`
    (dataclasses of flags of data, model and training); the names of the flags given; and notes on
    keys of the file that have no effect.

    ValueError for unknown and retired flags, with what to use instead, and for values of another
    type, or that no run can have.
    """
    parser = make_parser_of(flags, types, description)
    if "--help-all" in argv:
        print(parser.format_help(everything=True))
        raise SystemExit(0)
    argv = without_neutral(argv, flags.retired)
    given = names_among(parser, argv)
    check_strays(parser, argv)
    of_file, notes = config_words(parser, argv, given, flags.retired, flags.script)
    words = [*of_file, *argv]
    names = names_among(parser, words)
    values = vars(parser.parse_args(words))
    try:
        parsed = parser.parse_dict(values)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ValueError(" ".join(str(error).split())) from error  # TRL's can have several lines
    order = [name for texts in FLAG_GROUPS.values() for name in texts]
    saved = [name for name in order if name in names] + sorted(names - {*order})
    parsed[0].given = {name: values[name] for name in saved if name not in NOT_SAVED}
    return parsed, names, notes


def make_parser_of(flags: FlagSet, types: Sequence[type], description: str) -> FlagParser:
    """A parser of a script's flags, the fields of `types`."""
    parser = FlagParser(
        dataclass_types=types, description=description, allow_abbrev=False,
        formatter_class=FlagFormatter,
    )  # fmt: skip
    parser.retired, parser.script = flags.retired, flags.script
    parser.add_argument("--no_add_eos", "--no-add-eos", dest="add_eos", action="store_false",
                        default=None)  # fmt: skip
    for action in parser._actions:
        if action.nargs is None and action.type is string_to_bool:
            action.nargs, action.const = "?", True  # the bare flag switches on, as of other flags
    return parser


def names_among(parser: FlagParser, words: Sequence[str]) -> set[str]:
    """The flags of a command line. ValueError for unknown and retired ones."""
    actions, names = parser._option_string_actions, set()
    for flag in (word.split("=")[0] for word in words if word.startswith("--")):
        if text := successor(name_of(flag), parser.retired):
            raise ValueError(f"{flag} cannot be honoured; use {text}")
        if flag not in actions:
            known = [option for option in actions if option.startswith("--")]
            hint = of_other_script(name_of(flag), parser.script) or suggestion(flag, known)
            raise ValueError(f"unknown flag {flag}{hint}")
        names.add(actions[flag].dest)
    return names


def name_of(flag: str) -> str:
    """--max-length → max_length."""
    return flag.removeprefix("--").replace("-", "_")


def check_strays(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """ValueError for a word that is neither a flag nor a flag's value; it names the flag before."""
    flag, room = "", 0.0  # for so many more values
    for word in argv:
        if word.startswith("--"):
            flag, equals, _ = word.partition("=")
            nargs = parser._option_string_actions[flag].nargs
            room = 0 if equals or nargs == 0 else math.inf if nargs == "+" else 1
        elif room > 0:
            room -= 1
        elif word not in parser._option_string_actions:
            if not flag:
                raise ValueError(f"{word!r}: give flags, as --name value")
            if nargs == "+":
                raise ValueError(f"{word!r} after {flag}=…: give several values as {flag} A B, "
                                 "without =")  # fmt: skip
            raise ValueError(
                f"{word!r} after {flag}: it takes {'one' if nargs != 0 else 'no'} value"
            )


def without_neutral(argv: Sequence[str], retired: Mapping[str, str]) -> list[str]:
    """The arguments without retired flags that ask for nothing, e.g. --push_to_hub=false."""
    kept: list[str] = []
    words = list(argv)
    while words:
        flag, equals, value = words[0].partition("=")
        apart = not equals and len(words) > 1 and not words[1].startswith("--")
        size = 2 if apart else 1
        value = words[1] if apart else value if equals else "true"
        is_retired = flag.startswith("--") and successor(name_of(flag), retired) is not None
        if not (is_retired and is_neutral(name_of(flag), value)):
            kept += words[:1]
            size = 1
        words = words[size:]
    return kept
