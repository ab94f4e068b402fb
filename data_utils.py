"""Datasets → preference examples: the six datasets of the paper, local files in the same schemas,
plain pairs (prompt/chosen/rejected) and lists (prompt/completions/ranks[/votes])."""

import difflib
import gzip
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_FILE = Path(__file__).parent / "data" / "sample_preferences.jsonl"
FILE_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?\.")  # in names of a split's files
NOT_DATA = {"config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json",
            "state.json"}  # fmt: skip
LFS_POINTER = b"version https://git-lfs"
ALPACA_FARM = "tatsu-lab/alpaca_eval"
ALPACA_FARM_FILE = "alpaca_farm_human_crossannotations"

Row = dict[str, Any]
Votes = dict[tuple[int, int], tuple[float, float]]
Origins = list[tuple[Path | str, int]]  # files one after the other, and their numbers of rows


@dataclass(frozen=True)
class Source:
    """How a hub dataset is read: default configuration and split, and what joins the two texts."""

    config: str | None
    split: str
    separator: str | None
    streamed: bool = False  # too large to shuffle: the first rows are taken
    splits: tuple[str, ...] = ("train",)


DATASETS = {
    "Anthropic/hh-rlhf": Source(None, "test", "", splits=("train", "test")),
    "stanfordnlp/SHP": Source(None, "test", " ", splits=("train", "validation", "test")),
    "openbmb/UltraFeedback": Source(None, "train", " "),
    "Dahoas/synthetic-instruct-gptj-pairwise": Source(None, "train", " "),
    "HuggingFaceH4/stack-exchange-preferences": Source(None, "train", " ", streamed=True),
    ALPACA_FARM: Source(ALPACA_FARM_FILE, ALPACA_FARM_FILE, " ", splits=(ALPACA_FARM_FILE,)),
}


@dataclass(frozen=True)
class PreferenceExample:
    """A prompt with K ≥ 2 completions and the human order of them.

    id: content hash plus occurrence number. prompt_id: examples with one id form a cluster.
    separators: what stands between the prompt and each completion. ranks: 1 = best, equal = tied.
    votes: for a pair (i, j), i < j, how many raters preferred each (a "tie" vote counts half for
    both), or None.
    """

    id: str
    prompt_id: str
    prompt: str
    completions: tuple[str, ...]
    separators: tuple[str, ...]
    ranks: tuple[int, ...]
    votes: Votes | None
    dataset: str
    row: int


@dataclass(frozen=True)
class PreferenceData:
    """What `load_preferences` returns: the examples of one dataset and how they came about.

    separator: what joins prompts and completions; None: `separator_between` decides for each.
    """

    name: str
    config: str | None
    split: str | None
    separator: str | None
    examples: list[PreferenceExample]
    dropped: dict[str, int]
    notes: list[str]
    commit: str | None = None  # of a hub dataset


class Dropped(Exception):
    """Raised by a schema reader for a row that is valid but cannot be used; str() is the reason."""


# ---------------------------------------------------------------------------- schemas
# a list of chat messages, or one, as JSON, Python's repr or numpy's
MESSAGES_OPEN = re.compile(
    r"""(?:array\()?\[\s*\{|\{\s*['"](?:role|content|from|value|messages|conversations)['"]"""
)
MESSAGES_ROLE = re.compile(
    r"""['"](?:role|from)['"]\s*:\s*"""
    r"""['"](?:system|user|assistant|tool|function|human|gpt|observation)['"]"""
)
MESSAGES_TEXT = re.compile(r"""['"](?:content|value)['"]\s*:""")
# columns that are part of a prompt wherever they stand (but for case and underscores); a schema
# reads those among its own columns
PROMPT_COLUMNS = {
    "prompt", "instruction", "input", "question", "query", "request", "problem", "system",
    "systemprompt", "systemmessage", "systeminstruction", "context", "history", "chathistory",
    "conversation", "conversations", "dialogue", "dialog", "turns", "trajectory", "messages",
    "document", "documents", "passage", "article", "post", "tools", "image", "images",
}  # fmt: skip
# after which nothing is put: HH's, and the special tokens of chat templates
TURN_MARKER = re.compile(r"(?:(?:\A|\n)[^\S\n]*Assistant:|<\|[^\s<>|]+\|>|\[/INST\])\Z")


def text_of(row: Row, column: str) -> str:
    """The string in `column`; ValueError names the column otherwise."""
    return checked_text(row[column], f"column {column!r}")


def checked_text(value: Any, what: str) -> str:
    """`value` if it is text; ValueError for anything else, chat messages written as text too."""
    if not isinstance(value, str):
        raise ValueError(f"{what} should be text, found {type(value).__name__}")
    if is_message_dump(value):
        raise ValueError(f"{what} holds chat messages written as text: give the text they hold")
    return value


def is_message_dump(text: str) -> bool:
    """Whether a text is chat messages in some notation, and not what they say."""
    text = text.strip()
    written = MESSAGES_OPEN.match(text) and text.endswith(("]", "}", ")"))
    return bool(written and MESSAGES_ROLE.search(text) and MESSAGES_TEXT.search(text))


