"""The files of a run: one process writes them, the same command resumes them, none are mixed.

Several processes append to a part file each, `NAME.examples.part<rank>.jsonl`; the first process
merges them into `NAME.examples.jsonl`, at the end of a run or at the start of one that resumes it.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from filelock import FileLock, Timeout

from ranking.plumbing.processes import process_count, process_rank, wait_for_all_processes
from ranking.plumbing.result_files import (
    Record,
    drop_torn_line,
    hash_config,
    read_config,
    read_json_lines,
    write_json,
    write_json_lines,
    write_text_atomically,
)

MODEL_SIDES = ("", "policy.", "reference.")  # of NAME.<side>examples.jsonl: of which model


class Output(NamedTuple):
    """Where a run writes: NAME.jsonl, last of all, and beside it what is made on the way."""

    summary: Path
    examples: Path
    config: Path
    picture: Path
    finished: bool  # a run of this name that has ended is there, for --overwrite to discard
    stale: tuple[Path, ...] = ()  # examples of a run of this name that this one has no part in

    def beside(self, suffix: str) -> Path:
        """NAME.<suffix>"""
        return self.summary.with_name(f"{stem_of(self.summary)}.{suffix}")


def stem_of(summary: Path) -> str:
    """NAME of NAME.jsonl, which all files of a run begin with."""
    return summary.name.removesuffix(".jsonl").removesuffix(".json")


def refuse_finished(summary: Path) -> NoReturn:
    """Raise ValueError: a finished run is there."""
    raise ValueError(f"{summary} exists: choose another --output-filename or pass --overwrite")


def plan_output(
    output_dir: str,
    output_filename: str,
    overwrite: bool,
    reads: Iterable[str | None],
    writes: Iterable[str] = ("examples.jsonl", "config.json", "png"),
) -> Output:
    """Where a run will write, checked before anything is loaded; `begin_run` takes it.

    reads: files and datasets of this run (None: none). writes: NAME's suffixes, beside the summary.
    Raises ValueError where the directory is a file; where the summary is a directory, or by its
    name gzipped; where it exists, or examples of an unfinished run that this one has no part in
    (unless `overwrite`); and where something that is read would be written, or belongs to a
    finished run that is discarded before this one ends.
    """
    summary = Path(output_dir) / output_filename
    above = next((folder for folder in summary.parents if os.path.lexists(folder)), summary)
    if not above.is_dir():
        what = "a file" if above.exists() else "a link to nothing"
        raise ValueError(f"--output-dir {output_dir}: {above} is {what}: give a directory")
    if summary.is_dir():
        raise ValueError(f"{summary} is a directory: give --output-filename the name of a file")
    if summary.suffix == ".gz":
        raise ValueError(
            f"--output-filename {output_filename}: files are not gzipped, leave out .gz"
        )
    stem = stem_of(summary)
    output = Output(
        summary,
        summary.with_name(f"{stem}.examples.jsonl"),
        summary.with_name(f"{stem}.config.json"),
        summary.with_name(f"{stem}.png"),
        summary.exists(),
    )
    written = {path.resolve() for path in (summary, *map(output.beside, writes))}
    read = {Path(name).resolve(): name for name in reads if name is not None}
    for file, name in read.items():
        if file in written:
            raise ValueError(
                f"{name} is read, and would be overwritten: choose another --output-filename"
            )
    if output.finished and not overwrite:
        refuse_finished(summary)
    sides = [output.beside(f"{side}examples.jsonl") for side in MODEL_SIDES]
    if output.finished and any(side.resolve() in written for side in sides):
        for side in sides:
            if side.resolve() in read:
                raise ValueError(
                    f"{read[side.resolve()]} is read, and of the run that --overwrite discards "
                    "before anything is scored: choose another --output-filename"
                )
    output = output._replace(stale=stale_files(output, written | read.keys()))
    if output.stale and not (output.finished or overwrite):
        raise ValueError(
            f"{output.stale[0]} is of an unfinished run: give the command that began it again, "
            "choose another --output-filename, or pass --overwrite to discard it"
        )
    for twin in (summary.with_name(stem + suffix) for suffix in ("", ".json", ".jsonl")):
        if twin != summary and twin.is_file():
            raise ValueError(
                f"{twin} shares its other files with {summary.name}: choose another "
                "--output-filename"
            )
    return output


def stale_files(output: Output, used: Set[Path]) -> tuple[Path, ...]:
    """Examples files under the run's name, with their parts and configurations, that are not among
    the `used` ones, nor of a run by itself whose name ends as a side does (NAME.policy.jsonl)."""
    found = []
    for side in MODEL_SIDES:
        examples, config = (output.beside(side + of) for of in ("examples.jsonl", "config.json"))
        alone = [output.beside(side + ending) for ending in ("jsonl", "json")] if side else []
        if examples.resolve() in used or any(path.exists() for path in alone):
            continue
        parts = part_files(examples) if examples.parent.is_dir() else []
        found += [path for path in (examples, *parts, config) if path.resolve() not in used]
    return tuple(path for path in found if path.exists())


def claim_of(output: Output) -> Path:
    """Where a run that is not finished says which file besides its own it writes."""
    return output.summary.with_name(f".{stem_of(output.summary)}.claim")


def claim_file(output: Output, file: Path) -> None:
    """Say that a file named by a flag is of this run, before it is written, so that the same
    command may write it again after a kill. Whoever finishes the run removes `claim_of`."""
    write_text_atomically(claim_of(output), f"{file.resolve()}\n")


def is_claimed(output: Output, file: Path) -> bool:
    """Whether an unfinished run of this name wrote the file."""
    claim = claim_of(output)
    there = not output.finished and claim.is_file()
    return there and claim.read_text(encoding="utf-8") == f"{file.resolve()}\n"


def plan_file(
    path: str,
    flag: str,
    overwrite: bool,
    reads: Iterable[str | None],
    output: Output,
    writes: Iterable[str],
) -> Path:
    """One more file that a run writes, named by a flag, checked before anything is loaded.

    reads, writes: as for `plan_output`. ValueError where the file exists (unless `overwrite`, or
    the unfinished run of this name wrote it), is a directory, is read, or is another of the run's.
    """
    file = Path(path)
    others = [output.summary, *(output.beside(suffix) for suffix in writes)]
    for name in reads:
        if name is not None and Path(name).resolve() == file.resolve():
            raise ValueError(f"{flag} {path} is read, and would be overwritten: choose another")
    if file.resolve() in {other.resolve() for other in others}:
        raise ValueError(f"{flag} {path} is another file of this run: choose another name")
    if file.is_dir():
        raise ValueError(f"{flag} {path} is a directory: give the name of a file")
    if file.exists() and not overwrite and not is_claimed(output, file):
        raise ValueError(f"{flag} {path} exists: choose another name or pass --overwrite")
    return file


def dataset_key(row: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    """What rows of examples are grouped by: dataset, split and configuration."""
    return row["dataset"], row["split"], row.get("dataset_config")


def row_key(row: Mapping[str, Any]) -> tuple[str, str | None, str | None, str]:
    """What identifies an example's row: these and its id."""
    return *dataset_key(row), row["id"]


