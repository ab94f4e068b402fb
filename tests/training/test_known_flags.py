"""known_flags.json and the parser of what it says, beside that of TRL's dataclasses."""

from importlib.metadata import version

import pytest

import dpo
import sft
from ranking.training import known_flags
from ranking.training.early_checks import check_flags
from ranking.training.flags import ModelFlags
from ranking.training.models import ModelArguments
from ranking.training.parsing import FlagParser

KINDS = {"sft": (sft.SFT, sft.SFTArguments), "dpo": (dpo.DPO, dpo.DPOArguments)}
TEXTS = ("1", "-2", "1e-5", "true", "No", "steps", "adamw_torch", "x", "{}")


def test_the_file_is_of_the_installed_versions():
    """After a change of versions, and of the file's form: python -m ranking.training.known_flags"""
    assert known_flags.read_known_flags() == known_flags.find_flags()


def converted(action, text: str):
    """What a flag makes of a text; an exception's class where it refuses it."""
    try:
        value = action.type(text) if action.type else text
        value = getattr(value, "value", value)
        allowed = action.choices is None or value in list(action.choices)
        return value if allowed else ValueError
    except Exception:
        return ValueError


@pytest.mark.parametrize("script", ["sft", "dpo"])
def test_the_file_gives_the_flags_of_the_dataclasses(script):
    """Each flag: spellings, default, number of values, and what it makes of texts."""
    flags, kind = KINDS[script]
    known = known_flags.read_known_flags()
    of_file = [known_flags.stand_in(ModelFlags, "ModelConfig", known),
               known_flags.stand_in(flags.training, flags.library, known)]  # fmt: skip
    light = FlagParser([flags.data, *of_file])
    heavy = FlagParser([flags.data, ModelArguments, kind])
    options = [set(parser._option_string_actions) for parser in (light, heavy)]
    assert options[0] == options[1] and len(options[0]) > 300
    # types that the light parser takes as text: TRL's classes decide
    later = {"parallelism_config", "debug"}
    for option, own in heavy._option_string_actions.items():
        other = light._option_string_actions[option]
        assert (other.dest, other.nargs, other.const) == (own.dest, own.nargs, own.const), option
        assert other.default == getattr(own.default, "value", own.default), option
        if own.dest not in later | {"help"}:
            values = [[converted(action, text) for text in TEXTS] for action in (other, own)]
            assert values[0] == values[1], option


def test_other_versions_leave_everything_to_the_dataclasses(monkeypatch):
    monkeypatch.setattr(known_flags, "FLAG_LIBRARIES", ("transformers", "trl", "torch"))
    assert known_flags.installed_versions()["torch"] == version("torch")
    assert known_flags.read_known_flags() is None
    check_flags(dpo.DPO, ["--no_such_flag"], "")
