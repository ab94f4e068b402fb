"""Results by group: an accuracy, idealized accuracy or win rate for each subset, domain, language …

A column of the data, such as `domain`, divides examples into groups by its values.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from ranking.metrics.intervals import interval_95, resampled_means, wilson_interval
from ranking.metrics.orders import Baselines

MAX_GROUPS = 1000  # of a column; one with more values is no grouping

Groups = Mapping[str, str]  # of an example: column → value


class GroupMeanColumns(TypedDict):
    """What every entry of `mean_over_groups` says."""

    column: str
    n_groups: int  # values of the column
    value: float | None  # unweighted mean; null: more than 1000 groups, which `by_group` lacks
    bootstrap_95: list[float | None]  # over prompts; [null, null]: one, or all alike


class GroupColumns(TypedDict):
    """What every entry of `by_group` says."""

    column: str
    group: str | None  # value of the column; null: examples that have none, in no mean over groups
    n: int  # examples
    value: float
    bootstrap_95: list[float | None]  # over prompts; [null, null]: one, or all alike


class GroupValue(GroupColumns):
    """An entry of `by_group` of an `AccuracyRow`: the metric in one group."""

    chance: float | None  # as the row's, in the group
    baselines: Baselines | None  # as the row's, in the group
    wilson_95: tuple[float, float] | tuple[None, None]  # of shares of examples


class GroupMean(GroupMeanColumns):
    """An entry of `mean_over_groups` of an `AccuracyRow`: the metric's mean over a column's groups.

    Groups count alike, whatever their number of examples.
    """

    chance: float | None
    baselines: Baselines | None  # null: as the row's, or more than 1000 groups


def record_groups(record: Mapping[str, Any]) -> Groups:
    """Those of an example's record; {} in files from before there were groups."""
    return record.get("groups") or {}


def columns_of(groups: Sequence[Groups]) -> list[str]:
    """The columns that any example has a value of, as they come."""
    return list(dict.fromkeys(column for values in groups for column in values))


def cells_of(groups: Sequence[Groups], column: str) -> tuple[list[str | None], np.ndarray]:
    """The groups of a column, ordered by name, None (examples that have no value) last; and which
    of them each example is of."""
    values = [own.get(column) for own in groups]
    names = sorted(set(values), key=lambda name: (name is None, name))
    numbers = {name: k for k, name in enumerate(names)}
    return names, np.array([numbers[value] for value in values])


def group_means(
    groups: Sequence[Groups],
    clusters: Sequence[str],
    seed: int,
    tops: ArrayLike,
    bottoms: ArrayLike | None = None,
) -> tuple[list[Any], list[Any]]:
    """Σ tops / Σ bottoms (default: ones) in each group of each column, and the mean over groups.

    groups, clusters, tops, bottoms: of each example. Groups are ordered by name, examples without a
    value last. Intervals are of one bootstrap for all groups of a column. Returns `GroupColumns`
    and `GroupMeanColumns`, to which callers add what else they know of a group.
    """
    top = np.asarray(tops, dtype=float)
    bottom = np.ones(len(top)) if bottoms is None else np.asarray(bottoms, dtype=float)
    by_group: list[GroupColumns] = []
    over_groups: list[GroupMeanColumns] = []
    for column in columns_of(groups):
        names, cells = cells_of(groups, column)
        n = len(names) - (None in names)
        if n > MAX_GROUPS:
            over_groups.append(
                {"column": column, "n_groups": n, "value": None, "bootstrap_95": [None, None]}
            )
            continue
        means = np.bincount(cells, top) / np.bincount(cells, bottom)
        drawn = resampled_means(top, bottom, clusters, cells, len(names), seed)
        sizes = np.bincount(cells).tolist()
        prompts = Counter(cell for _, cell in set(zip(clusters, cells.tolist())))
        for k, name in enumerate(names):
            interval = interval_95(drawn[:, k] if prompts[k] > 1 else np.array([]))
            by_group.append(
                {"column": column, "group": name, "n": sizes[k], "value": float(means[k]),
                 "bootstrap_95": interval}
            )  # fmt: skip
        over_groups.append(
            {"column": column, "n_groups": n, "value": float(means[:n].mean()),
             "bootstrap_95": interval_95(mean_of_known(drawn[:, :n]))}
        )  # fmt: skip
    return by_group, over_groups


def mean_of_known(drawn: np.ndarray) -> np.ndarray:
    """Mean of each row over its groups, without those of which the resample has nothing (NaN)."""
    known = np.isfinite(drawn)
    with np.errstate(invalid="ignore"):
        return np.where(known, drawn, 0).sum(axis=1) / known.sum(axis=1)


def shares_of_groups(
    groups: Sequence[Groups], tops: ArrayLike, bottoms: ArrayLike
) -> dict[tuple, float]:
    """The values of `group_means` alone: by (column, group), and by (column,) the mean over its
    groups. A column of more than 1000 groups has none."""
    top, bottom = np.asarray(tops, dtype=float), np.asarray(bottoms, dtype=float)
    found: dict[tuple, float] = {}
    for column in columns_of(groups):
        names, cells = cells_of(groups, column)
        n = len(names) - (None in names)
        if n <= MAX_GROUPS:
            means = np.bincount(cells, top) / np.bincount(cells, bottom)
            found |= {(column, name): mean for name, mean in zip(names, means.tolist())}
            found[(column,)] = float(means[:n].mean())
    return found


def accuracy_by_group(
    groups: Sequence[Groups],
    clusters: Sequence[str],
    seed: int,
    tops: ArrayLike,
    bottoms: ArrayLike,
    *,
    baselines: Mapping[str, ArrayLike] | None,
    has_chance: bool,
    alone: ArrayLike,
) -> tuple[list[GroupValue], list[GroupMean]]:
    """`group_means` of a metric, with its baselines and, for shares of examples, Wilson's interval.

    baselines: by name, what each adds to every top; None where the metric has none. has_chance:
    whether the random order is also its `chance`. alone: of each top, whether it is 0 or 1 and all
    that its example adds; a group of such is a share of examples.
    """
    by_group, over_groups = group_means(groups, clusters, seed, tops, bottoms)
    of_baseline = {
        name: shares_of_groups(groups, values, bottoms)
        for name, values in (baselines or {}).items()
    }

    def reached(*key) -> Any:
        values = {name: shares[key] for name, shares in of_baseline.items() if key in shares}
        return values or None

    several = [own for own, is_alone in zip(groups, np.asarray(alone)) if not is_alone]
    no_shares = {(column, own.get(column)) for column in columns_of(groups) for own in several}
    for entry in by_group:
        n_correct = round(entry["value"] * entry["n"])
        entry["baselines"] = reached(entry["column"], entry["group"])
        entry["chance"] = entry["baselines"]["random"] if has_chance else None
        is_share = (entry["column"], entry["group"]) not in no_shares
        entry["wilson_95"] = wilson_interval(n_correct, entry["n"]) if is_share else (None, None)
    for entry in over_groups:
        entry["baselines"] = reached(entry["column"])
        entry["chance"] = (entry["baselines"] or {}).get("random") if has_chance else None
    return by_group, over_groups
