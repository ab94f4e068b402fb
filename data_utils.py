"""Datasets → preference examples: the six datasets of the paper, local files in the same schemas,
plain pairs (prompt/chosen/rejected) and lists (prompt/completions/ranks[/votes])."""

import gzip
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_FILE = Path(__file__).parent / "data" / "sample_preferences.jsonl"
FILE_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")
ALPACA_FARM = "tatsu-lab/alpaca_eval"
ALPACA_FARM_FILE = "alpaca_farm_human_crossannotations"

Row = dict[str, Any]
Votes = dict[tuple[int, int], tuple[float, float]]


@dataclass(frozen=True)
class Source:
    """How a hub dataset is read: default configuration and split, and what joins the two texts."""

    config: str | None
    split: str
    separator: str
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
    ranks: 1 = best, equal = tied. votes: for a pair (i, j), i < j, how many raters preferred each
    (a "tie" vote counts half for both), or None.
    """

    id: str
    prompt_id: str
    prompt: str
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    votes: Votes | None
    dataset: str
    row: int


@dataclass(frozen=True)
class PreferenceData:
    """What `load_preferences` returns: the examples of one dataset and how they came about."""

    name: str
    config: str | None
    split: str | None
    separator: str
    examples: list[PreferenceExample]
    dropped: dict[str, int]
    notes: list[str]
    commit: str | None = None  # of a hub dataset


class Dropped(Exception):
    """Raised by a schema reader for a row that is valid but cannot be used; str() is the reason."""


# ---------------------------------------------------------------------------- schemas
def text_of(row: Row, column: str) -> str:
    """The string in `column`; ValueError names the column otherwise."""
    value = row[column]
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} should be text, found {type(value).__name__}")
    return value


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
    ranks = row["ranks"]
    if (
        not isinstance(ranks, list)
        or len(ranks) != len(completions)
        or not all(
            isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1 for rank in ranks
        )
    ):
        raise ValueError("column 'ranks' should hold one integer ≥ 1 for each completion")
    votes = None if row.get("votes") is None else read_votes(row["votes"], len(completions))
    return text_of(row, "prompt"), completions, ranks, votes, None


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


def group_votes(rows: Sequence[Row]) -> list[Row]:
    """AlpacaFarm's rater rows → one row per (instruction, output_1, output_2) with its votes."""
    pairs: dict[tuple[str, str, str], Row] = {}
    for number, row in enumerate(rows):
        key = tuple(
            checked(row, number, text_of, c) for c in ("instruction", "output_1", "output_2")
        )
        pair = pairs.setdefault(
            key,
            {"prompt": key[0], "completions": [key[1], key[2]], "votes": [0.0, 0.0], "row": number},
        )
        preference = row["preference"]
        if preference not in (0, 1, 2, "0", "1", "2") or isinstance(preference, bool):
            raise ValueError(
                f"row {number + 1}: preference should be 1, 2 or 0 (tie), found {preference!r}"
            )
        for side in (0, 1):
            pair["votes"][side] += {0: 0.5, side + 1: 1.0}.get(int(preference), 0.0)
    for pair in pairs.values():
        pair["ranks"] = list(ranks_from_scores(pair["votes"]))
    return list(pairs.values())


def checked(row: Row, number: int, reader: Callable, *args):
    """`reader(row, *args)`, its ValueError prefixed by the row number (from 1)."""
    try:
        return reader(row, *args)
    except ValueError as error:
        raise ValueError(f"row {number + 1}: {error}") from None


# columns, how a row is read, what joins prompt and completion
SCHEMAS: list[tuple[set[str], Callable[[Row], Reading], str]] = [
    ({"instruction", "output_1", "output_2", "preference"}, read_list, " "),  # after group_votes
    ({"post_id", "history", "human_ref_A", "human_ref_B", "labels"}, read_shp, " "),
    ({"instruction", "completions"}, read_ultrafeedback, " "),
    ({"question", "answers"}, read_stack_exchange, " "),
    ({"prompt", "completions", "ranks"}, read_list, ""),
    ({"prompt", "chosen", "rejected"}, read_pair, ""),
    ({"chosen", "rejected"}, read_hh, ""),
]


def recognize_schema(columns: Sequence[str]) -> tuple[set[str], Callable[[Row], Reading], str]:
    """The first schema whose columns are all there; ValueError says what is missing."""
    for needed, reader, separator in SCHEMAS:
        if needed <= set(columns):
            return needed, reader, separator
    closest = max(SCHEMAS, key=lambda schema: len(schema[0] & set(columns)) / len(schema[0]))[0]
    raise ValueError(
        f"missing column {', '.join(sorted(closest - set(columns)))} (found {', '.join(columns)}; "
        "known: " + "; ".join("/".join(sorted(needed)) for needed, *_ in SCHEMAS) + ")"
    )


# ---------------------------------------------------------------------------- reading
def unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object; ValueError if a key is there twice, of which one value would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return row


def read_file(path: Path) -> list[Row]:
    """Rows of a json, jsonl, parquet or csv file, optionally gzipped. ValueError names the row."""
    kind = next((s for s in reversed(path.suffixes) if s in FILE_SUFFIXES), None)
    if kind is None:
        raise ValueError(f"{path}: not one of {', '.join(FILE_SUFFIXES)} (optionally .gz)")
    try:
        if kind == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
        if kind == ".csv":
            import csv
            import io

            csv.field_size_limit(2**31 - 1)
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            unique_keys([(name, None) for name in reader.fieldnames or ()])
            rows = list(reader)
            for number, row in enumerate(rows, start=1):
                if None in row or None in row.values():
                    raise ValueError(f"row {number}: not as many fields as the header has")
            return rows
        if kind == ".json" and text.lstrip().startswith("["):
            rows = json.loads(text, object_pairs_hook=unique_keys)
        else:
            rows = []
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    try:
                        rows.append(json.loads(line, object_pairs_hook=unique_keys))
                    except ValueError as error:
                        raise ValueError(f"row {number}: not JSON ({error})") from None
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