def ranks_from_scores(scores: Sequence[Any]) -> tuple[int, ...]:
    """Rank 1 for the highest score; equal scores share a rank. Missing scores drop the row."""
    try:
        values = [float("nan") if score is None else float(score) for score in scores]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"scores should be numbers, found {list(scores)!r:.80}") from None
    if not all(math.isfinite(value) for value in values):
        raise Dropped("missing score")
    return tuple(1 + sum(other > value for other in values) for value in values)


Reading = tuple[str, list[str], Sequence[int], Votes | None, str | None]  # ..., cluster


def read_hh(row: Row) -> Reading:
    """Whole dialogues; the prompt ends with the last "\\n\\nAssistant:" of *chosen*."""
    chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
    marker = "\n\nAssistant:"
    cut = chosen.rfind(marker)
    if cut < 0 or not rejected.startswith(chosen[: cut + len(marker)]):
        raise Dropped("no common prompt")
    cut += len(marker)
    return chosen[:cut], [chosen[cut:], rejected[cut:]], (1, 2), None, None


def read_pair(row: Row) -> Reading:
    """prompt, chosen, rejected."""
    completions = [text_of(row, "chosen"), text_of(row, "rejected")]
    return text_of(row, "prompt"), completions, (1, 2), None, None


def read_shp(row: Row) -> Reading:
    """Two comments on a post; labels = 1 where A is preferred. The post is the cluster."""
    label = row["labels"]
    if label not in (0, 1, "0", "1"):
        raise ValueError(f"labels should be 0 or 1, found {label!r}")
    completions = [text_of(row, "human_ref_A"), text_of(row, "human_ref_B")]
    ranks = (1, 2) if int(label) == 1 else (2, 1)
    return text_of(row, "history"), completions, ranks, None, f"post {row['post_id']}"


def read_ultrafeedback(row: Row) -> Reading:
    """K graded responses, ranked by overall_score."""
    answers = list_of(row, "completions", ("response", "overall_score"))
    ranks = ranks_from_scores([answer["overall_score"] for answer in answers])
    return text_of(row, "instruction"), [text_of(a, "response") for a in answers], ranks, None, None


def read_stack_exchange(row: Row) -> Reading:
    """Answers to a question, ranked by pm_score."""
    answers = list_of(row, "answers", ("text", "pm_score"))
    ranks = ranks_from_scores([answer["pm_score"] for answer in answers])
    return text_of(row, "question"), [text_of(a, "text") for a in answers], ranks, None, None


def list_of(row: Row, column: str, keys: Sequence[str]) -> list[Row]:
    """The list of objects in `column`, each holding `keys`."""
    value = row[column]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"column {column!r} should be a list of objects")
    for item in value:
        for key in keys:
            if key not in item:
                raise ValueError(f"an entry of {column!r} has no {key!r} (found {', '.join(item)})")
    return value


def read_list(row: Row) -> Reading:
    """prompt, completions, ranks and, if there, votes."""
    completions = row["completions"]
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        raise ValueError("column 'completions' should be a list of text")
    for text in completions:
        checked_text(text, "an entry of 'completions'")
    ranks = row["ranks"]
    if (
        not isinstance(ranks, list)
        or len(ranks) != len(completions)
        or not all(is_rank(rank) for rank in ranks)
    ):
        raise ValueError("column 'ranks' should hold one integer ≥ 1 for each completion")
    votes = None if row.get("votes") is None else read_votes(row["votes"], len(completions))
    return text_of(row, "prompt"), completions, [int(rank) for rank in ranks], votes, None


def is_rank(value: Any) -> bool:
    """Whether a value is a whole number ≥ 1 (1.0 too: pandas writes so), and no truth value."""
    if isinstance(value, float):
        return value.is_integer() and value >= 1
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def read_rated_pair(row: Row) -> Reading:
    """A row of `group_votes`."""
    if not any(row["votes"]):
        raise Dropped("no preference")
    return read_list(row)


def read_votes(value: Any, n_completions: int) -> Votes:
    """Votes as `[v_1, v_2]` for a pair or `{"i,j": [v_i, v_j]}` with indices from 0."""
    if isinstance(value, list) and n_completions == 2:
        value = {"0,1": value}
    if not isinstance(value, dict):
        raise ValueError("votes should be two counts for a pair, or {'i,j': [v_i, v_j], …}")
    votes: Votes = {}
    for key, counts in value.items():
        if counts is None:
            continue  # columnar files hold every key, absent pairs as null
        try:
            i, j = (int(part) for part in key.split(","))
            first, second = (float(count) for count in counts)
        except (ValueError, TypeError, AttributeError, OverflowError):
            raise ValueError(f"votes {key!r}: {counts!r} should be 'i,j': [v_i, v_j]") from None
        if not 0 <= i < n_completions or not 0 <= j < n_completions or i == j:
            raise ValueError(
                f"votes {key!r}: there are {n_completions} completions, counted from 0"
            )
        if not (0 <= first < math.inf and 0 <= second < math.inf and first + second > 0):
            raise ValueError(f"votes {key!r}: counts {counts!r} should be ≥ 0 and not both 0")
        if (min(i, j), max(i, j)) in votes:
            raise ValueError(f"votes {key!r}: the pair is given twice")
        votes[min(i, j), max(i, j)] = (first, second) if i < j else (second, first)
    return votes


