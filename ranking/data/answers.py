"""Readers of a row's answers: pairs, whole dialogues, lists with ranks or scores, one against many.

A reader is given the row, the columns of its schema, and the columns of the prompt.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

from ranking.data.cells import (
    Dropped,
    Reading,
    Row,
    checked_text,
    is_rank,
    list_of,
    ranks_from_scores,
    read_votes,
    text_of,
)
from ranking.data.messages import Turns, has_messages, read_turns
from ranking.data.prompts import PromptColumns, make_reading

ANSWER_KEYS = ("text", "answer", "response", "completion", "content", "output")  # of an object
RANK_KEYS, SCORE_KEYS = ("rank",), ("overall_score", "pm_score", "score", "rating")
TURN_MARKER_HH = "\n\nAssistant:"


def answer_of(value: Any, what: str, as_text: bool = False) -> Turns:
    """An answer as text or messages; of an object, the text it holds. as_text: a text stays as it
    is, even where it would be messages. Dropped where there is no answer."""
    if value is None or value == []:
        raise Dropped("empty completion")
    if isinstance(value, dict) and not has_messages(value):
        key = next((key for key in ANSWER_KEYS if value.get(key) is not None), None)
        value = value if key is None else value[key]
    return value if as_text and isinstance(value, str) else read_turns(value, what)


def read_pair(row: Row, columns: Sequence[str], asked: PromptColumns) -> Reading:
    """The better and the worse answer, as text or messages."""
    answers = [answer_of(row[c], f"column {c!r}", c in asked.texts) for c in columns]
    reading = make_reading(row, asked, answers, (1, 2))
    question = isinstance(reading.prompt, str) and not reading.prompt.lstrip().startswith("Human:")
    if question and all(text.startswith("\n\nHuman:") for text in reading.completions):
        raise ValueError(
            f"column {asked.main!r} is part of the prompt, but {' and '.join(columns)} hold whole "
            "dialogues: take it out"
        )
    return reading


def read_hh(row: Row, columns: Sequence[str], asked: PromptColumns) -> Reading:
    """Whole dialogues; the prompt ends with the last "\\n\\nAssistant:" of *chosen*."""
    chosen, rejected = whole_texts(row, columns)
    cut = chosen.rfind(TURN_MARKER_HH)
    if cut < 0 or not rejected.startswith(chosen[: cut + len(TURN_MARKER_HH)]):
        raise Dropped("no common prompt")
    cut += len(TURN_MARKER_HH)
    return Reading(chosen[:cut], [chosen[cut:], rejected[cut:]], (1, 2))


def read_implicit(row: Row, columns: Sequence[str], asked: PromptColumns) -> Reading:
    """Whole texts; their common beginning, up to a whole word, is the prompt. Dialogues among them
    are read as such."""
    texts = whole_texts(row, columns)
    if TURN_MARKER_HH in texts[0]:
        return read_hh(row, columns, asked)
    if TURN_MARKER_HH.replace("\n", "\r\n") in texts[0]:
        raise ValueError(f"turns of column {columns[0]!r} are parted by \\r\\n: write \\n\\n there")
    cut = common_words(texts)
    if not texts[0][:cut].strip():
        raise Dropped("no common prompt")
    return Reading(texts[0][:cut], [text[cut:] for text in texts], (1, 2))


def whole_texts(row: Row, columns: Sequence[str]) -> list[str]:
    """The texts of the columns; Dropped where one is not there."""
    if any(row[column] is None or row[column] == [] for column in columns):
        raise Dropped("empty completion")
    return [text_of(row, column) for column in columns]


def common_words(texts: Sequence[str]) -> int:
    """How many characters the texts share at their beginning, words not cut; white space goes with
    what follows, but for line breaks."""
    n = len(os.path.commonprefix(list(texts)))
    inside = any(not text[n : n + 1].isspace() for text in texts if len(text) > n)
    while inside and n and not texts[0][n - 1].isspace():
        n -= 1
    while n and texts[0][n - 1] in " \t":
        n -= 1
    return n


def read_shp(row: Row, columns: Sequence[str], asked: PromptColumns) -> Reading:
    """Two comments on a post; labels = 1 where A is preferred. The post is the cluster."""
    label = row["labels"]
    if label not in (0, 1, "0", "1"):
        raise ValueError(f"labels should be 0 or 1, found {label!r}")
    completions = [text_of(row, "human_ref_A"), text_of(row, "human_ref_B")]
    ranks = (1, 2) if int(label) == 1 else (2, 1)
    return Reading(text_of(row, "history"), completions, ranks, cluster=f"post {row['post_id']}")


def read_graded_list(
    row: Row, columns: Sequence[str], asked: PromptColumns, text: str, score: str
) -> Reading:
    """Answers that are objects with a text and the score that ranks it by these keys: those of
    UltraFeedback and Stack Exchange."""
    answers = list_of(row, columns[0], (text, score))
    ranks = ranks_from_scores([answer[score] for answer in answers])
    return make_reading(row, asked, [text_of(answer, text) for answer in answers], ranks)


def read_list(row: Row, columns: Sequence[str], asked: PromptColumns) -> Reading:
    """Completions (text), ranks and, if there, votes."""
    completions = texts_in(row, columns[0])
    ranks = row[columns[1]]
    if (
        not isinstance(ranks, list)
        or len(ranks) != len(completions)
        or not all(is_rank(rank) for rank in ranks)
    ):
        raise ValueError(f"column {columns[1]!r} should hold one integer ≥ 1 for each completion")
    votes = row.get("votes")
    votes = None if votes is None else read_votes(votes, len(completions))
    return make_reading(row, asked, completions, [int(rank) for rank in ranks], votes)


def read_scored_list(row: Row, columns: Sequence[str], asked: PromptColumns) -> Reading:
    """Completions (text) and a score for each, the highest being the best."""
    completions, scores = texts_in(row, columns[0]), row[columns[1]]
    if not isinstance(scores, list) or len(scores) != len(completions):
        raise ValueError(f"column {columns[1]!r} should hold one score for each completion")
    return make_reading(row, asked, completions, ranks_from_scores(scores))


def texts_in(row: Row, column: str) -> list[str]:
    """A list of text."""
    value = row[column]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"column {column!r} should be a list of text")
    return [checked_text(text, f"an entry of {column!r}") for text in value]


def read_entries(row: Row, columns: Sequence[str], asked: PromptColumns) -> Reading:
    """Objects that each hold an answer and its rank (the lowest is the best) or its score."""
    (column,) = columns
    entries = list_of(row, column, ())
    key = next((k for k in (*RANK_KEYS, *SCORE_KEYS) if all(k in e for e in entries)), None)
    if key is None:
        raise ValueError(f"column {column!r}: its entries have no common rank or score")
    scores = [entry[key] for entry in entries]
    if key in RANK_KEYS:
        try:
            scores = [None if rank is None else -float(rank) for rank in scores]
        except (TypeError, ValueError):
            raise ValueError(f"column {column!r}: {key!r} should be numbers") from None
    answers = [answer_of(entry, f"an entry of {column!r}") for entry in entries]
    return make_reading(row, asked, answers, ranks_from_scores(scores))


def holds_entries(value: Any) -> bool:
    """Whether a cell is a list of answers with their ranks or scores."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(entry, dict)
            and any(key in entry for key in ANSWER_KEYS)
            and any(key in entry for key in (*RANK_KEYS, *SCORE_KEYS))
            for entry in value
        )
    )


