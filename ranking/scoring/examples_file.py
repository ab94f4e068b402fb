"""NAME.examples.jsonl, a line per example with the log-likelihood of every completion; no torch."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ranking.data.cells import read_votes
from ranking.data.examples import PreferenceData, PreferenceExample
from ranking.plumbing.outputs import part_files, row_key
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record, hash_config, read_config, read_json_lines

# keys that readers ask for
ASKED = {"id", "prompt_id", "dataset", "dataset_config", "split", "row", "model", "prompt", "ranks",
         "votes", "completions"}  # fmt: skip
NEEDED = {"text", "separator", "logp", "n_tokens"}  # keys of a completion that readers ask for
SUMMARY_SUFFIXES = (".jsonl", ".json", "", ".jsonl.gz")  # of a summary beside an examples file


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
    """One line of NAME.examples.jsonl: an example as it was scored. `dataset`, `dataset_config`,
    `split` and `id` identify it."""

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


def recorded_besides(example: PreferenceExample) -> dict[str, Any]:
    """What a dialogue holds beside its messages: the keys of `ExampleRecord` that it needs."""
    dialogue = example.dialogue
    if dialogue is None:
        return {}
    given = {"tools": list(dialogue.tools or ()), "template_kwargs": dialogue.template_kwargs,
             "messages_of_text": dialogue.of_text}  # fmt: skip
    return {key: value for key, value in given.items() if value}


def planned_record(data: PreferenceData, example: PreferenceExample) -> Record:
    """What is known of an `ExampleRecord` before the example is scored."""
    return {
        "id": example.id,
        "prompt_id": example.prompt_id,
        "dataset": data.name,
        "dataset_config": data.config,
        "split": data.split,
        "row": example.row,
        "prompt": example.prompt,
        "messages": list(example.dialogue.messages) if example.dialogue else None,
        **recorded_besides(example),
        "groups": example.groups,
        "ranks": list(example.ranks),
        "votes": recorded_votes(example),
        "completions": [
            {
                "text": text,
                "separator": separator,
                "n_chars": len(text),
                "n_bytes": len(text.encode("utf-8", "surrogatepass")),
            }
            for text, separator in zip(example.completions, example.separators)
        ],
    }


def example_record(
    data: PreferenceData,
    example: PreferenceExample,
    tokenized: Sequence,  # of TokenizedCompletion
    logps: Sequence[float],
    config_hash: str,
    model: str,
) -> ExampleRecord:
    """One line of the examples file. logps: nats, summed (Eq. 13)."""
    record: Any = {**planned_record(data, example), "model": model, "config_hash": config_hash}
    for completion, of_tokens, logp in zip(record["completions"], tokenized, logps):
        completion["logp"] = logp if math.isfinite(logp) else None
        completion["n_tokens"] = len(of_tokens.ids) - of_tokens.start
        completion["truncated"] = of_tokens.truncated
    return record


def stem_of_examples(path: str) -> str:
    """NAME, with its folder, of NAME.examples.jsonl or NAME.examples.jsonl.gz: what the names of
    the files beside it begin with."""
    return path.removesuffix(".gz").removesuffix(".examples.jsonl")


def in_order_of_data(records: Iterable[Any]) -> list[Any]:
    """Records in the order of their dataset's rows; files have them as they were scored."""
    return sorted(records, key=lambda record: (record["dataset"], record["row"], record["id"]))


def load_examples(path: str) -> list[Record]:
    """Rows of an examples file in the order of the data; ValueError if they are not that, or not
    those of one model, each example once."""
    records = read_json_lines(Path(path))
    own = stem_of_examples(path)
    stems = [own, *(own.removesuffix(side) for side in (".policy", ".reference"))]  # of two models
    summaries = [stem + suffix for stem in stems for suffix in SUMMARY_SUFFIXES]
    unfinished = Path(f"{own}.config.json").exists() and not any(map(os.path.isfile, summaries))
    if part_files(Path(path)) or unfinished:
        raise ValueError(f"{path} is of an unfinished run: give the command that began it again")
    if not records:
        raise ValueError(f"{path}: no rows")
    places: dict[tuple, int] = {}
    for number, record in enumerate(records, start=1):
        if problem := problem_of(record):
            raise ValueError(f"{path}: row {number}: {problem}")
        first = places.setdefault(row_key(record), number)
        if first < number:
            raise ValueError(f"{path}: row {number}: the example of row {first} again")
        if record["model"] != records[0]["model"]:
            raise ValueError(
                f"{path}: row {number}: of {record['model']}, and row 1 of {records[0]['model']}: "
                "give each model's file by itself"
            )
    return in_order_of_data(records)


def problem_of(record: Record) -> str | None:
    """Why a row is none that scoring writes, or None."""
    if missing := ASKED - record.keys():
        return f"not an examples file of the ranking script (no {min(missing)})"
    completions, ranks = record["completions"], record["ranks"]
    if not isinstance(completions, list) or not isinstance(ranks, list):
        return "completions and ranks should be lists"
    if len(completions) < 2 or len(ranks) != len(completions):
        return f"{len(completions)} completions, {len(ranks)} ranks"
    for completion in completions:
        if not isinstance(completion, dict) or not completion.keys() >= NEEDED:
            return f"each of its completions should have {', '.join(sorted(NEEDED))}"
        logp, n_tokens = completion["logp"], completion["n_tokens"]
        if logp is not None and not (isinstance(logp, float | int) and math.isfinite(logp)):
            return f"logp {logp!r:.40} should be a finite number or null"
        if not isinstance(n_tokens, int) or n_tokens < 1:
            return f"n_tokens {n_tokens!r:.40} should be 1 or more"
    try:
        read_votes(record["votes"] or {}, len(completions))
    except ValueError as error:
        return str(error)
    return None


def config_beside(path: str, records: list[Record]) -> Record | None:
    """How an examples file was scored, by the config beside it; None, and a line that says so,
    where there is none, or that of other rows."""
    file = Path(stem_of_examples(path) + ".config.json")
    config = read_config(file)
    if {record.get("config_hash") for record in records} == {hash_config(config)}:
        return config
    announce(
        f"{path}: no {file.name} beside it that belongs to it: how it was scored (template, EOS, "
        "separator, length, ties) could not be checked"
    )
    return None


def planned_records(datasets: Sequence[PreferenceData]) -> list[Record]:
    """The examples of a run that is yet to score them."""
    return [planned_record(data, example) for data in datasets for example in data.examples]
