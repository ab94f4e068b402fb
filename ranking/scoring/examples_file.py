"""NAME.examples.jsonl, a line per example with the log-likelihood of every completion; no torch."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ranking.data.examples import PreferenceData, PreferenceExample
from ranking.plumbing.command_line import announce
from ranking.plumbing.result_files import (
    Record,
    hash_config,
    part_files,
    read_config,
    read_json_lines,
)

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scipy")


def recorded_votes(example: PreferenceExample) -> dict[str, list[float]] | None:
    """Votes as the examples file has them: "i,j" → the two counts."""
    votes = example.votes or {}
    return {f"{i},{j}": list(counts) for (i, j), counts in votes.items()} or None


def example_record(
    data: PreferenceData, example, completions, logps, config_hash: str, config: Record
) -> Record:
    """One line of the examples file; logp is the float64 sum over tokens (nats) or null."""
    sums = [float(values.astype(np.float64).sum()) for values in logps]
    return {
        "id": example.id,
        "prompt_id": example.prompt_id,
        "dataset": data.name,
        "dataset_config": data.config,
        "split": data.split,
        "row": example.row,
        "model": config["model"],
        "config_hash": config_hash,
        "prompt": example.prompt,
        "ranks": list(example.ranks),
        "votes": recorded_votes(example),
        "completions": [
            {
                "text": text,
                "separator": separator,
                "logp": logp if math.isfinite(logp) else None,
                "n_tokens": len(completion.ids) - completion.start,
                "n_chars": len(text),
                "n_bytes": len(text.encode("utf-8", "surrogatepass")),
                "truncated": completion.truncated,
            }
            for text, separator, completion, logp in zip(
                example.completions, example.separators, completions, sums
            )
        ],
    }


def load_examples(path: str) -> list[Record]:
    """Rows of an examples file in the order of the data; ValueError if they are not that."""
    records = read_json_lines(Path(path))
    own = path.removesuffix(".examples.jsonl")
    stems = (own, own.removesuffix(".policy"))  # scored by the idealized script, one summary of two
    summaries = [stem + suffix for stem in stems for suffix in ("", ".jsonl", ".json")]
    unfinished = Path(f"{own}.config.json").exists() and not any(map(os.path.isfile, summaries))
    if part_files(Path(path)) or unfinished:
        raise ValueError(f"{path} is of an unfinished run: give the command that began it again")
    needed = {
        "id",
        "prompt_id",
        "dataset",
        "split",
        "row",
        "ranks",
        "votes",
        "completions",
        "prompt",
        "model",
    }
    for number, record in enumerate(records, start=1):
        if not needed <= record.keys():
            raise ValueError(f"{path}: row {number}: not an examples file of the ranking script")
    if not records:
        raise ValueError(f"{path}: no rows")
    return sorted(records, key=lambda record: (record["dataset"], record["row"], record["id"]))


def config_beside(path: str, records: list[Record]) -> Record | None:
    """How an examples file was scored, by the config beside it; None, and a line that says so,
    where there is none, or that of other rows."""
    file = Path(path.removesuffix(".examples.jsonl") + ".config.json")
    config = read_config(file)
    if {record.get("config_hash") for record in records} == {hash_config(config)}:
        return config
    announce(
        f"{path}: no {file.name} beside it that belongs to it: how it was scored (template, EOS, "
        "separator, length, ties) could not be checked"
    )
    return None


def scoring_settings(config: Record | None, name: str, split: str | None) -> Record:
    """What a summary row says of how its texts were made; null where nobody knows."""
    settings: Record = {
        key: (config or {}).get(key)
        for key in ("chat_template", "add_eos", "max_length", "sample_size")
    }
    return {**settings, "separator": separator_of(config, name, split)}


def separator_of(config: Record | None, name: str, split: str | None) -> Any:
    """What joined prompt and completion of a dataset; null under a chat template."""
    entries = [] if config is None or config.get("chat_template") else config["datasets"]
    found = [e["separator"] for e in entries if (e["name"], e["split"]) == (name, split)]
    return found[0] if found else None


def separators_of(record: Record, config: Record) -> list:
    """What joined each completion of a record to the prompt; older rows: what the config says."""
    whole = separator_of(config, record["dataset"], record["split"])
    return [completion.get("separator", whole) for completion in record["completions"]]


def planned_records(datasets: list[PreferenceData]) -> list[Record]:
    """The examples of a run that is yet to score them, with what of a record is known by then."""
    return [
        {
            "dataset": data.name,
            "split": data.split,
            "id": example.id,
            "row": example.row,
            "prompt": example.prompt,
            "ranks": list(example.ranks),
            "votes": recorded_votes(example),
            "completions": [
                {"text": text, "separator": separator}
                for text, separator in zip(example.completions, example.separators)
            ],
        }
        for data in datasets
        for example in data.examples
    ]
