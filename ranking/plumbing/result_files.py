"""JSON lines: rows are appended as they come, summaries written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # a line of a JSON-lines file


def hash_config(config: Mapping[str, Any]) -> str:
    """16 hex digits that identify everything a log-likelihood depends on."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def write_text_atomically(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows atomically, one JSON object a line. NaN is an error, write null instead."""
    write_text_atomically(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[Record]:
    """Rows of a JSON-lines file; ValueError names file and row."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
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
