"""NAME.config.json: everything that log-likelihoods depend on, which a resumed run must share."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NotRequired, TypedDict

from ranking.data.examples import PreferenceData, fingerprint, joining
from ranking.plumbing.result_files import hash_config
from ranking.scoring.models import FoundModel

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scipy")


class DatasetConfig(TypedDict):
    """A dataset of a `RunConfig`."""

    name: str
    config: str | None
    split: str | None
    separator: str | None  # one for all; null: by the texts, see `separator_between`
    examples: str  # hash of all that results depend on
    dropped: dict[str, int]  # by reason, while reading


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
    max_length: int | None
    chat_template: bool
    add_eos: bool


def make_run_config(
    found: FoundModel,
    datasets: Sequence[PreferenceData],
    *,
    sample_size: int | None,
    seed: int,
    include_ties: bool,
    max_length: int | None,
    chat_template: bool,
    add_eos: bool,
    quantization: str | None,
    trust_remote_code: bool,
) -> RunConfig:
    """The configuration of a run that scores `datasets`."""
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
        "chat_template": chat_template,
        "add_eos": add_eos,
    }
    if quantization:
        config["quantization"] = quantization
    if trust_remote_code:
        config["trust_remote_code"] = True
    return config


def scoring_settings(
    config: Mapping[str, Any] | None, name: str, split: str | None
) -> dict[str, Any]:
    """What a summary row says of how its texts were made; null where nobody knows."""
    keys = ("chat_template", "add_eos", "max_length", "sample_size")
    settings: dict[str, Any] = {key: (config or {}).get(key) for key in keys}
    return {**settings, "separator": separator_of(config, name, split)}


def separator_of(config: Mapping[str, Any] | None, name: str, split: str | None) -> Any:
    """What joined prompt and completion of a dataset; null under a chat template."""
    entries = [] if config is None or config.get("chat_template") else config["datasets"]
    found = [e["separator"] for e in entries if (e["name"], e["split"]) == (name, split)]
    return found[0] if found else None


def separators_of(record: Mapping[str, Any], config: Mapping[str, Any]) -> list:
    """What joined each completion of a record to the prompt; older rows: what the config says."""
    whole = separator_of(config, record["dataset"], record["split"])
    return [completion.get("separator", whole) for completion in record["completions"]]


def dataset_facts(data: PreferenceData, config: Mapping[str, Any]) -> dict[str, Any]:
    """What every summary row says of its dataset, and of how its texts were made."""
    return {
        "model": config["model"],
        "dataset_name": data.name,
        "dataset_config": data.config,
        "dataset_split": data.split,
        "dataset_commit": data.commit,
        "joined_by": None if config["chat_template"] else joining(data.examples),
        "include_ties": config["include_ties"],
        "seed": config["seed"],
        "revision": config["revision"],
        "config_hash": hash_config(config),
        **scoring_settings(config, data.name, data.split),
        "versions": {name: version(name) for name in LIBRARIES},
    }
