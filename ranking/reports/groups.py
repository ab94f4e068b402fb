"""Results by group: which of them tables and pictures show, and what they are called."""

from collections.abc import Mapping, Sequence
from typing import Any

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
