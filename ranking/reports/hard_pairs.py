"""Easy and hard pairs with what tuning made of them (Tables 7 to 9, App. F)."""

from collections.abc import Sequence
from typing import Any

from ranking.metrics.tuned_loss import followed_pairs, pairs_by_kind
from ranking.reports.tables import Table

CHARACTERS = 120  # of a text; the examples file has the whole


def one_line(text: str, end: bool = False) -> str:
    """The beginning of a text, or its end, on one line."""
    line = " ".join(text.split())
    if len(line) <= CHARACTERS:
        return line
    return "…" + line[1 - CHARACTERS :] if end else line[: CHARACTERS - 1] + "…"


def hard_pairs_table(rows: Sequence[Any], n: int = 3) -> Table:
    """Tables 7 to 9: n pairs of each kind, their c, their mean loss at the lowest validation loss
    of each run, and in how many runs they are ranked correctly.

    rows: of NAME.pairs.jsonl of each reference, and of the NAME.examples.jsonl with their texts.
    """
    known = {row["id"]: row for row in rows if "completions" in row}
    pairs = [row for row in rows if "required_loss" in row]
    if not pairs or any(not {"completions", "required_loss"} & row.keys() for row in rows):
        raise ValueError("not NAME.pairs.jsonl and NAME.examples.jsonl of "
                         "calculate_upper_bound_rlhf.py --dynamics")  # fmt: skip
    columns = ["pair", "c, nats", "loss", "right in", "prompt", "preferred", "dispreferred"]
    lines = []
    for kind, chosen in pairs_by_kind(followed_pairs(pairs), n).items():
        for pair in chosen:
            if pair["id"] not in known:
                raise ValueError(f"no text of example {pair['id']}: give its NAME.examples.jsonl")
            record = known[pair["id"]]
            texts = [record["completions"][pair[side]]["text"] for side in ("winner", "loser")]
            lines.append(
                [kind, f"{pair['c']:.1f}", f"{pair['tuned_loss']:.3f}",
                 f"{pair['flipped_in']} of {pair['n_runs']}",
                 one_line(record["prompt"], end=True), *map(one_line, texts)]
            )  # fmt: skip
    return columns, lines
