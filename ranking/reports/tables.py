"""A table has one builder, in the module of its subject, and its renderers here."""

import html
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

Table = tuple[list[str], list[list[str]]]  # columns, lines of cells
BETWEEN = " / "  # min / median / max over β
LATEX = {
    "R̃": r"\tilde{R}", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "θ": r"\theta",
    "λ": r"\lambda", "π": r"\pi", "σ": r"\sigma", "τ": r"\tau", "→": r"\rightarrow", "−": "-",
    "≤": r"\leq", "≥": r"\geq", "‖": r"\|", "²": "^2", "×": r"\times", "±": r"\pm",
}  # fmt: skip


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def significant(value: float | None, digits: int) -> str:
    """So many digits, or all before the point; – where there is none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:.{digits}g}"


def with_interval(value: float | None, interval: Sequence[float | None], digits: int = 0) -> str:
    """A share with its interval, in percent; where one is not defined, without."""
    low, high = interval
    if value is None or low is None or high is None:
        return percent(value)
    return f"{percent(value)} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def bracketed(
    value: float | None, interval: Sequence[float | None] | None, text: Callable[[float], str]
) -> str:
    """A value with its interval, as `text` writes numbers; where one is not defined, without."""
    low, high = interval or (None, None)
    if value is None or low is None or high is None:
        return "–" if value is None else text(value)
    return f"{text(value)} [{text(low)}, {text(high)}]"


def signed_with_interval(value: float | None, interval: Sequence[float | None]) -> str:
    """A correlation with its interval."""
    return bracketed(value, interval, "{:+.2f}".format)


def interval_of(found: Mapping[str, Any]) -> Sequence[float | None]:
    """The 95 % interval of a row or of an entry of a group: Wilson's, else the bootstrap's."""
    for interval in (found.get("wilson_95"), found.get("bootstrap_95")):
        if interval and interval[0] is not None:
            return interval
    return None, None


def console():
    """The terminal as wide as it is; a file or pipe as wide as a table needs."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 132, markup=False)


def show_table(table: Table, title: str) -> None:
    """A table on the screen. One that is too wide has titles no wider than what is below them, and
    breaks its first column alone where that leaves it 20 characters."""
    from rich.table import Table as Grid

    columns, lines = table
    screen = console()
    borders = 3 * len(columns) + 1
    cells = [max((len(line[k]) for line in lines), default=1) for k in range(len(columns))]
    shown = list(columns)
    if sum(map(max, cells, map(len, columns))) + borders > screen.width:
        shown = [fill(c, max(n, 1), break_long_words=False) for c, n in zip(columns, cells)]
    of_titles = [max(map(len, column.split("\n"))) for column in shown]
    room = screen.width - borders - sum(list(map(max, cells, of_titles))[1:])
    grid = Grid(title=title)
    for number, column in enumerate(shown):
        how: dict = {"justify": "right", "no_wrap": room >= 20} if number else {"justify": "left"}
        grid.add_column(column, overflow="fold", **how)
    for line in lines:
        grid.add_row(*line)
    screen.print(grid)


def as_markdown(table: tuple[Sequence[str], Sequence[Sequence[Any]]]) -> str:
    """Of texts or numbers."""
    columns, lines = as_texts(table)
    rows = (columns, ["---"] * len(columns), *lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def as_texts(table: tuple[Sequence[str], Sequence[Sequence[Any]]]) -> Table:
    """A table of texts or numbers with cells that Markdown takes: no lines, no bars."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return str(value if value is not None else "").replace("|", "\\|").replace("\n", "<br>")

    columns, lines = table
    return [text(column) for column in columns], [list(map(text, line)) for line in lines]


def as_latex(table: Table) -> str:
    """For booktabs. Symbols are LaTeX's: pdflatex ends at letters that its fonts lack."""
    from tabulate import tabulate

    columns, lines = table
    text = tabulate(lines, columns, tablefmt="latex_booktabs", disable_numparse=True)
    for symbol, command in LATEX.items():
        text = text.replace(symbol, rf"\ensuremath{{{command}}}")
    return text


def as_html(table: Table, definitions: Mapping[str, str]) -> str:
    """A table of a page. Columns of numbers are sorted by the first number of a cell.

    definitions: what a column is, shown where one points at its title.
    """
    columns, lines = table
    numeric = [
        all(leading_number(line[k]) is not None for line in lines) for k in range(len(columns))
    ]
    head = []
    for column, is_number in zip(columns, numeric):
        title = f' title="{as_text(definitions[column])}"' if column in definitions else ""
        head.append(f"<th{' class=number' * is_number}{title}>{as_text(column)}</th>")
    body = []
    for line in lines:
        cells = [
            f'<td class=number data-order="{leading_number(cell)}">{as_text(cell)}</td>'
            if is_number
            else f"<td>{as_text(cell)}</td>"
            for cell, is_number in zip(line, numeric)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<table class="sortable display"><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def leading_number(cell: str) -> str | None:
    """The number that a cell begins with; "" for an empty cell or a dash, None for text."""
    if cell in ("", "–"):
        return ""
    found = re.match(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?(?=$|[\s–])", cell)
    return found[0] if found else None


def as_text(text: str) -> str:
    """A text inside HTML; half a surrogate pair or a NUL, which HTML cannot have, as a mark."""
    return html.escape(re.sub(r"[\x00\ud800-\udfff]", "\ufffd", text))


def as_wandb(table: tuple[Sequence[str], Sequence[Sequence[Any]]]):
    """A table, of texts or numbers, as a panel of wandb."""
    import wandb

    columns, lines = table
    return wandb.Table(columns=list(columns), data=[list(line) for line in lines])


def chosen_columns(rows: Sequence, columns: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Some columns of rows as a table."""
    return list(columns), [[row[column] for column in columns] for row in rows]


def log_panels(run, tables: Mapping[str, Any], pictures: Mapping[str, Path | None]) -> None:
    """Tables and pictures (None: not drawn) as panels of a wandb run, by SECTION/NAME."""
    import wandb

    panels = {name: as_wandb(table) for name, table in tables.items()}
    drawn = {name: path for name, path in pictures.items() if path is not None}
    run.log(panels | {name: wandb.Image(str(path)) for name, path in drawn.items()})
