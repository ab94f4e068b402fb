"""Columns by other names (`--columns`), and columns that results are grouped by (`--group-by`)."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ranking.data.cells import Row, plain_name

TARGETS = ("prompt", "system", "chosen", "rejected", "completions", "ranks", "scores", "votes",
           "label", "group")  # fmt: skip
# grouped by without being asked, where a file holds 2 to 50 values of them
GROUP_COLUMNS = ("subset", "category", "domain", "source", "language", "task_type")
MOST_GROUPS = 50
EXAMPLE = "--columns prompt=question chosen=answer_a rejected=answer_b"


def parse_columns(texts: Sequence[str] | None) -> dict[str, str] | None:
    """`prompt=question chosen=answer_a` → what each of our columns is called in the data; a dot
    leads into an object. ValueError in one line otherwise."""
    if not texts:
        return None
    columns: dict[str, str] = {}
    for text in texts:
        target, equals, column = text.partition("=")
        if not equals or not column:
            raise ValueError(f"--columns {text}: give TARGET=COLUMN, as in {EXAMPLE}")
        if target not in TARGETS:
            close = difflib.get_close_matches(target, TARGETS, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"--columns {text}: the targets are {', '.join(TARGETS)}{hint}")
        if target in columns:
            raise ValueError(f"--columns {text}: {target} is given twice")
        columns[target] = column
    return columns


def cell(row: Row, path: str) -> Any:
    """The value of a column, or of a key of its object (`metadata.domain`); None where it is not
    there."""
    if path in row:
        return row[path]
    name, _, rest = path.partition(".")
    inner = row.get(name)
    return cell(inner, rest) if rest and isinstance(inner, dict) else None


def has_column(row: Row, path: str) -> bool:
    """Whether a row has a column, or a key of its object."""
    name, _, rest = path.partition(".")
    inner = row.get(name)
    return path in row or (bool(rest) and isinstance(inner, dict) and has_column(inner, rest))


def check_known(flag: str, paths: Iterable[str], rows: Sequence[Row], file: Path | str) -> None:
    """Raise ValueError for a column that no row has; it names the nearest one."""
    for path in paths:
        if not any(has_column(row, path) for row in rows):
            columns = list(dict.fromkeys(column for row in rows[:100] for column in row))
            close = difflib.get_close_matches(path, columns, 1, 0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"{file}: {flag} {path}: no such column (found {', '.join(columns)}){hint}"
            )


def renamed(rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """Rows under the names that schemas know; a column that is named so by itself is left out."""
    targets = {target: source for target, source in columns.items() if target != "group"}
    gone = {*targets, *targets.values()}
    return [
        {target: cell(row, source) for target, source in targets.items() if has_column(row, source)}
        | {column: value for column, value in row.items() if column not in gone}
        for row in rows
    ]


def group_columns(rows: Sequence[Row], group_by: Sequence[str] | None) -> list[str]:
    """The columns to group by: those asked for, or those of `GROUP_COLUMNS` that hold few texts."""
    if group_by is not None:
        return list(group_by)
    names = {plain_name(column) for column in GROUP_COLUMNS}
    candidates = [column for column in rows[0] if plain_name(column) in names]
    found = []
    for column in candidates:
        values: set[str] = set()
        for row in rows:
            value = row.get(column)
            if value is not None and not isinstance(value, str):
                values.clear()
                break
            if value:
                values.add(value)
            if len(values) > MOST_GROUPS:
                break
        if 2 <= len(values) <= MOST_GROUPS:
            found.append(column)
    return found


def groups_of(row: Row, columns: Sequence[str]) -> dict[str, str]:
    """The values that a row has in the columns; ValueError for one that is no single value."""
    groups = {}
    for column in columns:
        value = cell(row, column)
        if isinstance(value, list | dict):
            raise ValueError(f"column {column!r} holds a {type(value).__name__}: no group")
        if value not in (None, ""):
            groups[column] = f"{value}"
    return groups
