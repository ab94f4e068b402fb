"""A reference's log-likelihoods in the data: TRL's two columns, and what --export writes beside."""

import math
from typing import Any

from ranking.data.cells import Row
from ranking.data.examples import GivenScores

REFERENCE_COLUMNS = ["ref_chosen_logps", "ref_rejected_logps"]  # nats, summed (Eq. 13)
COUNT_COLUMNS = ["n_chosen", "n_rejected"]  # tokens
TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def given_scores(row: Row) -> GivenScores | None:
    """The log-likelihoods in a row, None where it has none; ValueError for what is no number."""
    logps = [number_in(row, column) for column in REFERENCE_COLUMNS]
    if any(logp is None or not math.isfinite(logp) for logp in logps):
        return None
    counts = [count_in(row, column) for column in COUNT_COLUMNS]
    return GivenScores(
        logps=tuple(float(logp) for logp in logps if logp is not None),
        n_tokens=None if None in counts else tuple(n for n in counts if n is not None),
        truncated=bool(truth_in(row, "truncated")),
        model=text_or_none(row.get("reference_model")),
        dtype=text_or_none(row.get("reference_dtype")),
        add_eos=truth_in(row, "add_eos"),
        id=text_or_none(row.get("id")),
        prompt_id=text_or_none(row.get("prompt_id")),
    )


def number_in(row: Row, column: str) -> float | None:
    """The number in a column, which csv files hold as text; None where there is none."""
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"column {column!r} should be a number, found {value!r:.40}") from None


def count_in(row: Row, column: str) -> int | None:
    """The whole number in a column; None where there is none, or NaN."""
    found = number_in(row, column)
    if found is None or math.isnan(found):
        return None
    if not found.is_integer():
        raise ValueError(f"column {column!r} should be a whole number, found {row[column]!r:.40}")
    return int(found)


def truth_in(row: Row, column: str) -> bool | None:
    """What a column of true and false says, which csv files hold as text or as 1 and 0; None where
    it says nothing, or NaN."""
    word = str(row.get(column)).strip().lower()
    if word in ("none", "nan", "null", ""):
        return None
    if word in TRUTHS:
        return TRUTHS[word]
    raise ValueError(f"column {column!r} should be true or false, found {row[column]!r:.40}")


def text_or_none(value: Any) -> str | None:
    """A cell that is text, and not empty."""
    return value if isinstance(value, str) and value else None