def group_votes(rows: Sequence[Row], origins: Origins) -> tuple[list[Row], int]:
    """AlpacaFarm's rater rows → one row per prompt and pair of outputs, with its votes, and the
    number of rows without a preference. ValueError says which row is at fault.

    A preference between 1 and 2 is divided: 1.25 is 0.75 votes for output_1 and 0.25 for output_2.
    The outputs may stand in either order.
    """
    pairs: dict[tuple, Row] = {}
    n_missing = 0
    for number, row in enumerate(rows):
        try:
            prompt, *outputs = (text_of(row, c) for c in ("instruction", "output_1", "output_2"))
            missing = str(row["preference"]).strip().lower() in ("", "none", "nan", "null")
            share = 0.0 if missing else share_of_second(row)
        except ValueError as error:
            raise ValueError(f"{place(origins, number)}: {error}") from None
        pair = pairs.setdefault(
            (prompt, *sorted(outputs)),
            {"prompt": prompt, "completions": outputs, "votes": [0.0, 0.0], "row": number},
        )
        n_missing += missing
        if missing:
            continue
        first = pair["completions"].index(outputs[0])
        pair["votes"][first] += 1.0 - share
        pair["votes"][1 - first] += share
    for pair in pairs.values():
        pair["votes"] = [round(votes, 9) for votes in pair["votes"]]  # 0.1 + 0.2
        pair["ranks"] = list(ranks_from_scores(pair["votes"]))
    return list(pairs.values()), n_missing


def share_of_second(row: Row) -> float:
    """The share of a vote that goes to output_2: `preference` 1 … 2 → 0 … 1; a tie, 0 → 1/2."""
    value = row["preference"]
    try:
        preference = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        preference = math.nan
    if preference == 0.0:
        return 0.5
    if not 1.0 <= preference <= 2.0:
        raise ValueError(
            f"preference should be 1, 2 or 0 (tie), or between 1 and 2, found {value!r:.60}"
        )
    return preference - 1.0


# columns, how a row is read, what joins prompt and completion (None: `separator_between`)
SCHEMAS: list[tuple[tuple[str, ...], Callable[[Row], Reading], str | None]] = [
    (("instruction", "output_1", "output_2", "preference"), read_rated_pair, " "),
    (("post_id", "history", "human_ref_A", "human_ref_B", "labels"), read_shp, " "),
    (("instruction", "completions"), read_ultrafeedback, " "),
    (("question", "answers"), read_stack_exchange, " "),
    (("prompt", "completions", "ranks"), read_list, None),
    (("prompt", "chosen", "rejected"), read_pair, None),
    (("chosen", "rejected"), read_hh, ""),
]


def recognize_schema(
    columns: Sequence[str],
) -> tuple[tuple[str, ...], Callable[[Row], Reading], str | None]:
    """The first schema whose columns are all there; ValueError names the nearest columns."""
    for needed, reader, separator in SCHEMAS:
        if set(needed) <= set(columns):
            return needed, reader, separator

    def nearest(column: str) -> str | None:
        if column in ("answers", "completions"):
            return None  # a list, which no column of text becomes by another name
        likely = [name for name in others if column in re.split(r"[\W_]", name.lower())]
        if column == "prompt":
            likely += [name for name in others if plain_name(name) in PROMPT_COLUMNS]
        return next(iter(likely or difflib.get_close_matches(column, others, 1, 0.8)), None)

    known = "; ".join("/".join(needed) for needed, *_ in SCHEMAS)
    closest: tuple[str, ...] = ()
    hints: dict[str, str] = {}
    score = 0.0
    for needed, *_ in SCHEMAS:
        missing = [column for column in needed if column not in columns]
        others = [column for column in columns if column not in needed]
        found = {column: name for column in missing if (name := nearest(column))}
        likeness = (len(needed) - len(missing) + 0.9 * len(found)) / len(needed)
        if likeness > score:
            closest, hints, score = needed, found, likeness
    if score < 0.5:
        raise ValueError(f"unknown columns: {', '.join(columns)} (known: {known})")
    wanted = ", ".join(
        f"{column} (is it {hints[column]!r}? then rename it)" if column in hints else column
        for column in closest
        if column not in columns
    )
    raise ValueError(f"missing column {wanted} (found {', '.join(columns)}; known: {known})")


def plain_name(column: str) -> str:
    """A column's name in small letters without underscores."""
    return re.sub(r"[\W_]", "", column.lower())


def unread_prompt_column(row: Row, needed: Sequence[str]) -> str | None:
    """The first column that is part of the prompt, holds something and is not read, or None."""
    for column, value in row.items():
        empty = not value.strip() if isinstance(value, str) else value in (None, [], {})
        if plain_name(column) in PROMPT_COLUMNS and column not in needed and not empty:
            return column
    return None


