"""Files and folders → rows: json, jsonl, parquet, csv, gzipped or not, shards, saved datasets."""

import gzip
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ranking.data.cells import Row
from ranking.data.schemas import SCHEMAS

FILE_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?\.")  # in names of a split's files
NOT_DATA = {"config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json",
            "state.json"}  # fmt: skip
LFS_POINTER = b"version https://git-lfs"
Origins = list[tuple[Path | str, int]]  # files one after the other, and their numbers of rows


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
