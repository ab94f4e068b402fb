"""How rows are read: one reader per schema, recognized by its columns.

A reader turns a row into prompt, completions, ranks, votes and cluster, or raises `Dropped` with
the reason why a valid row cannot be used.
"""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from ranking.data.examples import Votes

Row = dict[str, Any]
Reading = tuple[str, list[str], Sequence[int], Votes | None, str | None]  # ..., cluster


class Dropped(Exception):
    """Raised by a schema reader for a row that is valid but cannot be used; str() is the reason."""


# a list of chat messages, or one, as JSON, Python's repr or numpy's
MESSAGES_OPEN = re.compile(
    r"""(?:array\()?\[\s*\{|\{\s*['"](?:role|content|from|value|messages|conversations)['"]"""
)
MESSAGES_ROLE = re.compile(
    r"""['"](?:role|from)['"]\s*:\s*"""
    r"""['"](?:system|user|assistant|tool|function|human|gpt|observation)['"]"""
)
MESSAGES_TEXT = re.compile(r"""['"](?:content|value)['"]\s*:""")
# columns that are part of a prompt wherever they stand (but for case and underscores); a schema
# reads those among its own columns
PROMPT_COLUMNS = {
    "prompt", "instruction", "input", "question", "query", "request", "problem", "system",
    "systemprompt", "systemmessage", "systeminstruction", "context", "history", "chathistory",
    "conversation", "conversations", "dialogue", "dialog", "turns", "trajectory", "messages",
    "document", "documents", "passage", "article", "post", "tools", "image", "images",
}  # fmt: skip


def text_of(row: Row, column: str) -> str:
    """The string in `column`; ValueError names the column otherwise."""
    return checked_text(row[column], f"column {column!r}")


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


def ranks_from_scores(scores: Sequence[Any]) -> tuple[int, ...]:
    """Rank 1 for the highest score; equal scores share a rank. Missing scores drop the row."""
    try:
        values = [float("nan") if score is None else float(score) for score in scores]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"scores should be numbers, found {list(scores)!r:.80}") from None
    if not all(math.isfinite(value) for value in values):
        raise Dropped("missing score")
    return tuple(1 + sum(other > value for other in values) for value in values)


def read_hh(row: Row) -> Reading:
    """Whole dialogues; the prompt ends with the last "\\n\\nAssistant:" of *chosen*."""
    chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
    marker = "\n\nAssistant:"
    cut = chosen.rfind(marker)
    if cut < 0 or not rejected.startswith(chosen[: cut + len(marker)]):
        raise Dropped("no common prompt")
    cut += len(marker)
    return chosen[:cut], [chosen[cut:], rejected[cut:]], (1, 2), None, None


def read_pair(row: Row) -> Reading:
    """prompt, chosen, rejected."""
    completions = [text_of(row, "chosen"), text_of(row, "rejected")]
    return text_of(row, "prompt"), completions, (1, 2), None, None


def read_shp(row: Row) -> Reading:
    """Two comments on a post; labels = 1 where A is preferred. The post is the cluster."""
    label = row["labels"]
    if label not in (0, 1, "0", "1"):
        raise ValueError(f"labels should be 0 or 1, found {label!r}")
    completions = [text_of(row, "human_ref_A"), text_of(row, "human_ref_B")]
    ranks = (1, 2) if int(label) == 1 else (2, 1)
    return text_of(row, "history"), completions, ranks, None, f"post {row['post_id']}"


def read_ultrafeedback(row: Row) -> Reading:
    """K graded responses, ranked by overall_score."""
    answers = list_of(row, "completions", ("response", "overall_score"))
    ranks = ranks_from_scores([answer["overall_score"] for answer in answers])
    return text_of(row, "instruction"), [text_of(a, "response") for a in answers], ranks, None, None


def read_stack_exchange(row: Row) -> Reading:
    """Answers to a question, ranked by pm_score."""
    answers = list_of(row, "answers", ("text", "pm_score"))
    ranks = ranks_from_scores([answer["pm_score"] for answer in answers])
    return text_of(row, "question"), [text_of(a, "text") for a in answers], ranks, None, None


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


def read_list(row: Row) -> Reading:
    """prompt, completions, ranks and, if there, votes."""
    completions = row["completions"]
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        raise ValueError("column 'completions' should be a list of text")
    for text in completions:
        checked_text(text, "an entry of 'completions'")
    ranks = row["ranks"]
    if (
        not isinstance(ranks, list)
        or len(ranks) != len(completions)
        or not all(is_rank(rank) for rank in ranks)
    ):
        raise ValueError("column 'ranks' should hold one integer ≥ 1 for each completion")
    votes = None if row.get("votes") is None else read_votes(row["votes"], len(completions))
    return text_of(row, "prompt"), completions, [int(rank) for rank in ranks], votes, None