def find_file(folder: Path, split: str | None) -> Path:
    """The data file of `split` in `folder` (its name starts with the split)."""
    files = sorted(
        f for f in folder.iterdir() if f.is_file() and any(s in FILE_SUFFIXES for s in f.suffixes)
    )
    matching = files if split is None else [f for f in files if f.name.startswith(f"{split}.")]
    matching = matching or [f for f in files if split and f.name.startswith(f"{split}-")]
    if len(matching) != 1:
        wanted = "one data file" if split is None else f"one file of split {split!r}"
        found = ", ".join(f.name for f in matching or files) or "no data file"
        raise FileNotFoundError(f"{folder}: expected {wanted}, found {found}")
    return matching[0]


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
) -> PreferenceData:
    """Load one dataset: a name of `DATASETS`, "sample", or a local file or directory.

    `sample_size` examples are drawn without replacement by `default_rng(seed)` before anything is
    dropped (streamed datasets: the first rows); None takes all. Dropped and counted by reason: no
    common prompt, empty completion, identical completions, missing score, fewer than two
    completions, lone surrogate, and, unless `include_ties`, all ranks tied.
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
        where = name
    else:
        if path.is_file() and split is not None:
            raise ValueError(f"{name}, split {split}: {path.name} is one file, without splits")
        file = find_file(path, split) if path.is_dir() else path
        rows, where = read_file(file), str(file)
    if not rows:
        raise ValueError(f"{where}: no rows")
    try:
        data = sample_and_convert(
            rows, name, config, split, source, sample_size, seed, include_ties
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if path is not None:
        return data
    commit = hub_dataset_commit(name)
    data.notes.append(f"commit {commit or 'unknown'}")
    return replace(data, commit=commit)


def sample_and_convert(
    rows: list[Row],
    name: str,
    config: str | None,
    split: str | None,
    source: Source | None,
    sample_size: int | None,
    seed: int,
    include_ties: bool,
) -> PreferenceData:
    """Draw rows, turn them into examples, and count what is dropped by reason."""
    needed, reader, separator = recognize_schema(list(rows[0]))
    separator = source.separator if source is not None else separator
    for number, row in enumerate(rows):
        if not needed <= row.keys():
            missing = ", ".join(sorted(needed - row.keys()))
            raise ValueError(f"row {number + 1}: missing column {missing} (found {', '.join(row)})")
    if "preference" in needed:
        rows = group_votes(rows)
    notes = []
    picked = range(len(rows))
    if sample_size is not None and sample_size > len(rows):
        notes.append(f"{len(rows)} examples, fewer than the {sample_size} asked for: all taken")
    elif sample_size is not None and source is not None and source.streamed:
        picked = range(sample_size)
    elif sample_size is not None:
        picked = np.random.default_rng(seed).choice(len(rows), sample_size, replace=False).tolist()
    examples: list[PreferenceExample] = []
    dropped: Counter[str] = Counter()
    occurrences: Counter[str] = Counter()
    for index in picked:
        number = rows[index].get("row", index) if "preference" in needed else index
        try:
            prompt, completions, ranks, votes, cluster = checked(rows[index], number, reader)
            if not is_unicode([prompt, *completions]):
                raise Dropped("lone surrogate")
            if reason := reason_to_drop(completions, ranks, include_ties):
                raise Dropped(reason)
        except Dropped as drop:
            dropped[str(drop)] += 1
            continue
        if contradiction := contradicting_pair(ranks, votes):
            raise ValueError(
                f"row {number + 1}: votes and ranks contradict each other for {contradiction}"
            )
        content = content_hash([prompt, *completions])
        occurrences[content] += 1
        examples.append(
            PreferenceExample(
                id=f"{content}-{occurrences[content]}",
                prompt_id=content_hash([cluster or prompt]),
                prompt=prompt,
                completions=tuple(completions),
                ranks=tuple(ranks),
                votes=votes,
                dataset=name,
                row=int(number),
            )
        )
    if not examples:
        counts = ", ".join(f"{reason}: {n}" for reason, n in dropped.items())
        raise ValueError(f"no usable example left of {len(picked)} ({counts})")
    return PreferenceData(name, config, split, separator, examples, dict(dropped), notes)


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
    names = [f.name for f in sorted(folder.iterdir()) if set(f.suffixes) & set(FILE_SUFFIXES)]
    return list(dict.fromkeys(name.split(".")[0].split("-")[0] for name in names))


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
        return load_preferences(full, split=split, data_dir=data_dir, sample_size=sample_size)

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
    """DPO's data: {id, prompt, chosen, rejected} of every untied pair of completions."""
    return [
        {
            "id": e.id if len(e.completions) == 2 else f"{e.id}:{i}>{j}",
            "prompt": e.prompt,
            "chosen": e.completions[i],
            "rejected": e.completions[j],
        }
        for e in examples
        for i in range(len(e.completions))
        for j in range(len(e.completions))
        if e.ranks[i] < e.ranks[j]
    ]


def sft_texts(examples: Sequence[PreferenceExample], separator: str) -> list[Row]:
    """SFT's data: {id, text, n_prompt_characters}; the prompt followed by a best-ranked answer."""
    return [
        {
            "id": e.id,
            "text": e.prompt + separator + e.completions[e.ranks.index(min(e.ranks))],
            "n_prompt_characters": len(e.prompt),
        }
        for e in examples
    ]
