"""Files → rows: json, jsonl, parquet, arrow, csv, tsv, gzipped or not; shards; saved datasets."""

import gzip
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ranking.data.cells import Row
from ranking.data.schemas import SCHEMAS

LINES = (".jsonl", ".ndjson")
TABLES = (".parquet", ".arrow")
FILE_SUFFIXES = (".json", *LINES, ".csv", ".tsv", *TABLES)
SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?\.")  # in names of a split's files
NOT_DATA = {"config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json",
            "state.json"}  # fmt: skip
LFS_POINTER = b"version https://git-lfs"
LARGE_FILE = 50 * 2**20  # bytes; reading shows its progress from here on
BLOCK = 500  # rows of a table that are made at a time
Rows = Sequence[Row]  # a list, or `TableRows`
Origins = list[tuple[Path | str, int]]  # files one after the other, and their numbers of rows
Progress = Callable[[str, int], Any]  # what is read and its size → a bar with update(n), close()


def unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object; ValueError if a key is there twice, of which one value would be lost."""
    row = {sys.intern(key): value for key, value in pairs}  # one key for all rows
    if len(row) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return row


def file_kind(path: Path) -> str | None:
    """The suffix that says how a file is read, in lower case; None for a file of another kind."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix in FILE_SUFFIXES), None)


def read_file(path: Path, progress: Progress | None = None, whole: bool = True) -> Rows:
    """Rows of a file, optionally gzipped, by its suffix. ValueError names the row.

    progress: makes a bar for the megabytes of a large file of JSON lines. whole: all rows are
    wanted, so that those of a table are made, and it is not kept.
    """
    kind = file_kind(path)
    if kind is None:
        raise ValueError(f"{path}: not one of {', '.join(FILE_SUFFIXES)} (optionally .gz)")
    try:
        with path.open("rb") as raw:
            if raw.peek(len(LFS_POINTER)).startswith(LFS_POINTER):
                raise ValueError(
                    "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
                )
            zipped = path.suffix.lower() == ".gz"
            if kind in TABLES:
                read = gzip.decompress if zipped else None
                if whole:
                    batches = table_batches(raw.name, kind, read)
                    return [row for batch in batches for row in batch.to_pylist()]
                return TableRows(list(table_batches(raw.name, kind, read)))
            file: Any = gzip.GzipFile(fileobj=raw) if zipped else raw
            if kind in LINES:
                show = progress if path.stat().st_size >= LARGE_FILE else None
                rows = read_json_rows(text_lines(file, raw, path.name, show))
            elif kind == ".json":
                rows = read_json(file.read().decode("utf-8-sig"))
            else:
                rows = read_csv(file, "\t" if kind == ".tsv" else ",")
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