def separator_between(prompt: str, completion: str) -> str:
    """What joins two texts that were not made to stand side by side: a space, but nothing where
    white space or a turn marker stands already, or the prompt is empty."""
    together = prompt == "" or prompt[-1].isspace() or completion[:1].isspace()
    return "" if together or ends_with_marker(prompt) else " "


def ends_with_marker(prompt: str) -> bool:
    """Whether a prompt ends with a turn marker."""
    return TURN_MARKER.search(prompt[-100:]) is not None


def without_prompt(prompt: str, completion: str) -> str | None:
    """A completion that repeats the prompt, without it; None where it does not, or where the prompt
    would end inside a word."""
    for whole, head in ((completion, prompt), (completion.lstrip(), prompt.strip())):
        rest = whole[len(head) :]
        inside = head[-1:].isalnum() and rest[:1].isalnum()
        if head.strip() and whole.startswith(head) and not inside:
            return rest
    return None


# ---------------------------------------------------------------------------- reading
def unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object; ValueError if a key is there twice, of which one value would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return row


def file_kind(path: Path) -> str | None:
    """The suffix that says how a file is read, in lower case; None for a file of another kind."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix in FILE_SUFFIXES), None)


def read_file(path: Path) -> list[Row]:
    """Rows of a json, jsonl, parquet or csv file, optionally gzipped. ValueError names the row."""
    kind = file_kind(path)
    if kind is None:
        raise ValueError(f"{path}: not one of {', '.join(FILE_SUFFIXES)} (optionally .gz)")
    try:
        raw = path.read_bytes()
        if raw.startswith(LFS_POINTER):
            raise ValueError("a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
        raw = gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw
        if kind == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(pyarrow.BufferReader(raw)).to_pylist()
        text = raw.decode("utf-8-sig")
        if kind == ".csv":
            import csv

            csv.field_size_limit(2**31 - 1)
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            unique_keys([(name, None) for name in reader.fieldnames or ()])
            rows = list(reader)
            for number, row in enumerate(rows, start=1):
                if None in row or None in row.values():
                    raise ValueError(f"row {number}: not as many fields as the header has")
            return rows
        rows = read_json(text) if kind == ".json" else read_json_rows(text)
    except (OSError, EOFError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    except Exception as error:  # csv.Error, zlib.error and pyarrow's own share no base class
        raise ValueError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}: row {number}: should be an object, found {type(row).__name__}"
            )
    return rows


def read_json(text: str) -> list[Any]:
    """The rows of a JSON text: a list, an object with one list in it, or an object a line."""
    if not text.lstrip().startswith("["):
        try:
            whole = json.loads(text, object_pairs_hook=unique_keys)
        except ValueError:
            return read_json_rows(text)
        if not isinstance(whole, dict) or any(set(needed) <= set(whole) for needed, *_ in SCHEMAS):
            return [whole]
        lists = [value for value in whole.values() if isinstance(value, list)]
        return lists[0] if len(lists) == 1 else [whole]
    return json.loads(text, object_pairs_hook=unique_keys)


def read_json_rows(text: str) -> list[Any]:
    """The values of JSON lines; empty lines are none."""
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line, object_pairs_hook=unique_keys))
            except ValueError as error:
                raise ValueError(f"row {number}: not JSON ({error})") from None
    return rows


def data_files(folder: Path) -> list[Path]:
    """The data files of a folder, or, as in a clone of a hub repository, of its `data`."""
    for place in (folder, folder / "data"):
        found = sorted(place.iterdir()) if place.is_dir() else []
        files = [f for f in found if f.is_file() and file_kind(f) and f.name not in NOT_DATA]
        if files := [f for f in files if not f.name.startswith(".")]:
            return files
    return []


def find_files(folder: Path, split: str | None) -> list[Path]:
    """The file of `split` in `folder` (its name starts with the split), or all shards of it."""
    files = data_files(folder)
    matching = files if split is None else [f for f in files if f.name.startswith(f"{split}.")]
    matching = matching or [f for f in files if split and f.name.startswith(f"{split}-")]
    shards = [SHARD.search(f.name) for f in matching]
    if len({f.name[: m.start()] for f, m in zip(matching, shards) if m}) == 1 and all(shards):
        numbers = [int(shard[1]) for shard in shards]
        if sorted(numbers) == list(range(int(shards[0][2]))):
            return matching
        raise FileNotFoundError(
            f"{folder}: of the {int(shards[0][2])} files of this split, numbers "
            f"{', '.join(map(str, sorted(numbers)))} are there (from 0)"
        )
    if len(matching) != 1:
        wanted = "one data file" if split is None else f"one file of split {split!r}"
        found = ", ".join(f.name for f in matching or files) or "no data file"
        raise FileNotFoundError(f"{folder}: expected {wanted}, found {found}")
    return matching


def saved_splits(folder: Path) -> list[str]:
    """Splits of a `datasets.save_to_disk` folder of several; none where it is something else."""
    if not (folder / "dataset_dict.json").is_file():
        return []
    return sorted(f.parent.name for f in folder.glob("*/state.json"))


def read_saved(folder: Path, split: str | None) -> list[Row]:
    """Rows of a folder that `datasets.save_to_disk` wrote. FileNotFoundError names its splits."""
    import datasets

    splits = saved_splits(folder)
    if splits and split is None and len(splits) == 1:
        split = splits[0]
    if (split not in splits) if splits else (split is not None):
        raise FileNotFoundError(
            f"{folder}: expected {f'split {split!r}' if split else 'one split'}, found "
            f"{', '.join(splits) or 'one without a name'}"
        )
    try:
        return datasets.load_from_disk(str(folder / split if splits else folder)).to_list()
    except Exception as error:  # arrow's and datasets' errors share no base class
        first_line = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{folder}: cannot be read: {type(error).__name__}: {first_line}"
        ) from None


def read_path(path: Path, split: str | None) -> tuple[list[Row], Origins]:
    """Rows of a file or folder, and where they stand."""
    if path.is_dir() and any((path / f).is_file() for f in ("state.json", "dataset_dict.json")):
        rows = read_saved(path, split)
        return rows, [(path, len(rows))]
    files = find_files(path, split) if path.is_dir() else [path]
    parts = [read_file(file) for file in files]
    return [row for part in parts for row in part], list(zip(files, map(len, parts)))


def place(origins: Origins, k: int) -> str:
    """Where row k (from 0) stands: file and row (from 1)."""
    for file, n_rows in origins:
        if k < n_rows:
            return f"{file}: row {k + 1}"
        k -= n_rows
    raise IndexError(k)


def read_hub(
    name: str,
    source: Source,
    config: str | None,
    split: str,
    n_rows: int | None,
    buffer: int,
    seed: int,
) -> list[Row]:
    """Rows of a hub dataset (or of its local cache with HF_HUB_OFFLINE=1)."""
    try:
        if name == ALPACA_FARM:
            from huggingface_hub import hf_hub_download

            return read_file(Path(hf_hub_download(name, f"{split}.json", repo_type="dataset")))
        import datasets

        if source.streamed and n_rows is not None:
            stream = datasets.load_dataset(name, config, split=split, streaming=True)
            if buffer:
                stream = stream.shuffle(seed=seed, buffer_size=buffer)
            return list(stream.take(n_rows))
        if name == "Anthropic/hh-rlhf" and config is not None:  # its subsets are folders
            return list(datasets.load_dataset(name, data_dir=config, split=split))
        return list(datasets.load_dataset(name, config, split=split))
    except Exception as error:  # hub, network and builder errors share no base class
        first_line = (str(error).splitlines() or [""])[0]
        raise OSError(
            f"cannot read {name} (split {split}) from the hub: "
            f"{type(error).__name__}: {first_line}. "
            "Offline? --data-dir reads local copies"
        ) from None


def hub_dataset_commit(name: str) -> str | None:
    """The commit a hub dataset is at, or was when it was cached; None where neither tells."""
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    try:
        return huggingface_hub.HfApi().dataset_info(name, timeout=10).sha
    except Exception:  # offline and network errors share no base class
        folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
        head = folder / "refs" / "main"
        return head.read_text().strip() if head.is_file() else None


def split_name(spec: str) -> tuple[str, str | None, str | None]:
    """`NAME`, `NAME:SPLIT` or `NAME:CONFIG:SPLIT` → (name, config, split); local paths first."""
    if Path(spec).exists():
        return spec, None, None
    name, *rest = spec.split(":")
    if len(rest) > 2:
        raise ValueError(f"--dataset {spec}: expected NAME, NAME:SPLIT or NAME:CONFIG:SPLIT")
    return name, rest[0] if len(rest) == 2 else None, rest[-1] if rest else None


def load_preferences(
    spec: str,
    *,
    sample_size: int | None = None,
    seed: int = 0,
    split: str | None = None,
    data_dir: str | Path | None = None,
    include_ties: bool = False,
    stream_shuffle_buffer: int = 0,
    separator: str | None = None,
) -> PreferenceData:
    """Load one dataset: a name of `DATASETS`, "sample", or a local file or directory.

    `sample_size` examples are drawn without replacement by `default_rng(seed)` before anything is
    dropped (streamed datasets: the first rows); None takes all. Dropped and counted by reason: no
    common prompt, empty completion, identical completions, missing score, no preference, fewer
    than two completions, lone surrogate, and, unless `include_ties`, all ranks tied.
    `separator` replaces what joins prompts and completions; in it, backslash and n are a newline
    (t: a tab), as a shell passes them.
    Raises FileNotFoundError, OSError or ValueError with one line: file, row, what was found.
    """
    name, config, named_split = split_name(spec)
    split = named_split or split
    source = DATASETS.get(name)
    path = Path(name)
    if name == "sample":
        path = SAMPLE_FILE
    elif name in DATASETS:
        config, split = config or source.config, split or source.split
        path = Path(data_dir) / name if data_dir is not None else None
        if path is not None and config != source.config:
            raise ValueError(f"--dataset {spec}: --data-dir holds no configurations")
        if path is not None and not path.is_dir():
            raise FileNotFoundError(f"--data-dir {data_dir} has no folder {name}")
    elif data_dir is not None and not path.exists():
        path = Path(data_dir) / name
    if path is not None and not path.exists():
        raise FileNotFoundError(
            f"unknown dataset {name!r}: no such file, and not one of sample, {', '.join(DATASETS)}"
        )
    if path is None:
        rows = read_hub(name, source, config, split, sample_size, stream_shuffle_buffer, seed)
        origins: Origins = [(name, len(rows))]
    else:
        if path.is_file() and split is not None:
            raise ValueError(f"{name}, split {split}: {path.name} is one file, without splits")
        rows, origins = read_path(path, split)
    if not rows:
        raise ValueError(f"{path or name}: no rows")
    if separator is not None:
        separator = separator.replace("\\n", "\n").replace("\\t", "\t")
    data = sample_and_convert(
        rows, origins, (name, config, split), source, sample_size, seed, include_ties, separator
    )
    if path is not None:
        return data
    commit = hub_dataset_commit(name)
    data.notes.append(f"commit {commit or 'unknown'}")
    return replace(data, commit=commit)


def sample_and_convert(
    rows: list[Row],
    origins: Origins,
    names: tuple[str, str | None, str | None],
    source: Source | None,
    sample_size: int | None,
    seed: int,
    include_ties: bool,
    separator: str | None,
) -> PreferenceData:
    """Draw rows, turn them into examples, and count what is dropped by reason.

    `names`: of the dataset, its configuration and split.
    """
    file = origins[0][0]
    try:
        needed, reader, joint = recognize_schema(list(rows[0]))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    joint = source.separator if source is not None else joint
    joint = joint if separator is None else separator
    for number, row in enumerate(rows):
        if not set(needed) <= row.keys():
            missing = ", ".join(column for column in needed if column not in row)
            raise ValueError(
                f"{place(origins, number)}: missing column {missing} (found {', '.join(row)})"
            )
        if (column := unread_prompt_column(row, needed)) is not None:
            raise ValueError(
                f"{place(origins, number)}: column {column!r} is part of the prompt, but with the "
                f"columns {', '.join(needed)} it is not read: put its text into the prompt "
                "(`prompt`), or take the column out"
            )
    notes = []
    if reader is read_rated_pair:
        rows, n_missing = group_votes(rows, origins)
        if n_missing:
            notes.append(f"rater rows without a preference: {n_missing}")
    picked = range(len(rows))
    if sample_size is not None and sample_size > len(rows):
        notes.append(f"{len(rows)} examples, fewer than the {sample_size} asked for: all taken")
    elif sample_size is not None and source is not None and source.streamed:
        picked = range(sample_size)
    elif sample_size is not None:
        picked = np.random.default_rng(seed).choice(len(rows), sample_size, replace=False).tolist()
    joined_texts = reader in (read_pair, read_list)
    whole_texts = joined_texts and are_whole_texts(rows)
    examples: list[PreferenceExample] = []
    dropped: Counter[str] = Counter()
    occurrences: Counter[str] = Counter()
    n_repeated = n_kept = 0
    for index in picked:
        number = rows[index]["row"] if reader is read_rated_pair else index
        try:
            prompt, completions, ranks, votes, cluster = reader(rows[index])
            rest = [without_prompt(prompt, c) for c in completions] if joined_texts else [None]
            repeated = None not in rest and (whole_texts or ends_with_marker(prompt.rstrip()))
            n_kept += not repeated and any(rest)
            completions = [text or "" for text in rest] if repeated else completions
            if not is_unicode([prompt, *completions]):
                raise Dropped("lone surrogate")
            if reason := reason_to_drop(completions, ranks, include_ties):
                raise Dropped(reason)
        except Dropped as drop:
            dropped[str(drop)] += 1
            continue
        except ValueError as error:
            raise ValueError(f"{place(origins, number)}: {error}") from None
        if contradiction := contradicting_pair(ranks, votes):
            raise ValueError(
                f"{place(origins, number)}: votes and ranks contradict each other for "
                f"{contradiction}"
            )
        n_repeated += repeated
        content = content_hash([prompt, *completions])
        occurrences[content] += 1
        separators = [separator_between(prompt, c) if joint is None else joint for c in completions]
        examples.append(
            PreferenceExample(
                id=f"{content}-{occurrences[content]}",
                prompt_id=content_hash([cluster or prompt]),
                prompt=prompt,
                completions=tuple(completions),
                separators=tuple(separators),
                ranks=tuple(ranks),
                votes=votes,
                dataset=names[0],
                row=int(number),
            )
        )
    if n_repeated:
        notes.append(f"completions repeat the prompt, which is read once: {n_repeated} examples")
    if n_kept:
        notes.append(f"completions begin with the prompt, and stay as they are: {n_kept} examples")
    if not examples:
        counts = ", ".join(f"{reason}: {n}" for reason, n in dropped.items())
        hint = ""
        if reader is read_hh and set(dropped) == {"no common prompt"}:
            hint = (
                "; without a column `prompt`, chosen and rejected are whole dialogues that share "
                f"all up to the last '\\n\\nAssistant:' (found {', '.join(rows[0])})"
            )
        raise ValueError(f"{file}: no usable example left of {len(picked)} ({counts}){hint}")
    return PreferenceData(*names, joint, examples, dict(dropped), notes)


def are_whole_texts(rows: Sequence[Row]) -> bool:
    """Whether pairs or lists are whole texts: in nine of ten usable rows, every completion begins
    with the prompt."""
    usable = repeating = 0
    for row in rows:
        listed = row["completions"] if "completions" in row else [row["chosen"], row["rejected"]]
        texts = [row["prompt"], *(listed if isinstance(listed, list) else [None])]
        if all(isinstance(text, str) and text.strip() for text in texts):
            usable += 1
            repeating += None not in [without_prompt(texts[0], text) for text in texts[1:]]
    return usable > 0 and repeating >= 0.9 * usable


def joining(examples: Sequence[PreferenceExample]) -> dict[str, int]:
    """How many completions each separator joins to their prompt."""
    return dict(Counter(s for example in examples for s in example.separators).most_common())


def describe_joining(examples: Sequence[PreferenceExample]) -> str:
    """One line that says what joins prompts and completions."""
    names = {"": "nothing", " ": "a space"}
    counts = [f"{names.get(s, repr(s))} ({n} completions)" for s, n in joining(examples).items()]
    return f"joined to the prompt by {', '.join(counts)}"


def fingerprint(examples: Sequence[PreferenceExample]) -> str:
    """16 hex digits over all that results depend on: texts, order, ranks, votes, clusters."""
    return content_hash(
        [
            json.dumps(
                [e.id, e.prompt_id, e.row, e.separators, e.ranks, sorted((e.votes or {}).items())]
            )
            for e in examples
        ]
    )


def content_hash(texts: Sequence[str]) -> str:
    """First 16 hex digits of SHA-256 over the texts (lone surrogates included)."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def is_unicode(texts: Sequence[str]) -> bool:
    """False if a text holds half of a surrogate pair, which no tokenizer takes."""
    return not any("\ud800" <= character <= "\udfff" for text in texts for character in text)


