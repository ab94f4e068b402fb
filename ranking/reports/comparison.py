"""Several models on the same examples, as tables and a picture."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ranking.metrics.comparison import ComparedPair, ComparisonRow
from ranking.reports.labels import (
    SYMBOLS,
    dataset_of,
    model_labels,
    model_names,
    setting_labels,
    setting_of,
    symbol_of,
)
from ranking.reports.style import (
    GREY,
    WIDTH,
    model_style,
    save_figure,
    subplots,
)
from ranking.reports.tables import Table, bracketed, percent, show_table, with_interval

SIGNIFICANT = 0.05  # of p-values corrected by Holm's method


def both_normalizations(rows: Sequence[ComparisonRow]) -> list[list[ComparisonRow]]:
    """The rows of each dataset, R̃ first. ValueError where a dataset has those of two files."""
    names = list(dict.fromkeys(map(dataset_of, rows)))
    order = list(SYMBOLS.values())
    pairs = [
        sorted((r for r in rows if dataset_of(r) == n), key=lambda r: order.index(symbol_of(r)))
        for n in names
    ]
    for name, pair in zip(names, pairs):
        if list(map(symbol_of, pair)) != order:
            raise ValueError(f"not one comparison of {name}: give one file, whole")
    return pairs


def refuse_other_rows(rows: Sequence[ComparisonRow]) -> None:
    """Raise ValueError for rows that are no comparison's."""
    if not rows or not all("tests" in row for row in rows):
        raise ValueError("not a NAME.compare.jsonl of calculate_calibration_metrics.py --compare")


def numbered(rows: Sequence[ComparisonRow]) -> dict[str, str]:
    """model → its number in the tables, from 1."""
    names = dict.fromkeys(model["name"] for row in rows for model in row["models"])
    return {name: str(number) for number, name in enumerate(names, start=1)}


def comparison_table(rows: Sequence[ComparisonRow], sortable: bool = False) -> Table:
    """A line per dataset and model: R̃ and R of the examples that all of them scored; `sortable`:
    each line says of which dataset. ValueError for rows of something else."""
    refuse_other_rows(rows)
    columns = ["dataset", "", "model", "n", "chance", "R̃ (per token)", "R (summed)"]
    numbers = numbered(rows)
    names = model_names(numbers)
    lines = []
    for pair in both_normalizations(rows):
        of_dataset = [dataset_of(pair[0]), str(pair[0]["n"]), percent(pair[0]["chance"])]
        for models in zip(*(row["models"] for row in pair)):
            where, n, chance = of_dataset
            line = [where, numbers[models[0]["name"]], names[models[0]["name"]], n, chance]
            line += [with_interval(m["accuracy"], m["wilson_95"], digits=1) for m in models]
            lines.append(line)
            of_dataset = of_dataset if sortable else ["", "", ""]
    return columns, lines


def mcnemar_table(rows: Sequence[ComparisonRow], sortable: bool = False) -> Table:
    """A line per dataset and two models, by their numbers in `comparison_table`: difference of
    accuracy, how many examples each alone ranks rightly, and p after Holm's correction; `sortable`:
    each line says of which dataset, each column is one number. ValueError for rows of something
    else."""
    refuse_other_rows(rows)
    columns = ["dataset", "models"]
    only = ["only second right", "only first right"] if sortable else ["only one right"]
    for symbol in SYMBOLS.values():
        columns += [f"{symbol}: points [95 %]", *only, "p (Holm)"]
    numbers = numbered(rows)
    lines = []
    for pair in both_normalizations(rows):
        where = dataset_of(pair[0])
        for tests in zip(*(row["tests"] for row in pair)):
            line = [where, f"{numbers[tests[0]['second']]} − {numbers[tests[0]['first']]}"]
            for test in tests:
                counts = [str(test["only_second_right"]), str(test["only_first_right"])]
                p = f"{test['p_holm']:.2g}" + significance_mark(test)
                line += [signed_points(test), *(counts if sortable else [", ".join(counts)]), p]
            lines.append(line)
            where = where if sortable else ""
    return columns, lines


