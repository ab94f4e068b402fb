"""JSON lines: rows are appended as they come, summaries written whole or not at all."""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

Record = dict[str, Any]  # a line of a JSON-lines file


def hash_config(config: Mapping[str, Any]) -> str:
    """16 hex digits that identify everything a log-likelihood depends on."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when all of it is written, and else leaves nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    with written_atomically(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write one value atomically, for people too."""
    write_text_atomically(path, json.dumps(value, indent=1) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows atomically, one JSON object a line. NaN is an error, write null instead."""
    write_text_atomically(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def write_parquet(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    types: Mapping[str, str],
    objects: Container[str] = (),
) -> None:
    """Write rows of the same columns atomically, as a parquet file.

    types: Arrow's names of the types of columns that may hold nothing but null ("float64"), with
    brackets for lists of them ("[float64]"). ValueError where a column's values have no one type,
    and where objects in the columns `objects` would be read back with keys that they do not have.
    """
    import pyarrow as pa  # only where a table is written
    import pyarrow.parquet

    def column(name: str) -> Any:
        kind = types.get(name)
        of_list = kind is not None and kind.startswith("[")
        inner = pa.type_for_alias(kind.strip("[]")) if kind is not None else None
        values = [row[name] for row in rows]
        try:
            array = pa.array(values, pa.list_(inner) if of_list else inner)
        except pa.ArrowException as error:
            why = " ".join(str(error).split())
            raise ValueError(f"{path}: column {name!r}: {why}; .jsonl can hold it") from None
        if name in objects and array.to_pylist() != values:
            raise ValueError(
                f"{path}: column {name!r}: its objects have different keys, and parquet gives null "
                "to those that a row lacks; .jsonl can hold it"
            )
        return array

    table = pa.table({name: column(name) for name in rows[0]})
    with written_atomically(path) as file:
        pyarrow.parquet.write_table(table, file)


def read_json_lines(path: Path) -> list[Record]:
    """Rows of a JSON-lines file, or of one that gzip made smaller (NAME.jsonl.gz); ValueError names
    file and row."""
    rows = []
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        lines = content.decode().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise ValueError(f"{path}: row {number}: not JSON") from None
            if not isinstance(rows[-1], dict):
                raise ValueError(f"{path}: row {number}: not a JSON object")
    return rows


def append_json_lines(file, rows: Iterable[Any]) -> None:
    """Append rows to an open binary file in one write, so that a kill leaves whole lines."""
    file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
    file.flush()


def read_cached(path: Path) -> dict[str, Any]:
    """Value by key of the lines [key, value] of a cache, which may not be there; the last of a key
    counts, and what is no such line (empty, torn by a kill) is left out."""
    found = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            key, value = json.loads(line)
            found[key] = value
        except (ValueError, TypeError):
            continue
    return found


def drop_torn_line(path: Path) -> None:
    """Cut a last line without its newline, left by a killed run or a full disk."""
    with path.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def read_config(path: Path) -> Record:
    """What an earlier run wrote of its configuration; {} where there is nothing of the kind."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
