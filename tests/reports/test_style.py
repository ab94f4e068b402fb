"""How pictures look: titles that keep to their panels."""

from ranking.reports.style import wrapped


def test_titles_break_between_words_and_not_in_sizes():
    assert wrapped("tatsu-lab/alpaca_eval (n = 155)", 2.15) == "tatsu-lab/alpaca_eval (n = 155)"
    assert wrapped("lmsys/mt_bench_human_judgments (n = 44 pairs)", 2.15) == (
        "lmsys/mt_bench_human_judgments\n(n = 44 pairs)"
    )
    assert wrapped("d,\nEOS scored (n = 4)", 2.9) == "d,\nEOS scored (n = 4)"
    assert (
        wrapped("gemma-3-270m-q4_k_m.gguf from-here", 1.5) == "gemma-3-270m-q4_k_m.gguf\nfrom-here"
    )


def test_paths_longer_than_a_panel_break_after_slashes():
    assert wrapped("results/claim/seed0/test_half.jsonl (n = 381 pairs)", 1.5) == (
        "results/claim/seed0/\ntest_half.jsonl\n(n = 381 pairs)"
    )
    assert wrapped("results/claim/test_half.jsonl", 2.0) == "results/claim/test_half.jsonl"


def test_names_longer_than_a_panel_break_after_their_parts():
    assert wrapped("princeton-pli/rewardbench_code_save_to_disk (n = 5 pairs)", 1.6) == (
        "princeton-pli/\nrewardbench_code_save_\nto_disk (n = 5 pairs)"
    )
