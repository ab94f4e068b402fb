"""Results by group: which of them tables and pictures show, and what they are called."""

from collections.abc import Mapping, Sequence
from typing import Any

from ranking.reports.labels import SYMBOLS, plain
from ranking.reports.style import WIDTH, subplots

MOST_GROUPS = 30  # of a column that are shown; all are in the result file
LONGEST_NAME = 40  # characters


def group_name(name: str | None) -> str:
    """A group as it is shown: short, "–" for examples that have no value."""
    if name is None:
        return "–"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def columns_to_show(row: Mapping[str, Any]) -> list[str]:
    """Columns that divide the examples of a row; one with a single value says nothing more."""
    groups = row.get("by_group", [])
    columns = dict.fromkeys(entry["column"] for entry in groups)
    return [c for c in columns if sum(entry["column"] == c for entry in groups) > 1]


def largest_groups(row: Mapping[str, Any], column: str) -> list[int]:
    """Places in `by_group` of a column's largest groups, in their order there."""
    groups = row["by_group"]
    places = [k for k, entry in enumerate(groups) if entry["column"] == column]
    largest = sorted(places, key=lambda k: -groups[k]["n"])[:MOST_GROUPS]
    return sorted(largest)


def entries_to_show(row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """Entries of a column's largest groups."""
    return [row["by_group"][k] for k in largest_groups(row, column)]


def groups_to_show(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Label and entries of each line about the groups of one dataset.

    rows: result rows of the same examples (R̃ and R); a line has an entry of each, the groups' from
    `by_group`, then the mean's from `mean_over_groups`; none where a line says what is not shown.
    """
    lines: list[tuple[str, list[dict[str, Any]]]] = []
    for k, mean in enumerate(rows[0].get("mean_over_groups", [])):
        column, n = mean["column"], mean["n_groups"]
        if mean["value"] is None:
            lines.append((f"  {column}: {n} values, too many for groups", []))
        if column not in columns_to_show(rows[0]):
            continue
        places = largest_groups(rows[0], column)
        for place in places:
            name = group_name(rows[0]["by_group"][place]["group"])
            lines.append((f"  {column}: {name}", [row["by_group"][place] for row in rows]))
        n_all = sum(entry["column"] == column for entry in rows[0]["by_group"])
        if n_all > len(places):
            n_left = n_all - len(places)
            lines.append((f"  {column}: {n_left} smaller: by_group in the summary", []))
        lines.append((f"  {column}: mean over {n}", [row["mean_over_groups"][k] for row in rows]))
    return lines


def has_groups(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any row has groups to show."""
    return any(columns_to_show(row) for row in rows)


def group_grid(
    panels: Sequence[tuple[str, Mapping[str, Any], str]], height: float, across: str
) -> tuple[Any, Any]:
    """A figure with a line of two panels (R̃, R) for each column of groups, and a place in them for
    each group that is shown, from 0 on downward.

    panels: label of the dataset, a row with its groups, the column. height: inches of a group.
    across: what is drawn from 0 to 100. Raises ValueError where there are no groups.
    """
    if not panels:
        raise ValueError("no column of groups in these results")
    shown = [entries_to_show(row, column) for _, row, column in panels]
    heights = [0.35 + height * len(entries) for entries in shown]
    figure, grid = subplots(
        len(panels), 2, figsize=(WIDTH, 1 + sum(heights)), sharex=True, squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    for line, (label, row, column), entries in zip(grid, panels, shown):
        for axes in line:
            axes.set_ylim(len(entries) - 0.4, -0.6)
            axes.set_xlim(-2, 102)
            axes.grid(False, axis="y")
            axes.set_yticks(range(len(entries)), [])
        texts = [f"{plain(group_name(e['group']))} (n = {e['n']})" for e in entries]
        line[0].set_yticks(range(len(entries)), texts)
        n_all = sum(entry["column"] == column for entry in row["by_group"])
        some = f" ({len(entries)} largest of {n_all})" if n_all > len(entries) else ""
        line[0].set_title(f"{label}, by {plain(column)}{some}", loc="left")
    for axes, symbol in zip(grid[-1], SYMBOLS.values()):
        axes.set_xlabel(f"{symbol}: {across}")
    return figure, grid
