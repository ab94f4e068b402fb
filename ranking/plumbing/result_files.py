"""Result files: per-example rows appended as they come, summaries written once and atomically.

Several processes append to a part file each, `NAME.examples.part<rank>.jsonl`; the first process
merges them into `NAME.examples.jsonl`, at the end of a run or at the start of one that resumes it.
"""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

Record = dict[str, Any]  # a line of a JSON-lines file


def hash_config(config: Record) -> str:
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


_held: dict[Path, FileLock] = {}  # until the script ends, or its process dies


def lock_outputs(path: Path) -> None:
    """Make this process the only one that writes `path` and the files beside it.

    The operating system drops the lock when its owner dies, however it dies. Raises ValueError if
    another process holds it. Where a file system has no locks, a line on stderr says so.
    """
    stem = path.name.removesuffix(".jsonl").removesuffix(".json")  # as in `output_paths`
    lock_file = path.with_name(f".{stem}.lock").absolute()
    if lock_file in _held:
        return
    lock = FileLock(lock_file, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"another process is writing {path}: wait for it, or choose another output"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        print(f"{lock_file.parent}: no file locks here: start one process only", file=sys.stderr)
        return
    _held[lock_file] = lock


def release_outputs() -> None:
    """Drop the locks of this process, at the end of a script."""
    while _held:
        _held.popitem()[1].release()


def output_paths(output_dir: str, output_filename: str) -> dict[str, Path]:
    """summary, examples, config and picture paths beside each other."""
    summary = Path(output_dir) / output_filename
    stem = summary.parent / summary.name.removesuffix(".jsonl").removesuffix(".json")
    return {
        "summary": summary,
        "examples": stem.with_name(f"{stem.name}.examples.jsonl"),
        "config": stem.with_name(f"{stem.name}.config.json"),
        "picture": stem.with_name(f"{stem.name}.png"),
    }


def check_inputs(paths: dict[str, Path], inputs: Iterable[str | None]) -> None:
    """Raise ValueError where a file that is read (None: no file) is one that would be written."""
    written = {path.resolve() for path in paths.values()}
    for name in inputs:
        if name is not None and Path(name).resolve() in written:
            raise ValueError(
                f"{name} is read, and would be overwritten: choose another --output-filename"
            )


def part_file(examples: Path, rank: int) -> Path:
    """Where process `rank` of several appends its rows."""
    return examples.with_name(f"{examples.name.removesuffix('.jsonl')}.part{rank}.jsonl")


def part_files(examples: Path) -> list[Path]:
    """The part files beside an examples file, whatever number of processes left them."""
    name = re.compile(re.escape(examples.name.removesuffix(".jsonl")) + r"\.part\d+\.jsonl")
    return sorted(file for file in examples.parent.iterdir() if name.fullmatch(file.name))


def row_key(row: Record) -> tuple[str, str | None, str]:
    """What identifies an example's row: dataset, split and id."""
    return row["dataset"], row["split"], row["id"]


def merge_parts(examples: Path, key: Callable[[Record], tuple] = row_key) -> list[Record]:
    """All rows of the examples file and its parts, which are then one file, replaced atomically.

    A row twice over (a kill between writing and deleting) is kept once; ValueError if two rows of
    one `key` differ.
    """
    rows: dict[tuple, Record] = {}
    parts = part_files(examples)
    for file in [examples, *parts]:
        if not file.exists():
            continue
        drop_torn_line(file)
        for row in read_json_lines(file):
            if rows.setdefault(key(row), row) != row:
                raise ValueError(f"{file}: example {row['id']} was scored twice, differently")
    if parts:
        write_json_lines(examples, rows.values())
        for file in parts:
            file.unlink()
    return list(rows.values())


def prepare_outputs(
    paths: dict[str, Path],
    config: Record,
    overwrite: bool,
    key: Callable[[Record], tuple] = row_key,
) -> list[Record]:
    """Make the output directory and return the example rows of an earlier, unfinished run.

    ValueError if a summary exists, or the earlier run had another configuration; `overwrite`
    discards those. The unfinished run of the same command goes on, with `overwrite` too.
    """
    summary, examples, config_file = paths["summary"], paths["examples"], paths["config"]
    if summary.exists() and not overwrite:
        raise ValueError(f"{summary} exists: choose another --output-filename or pass --overwrite")
    stem = str(summary).removesuffix(".jsonl").removesuffix(".json")  # as in `output_paths`
    for twin in map(Path, (stem, f"{stem}.json", f"{stem}.jsonl")):
        if twin != summary and twin.is_file():
            raise ValueError(
                f"{twin} shares its other files with {summary.name}: choose another "
                "--output-filename"
            )
    summary.parent.mkdir(parents=True, exist_ok=True)
    lock_outputs(summary)
    begun = examples.exists() or bool(part_files(examples))
    earlier = read_config(config_file) if begun else {}
    same = begun and hash_config(earlier) == hash_config(config)
    if overwrite and (summary.exists() or not same):
        for path in [*part_files(examples), *paths.values()]:
            path.unlink(missing_ok=True)
        begun = False
    if not begun:
        write_text_atomically(config_file, json.dumps(config, indent=1) + "\n")
        return []
    if not same:
        keys = [key for key in config if config[key] != earlier.get(key)]
        raise ValueError(
            f"{examples} is from an unfinished run with another configuration "
            f"({', '.join(keys) or 'unknown'} differ): use the same flags, another "
            "--output-filename, or --overwrite to discard it"
        )
    return merge_parts(examples, key)


def read_config(path: Path) -> Record:
    """What an earlier run wrote of its configuration; {} where there is nothing of the kind."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
