"""Tables 7 to 9: which pairs are shown, with means over references and runs."""

import pytest
from result_rows import scored_record

from ranking.reports.hard_pairs import CHARACTERS, hard_pairs_table

COUNTS = {"a": (-9.0, 0.1, 2, 2), "b": (1.0, 0.6, 2, 1), "c": (4.0, 0.9, 1, 0), "d": (90.0, 1.3, 2, 0)}  # fmt: skip


def pair_row(id_, c, loss, n_runs, flipped_in, **more):
    return {"id": id_, "winner": 1, "loser": 0, "tied": False, "gamma": 1.0, "c": c,
            "tuned_loss": loss if n_runs else None, "n_runs": n_runs, "flipped_in": flipped_in,
            "required_loss": {"0.1": 1.0}, **more}  # fmt: skip


def rows_of_two_references():
    """The second reference has c + 2 and one run, whose loss of `a` is 0.4 and which ranks it
    wrongly; it does not follow the others."""
    first = [pair_row(id_, *numbers) for id_, numbers in COUNTS.items()]
    second = [pair_row(id_, c + 2, 0.4, int(id_ == "a"), 0) for id_, (c, *_) in COUNTS.items()]
    skipped = [pair_row("e", 500.0, 0.1, 2, 2, tied=True), pair_row("f", 700.0, 0.1, 0, 0)]
    records = [scored_record(id_, (0.0, 0.0), [2, 1], prompt=f"ask\n\n{id_}") for id_ in COUNTS]
    for record in records:
        record["completions"][1]["text"] = " " + "long " * 100
    return [*first, *second, *skipped, *records]


def test_kinds_and_means():
    columns, lines = hard_pairs_table(rows_of_two_references(), n=2)
    shown = [dict(zip(columns, line)) for line in lines]
    assert [(line["pair"], line["prompt"][-1]) for line in shown] == [
        ("easy", "a"), ("easy", "b"), ("hard", "d"), ("hard", "c"), ("easy to flip", "b"),
        ("easy to flip", "c")]  # fmt: skip
    easy = shown[0]  # over three runs: (2 · 0.1 + 0.4) / 3; c over two references: −9 and −7
    assert (easy["c, nats"], easy["loss"], easy["right in"]) == ("-8.0", "0.200", "2 of 3")
    assert shown[2]["right in"] == "0 of 2" and shown[2]["c, nats"] == "90.0"
    assert easy["prompt"] == "ask a"
    text = easy["preferred"]
    assert len(text) == CHARACTERS and text[-1] == "…" and ("long " * 100).startswith(text[:-1])


def test_other_files_are_refused():
    rows = rows_of_two_references()
    pairs = [row for row in rows if "c" in row]
    without = [{k: v for k, v in row.items() if k != "n_runs"} for row in pairs]
    for wrong, message in (
        (pairs, "no text of example a: give its NAME.examples.jsonl"),
        (without, "with --dynamics"),
        ([*rows, {"step": 1}], "not NAME.pairs.jsonl and NAME.examples.jsonl"),
        (rows[-4:], "not NAME.pairs.jsonl"),
        ([*rows, pair_row("a", 1.0, 0.1, 1, 1, gamma=0.0)], "several γ"),
        ([pair_row("f", 700.0, 0.1, 0, 0), *rows[-4:]], "no pair is followed"),
    ):
        with pytest.raises(ValueError, match=message):
            hard_pairs_table(wrong)
