"""Rows of a dataset → what they say, drawn: schema found, raters' rows together, rows sampled."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from ranking.data.cells import Dropped, Reading, Row
from ranking.data.columns import (
    PREFERENCE_TARGETS,
    RenamedRows,
    check_known,
    file_domain,
    group_columns,
    groups_of,
    shared_columns,
)
from ranking.data.conversations import plan_conversations
from ranking.data.files import Origins, Rows, place
from ranking.data.gathering import expand_trees, group_graded, trees_of
from ranking.data.joining import are_whole_texts
from ranking.data.prompts import unread
from ranking.data.schemas import Plan, make_plan, unread_prompt_column
from ranking.data.votes import Gathered, group_raters


class Drawn(NamedTuple):
    """The examples that were drawn, not yet converted.

    numbers: the row of each; where: file and row of such a number. read: what the k-th says; raises
    Dropped, or ValueError with file and row. groups: its groups. whole_texts: whether completions
    repeat the prompt throughout. first: the first row.
    """

    plan: Plan
    numbers: Sequence[int]
    read: Callable[[int], Reading]
    groups: Callable[[int], dict[str, str]]
    whole_texts: bool
    where: Callable[[int], str]
    first: Row
    notes: list[str]


def draw_examples(
    rows: Rows,
    origins: Origins,
    *,
    sample_size: int | None,
    seed: int,
    streamed: bool,
    columns: Mapping[str, str] | None = None,
    group_by: Sequence[str] | None = None,
    conversations: bool = False,
) -> Drawn:
    """Find the schema, put rows of one example together, and draw. Of a table only the rows that
    are drawn are made, unless rows have to be put together. ValueError in one line."""
    file = origins[0][0]
    if columns:
        check_known("--columns", columns.values(), rows, file)
        if "group" in columns:
            group_by = [*(group_by or ()), columns["group"]]
    if group_by:
        check_known("--group-by", group_by, rows, file)
    grouped_by, group_notes = group_columns(rows, group_by)
    named = RenamedRows(rows, columns) if columns else rows
    try:
        plan = make_plan(named, columns)
    except (ValueError, RecursionError) as error:
        unpaired = plan_conversations(named)
        if (
            unpaired is None
            or not conversations
            or not PREFERENCE_TARGETS.isdisjoint(columns or ())
        ):
            hint = "" if unpaired is None else f"; {unpaired.kind} are for sft.py"
            raise ValueError(f"{file}: {error}{hint}") from None
        plan = unpaired
    where = partial(place, origins)
    listed = isinstance(rows, list)
    if listed or plan.gather != "rows":  # of a table, only the rows that are drawn are made
        check_columns(named, range(len(rows)), plan, origins)
    items, members, notes = gather(named, plan, where) or (None, [], [])
    try:
        grouped_by, differing = shared_columns(rows, members, grouped_by, group_by is not None)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    n_items = len(rows) if items is None else len(items)
    if sample_size is not None and sample_size > n_items:
        notes.append(f"{n_items} examples, fewer than the {sample_size} asked for: all taken")
    picked = sampled_rows(n_items, sample_size, seed, streamed)
    numbers = picked if items is None else [items[k][0] for k in picked]
    if not listed and items is None:
        check_columns((named[k] for k in picked), picked, plan, origins)

    def read_item(k: int) -> Reading:
        reading = plan.read(named[k]) if items is None else items[k][1]
        if isinstance(reading, Dropped):
            raise reading
        return reading

    def read(k: int) -> Reading:
        try:
            return read_item(picked[k])
        except (ValueError, RecursionError) as error:  # lists within lists within lists
            raise ValueError(f"{where(numbers[k])}: {error}") from None

    def groups(k: int) -> dict[str, str]:
        row = rows[numbers[k]]
        try:
            found = groups_of(row, grouped_by)
        except ValueError as error:
            raise ValueError(f"{where(numbers[k])}: {error}") from None
        if plan.kind == "one against many" and "domain" not in row and group_by is None:
            found |= file_domain(where(numbers[k]))
        return found

    some = range(n_items) if listed or items is not None else picked[:1000]
    whole_texts = plan.separator is None and are_whole_texts(some, read_item)
    rules = [plan.rule] if plan.rule else []
    return Drawn(plan, numbers, read, groups, whole_texts, where, named[0],
                 [*rules, *notes, *group_notes, *differing])  # fmt: skip


def sampled_rows(n_rows: int, sample_size: int | None, seed: int, streamed: bool) -> Sequence[int]:
    """Row numbers of a sample without replacement; the first rows, where they were streamed; all
    where none is asked for, or a larger one."""
    if sample_size is None or sample_size > n_rows:
        return range(n_rows)
    if streamed:
        return range(sample_size)
    return np.random.default_rng(seed).choice(n_rows, sample_size, replace=False).tolist()


def gather(rows: Sequence[Row], plan: Plan, where: Callable[[int], str]) -> Gathered | None:
    """What becomes an example where that is not a row by itself; else None."""

    def read(number: int) -> Reading | Dropped:
        try:
            return plan.read(rows[number])
        except Dropped as drop:
            return drop
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where(number)}: {error}") from None

    if plan.gather in ("raters", "labels"):
        return group_raters(rows, read, plan.gather == "raters")
    if plan.gather == "graded":
        return group_graded(rows, read, plan.needed[-1], where)
    if plan.gather == "trees":
        return expand_trees(rows, where)
    if plan.gather == "messages":
        trees, starts, lost = trees_of(rows, where)
        items, _, notes = expand_trees(trees, lambda tree: where(starts[tree]))
        return Gathered([(starts[tree], item) for tree, item in items], [], [*lost, *notes])
    return None


def check_columns(
    rows: Iterable[Row], numbers: Iterable[int], plan: Plan, origins: Origins
) -> None:
    """Raise ValueError for the first row without a column that is needed, or with a part of its
    prompt in one that is not read."""
    needed = set(plan.needed)
    for number, row in zip(numbers, rows):
        if not needed <= row.keys():
            missing = ", ".join(column for column in plan.needed if column not in row)
            raise ValueError(
                f"{place(origins, number)}: missing column {missing} (found {', '.join(row)})"
            )
        if plan.unread and (column := unread_prompt_column(row, plan)) is not None:
            raise ValueError(f"{place(origins, number)}: {unread(column, plan.needed)}")
