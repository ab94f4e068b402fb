"""reproduce/template_effect.py on numbers worked out by hand."""

from result_rows import scored_record

from ranking.plumbing.result_files import write_json_lines
from reproduce import template_effect


def test_rankings_that_the_template_changes(tmp_path, capsys):
    """Of three pairs of two-token completions, the preferred first: as text the first two are
    right, in the template the last two; one more, of one run only, does not count."""
    text = [(-2.0, -4.0), (-2.0, -4.0), (-4.0, -2.0)]
    template = [(-3.0, -1.0), (-1.0, -3.0), (-1.0, -3.0), (-1.0, -3.0)]
    for name, scores in (("text", text), ("template", template)):
        rows = [scored_record(k, list(s), [1, 2], n_tokens=[2, 2]) for k, s in enumerate(scores)]
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
    words = ["--text", str(tmp_path / "text.jsonl"), "--template", str(tmp_path / "template.jsonl")]
    template_effect.main(template_effect.parse_args(words))
    printed = capsys.readouterr()
    assert printed.err == "left out: 1 examples of one side only, 0 without a preference\n"
    cells = [cell.strip() for cell in printed.out.splitlines()[2].split("|")]
    half = ["66.7", "66.7", "1, 1 (1)"]
    assert cells[3:-1] == ["3", *half, *half, "+0.50"]  # (-4 + 6) / 4 tokens, in each pair