def reason_to_drop(
    completions: Sequence[str], ranks: Sequence[int], include_ties: bool
) -> str | None:
    """Why an example cannot be ranked, or None."""
    if len(completions) < 2:
        return "fewer than two completions"
    if any(not text.strip() for text in completions):
        return "empty completion"
    first_rank: dict[str, int] = {}
    contradictory = any(first_rank.setdefault(t, r) != r for t, r in zip(completions, ranks))
    if contradictory or len(set(completions)) == 1:
        return "identical completions"
    if len(set(ranks)) == 1 and not include_ties:
        return "all ranks tied"
    return None


def contradicting_pair(ranks: Sequence[int], votes: Votes | None) -> tuple[int, int] | None:
    """The first pair whose majority (or tie) differs from the order of its ranks."""
    for (i, j), (first, second) in (votes or {}).items():
        if np.sign(first - second) != np.sign(ranks[j] - ranks[i]):
            return i, j
    return None


# ---------------------------------------------------------------------------- for training
def available_splits(spec: str, data_dir: str | Path | None = None) -> list[str]:
    """Names of the splits of a hub dataset or local folder; none for a single file."""
    name = split_name(spec)[0]
    folder = Path(data_dir) / name if data_dir is not None else Path(name)
    if name in DATASETS and data_dir is None:
        return list(DATASETS[name].splits)
    if not folder.is_dir():
        return []
    if (folder / "state.json").is_file():  # a saved dataset, without splits
        return []
    if saved := saved_splits(folder):
        return saved
    names = [SHARD.sub(".", file.name) for file in data_files(folder)]
    return list(dict.fromkeys(name.split(".")[0] for name in names))