def text_lines(
    file: IO[bytes], raw: IO[bytes], name: str, progress: Progress | None
) -> Iterator[str]:
    """The lines of a file, with a bar for the megabytes of it on disk (`raw`)."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
    if progress is None:
        yield from text
        return
    bar = progress(f"reading {name} (MB)", raw.seek(0, io.SEEK_END) // 10**6)
    raw.seek(0)
    done = 0
    for line in text:
        yield line
        if (now := raw.tell() // 10**6) > done:
            bar.update(now - done)
            done = now
    bar.close()


def read_csv(file: IO[bytes], delimiter: str) -> list[Row]:
    """The rows of a table with a header. ValueError names a row of another length."""
    import csv

    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text, strict=True, delimiter=delimiter)
    unique_keys([(name, None) for name in reader.fieldnames or ()])
    rows = []
    for number, row in enumerate(reader, start=1):
        if None in row or None in row.values():
            raise ValueError(f"row {number}: not as many fields as the header has")
        rows.append(row)
    return rows


def table_batches(
    path: str, kind: str, decompress: Callable[[bytes], bytes] | None
) -> Iterator[Any]:
    """The rows of a parquet or arrow file, a thousand at a time, as Arrow tables."""
    import pyarrow
    import pyarrow.parquet

    source = pyarrow.memory_map(path)
    if decompress is not None:
        source = pyarrow.BufferReader(decompress(source.read()))
    if kind == ".parquet":
        file = pyarrow.parquet.ParquetFile(source)
        schema, batches = file.schema_arrow, file.iter_batches(1000)
    else:
        try:  # what `datasets` writes, then what Feather and pyarrow's file writer do
            table = pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            table = pyarrow.ipc.open_file(source).read_all()
        schema, batches = table.schema, table.to_batches(1000)
    unique_keys([(name, None) for name in schema.names])
    yield schema.empty_table()
    yield from (pyarrow.Table.from_batches([batch]) for batch in batches)


class TableRows(Sequence[Row]):
    """Rows of Arrow tables, one after the other, each made when it is asked for: in blocks where
    they are asked for in order, so that a large table is never in memory as Python objects."""

    def __init__(self, tables: Sequence[Any]):
        import pyarrow

        self.table = pyarrow.concat_tables(tables, promote_options="permissive")
        self.start, self.next = 0, 0
        self.block: list[Row] = []

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        if not self.start <= number < self.start + len(self.block):
            in_order = number == self.next
            self.start = number
            self.block = self.table.slice(number, BLOCK if in_order else 1).to_pylist()
        self.next = number + 1
        return self.block[number - self.start]


def read_json(text: str) -> list[Any]:
    """The rows of a JSON text: a list, an object with one list in it, or an object a line."""
    if not text.lstrip().startswith("["):
        try:
            whole = json.loads(text, object_pairs_hook=unique_keys)
        except ValueError:
            return read_json_rows(text.split("\n"))
        if not isinstance(whole, dict) or any(set(needed) <= set(whole) for needed, *_ in SCHEMAS):
            return [whole]
        lists = [value for value in whole.values() if isinstance(value, list)]
        return lists[0] if len(lists) == 1 else [whole]
    return json.loads(text, object_pairs_hook=unique_keys)


def read_json_rows(lines: Iterable[str]) -> list[Any]:
    """The values of JSON lines; empty lines are none."""
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line, object_pairs_hook=unique_keys))
            except ValueError as error:
                raise ValueError(f"row {number}: not JSON ({error})") from None
    return rows


def check_shards(where: Path | str, names: Sequence[str]) -> None:
    """FileNotFoundError where of the numbered files of a split some are missing, or there twice."""
    shards = [SHARD.search(name) for name in names]
    found = [shard for shard in shards if shard]
    if len({name[: s.start()] for name, s in zip(names, shards) if s}) == 1 and all(shards):
        numbers = sorted(int(shard[1]) for shard in found)
        if numbers != list(range(int(found[0][2]))):
            raise FileNotFoundError(
                f"{where}: of the {int(found[0][2])} files of this split, numbers "
                f"{', '.join(map(str, numbers))} are there (from 0)"
            )


def read_files(
    files: Sequence[Path], progress: Progress | None = None, whole: bool = True
) -> tuple[Rows, Origins]:
    """Rows of files, one after the other, and where they stand; folders are saved datasets. whole:
    all of them are wanted."""
    saved = all(file.is_dir() for file in files)
    if saved or (not whole and all(file_kind(file) in TABLES for file in files)):
        parts: list[Any] = [
            read_saved(file) if saved else read_file(file, whole=False) for file in files
        ]
        try:
            rows = parts[0] if len(parts) == 1 else TableRows([part.table for part in parts])
        except Exception as error:  # pyarrow's errors share no base class
            raise ValueError(
                f"{files[0].parent}: the files of this split have different columns: {error}"
            ) from None
        return rows, list(zip(files, map(len, parts)))
    lists = [list(read_file(file, progress)) for file in files]
    origins: Origins = list(zip(files, map(len, lists)))
    return (lists[0] if len(lists) == 1 else [row for part in lists for row in part]), origins


def read_saved(folder: Path) -> Rows:
    """Rows of a dataset that `datasets.save_to_disk` wrote."""
    import datasets

    try:
        return TableRows([datasets.load_from_disk(str(folder)).data.table])
    except Exception as error:  # arrow's and datasets' errors share no base class
        first_line = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{folder}: cannot be read: {type(error).__name__}: {first_line}"
        ) from None


def place(origins: Origins, k: int) -> str:
    """Where row k (from 0) stands: file and row (from 1)."""
    for file, n_rows in origins:
        if k < n_rows:
            return f"{file}: row {k + 1}"
        k -= n_rows
    raise IndexError(k)
