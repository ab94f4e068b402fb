"""One self-contained HTML file that shows results, pictures and the pairs themselves.

Whatever is missing beside a result file is said. The file asks for nothing outside of itself: the
tables' library (DataTables, from the package itables) and the pairs are inside, compressed.
"""

import base64
import gzip
import hashlib
import importlib.util
import io
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from ranking.plumbing.result_files import write_text_atomically
from ranking.reports.accuracy import accuracies_of, plot_ranking_accuracy
from ranking.reports.benchmarks import benchmark_table, benchmarks_of
from ranking.reports.comparison import comparison_table, mcnemar_table
from ranking.reports.dynamics import (
    chosen_step_beside,
    displacement_table,
    dynamics_table,
)
from ranking.reports.idealized import idealized_table
from ranking.reports.page_columns import (
    COMPLETION_COLUMNS,
    FILE_DEFINITIONS,
    PAIR_COLUMNS,
    RESULT_DEFINITIONS,
    Column,
)
from ranking.reports.page_files import DYNAMICS, IDEALIZED, RANKING, WIN_RATE, ResultFile
from ranking.reports.page_pairs import PagePairs, page_pairs
from ranking.reports.page_tables import data_table, metric_table, result_table, run_table
from ranking.reports.rewards import (
    ranking_and_reward_table,
    reward_displacement_table,
    reward_table,
    rewards_of,
)
from ranking.reports.tables import Table, as_html, as_text
from ranking.reports.win_rate import win_rate_table, win_rate_title

MOST_BYTES = 5_000_000  # of a page; pairs beyond it are drawn
ROOM_FOR_FILTERS = 50_000
MOST_PICTURE_BYTES = 1_500_000
PICTURE_COLOURS = 64  # as many as curves and their smoothed edges need
CHOICES = ("model", "dataset", "groups", "ranked", "ranked_per_token", "group")
RANGES = ("logratio", "length_difference")


class Section(NamedTuple):
    """A part of the page; columns: of its tables, which the legend explains."""

    anchor: str
    title: str
    html: str
    columns: Sequence[str] = ()


# ---------------------------------------------------------------------------- sections
def scored_section(files: Sequence[ResultFile]) -> Section:
    """What was scored, how, and what is missing."""
    versions: dict[str, list[str]] = {}
    for file in files:
        for row in file.rows[:1]:
            text = ", ".join(f"{name} {number}" for name, number in row.get("versions", {}).items())
            versions.setdefault(text or "not recorded", []).append(file.path.name)
    missing: dict[str, list[str]] = {}
    for file in files:
        for what in file.missing:
            missing.setdefault(what, []).append(file.path.name)
    runs, data = run_table(files), data_table(files)
    parts = [wide(as_html(runs, FILE_DEFINITIONS))]
    if data[1]:
        table = wide(as_html(data, FILE_DEFINITIONS))
        parts.append(f"<details><summary>Data ({len(data[1])})</summary>{table}</details>")
    of_files = [
        f"<p>{as_text(text)} ({as_text(', '.join(names))})</p>" for text, names in versions.items()
    ]
    parts.append(f"<details><summary>Versions</summary>{''.join(of_files)}</details>")
    if missing:
        items = [
            f"<li>{as_text(what)}: {as_text(', '.join(names))}</li>"
            for what, names in missing.items()
        ]
        parts.append(f'<h3>Not there</h3><ul class="note">{"".join(items)}</ul>')
    columns = [*runs[0], *data[0]] if data[1] else runs[0]
    return Section("scored", "What was scored, and how", "\n".join(parts), columns)