def divide_by_prompt(
    examples: Sequence[PreferenceExample],
    shares: Sequence[float],
    seed: int,
    key: str = "prompt_id",
) -> list[list[PreferenceExample]]:
    """Disjoint parts of about the given shares, in the order of the data; no prompt is in two
    (key "id": no example)."""
    keys = np.array(list(dict.fromkeys(getattr(example, key) for example in examples)))
    order = np.random.default_rng(seed).permutation(len(keys))
    bounds = np.round(np.cumsum(shares) * len(keys)).astype(int)
    part = dict(zip(keys[order], np.searchsorted(bounds, np.arange(len(keys)), "right")))
    return [[e for e in examples if part[getattr(e, key)] == k] for k in range(len(shares))]


def opening(example: PreferenceExample) -> str:
    """The prompt up to the first response turn: what dialogues that continue each other share."""
    return example.prompt.split("\n\nAssistant:")[0]


def load_training_splits(
    spec: str,
    *,
    data_dir: str | Path | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    seed: int = 0,
    sample_size: int | None = None,
    separator: str | None = None,
) -> tuple[dict[str, PreferenceData], list[str]]:
    """Train, validation and test parts of a dataset, and notes that say where they come from.

    A validation and a test split are taken as they are; a lone evaluation split (HH-RLHF's test)
    is halved with seed 0; a lone split is divided 80/10/10 by `seed`. Halving and division go by
    prompt, so that no prompt is in two parts; after a division, dialogues that also open a training
    dialogue are left out of validation and test, and counted. Where that leaves a part empty, they
    go by example, which the notes say. `sample_size` limits the rows read of a split.
    Raises as `load_preferences`, and ValueError where a split has to be named.
    """
    name, config, named_split = split_name(spec)
    splits = available_splits(spec, data_dir)
    if train_split and named_split and train_split != named_split:
        raise ValueError(f"{spec} names a split, and --train_split {train_split} another")
    train_split = train_split or named_split or ("train" if "train" in splits else None)
    if train_split is None and len(splits) > 1:
        raise ValueError(f"{name} has the splits {', '.join(splits)}: choose one by --train_split")
    train_split = train_split or (splits[0] if splits else None)
    if eval_split is None:
        others = [s for s in splits if s != train_split]
        preferred = [s for s in ("validation", "test") if s in others]
        if others and not preferred:
            raise ValueError(
                f"{name} has the splits {', '.join(splits)}: choose one by --eval_split"
            )
        eval_split = preferred[0] if preferred else train_split

    def load(split: str | None) -> PreferenceData:
        full = f"{name}:{config}:{split}" if config else name
        return load_preferences(
            full, split=split, data_dir=data_dir, sample_size=sample_size, separator=separator
        )

    train = load(train_split)
    notes = [describe(train)]
    too_few = "too few prompts to divide, so the parts share prompts"
    if eval_split == train_split:
        parts = divide_by_prompt(train.examples, (0.8, 0.1, 0.1), seed)
        openings = {opening(example) for example in parts[0]}
        kept = [parts[0], *([e for e in p if opening(e) not in openings] for p in parts[1:])]
        n_shared = sum(map(len, parts)) - sum(map(len, kept))
        note = (
            f"divided by prompt into 80/10/10 % (seed {seed}); left out of validation and test "
            f"because the dialogue is also in train: {n_shared}"
        )
        if not all(kept):
            kept = divide_by_prompt(train.examples, (0.8, 0.1, 0.1), seed, key="id")
            note = f"divided by example into 80/10/10 % (seed {seed}): {too_few}"
        loaded = [replace(train, examples=part) for part in kept]
        notes.append(note)
    else:
        evaluation = load(eval_split)
        notes.append(describe(evaluation))
        if eval_split != "test" and "test" in splits and train_split != "test":
            loaded = [train, evaluation, load("test")]
            notes.append(describe(loaded[2]))
        else:
            halves = divide_by_prompt(evaluation.examples, (0.5, 0.5), 0)
            note = f"{eval_split} is halved by prompt into validation and test (seed 0)"
            if not all(halves):
                halves = divide_by_prompt(evaluation.examples, (0.5, 0.5), 0, key="id")
                note = f"{eval_split} is halved by example (seed 0): {too_few}"
            loaded = [train, *(replace(evaluation, examples=half) for half in halves)]
            notes.append(note)
    named = dict(zip(("train", "validation", "test"), loaded))
    if not all(data.examples for data in named.values()):
        raise ValueError(f"{name}: too few examples to divide into train, validation and test")
    notes.append(", ".join(f"{key}: {len(data.examples)}" for key, data in named.items()))
    return named, notes


