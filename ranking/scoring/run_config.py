"""NAME.config.json: everything that log-likelihoods depend on, which a resumed run must share."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from ranking.data.examples import DatasetKey, PreferenceData, content_hash, fingerprint
from ranking.plumbing.outputs import dataset_key
from ranking.reports.labels import CHAT_COLUMNS
from ranking.scoring.chat import (
    ChatOptions,
    applied_to,
    check_template,
    closing_text,
    has_template,
)
from ranking.scoring.loading import load_tokenizer
from ranking.scoring.models import FoundModel


class DatasetConfig(TypedDict):
    """A dataset of a `RunConfig`."""

    name: str
    config: str | None
    split: str | None
    separator: str | None  # one for all; null: by the texts, see `separator_between`
    examples: str  # hash of all that results depend on
    dropped: dict[str, int]  # by reason, while reading
    in_template: NotRequired[int]  # examples that go through the chat template, where only some do


class RunConfig(TypedDict):
    """NAME.config.json. Its hash is in every line of the examples file."""

    model: str
    revision: str | None
    model_fingerprint: str
    datasets: list[DatasetConfig]
    sample_size: int | None  # null: all
    seed: int
    include_ties: bool
    dtype: str
    quantization: NotRequired[str]
    trust_remote_code: NotRequired[bool]
    ches: NotRequired[bool]  # whether inner products of hidden states are recorded
    max_length: int | None
    chat_template: bool  # whether examples go through it: all, but for `in_template`
    template: NotRequired[str]  # hash of the one they go through
    system: NotRequired[str]
    chat_template_kwargs: NotRequired[dict[str, Any]]
    chat_template_file: NotRequired[str]  # hash of its text
    add_eos: bool


def make_run_config(
    found: FoundModel,
    datasets: Sequence[PreferenceData],
    *,
    sample_size: int | None,
    seed: int,
    include_ties: bool,
    max_length: int | None,
    chat: ChatOptions,
    add_eos: bool,
    quantization: str | None,
    trust_remote_code: bool,
    ches: bool = False,
) -> RunConfig:
    """The configuration of a run that scores `datasets`.

    Reads the model's tokenizer where a chat template could be used; ValueError where there is none
    that is asked for, or it cannot be applied.
    """
    counts, template = template_counts(found, datasets, chat, trust_remote_code)
    is_dialogue = any(e.dialogue is not None for data in datasets for e in data.examples)
    config: RunConfig = {
        "model": found.name,
        "revision": found.revision,
        "model_fingerprint": found.fingerprint,
        "datasets": [
            {
                "name": data.name,
                "config": data.config,
                "split": data.split,
                "separator": data.separator,
                "examples": fingerprint(data.examples),
                "dropped": data.dropped,
            }
            for data in datasets
        ],
        "sample_size": sample_size,
        "seed": seed,
        "include_ties": include_ties,
        "dtype": found.dtype,
        "max_length": max_length,
        "chat_template": any(counts),
        "add_eos": add_eos,
    }
    if chat.mode == "auto" and any(counts):
        for entry, n in zip(config["datasets"], counts):
            entry["in_template"] = n
    if chat.system is not None and (any(counts) or is_dialogue):
        config["system"] = chat.system
    if template is not None:
        config["template"] = content_hash([template])
        if chat.kwargs:
            config["chat_template_kwargs"] = dict(chat.kwargs)
        if chat.template is not None:
            config["chat_template_file"] = content_hash([chat.template])
    if quantization:
        config["quantization"] = quantization
    if trust_remote_code:
        config["trust_remote_code"] = True
    if ches:
        config["ches"] = True
    return config


def template_counts(
    found: FoundModel, datasets: Sequence[PreferenceData], chat: ChatOptions, trusted: bool
) -> tuple[list[int], str | None]:
    """How many examples of each dataset go through the model's chat template, and that template,
    where it is used.

    ValueError where it has none that is asked for, or it cannot be applied to an answered question.
    """
    wanted = [
        sum(chat.mode == "always" or example.dialogue is not None for example in data.examples)
        for data in datasets
    ]
    none = [0 for _ in datasets], None
    if chat.mode == "never" or not any(wanted):
        return none
    tokenizer = load_tokenizer(found.name, found.commit, trust_remote_code=trusted)
    check_template(tokenizer, chat, found.name)
    if not has_template(tokenizer, chat):
        return none
    closing_text(tokenizer, chat)
    return wanted, applied_to(tokenizer, chat, None).template


def scoring_settings(config: Mapping[str, Any], key: DatasetKey) -> dict[str, Any]:
    """What a summary row says of how its texts were made."""
    entry, in_chat = dataset_entry(config, key), in_template(config, key)
    names = ("add_eos", "max_length", "sample_size")
    return {
        "chat_template": in_chat,
        **{name: config.get(name) for name in names},
        **{name: config[name] for name in CHAT_COLUMNS if name in config},
        **{name: entry[name] for name in ("in_template",) if name in entry},
        "separator": None if in_chat else entry.get("separator"),
    }


def dataset_entry(config: Mapping[str, Any], key: DatasetKey) -> Mapping[str, Any]:
    """The `DatasetConfig` of a dataset; {} where there is none."""
    entries = config.get("datasets", [])
    return next((e for e in entries if (e["name"], e["split"], e.get("config")) == key), {})


def in_template(config: Mapping[str, Any], key: DatasetKey) -> bool | None:
    """Whether examples of a dataset went through the chat template."""
    entry = dataset_entry(config, key)
    return entry["in_template"] > 0 if "in_template" in entry else config.get("chat_template")


def record_in_template(record: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a record went through the chat template: where only some did, the dialogues."""
    key = dataset_key(record)
    is_dialogue = record.get("messages") is not None
    only_dialogues = "in_template" in dataset_entry(config, key)
    return bool(in_template(config, key) and (is_dialogue or not only_dialogues))
