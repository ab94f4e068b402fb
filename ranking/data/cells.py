"""What cells of a row hold: text, scores, ranks, votes; and what a row says once it is read."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ranking.data.examples import GivenScores, Message, Votes

Row = dict[str, Any]


class Dropped(Exception):
    """Raised by a reader for a row that is valid but cannot be used; str() is the reason."""


class Reading(NamedTuple):
    """A row, read: prompt (text, or messages), completions, ranks (1 = best, equal = tied).

    votes: None where the data have none; {} for a rater who gave no preference. cluster: what
    examples of one prompt share where it is not the prompt. remarks: what is counted and said.
    reference: log-likelihoods that stand in the row.
    """

    prompt: str | list[Message]
    completions: Sequence[str]
    ranks: Sequence[int]
    votes: Votes | None = None
    cluster: str | None = None
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] | None = None
    remarks: tuple[str, ...] = ()
    reference: GivenScores | None = None


# a list of chat messages, or one, as JSON, Python's repr or numpy's
MESSAGES_OPEN = re.compile(
    r"""(?:array\()?\[\s*\{|\{\s*['"](?:role|content|from|value|messages|conversations)['"]"""
)
MESSAGES_ROLE = re.compile(
    r"""['"](?:role|from)['"]\s*:\s*"""
    r"""['"](?:system|user|assistant|tool|function|human|gpt|observation)['"]"""
)
MESSAGES_TEXT = re.compile(r"""['"](?:content|value)['"]\s*:""")


def text_of(row: Row, column: str) -> str:
    """The string in `column`; ValueError names the column otherwise."""
    return checked_text(row.get(column), f"column {column!r}")


def checked_text(value: Any, what: str) -> str:
    """`value` if it is text; ValueError for anything else, chat messages written as text too."""
    if not isinstance(value, str):
        raise ValueError(f"{what} should be text, found {type(value).__name__}")
    if is_message_dump(value):
        raise ValueError(f"{what} holds chat messages written as text: give the text they hold")
    return value


def is_message_dump(text: str) -> bool:
    """Whether a text is chat messages in some notation, and not what they say."""
    text = text.strip()
    written = MESSAGES_OPEN.match(text) and text.endswith(("]", "}", ")"))
    return bool(written and MESSAGES_ROLE.search(text) and MESSAGES_TEXT.search(text))


def parsed(value: Any, what: str) -> Any:
    """A cell that csv and parquet files hold as JSON text; ValueError where it is other text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError:
        raise ValueError(f"{what} should be JSON, found {value!r:.60}") from None


def is_empty(value: Any) -> bool:
    """Whether a cell is nothing, NaN, blank text, or a list or object of nothing."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value in ([], {}) or value != value


def holds_nothing(value: Any) -> bool:
    """Whether a cell that would hold a picture is empty: anything in it is one, a number too."""
    return value is None or without_nulls(value) in ("", [], {})


def without_nulls(value: Any) -> Any:
    """Objects and lists without keys of value null: columnar files give every object all keys."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def says(value: Any, truth: bool) -> bool:
    """Whether a cell is that truth value, or the word for it, as csv files have it."""
    return isinstance(value, bool | str) and str(value).strip().lower() == str(truth).lower()


def is_texts(value: Any) -> bool:
    """Whether a value is a list of text, of one or more."""
    return isinstance(value, list) and bool(value) and all(isinstance(t, str) for t in value)


def ranks_from_scores(scores: Sequence[Any]) -> tuple[int, ...]:
    """Rank 1 for the highest score; equal scores share a rank. Missing scores drop the row."""
    try:
        values = [float("nan") if score is None else float(score) for score in scores]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"scores should be numbers, found {list(scores)!r:.80}") from None
    if not all(math.isfinite(value) for value in values):
        raise Dropped("missing score")
    return tuple(1 + sum(other > value for other in values) for value in values)


def list_of(row: Row, column: str, keys: Sequence[str]) -> list[Row]:
    """The list of objects in `column`, each holding `keys`."""
    value = row[column]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"column {column!r} should be a list of objects")
    for item in value:
        for key in keys:
            if key not in item:
                raise ValueError(f"an entry of {column!r} has no {key!r} (found {', '.join(item)})")
    return value


def is_rank(value: Any) -> bool:
    """Whether a value is a whole number ≥ 1 (1.0 too: pandas writes so), and no truth value."""
    if isinstance(value, float):
        return value.is_integer() and value >= 1
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def read_votes(value: Any, n_completions: int) -> Votes:
    """Votes as `[v_1, v_2]` for a pair or `{"i,j": [v_i, v_j]}` with indices from 0."""
    if isinstance(value, list) and n_completions == 2:
        value = {"0,1": value}
    if not isinstance(value, dict):
        raise ValueError("votes should be two counts for a pair, or {'i,j': [v_i, v_j], …}")
    votes: Votes = {}
    for key, counts in value.items():
        if counts is None:
            continue  # columnar files hold every key, absent pairs as null
        try:
            i, j = (int(part) for part in key.split(","))
            first, second = map(float, counts if isinstance(counts, list) else ())
        except (ValueError, TypeError, AttributeError, OverflowError):
            raise ValueError(f"votes {key!r}: {counts!r} should be 'i,j': [v_i, v_j]") from None
        if not 0 <= i < n_completions or not 0 <= j < n_completions or i == j:
            raise ValueError(
                f"votes {key!r}: there are {n_completions} completions, counted from 0"
            )
        if not (0 <= first < math.inf and 0 <= second < math.inf and first + second > 0):
            raise ValueError(f"votes {key!r}: counts {counts!r} should be ≥ 0 and not both 0")
        if (min(i, j), max(i, j)) in votes:
            raise ValueError(f"votes {key!r}: the pair is given twice")
        votes[min(i, j), max(i, j)] = (first, second) if i < j else (second, first)
    return votes


def plain_name(column: str) -> str:
    """A column's name in small letters without underscores."""
    return re.sub(r"[\W_]", "", column.lower())