def take_output(output: Output) -> None:
    """Make the directory, and this process the only one that writes there under this name, where
    the examples of an overwritten run that this one has no part in are removed.

    ValueError where another writes, or has finished since the output was planned.
    """
    output.summary.parent.mkdir(parents=True, exist_ok=True)
    lock_outputs(output.summary)
    if output.summary.exists() and not output.finished:
        refuse_finished(output.summary)
    for path in output.stale:
        path.unlink(missing_ok=True)


def begin_run(
    output: Output,
    config: Mapping[str, Any],
    overwrite: bool,
    key: Callable[[Record], tuple] = row_key,
) -> list[Record]:
    """Write the configuration of a run, and return the example rows of the one it resumes.

    The unfinished run of the same command goes on, with `overwrite` too. One of another
    configuration is discarded by `overwrite`, as a finished one is, and else a ValueError. Of
    several processes the first prepares the files, whose rows the others then read.
    """
    if process_count() == 1:
        return prepare_files(output, config, overwrite, key)
    earlier = prepare_files(output, config, overwrite, key) if process_rank() == 0 else []
    wait_for_all_processes()
    if process_rank() > 0 and output.examples.exists():
        earlier = read_json_lines(output.examples)
    wait_for_all_processes()
    return earlier


def prepare_files(
    output: Output, config: Mapping[str, Any], overwrite: bool, key: Callable[[Record], tuple]
) -> list[Record]:
    """`begin_run` in the first process."""
    take_output(output)
    begun = output.examples.exists() or bool(part_files(output.examples))
    earlier = read_config(output.config) if begun else {}
    same = begun and hash_config(earlier) == hash_config(config)
    if overwrite and (output.finished or not same):
        own = (output.summary, output.examples, output.config, output.picture)
        for path in (*part_files(output.examples), *own):
            path.unlink(missing_ok=True)
        begun = False
    if not begun:
        write_json(output.config, config)
        return []
    if not same:
        keys = [key for key in config if config[key] != earlier.get(key)]
        raise ValueError(
            f"{output.examples} is from an unfinished run with another configuration "
            f"({', '.join(keys) or 'unknown'} differ): use the same flags, another "
            "--output-filename, or --overwrite to discard it"
        )
    return merge_parts(output.examples, key)


# ---------------------------------------------------------------------------- several processes
def part_file(examples: Path, rank: int) -> Path:
    """Where process `rank` of several appends its rows."""
    return examples.with_name(f"{examples.name.removesuffix('.jsonl')}.part{rank}.jsonl")


def part_files(examples: Path) -> list[Path]:
    """The part files beside an examples file, whatever number of processes left them."""
    name = re.compile(re.escape(examples.name.removesuffix(".jsonl")) + r"\.part\d+\.jsonl")
    return sorted(file for file in examples.parent.iterdir() if name.fullmatch(file.name))


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


# ---------------------------------------------------------------------------- locks
_held: dict[Path, FileLock] = {}  # until the script ends, or its process dies


def lock_outputs(path: Path) -> None:
    """Make this process the only one that writes `path` and the files beside it.

    The operating system drops the lock when its owner dies, however it dies. Raises ValueError if
    another process holds it. Where a file system has no locks, a line on stderr says so.
    """
    lock_file = path.with_name(f".{stem_of(path)}.lock").absolute()
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