def results_section(files: Sequence[ResultFile]) -> Section:
    """A table for each kind of result."""
    of_kind = {
        kind: [row for file in files if file.kind == kind for row in file.rows]
        for kind in (RANKING, IDEALIZED, WIN_RATE)
    }
    ranking: list[Any] = of_kind[RANKING]
    win_rates: list[Any] = of_kind[WIN_RATE]
    tables: list[tuple[str, Table]] = []
    if accuracies_of(ranking):
        tables.append(("Ranking accuracy, % [95 % interval]", result_table(ranking)))
    rewards = rewards_of(ranking)
    if rewards:
        tables += [
            ("Implicit rewards, %", reward_table(rewards, sortable=True)),
            ("Pairs by ranking and reward, %", ranking_and_reward_table(rewards, sortable=True)),
            ("Likelihood displacement, %", reward_displacement_table(rewards, sortable=True)),
        ]
    for file in files:
        if file.comparisons:
            compared: list[Any] = file.comparisons
            name = file.path.name
            tables += [
                (
                    f"Models on the same examples, %; {name}",
                    comparison_table(compared, sortable=True),
                ),
                (
                    f"Differences, exact McNemar tests; {name}",
                    mcnemar_table(compared, sortable=True),
                ),
            ]
    lists = [row for row in ranking if row.get("k_max", 2) > 2 and is_companion(row)]
    if lists:
        tables.append(("Lists of more than two completions", metric_table(lists)))
    if benchmarks_of(ranking):
        tables.append(("Benchmarks by their own protocol, %", benchmark_table(ranking)))
    if of_kind[IDEALIZED]:
        idealized: list[Any] = of_kind[IDEALIZED]
        tables.append(("Idealized ranking accuracy, %", idealized_table(idealized, sortable=True)))
    by_title: dict[str, list[Any]] = {}
    for row in win_rates:
        by_title.setdefault(win_rate_title(row), []).append(row)
    tables += [(title, win_rate_table(rows, alone=True)) for title, rows in by_title.items()]
    for file in files:
        if file.kind == DYNAMICS:
            chosen = chosen_step_beside(file.path)
            title = f"Ranking dynamics, {file.path.parent.name}/{file.path.name}"
            tables.append((title, dynamics_table(file.rows, True, chosen)))
            title = f"Likelihood displacement, {file.path.parent.name}/{file.path.name}"
            tables.append((title, displacement_table(file.rows, True, chosen)))
    parts = [
        f"<h3>{as_text(title)}</h3>{wide(as_html(table, RESULT_DEFINITIONS))}"
        for title, table in tables
    ]
    columns = [column for _, (of_table, _) in tables for column in of_table]
    return Section("results", "Results", "\n".join(parts), columns)


def is_companion(row: Mapping[str, Any]) -> bool:
    """Whether a row is of a metric that stands beside ranking accuracy."""
    return row["distance_metric"] not in ("acc", "benchmark") and "reward" not in row[
        "distance_metric"
    ]  # fmt: skip


def wide(table: str) -> str:
    """A table that scrolls by itself where the screen is narrow."""
    return f'<div class="wide" tabindex="0">{table}</div>'


def pictures_section(files: Sequence[ResultFile]) -> Section:
    """Pictures that lie beside the files, and one of all models where there are several."""
    pictures: list[tuple[str, bytes]] = []
    accuracies = accuracies_of(
        [row for file in files if file.kind == RANKING for row in file.rows]  # type: ignore[misc]
    )
    if len({row["model"] for row in accuracies}) > 1:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "models.png"
            plot_ranking_accuracy(accuracies, picture)
            pictures.append(("Ranking accuracy of all models", smaller(picture)))
    for file in files:
        pictures += [(picture.name, smaller(picture)) for picture in file.pictures]
    parts, left_out, size = [], [], 0
    for name, content in pictures:
        if size + len(content) > MOST_PICTURE_BYTES:
            left_out.append(name)
            continue
        size += len(content)
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        parts.append(
            f'<figure><img src="{source}" alt="{as_text(name)}">'
            f"<figcaption>{as_text(name)}</figcaption></figure>"
        )
    html = f'<div class="pictures">{"".join(parts)}</div>'
    if left_out:
        names = as_text(", ".join(left_out))
        html += f'<p class="note">Left out, for the size of this page: {names}.</p>'
    return Section("pictures", "Pictures", html)


