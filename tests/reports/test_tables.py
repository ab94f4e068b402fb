"""Cells, and one table on the screen, as Markdown and as LaTeX."""

from ranking.reports.tables import as_latex, as_markdown, percent, show_table, with_interval

TABLE = (["dataset", "R_1", "n"], [["a_b [x]", "50.0 %", "12"], ["c", "–", "3"]])


def test_cells():
    assert percent(0.1251) == "12.5" and percent(None) == "–"
    assert with_interval(0.5, [0.4444, 0.5555]) == "50.0 [44, 56]"
    assert with_interval(0.5, [0.4444, 0.5555], digits=1) == "50.0 [44.4, 55.5]"
    assert with_interval(0.5, [None, None]) == "50.0"
    assert with_interval(None, [None, None]) == "–"


def test_renderers(capsys):
    assert as_markdown(TABLE) == (
        "| dataset | R_1 | n |\n| --- | --- | --- |\n| a_b [x] | 50.0 % | 12 |\n| c | – | 3 |"
    )
    latex = as_latex(TABLE)
    assert "\\toprule" in latex and "a\\_b" in latex and "50.0 \\%" in latex
    show_table(TABLE, "Title [of]")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["Title", "[of]"]
    assert ["│", "a_b", "[x]", "│", "50.0", "%", "│", "12", "│"] in lines
