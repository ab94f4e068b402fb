"""A table has one builder, in the module of its subject, and three renderers, here."""

import sys
from collections.abc import Sequence

Table = tuple[list[str], list[list[str]]]  # columns, lines of cells
BETWEEN = " / "  # min / median / max over β


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def with_interval(value: float | None, interval: Sequence[float | None], digits: int = 0) -> str:
    """A share with its interval, in percent; where one is not defined, without."""
    low, high = interval
    if value is None or low is None or high is None:
        return percent(value)
    return f"{percent(value)} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def signed_with_interval(value: float | None, interval: Sequence[float | None]) -> str:
    """A correlation with its interval; where one is not defined, without."""
    low, high = interval
    if value is None or low is None or high is None:
        return "–" if value is None else f"{value:+.2f}"
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def console(width: int = 132):
    """The terminal as wide as it is; a file or pipe as wide as a table needs."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width, markup=False)


def show_table(table: Table, title: str) -> None:
    """A table on the screen."""
    from rich.table import Table as Grid

    columns, lines = table
    grid = Grid(title=title)
    for number, column in enumerate(columns):
        grid.add_column(column, justify="right" if number else "left", overflow="fold")
    for line in lines:
        grid.add_row(*line)
    console().print(grid)


def as_markdown(table: Table) -> str:
    columns, lines = table
    rows = (columns, ["---"] * len(columns), *lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def as_latex(table: Table) -> str:
    """For booktabs."""
    from tabulate import tabulate

    columns, lines = table
    return tabulate(lines, columns, tablefmt="latex_booktabs", disable_numparse=True)


def wandb_table(rows: Sequence, columns: Sequence[str]):
    """Some columns of rows as a panel of wandb."""
    import wandb

    return wandb.Table(columns=list(columns), data=[[row[c] for c in columns] for row in rows])