def read_many(row: Row, columns: Sequence[str], asked: PromptColumns) -> Reading:
    """Right answers and wrong ones: all right ones tied before all wrong ones, in their order.

    In RewardBench 2's subset Ties, the question with one right answer (`ref:7`) and that with
    several (`tied:7`) are one cluster: its protocol compares the two.
    """
    good, bad = ([row[c]] if isinstance(row[c], str) else texts_in(row, c) for c in columns)
    answers = [checked_text(text, f"an entry of {columns[0]!r}") for text in (*good, *bad)]
    both = re.fullmatch(r"(?:ref|tied):(\d+)", str(row.get("id"))) if "subset" in row else None
    cluster = f"ties {both[1]}" if both else None
    return make_reading(row, asked, answers, [1] * len(good) + [2] * len(bad), cluster=cluster)


def read_targets(row: Row, columns: Sequence[str], asked: PromptColumns) -> Reading:
    """targets {choices, labels}: 1 for the right answer and 0 for the others."""
    targets = row[columns[0]]
    if not isinstance(targets, dict) or not {"choices", "labels"} <= targets.keys():
        raise ValueError(f"column {columns[0]!r} should hold choices and labels")
    choices = texts_in(targets, "choices")
    if not isinstance(targets["labels"], list) or len(targets["labels"]) != len(choices):
        raise ValueError("labels should hold one number for each choice")
    return make_reading(row, asked, choices, ranks_from_scores(targets["labels"]))