def smaller(picture: Path) -> bytes:
    """A picture as PNG with few colours: a third of its bytes."""
    from PIL import Image

    packed = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(PICTURE_COLOURS, dither=Image.Dither.NONE).save(
            packed, "PNG", optimize=True
        )
    return packed.getvalue()


def pairs_section(pairs: PagePairs, shown_pairs: PagePairs) -> Section:
    """Filters, and the place of the table, which the page's script fills."""
    n, n_all = len(shown_pairs.examples), len(pairs.examples)
    some = f"{len(shown_pairs.pairs)} pairs of {n} examples"
    if n < n_all:
        some = (
            f"{len(shown_pairs.pairs)} of {len(pairs.pairs)} pairs, of {n} of {n_all} examples, "
            "drawn at random (seed 0) for the size of this page"
        )
    parts = [f'<p id="how-many">{some}. A pair of which people preferred neither is not here.</p>']
    controls = []
    columns = {column.key: column for column in PAIR_COLUMNS}
    for key in CHOICES:
        values = choices_of(shown_pairs, key)
        if len(values) > 1:
            options = "".join(f"<option>{as_text(value)}</option>" for value in values)
            controls.append(
                f'<label>{as_text(columns[key].title)}<select data-key="{key}">'
                f'<option value="">all</option>{options}</select></label>'
            )
    for key in RANGES:
        title = columns[key].title
        inputs = "".join(
            f'<input type="number" step="any" data-key="{key}" data-test="{test}" '
            f'aria-label="{title} {word}" placeholder="{word}">'
            for test, word in (("from", "at least"), ("to", "at most"))
        )
        controls.append(f"<fieldset><legend>{title}</legend>{inputs}</fieldset>")
    controls.append('<button type="reset">show all</button>')
    parts.append(f'<form id="filters">{"".join(controls)}</form>')
    parts.append('<p id="of-filtered" role="status"></p>')
    parts.append(wide('<table id="pairs-table" class="display"></table>'))
    return Section("pairs", "Pairs", "\n".join(parts))


def choices_of(pairs: PagePairs, key: str) -> list[str]:
    """The values that pairs have in a column of text, sorted."""
    values: set[str] = set()
    for line in [*pairs.pairs, *(example["columns"] for example in pairs.examples)]:
        value = line.get(key)
        values |= set(value if isinstance(value, list) else [value] if value else [])
    return sorted(values)


def legend_section(sections: Sequence[Section], pairs: PagePairs) -> Section:
    """What each column is that the page shows."""
    columns = {section.anchor: section.columns for section in sections}
    kinds = {
        "Files and data": {c: FILE_DEFINITIONS.get(c) for c in columns["scored"]},
        "Results": {c: RESULT_DEFINITIONS.get(c) for c in columns["results"]},
        "Pairs": {c.title: c.definition for c in shown_pair_columns(pairs)},
        "Completions of a pair": {c.title: c.definition for c in shown_completion_columns(pairs)},
    }
    parts = []
    for kind, definitions in kinds.items():
        known = {name: what for name, what in definitions.items() if what is not None}
        items = [
            f"<dt>{as_text(name)}</dt><dd>{as_text(what)}</dd>" for name, what in known.items()
        ]
        if items:
            parts.append(f'<h3>{kind}</h3><dl class="legend">{"".join(items)}</dl>')
    return Section("columns", "What the columns are", "\n".join(parts))


# ---------------------------------------------------------------------------- the file
def packed(text: str) -> str:
    """gzip in base64, the same bytes for the same text."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def library_file(name: str) -> str:
    """A file of DataTables' bundle in itables, which is not imported for it."""
    found = importlib.util.find_spec("itables")
    if found is None or not found.submodule_search_locations:
        raise ValueError("page needs itables: pip install -r requirements.txt")
    return (Path(found.submodule_search_locations[0]) / "html" / name).read_text("utf-8")