def is_rank(value: Any) -> bool:
    """Whether a value is a whole number ≥ 1 (1.0 too: pandas writes so), and no truth value."""
    if isinstance(value, float):
        return value.is_integer() and value >= 1
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def read_rated_pair(row: Row) -> Reading:
    """A row of `group_votes`."""
    if not any(row["votes"]):
        raise Dropped("no preference")
    return read_list(row)


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
            first, second = (float(count) for count in counts)
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


def group_votes(rows: Sequence[Row], where: Callable[[int], str]) -> tuple[list[Row], int]:
    """AlpacaFarm's rater rows → one row per prompt and pair of outputs, with its votes, and the
    number of rows without a preference. ValueError says `where` the row at fault stands.

    A preference between 1 and 2 is divided: 1.25 is 0.75 votes for output_1 and 0.25 for output_2.
    The outputs may stand in either order.
    """
    pairs: dict[tuple, Row] = {}
    n_missing = 0
    for number, row in enumerate(rows):
        try:
            prompt, *outputs = (text_of(row, c) for c in ("instruction", "output_1", "output_2"))
            missing = str(row["preference"]).strip().lower() in ("", "none", "nan", "null")
            share = 0.0 if missing else share_of_second(row)
        except ValueError as error:
            raise ValueError(f"{where(number)}: {error}") from None
        pair = pairs.setdefault(
            (prompt, *sorted(outputs)),
            {"prompt": prompt, "completions": outputs, "votes": [0.0, 0.0], "row": number},
        )
        n_missing += missing
        if missing:
            continue
        first = pair["completions"].index(outputs[0])
        pair["votes"][first] += 1.0 - share
        pair["votes"][1 - first] += share
    for pair in pairs.values():
        pair["votes"] = [round(votes, 9) for votes in pair["votes"]]  # 0.1 + 0.2
        pair["ranks"] = list(ranks_from_scores(pair["votes"]))
    return list(pairs.values()), n_missing


def share_of_second(row: Row) -> float:
    """The share of a vote that goes to output_2: `preference` 1 … 2 → 0 … 1; a tie, 0 → 1/2."""
    value = row["preference"]
    try:
        preference = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        preference = math.nan
    if preference == 0.0:
        return 0.5
    if not 1.0 <= preference <= 2.0:
        raise ValueError(
            f"preference should be 1, 2 or 0 (tie), or between 1 and 2, found {value!r:.60}"
        )
    return preference - 1.0


# columns, how a row is read, what joins prompt and completion (None: `separator_between`)
SCHEMAS: list[tuple[tuple[str, ...], Callable[[Row], Reading], str | None]] = [
    (("instruction", "output_1", "output_2", "preference"), read_rated_pair, " "),
    (("post_id", "history", "human_ref_A", "human_ref_B", "labels"), read_shp, " "),
    (("instruction", "completions"), read_ultrafeedback, " "),
    (("question", "answers"), read_stack_exchange, " "),
    (("prompt", "completions", "ranks"), read_list, None),
    (("prompt", "chosen", "rejected"), read_pair, None),
    (("chosen", "rejected"), read_hh, ""),
]


def recognize_schema(
    columns: Sequence[str],
) -> tuple[tuple[str, ...], Callable[[Row], Reading], str | None]:
    """The first schema whose columns are all there; ValueError names the nearest columns."""
    for needed, reader, separator in SCHEMAS:
        if set(needed) <= set(columns):
            return needed, reader, separator

    def nearest(column: str) -> str | None:
        if column in ("answers", "completions"):
            return None  # a list, which no column of text becomes by another name
        likely = [name for name in others if column in re.split(r"[\W_]", name.lower())]
        if column == "prompt":
            likely += [name for name in others if plain_name(name) in PROMPT_COLUMNS]
        return next(iter(likely or difflib.get_close_matches(column, others, 1, 0.8)), None)

    known = "; ".join("/".join(needed) for needed, *_ in SCHEMAS)
    closest: tuple[str, ...] = ()
    hints: dict[str, str] = {}
    score = 0.0
    for needed, *_ in SCHEMAS:
        missing = [column for column in needed if column not in columns]
        others = [column for column in columns if column not in needed]
        found = {column: name for column in missing if (name := nearest(column))}
        likeness = (len(needed) - len(missing) + 0.9 * len(found)) / len(needed)
        if likeness > score:
            closest, hints, score = needed, found, likeness
    if score < 0.5:
        raise ValueError(f"unknown columns: {', '.join(columns)} (known: {known})")
    wanted = ", ".join(
        f"{column} (is it {hints[column]!r}? then rename it)" if column in hints else column
        for column in closest
        if column not in columns
    )
    raise ValueError(f"missing column {wanted} (found {', '.join(columns)}; known: {known})")


def plain_name(column: str) -> str:
    """A column's name in small letters without underscores."""
    return re.sub(r"[\W_]", "", column.lower())


def unread_prompt_column(row: Row, needed: Sequence[str]) -> str | None:
    """The first column that is part of the prompt, holds something and is not read, or None."""
    for column, value in row.items():
        empty = not value.strip() if isinstance(value, str) else value in (None, [], {})
        if plain_name(column) in PROMPT_COLUMNS and column not in needed and not empty:
            return column
    return None