def describe(data: PreferenceData) -> str:
    """Number of usable examples of a split, and what was dropped by reason."""
    dropped = ", ".join(f"{reason}: {n}" for reason, n in data.dropped.items()) or "none"
    split = f"split {data.split}: " if data.split else ""
    return "; ".join([f"{split}{len(data.examples)} examples, dropped: {dropped}", *data.notes])


def preference_pairs(examples: Sequence[PreferenceExample]) -> list[Row]:
    """DPO's data: {id, prompt, chosen, rejected, separators} of every untied pair."""
    return [
        {
            "id": e.id if len(e.completions) == 2 else f"{e.id}:{i}>{j}",
            "prompt": e.prompt,
            "chosen": e.completions[i],
            "rejected": e.completions[j],
            "separators": (e.separators[i], e.separators[j]),
        }
        for e in examples
        for i in range(len(e.completions))
        for j in range(len(e.completions))
        if e.ranks[i] < e.ranks[j]
    ]


def sft_texts(examples: Sequence[PreferenceExample]) -> list[Row]:
    """SFT's data: {id, text, n_prompt_characters}; the prompt followed by a best-ranked answer."""
    best = [e.ranks.index(min(e.ranks)) for e in examples]
    return [
        {
            "id": e.id,
            "text": e.prompt + e.separators[k] + e.completions[k],
            "n_prompt_characters": len(e.prompt),
        }
        for e, k in zip(examples, best)
    ]
