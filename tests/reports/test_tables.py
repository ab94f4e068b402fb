"""Cells, and one table on the screen, as Markdown and as LaTeX."""

from ranking.reports.tables import (
    as_html,
    as_latex,
    as_markdown,
    leading_number,
    percent,
    show_table,
    significant,
    with_interval,
)

TABLE = (["dataset", "R_1", "n"], [["a_b [x]", "50.0 %", "12"], ["c", "–", "3"]])


def test_cells():
    assert percent(0.1251) == "12.5" and percent(None) == "–"
    assert with_interval(0.5, [0.4444, 0.5555]) == "50.0 [44, 56]"
    assert with_interval(0.5, [0.4444, 0.5555], digits=1) == "50.0 [44.4, 55.5]"
    assert with_interval(0.5, [None, None]) == "50.0"
    assert with_interval(None, [None, None]) == "–"
    rounded = {99.4: "99", 99.6: "100", -1234.6: "-1235", 0.01234: "0.012", 0.0: "0", None: "–"}
    assert {value: significant(value, 2) for value in rounded} == rounded


def test_renderers(capsys):
    assert as_markdown(TABLE) == (
        "| dataset | R_1 | n |\n| --- | --- | --- |\n| a_b [x] | 50.0 % | 12 |\n| c | – | 3 |"
    )
    latex = as_latex(TABLE)
    assert "\\toprule" in latex and "a\\_b" in latex and "50.0 \\%" in latex
    columns = ["R̃* min", "R̃ ours [95 %]", "‖θ − θ_ref‖², γ", "a → b, π ≥ 1"]
    # pdflatex prints letters of Latin-1 and dashes; of others it ends with an error
    head = as_latex((columns, [["é – …"] * 4])).split("\\midrule")[0]
    assert head.isascii()
    assert r"\ensuremath{\tilde{R}}* min" in head and r"\ensuremath{\rightarrow} b" in head
    show_table(TABLE, "Title [of]")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["Title", "[of]"]
    assert ["│", "a_b", "[x]", "│", "50.0", "%", "│", "12", "│"] in lines


def test_html():
    html = as_html((["<a>", "n"], [["x & y", "12 [3, 4]"], ["\ud800\0", "–"]]), {"n": 'so "many"'})
    assert html == (
        '<table class="sortable display"><thead><tr><th>&lt;a&gt;</th>'
        '<th class=number title="so &quot;many&quot;">n</th></tr></thead><tbody>'
        '<tr><td>x &amp; y</td><td class=number data-order="12">12 [3, 4]</td></tr>'
        '<tr><td>\ufffd\ufffd</td><td class=number data-order="">–</td></tr>'
        "</tbody></table>"
    )


def test_what_a_cell_begins_with():
    numbers = {"52.3 [48.0, 57.0]": "52.3", "-0.014": "-0.014", "+3.1 *": "+3.1", "2–4": "2",
               "1.2e-05": "1.2e-05", "12 of 30 (40.0 %)": "12", "": "", "–": ""}  # fmt: skip
    assert {cell: leading_number(cell) for cell in numbers} == numbers
    for text in ("2026-11-28 06:14", "135M", "float32", "1.2.3", "3f2a91"):
        assert leading_number(text) is None, text


def test_a_table_that_is_too_wide_breaks_its_titles_and_not_its_numbers(capsys):
    columns = ["dataset", "fell: chosen / rejected / both", "margin [95 %]"]
    lines = [["words " * 20, "1 / 2 / 3", "0.00072 [-0.001, 0.0025]"]]
    show_table((columns, lines), "wide")
    out = capsys.readouterr().out
    assert "0.00072 [-0.001, 0.0025]" in out and "fell: chosen /" not in out
    show_table((columns, [["short", *lines[0][1:]]]), "narrow")
    assert "fell: chosen / rejected / both" in capsys.readouterr().out