def signed_points(test: ComparedPair) -> str:
    """A difference of accuracies in percentage points, with its interval."""
    return bracketed(test["difference"], test["bootstrap_95"], lambda x: f"{100 * x:+.1f}")


def significance_mark(test: ComparedPair) -> str:
    return " *" if test["p_holm"] < SIGNIFICANT else ""


def show_comparison(rows: Sequence[ComparisonRow]) -> None:
    """Both tables, and a line for what was left out and where exact ties matter."""
    show_table(comparison_table(rows), "Models on the examples that all scored, % [95 % interval]")
    show_table(
        mcnemar_table(rows),
        "Differences between them, exact McNemar tests; * p < 0.05 after Holm's correction",
    )
    for row in rows:
        where = f"{dataset_of(row)}, {symbol_of(row)}"
        for model in row["models"]:
            if model["n_left_out"] and symbol_of(row) == "R":
                print(f"{dataset_of(row)}: {model['n_left_out']} examples of {model['name']} are "
                      "left out: another model has not scored them")  # fmt: skip
        for test in row["tests"]:
            strict = test["p_value_if_exact_ties_are_wrong"]
            if strict != test["p_value"]:
                logging.warning(
                    "%s: exact ties matter between %s and %s: p = %.2g as Def. 2.3 counts them "
                    "(right), %.2g if they were wrong",
                    where, test["first"], test["second"], test["p_value"], strict,
                )  # fmt: skip


def plot_comparison(rows: Sequence[ComparisonRow], path: Path) -> None:
    """How much more accurate each model is than the first one, in percentage points, with paired
    95 % bootstrap intervals over prompts; filled where p < 0.05 after Holm's correction."""
    both_normalizations(rows)  # of one comparison
    settings = setting_labels(rows)
    names = {dataset_of(row): f"{settings[setting_of(row)]}\n(n = {row['n']})" for row in rows}
    datasets = list(names)
    first, *others = model_labels(numbered(rows)).items()
    height = 1.4 + len(datasets) * max(0.5, 0.16 * len(others))
    figure, grid = subplots(1, 2, figsize=(WIDTH, height), sharex=True, sharey=True)
    for k, (_, label) in enumerate(others):
        grid[0].plot([], [], linestyle="none", markersize=5, **model_style(k), label=label)
    for axes, (symbol, how) in zip(grid, (("R̃", "per token"), ("R", "summed"))):
        for k, (name, _) in enumerate(others):
            found = [
                (datasets.index(dataset_of(row)), test)
                for row in rows
                if symbol_of(row) == symbol
                for test in row["tests"]
                if (test["first"], test["second"]) == (first[0], name)
            ]
            shift = 0.6 * ((k + 0.5) / len(others) - 0.5)
            for place, test in found:
                value = 100 * test["difference"]
                low, high = (value if b is None else 100 * b for b in test["bootstrap_95"])
                colour = model_style(k)["color"]
                filled = colour if significance_mark(test) else "white"
                axes.errorbar(
                    value, place + shift, xerr=[[max(0, value - low)], [max(0, high - value)]],
                    capsize=2, linestyle="none", markersize=5, markerfacecolor=filled,
                    **model_style(k),
                )  # fmt: skip
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle="dashed")
        axes.set_title(f"{symbol} ({how})")
        axes.set_xlabel("difference (percentage points)")
        axes.grid(False, axis="y")
    grid[0].set_yticks(range(len(datasets)), names.values())
    grid[0].set_ylim(len(datasets) - 0.5, -0.5)
    caption = (
        f"ranking accuracy less that of {first[1]} on the same examples; bars: paired 95 % "
        "bootstrap intervals; filled: p < 0.05 (McNemar's tests, Holm's correction)"
    )
    save_figure(figure, path, caption, ncols=3)
