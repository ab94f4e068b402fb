"""How pictures look: titles that keep to their panels."""

from ranking.reports.style import wrapped


def test_titles_break_between_words_and_not_in_sizes():
    assert wrapped("tatsu-lab/alpaca_eval (n = 155)", 2.15) == "tatsu-lab/alpaca_eval (n = 155)"
    assert wrapped("lmsys/mt_bench_human_judgments (n = 44 pairs)", 2.15) == (
        "lmsys/mt_bench_human_judgments\n(n = 44 pairs)"
    )
    assert wrapped("d,\nEOS scored (n = 4)", 2.9) == "d,\nEOS scored (n = 4)"
    assert (
        wrapped("gemma-3-270m-q4_k_m.gguf from-here", 0.5) == "gemma-3-270m-q4_k_m.gguf\nfrom-here"
    )