def own_file(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def shown_pair_columns(pairs: PagePairs) -> list[Column]:
    """Columns that any pair has a value of; one model or dataset needs no column at first."""
    lines = [*pairs.pairs, *(example["columns"] for example in pairs.examples)]
    keys = {key for line in lines for key in line} | ({"prompt"} if lines else set())
    same = {key for key in ("model", "dataset") if len(choices_of(pairs, key)) == 1}
    return [
        column._replace(visible=column.visible and column.key not in same)
        for column in PAIR_COLUMNS
        if column.key in keys
    ]


def shown_completion_columns(pairs: PagePairs) -> list[Column]:
    """Columns that any completion has a value of; the page's script derives two of them."""
    keys = {key for line in pairs.pairs for side in ("chosen", "rejected") for key in line[side]}
    keys |= {"per_token", "percent"} if "logp" in keys else set()
    return [column for column in COMPLETION_COLUMNS if column.key in keys]


def embedded(pairs: PagePairs) -> str:
    """Pairs and the columns that they have, as the page's script reads them."""
    return packed(
        json.dumps(
            {
                "columns": [column._asdict() for column in shown_pair_columns(pairs)],
                "completion": [column._asdict() for column in shown_completion_columns(pairs)],
                "examples": pairs.examples,
                "pairs": pairs.pairs,
            },
            separators=(",", ":"),
        )
    )


def drawn(pairs: PagePairs, n: int) -> PagePairs:
    """Some examples, drawn at random, with all their pairs, in their order."""
    kept = sorted(random.Random(0).sample(range(len(pairs.examples)), n))
    numbers = {old: new for new, old in enumerate(kept)}
    return PagePairs(
        [pairs.examples[old] for old in kept],
        [
            {**line, "example": numbers[line["example"]]}
            for line in pairs.pairs
            if line["example"] in numbers
        ],
    )


def fitting(pairs: PagePairs, room: int) -> tuple[PagePairs, str]:
    """As many pairs as fit into so many bytes, and what is embedded of them."""
    some, data = pairs, embedded(pairs)
    while len(data) > room and some.examples:
        some = drawn(pairs, int(0.97 * len(some.examples) * room / len(data)))
        data = embedded(some)
    return some, data


def page_html(files: Sequence[ResultFile], most_bytes: int = MOST_BYTES) -> str:
    """The whole page. most_bytes: of it; where all pairs would make it larger, some are drawn."""
    pairs = page_pairs(files)
    before = [scored_section(files), results_section(files)]
    if any(file.pictures for file in files):
        before.append(pictures_section(files))
    parts = {
        "css": own_file("page.css"),
        "library_css": library_file("dt_bundle.css"),
        "library": packed(library_file("dt_bundle.js")),
        "script": own_file("page.js"),
    }
    size = sum(len(text.encode()) for text in (*parts.values(), *(s.html for s in before)))
    some, data = fitting(pairs, max(0, most_bytes - size - ROOM_FOR_FILTERS))
    sections = [*before, *([pairs_section(pairs, some)] if some.pairs else [])]
    sections.append(legend_section(sections, some))
    digest = hashlib.sha256(parts["script"].encode()).digest()
    return Template(own_file("page.html")).substitute(
        parts,
        title="Preference rankings",
        script_hash=base64.b64encode(digest).decode(),
        contents="".join(f'<a href="#{s.anchor}">{s.title}</a>' for s in sections),
        sections="\n".join(
            f'<section id="{s.anchor}"><h2>{s.title}</h2>\n{s.html}</section>' for s in sections
        ),
        data=data,
    )


def write_page(files: Sequence[ResultFile], path: Path) -> None:
    """Write the page whole or not at all."""
    write_text_atomically(path, page_html(files))
