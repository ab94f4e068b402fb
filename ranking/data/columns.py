"""Columns by other names (`--columns`), and columns that results are grouped by (`--group-by`)."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ranking.data.cells import Row, plain_name

TARGETS = ("prompt", "system", "chosen", "rejected", "completions", "ranks", "scores", "votes",
           "label", "group", "messages", "completion")  # fmt: skip
PREFERENCE_TARGETS = {"chosen", "rejected", "completions", "ranks", "scores", "votes"}
# grouped by without being asked, where a file holds 2 to 50 values of them
GROUP_COLUMNS = ("subset", "category", "domain", "source", "language", "task_type")
MOST_VALUES = 50
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


def has_field(fields: Iterable[Any], path: str) -> bool:
    """Whether a table, or an object in it, has a column: `fields` are those of its schema."""
    kinds = {field.name: field.type for field in fields}
    name, _, rest = path.partition(".")
    inner = getattr(kinds.get(name), "fields", None)  # of an object
    return path in kinds or (bool(rest and inner) and has_field(inner, rest))


def check_known(flag: str, paths: Iterable[str], rows: Sequence[Row], file: Path | str) -> None:
    """Raise ValueError for a column that no row has; it names the nearest one."""
    for path in paths:
        if not (
            has_field(rows.table.schema, path)
            if hasattr(rows, "table")
            else any(has_column(row, path) for row in rows)
        ):
            columns = names_of(rows)
            close = difflib.get_close_matches(path, columns, 1, 0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"{file}: {flag} {path}: no such column (found {', '.join(columns)}){hint}"
            )


class RenamedRows(Sequence[Row]):
    """Rows under the names that schemas know, each made when it is asked for; a column that is
    named so by itself is left out."""

    def __init__(self, rows: Sequence[Row], columns: Mapping[str, str]):
        self.rows = rows
        self.targets = {target: path for target, path in columns.items() if target != "group"}
        self.gone = {*self.targets, *self.targets.values()}

    @cached_property
    def table(self) -> Any:
        """The table of the rows, if they are of one, under the same names."""
        table = self.rows.table  # type: ignore[attr-defined]  # AttributeError: there is none
        given = {target: field_of(table, path) for target, path in self.targets.items()}
        kept = [name for name in table.column_names if name not in self.gone]
        return type(table).from_pydict(given | {name: table.column(name) for name in kept})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        row = self.rows[number]
        given = {t: cell(row, path) for t, path in self.targets.items() if has_column(row, path)}
        return given | {name: value for name, value in row.items() if name not in self.gone}


def field_of(table: Any, path: str) -> Any:
    """A column of a table, or a key of the objects in one."""
    from pyarrow.compute import struct_field

    name, _, rest = path.partition(".")
    if path in table.column_names:
        return table.column(path)
    return struct_field(table.column(name), rest.split("."))


def values_of(rows: Sequence[Row], column: str) -> Iterator[Any]:
    """The values of a column, row by row; of a table, without making its rows."""
    if hasattr(rows, "table"):
        return (value.as_py() for value in rows.table.column(column))
    return (row.get(column) for row in rows)


def names_of(rows: Sequence[Row]) -> list[str]:
    """The columns that some row has."""
    if hasattr(rows, "table"):
        return list(rows.table.column_names)
    return list(dict.fromkeys(column for row in rows for column in row))


def group_columns(
    rows: Sequence[Row], group_by: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """The columns to group by, those asked for, or those of `GROUP_COLUMNS` that hold few values,
    and notes on those that hold too many."""
    if group_by is not None:
        return list(group_by), []
    names = {plain_name(column) for column in GROUP_COLUMNS}
    counts = {c: count_values(rows, c) for c in names_of(rows) if plain_name(c) in names}
    notes = [
        f"{column} holds more than {MOST_VALUES} values: not grouped; --group-by {column} does"
        for column, n in counts.items()
        if n > MOST_VALUES
    ]
    return [column for column, n in counts.items() if 2 <= n <= MOST_VALUES], notes


def count_values(rows: Sequence[Row], column: str) -> int:
    """How many different texts or whole numbers a column holds, up to one more than `MOST_VALUES`;
    0 where it holds something else."""
    values: set[str] = set()
    for value in values_of(rows, column):
        if value is not None and not isinstance(value, str | int):
            return 0
        if value not in (None, ""):
            values.add(f"{value}")
        if len(values) > MOST_VALUES:
            break
    return len(values)


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


def shared_columns(
    rows: Sequence[Row], members: Sequence[Sequence[int]], columns: Sequence[str], asked: bool
) -> tuple[list[str], list[str]]:
    """The columns to group by in which the rows of each example agree, and notes on the others.

    members: the rows of each example. ValueError for a column that was asked for.
    """
    differing: dict[str, str] = {}
    several = [numbers for numbers in members if len(numbers) > 1]
    for column in columns:
        for numbers in several:
            values = {f"{cell(rows[k], column)}" for k in numbers} - {"", "None"}
            if len(values) > 1:
                differing[column] = " and ".join(sorted(values)[:2])
                break
    if differing and asked:
        column, two = next(iter(differing.items()))
        raise ValueError(
            f"no groups by {column}: the rows of one example differ in it, as in {two}"
        )
    notes = [f"{c} differs between the rows of one example: not grouped" for c in differing]
    return [column for column in columns if column not in differing], notes


def file_domain(where: str) -> dict[str, str]:
    """The domain of a row of RM-Bench, which its files are named by (`chat_filtered.json`)."""
    found = re.search(r"([\w-]+)_filtered\.", where)
    return {"domain": found[1]} if found else {}
