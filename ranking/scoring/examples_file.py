"""NAME.examples.jsonl, a line per example with the log-likelihood of every completion; no torch."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ranking.data.examples import PreferenceData, PreferenceExample
from ranking.plumbing.outputs import part_files
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record, hash_config, read_config, read_json_lines

# keys that older files lack, or that are not in all
NEWER = {
    "dataset_config", "config_hash", "messages", "groups", "hidden_products", "tools",
    "template_kwargs", "messages_of_text",
}  # fmt: skip


class ScoredCompletion(TypedDict):
    """One completion of an `ExampleRecord`."""

    text: str
    separator: str  # what stands between prompt and text, and counts with its first token
    logp: float | None  # log π(text|prompt), nats, summed over tokens (Eq. 13); null: not finite
    n_tokens: int  # |y| of Eq. 15
    n_chars: int
    n_bytes: int  # in UTF-8
    truncated: bool  # the prompt lost its beginning


class ExampleRecord(TypedDict):
    """One line of NAME.examples.jsonl: an example as it was scored. `dataset`, `split` and `id`
    identify it."""

    id: str  # hash of prompt and completions, and which occurrence of them
    prompt_id: str  # examples of one prompt (or post) share it: the clusters of the bootstrap
    dataset: str
    dataset_config: str | None
    split: str | None
    row: int  # in the dataset, from 0
    model: str
    config_hash: str  # of NAME.config.json
    prompt: str  # as text, which a model without a chat template is given
    messages: list[dict[str, Any]] | None  # the prompt as chat messages, if it is a dialogue
    tools: NotRequired[list[dict[str, Any]]]  # what the template is given beside messages
    template_kwargs: NotRequired[dict[str, Any]]  # the example's own
    messages_of_text: NotRequired[bool]  # messages are read from text of turns (only if so)
    groups: dict[str, str]  # columns by which results are also given, with their values
    ranks: list[int]  # 1: best, equal: tied
    votes: dict[str, list[float]] | None  # "i,j" → raters who preferred i, and j
    completions: list[ScoredCompletion]
    # with --ches: ⟨S(y_i), S(y_j)⟩ of all completions, see `ranking.metrics.ches`; null: not finite
    hidden_products: NotRequired[list[list[float]] | None]


def recorded_votes(example: PreferenceExample) -> dict[str, list[float]] | None:
    """Votes as the examples file has them: "i,j" → the two counts."""
    votes = example.votes or {}
    return {f"{i},{j}": list(counts) for (i, j), counts in votes.items()} or None


def recorded_messages(example: PreferenceExample) -> list[dict[str, Any]] | None:
    """The messages of a prompt that is a dialogue."""
    return list(example.dialogue.messages) if example.dialogue else None


def recorded_besides(example: PreferenceExample) -> dict[str, Any]:
    """What a dialogue holds beside its messages: the keys of `ExampleRecord` that it needs."""
    dialogue = example.dialogue
    if dialogue is None:
        return {}
    given = {"tools": list(dialogue.tools or ()), "template_kwargs": dialogue.template_kwargs,
             "messages_of_text": dialogue.of_text}  # fmt: skip
    return {key: value for key, value in given.items() if value}


def example_record(
    data: PreferenceData,
    example: PreferenceExample,
    tokenized: Sequence,  # of TokenizedCompletion
    logps: Sequence[float],
    config_hash: str,
    model: str,
) -> ExampleRecord:
    """One line of the examples file. logps: nats, summed (Eq. 13)."""
    record: Any = {
        "id": example.id,
        "prompt_id": example.prompt_id,
        "dataset": data.name,
        "dataset_config": data.config,
        "split": data.split,
        "row": example.row,
        "model": model,
        "config_hash": config_hash,
        "prompt": example.prompt,
        "messages": recorded_messages(example),
        **recorded_besides(example),
        "groups": example.groups,
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
                example.completions, example.separators, tokenized, logps
            )
        ],
    }
    return record


def load_examples(path: str) -> list[Record]:
    """Rows of an examples file in the order of the data; ValueError if they are not that."""
    records = read_json_lines(Path(path))
    own = path.removesuffix(".examples.jsonl")
    stems = [own, *(own.removesuffix(side) for side in (".policy", ".reference"))]  # of two models
    summaries = [stem + suffix for stem in stems for suffix in ("", ".jsonl", ".json")]
    unfinished = Path(f"{own}.config.json").exists() and not any(map(os.path.isfile, summaries))
    if part_files(Path(path)) or unfinished:
        raise ValueError(f"{path} is of an unfinished run: give the command that began it again")
    needed = ExampleRecord.__annotations__.keys() - NEWER
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


def planned_records(datasets: Sequence[PreferenceData]) -> list[Record]:
    """The examples of a run that is yet to score them, with what of a record is known by then."""
    return [
        {
            "dataset": data.name,
            "dataset_config": data.config,
            "split": data.split,
            "id": example.id,
            "row": example.row,
            "prompt": example.prompt,
            "messages": recorded_messages(example),
            "groups": example.groups,
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
