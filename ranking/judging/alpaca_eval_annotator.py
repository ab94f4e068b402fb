"""AlpacaEval's annotators as judges, by the package `alpaca_eval`: its prompts, the settings of its
requests and its parsers of answers. They are asked, and cached, as every served judge is.
"""

import difflib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from ranking.data.dialogues import is_dialogue_text, parse_dialogue
from ranking.data.examples import content_hash
from ranking.judging.served_model import Messages, ServedJudge

PLACEHOLDER = re.compile(r"\{([^ \s]+?)\}")  # what the package takes for one
FILLED = {"instruction", "output_1", "output_2"}
# of `completions_kwargs`: what is no parameter of a request
NOT_ASKED = {"model_name", "requires_chatml", "price_per_token", "client_kwargs"}
BIASES = {"tokens_to_favor", "tokens_to_avoid"}


def alpaca_eval_judge(name: str) -> tuple[ServedJudge, str, str | None]:
    """An annotator, a hash of its prompt and settings, and its own address, if it has one.

    name: CONFIG, a configuration of the package, or CONFIG:MODEL, which asks another model. Raises
    ValueError with one line: not installed, unknown, or not asked one pair at a time in a chat.
    """
    config_name, _, model = name.partition(":")
    folder = configurations()
    config = annotator_config(folder, config_name)
    template = (folder / config["prompt_template"]).read_text(encoding="utf-8")
    if reason := why_not(config, template):
        raise ValueError(f"--judge alpaca_eval:{config_name}: {reason}")
    asked, parsers = config["completions_kwargs"], import_package("alpaca_eval.completion_parsers")
    parse = partial(
        getattr(parsers, config.get("fn_completion_parser") or "regex_parser"),
        **config.get("completion_parser_kwargs") or {},
    )
    messages = import_package("alpaca_eval.utils").prompt_to_chatml(template)
    judge = ServedJudge(
        model or asked["model_name"],
        {key: value for key, value in asked.items() if key not in NOT_ASKED},
        instruction_of,
        partial(fill_template, messages),
        partial(read_preference, parse, config.get("completion_key") == "completions_all"),
        mean_of_orders,
    )
    about = content_hash([template, json.dumps(config, sort_keys=True)])
    return judge, about, (asked.get("client_kwargs") or {}).get("base_url")


def configurations() -> Path:
    """The folder of the package's configurations. ValueError where it is not installed."""
    spec = find_spec("alpaca_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("--judge alpaca_eval: the package is missing: pip install alpaca_eval")
    return Path(spec.submodule_search_locations[0]) / "evaluators_configs"


def annotator_config(folder: Path, name: str) -> dict[str, Any]:
    """The annotator of a configuration; ValueError for an unknown name, or for several."""
    import yaml

    known = sorted(file.parent.name for file in folder.glob("*/configs.yaml"))
    if name not in known:
        near = difflib.get_close_matches(name, known, 5, 0.4) or known
        raise ValueError(
            f"--judge alpaca_eval:{name}: the package has no such configuration; it has "
            f"{', '.join(near)}" + (f" and {len(known) - len(near)} more" if near != known else "")
        )
    annotators = yaml.safe_load((folder / name / "configs.yaml").read_text(encoding="utf-8"))
    if len(annotators) > 1:
        raise ValueError(
            f"--judge alpaca_eval:{name}: a pool of {len(annotators)} annotators, of which chance "
            "takes one for a pair: choose a configuration of one"
        )
    return next(iter(annotators.values()))


def why_not(config: Mapping[str, Any], template: str) -> str | None:
    """What keeps an annotator from being asked one pair at a time in a chat; None if nothing."""
    how = config.get("fn_completions", "openai_completions")
    if how != "openai_completions":
        return f"it is asked by {how}, not by an OpenAI-compatible endpoint"
    if config.get("batch_size", 1) > 1:
        return f"it asks about {config['batch_size']} pairs at a time"
    if BIASES & config["completions_kwargs"].keys():
        return "it favours or avoids tokens of its own model's tokenizer"
    if not template.lstrip().startswith("<|im_start|>"):
        return "its prompt is not for a chat model"
    if unknown := set(PLACEHOLDER.findall(template)) - FILLED:
        return f"its prompt asks for {', '.join(sorted(unknown))} of each example"
    return None


def import_package(module: str) -> ModuleType:
    """A module of the package, whose import reaches beyond it, which is undone or kept from it: it
    sets the level of all logging, reads a file .env into the environment, and needs pkg_resources,
    which setuptools no longer has, for nothing but versions that nobody asks for here."""
    root = logging.getLogger()
    level = root.level
    os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")
    missing = "pkg_resources" not in sys.modules and find_spec("pkg_resources") is None
    if missing:
        sys.modules["pkg_resources"] = ModuleType("pkg_resources")
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"--judge alpaca_eval: the package cannot be imported: {error}") from None
    finally:
        root.setLevel(level)
        if missing:
            del sys.modules["pkg_resources"]


def instruction_of(pair: Mapping[str, Any]) -> str:
    """What a pair's replies answer: the words of the user where these are all, else the dialogue
    as text."""
    text = pair["prompt"]
    turns = pair.get("messages") or (parse_dialogue(text) if is_dialogue_text(text) else [])
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return text.strip()


def fill_template(template: Messages, instruction: str, first: str, second: str) -> Messages:
    """The messages that ask for a comparison. What is filled in is not searched for placeholders
    and turns again, as the package does."""
    values = {"instruction": instruction, "output_1": first, "output_2": second}
    return [
        message | {"content": PLACEHOLDER.sub(lambda m: values[m[1]], message["content"])}
        for message in template
    ]


def read_preference(parse: Callable[[Any], list[Any]], whole: bool, answer: str) -> float | None:
    """The first reply's share of the win, in [0, 1]; None if the parser cannot tell.

    The package's preference is 1 for the first reply, 2 for the second, between them where it is
    weighted by log-probabilities, 0 for a tie. whole: the parser reads all of the choice, else its
    text.
    """
    disabled = logging.root.manager.disable
    logging.disable()  # parsers log what they cannot read, in many lines
    try:
        (preference,) = parse(json.loads(answer) if whole else answer)
        preference = float(preference)
    except Exception:  # whatever the answer leads a parser to
        return None
    finally:
        logging.disable(disabled)
    if preference == 0:
        return 0.5
    return 2 - preference if 1 <= preference <= 2 else None


def mean_of_orders(first: float | None, second: float | None) -> float | None:
    """The policy's share of the win: the mean over both orders, of which the package draws one. An
    unclear verdict leaves None."""
    return None if first is None or second is None else (first + 1 - second) / 2
