"""Rows without a preference, which SFT trains on: conversations, prompts with an answer, texts.

An example of them has one completion. That of a conversation is empty: its dialogue ends with an
assistant turn, which stays as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ranking.data.answers import answer_of
from ranking.data.cells import Dropped, Reading, Row, plain_name, says, text_of
from ranking.data.columns import names_of
from ranking.data.dialogues import as_turns, text_as_messages
from ranking.data.examples import Message
from ranking.data.messages import has_messages, read_turns
from ranking.data.prompts import (
    DIALOGUES,
    PROMPT_COLUMNS,
    TEXTS,
    PromptColumns,
    find_prompt_columns,
    is_absent,
    make_reading,
    text_columns,
)
from ranking.data.prompts import unread as unread_column
from ranking.data.schemas import Plan

ANSWERS = ("completion", "response", "output")


def plan_conversations(rows: Sequence[Row]) -> Plan | None:
    """How rows without a preference are read; None where none of the forms fits the first."""
    first, columns = rows[0], names_of(rows)
    reader: Callable[[Row], Reading]
    if any(has_messages(first.get(name)) for name in DIALOGUES):
        kind, reader = "conversations", read_conversation
        read = find_prompt_columns(columns, ()).read() | {*DIALOGUES, *TEXTS}
    elif answer_columns(first)[0].main not in (None, "text"):
        asked, answer = answer_columns(dict.fromkeys(columns))
        kind, read = f"prompts with an answer in {answer}", asked.read()
        reader = partial(read_answered, texts=text_columns(rows, columns))
    elif isinstance(first.get("text"), str):
        kind, reader, read = "texts", read_text, set()
    else:
        return None
    unread = tuple(c for c in columns if plain_name(c) in PROMPT_COLUMNS and c not in read)
    rule = f"{kind}, without a preference"
    return Plan(kind, (), unread, PromptColumns(), reader, None, gather="single", rule=rule)


def read_conversation(row: Row) -> Reading:
    """Messages up to the last assistant turn, with what else the template is given."""
    drop_bad(row)
    named = [name for name in DIALOGUES if not is_absent(row, name)]
    if not named:
        raise Dropped("empty conversation")
    column = next((name for name in named if has_messages(row[name])), named[0])
    asked = find_prompt_columns(row, [name for name in DIALOGUES if name != column])
    whole = make_reading(row, asked._replace(main=column, input=None, repeats=()), [], (1,))
    messages = list(whole.prompt) if isinstance(whole.prompt, list) else []
    said = {message["content"].strip() for message in messages}
    for name in TEXTS[:-1]:  # but for `text`, which may be all of it once more
        text = row.get(name)
        if not is_absent(row, name) and not (isinstance(text, str) and text.strip() in said):
            raise ValueError(unread_column(name, [column]))
    for name in named:  # which may be the same in another notation
        if has_messages(row[name]) and read_turns(row[name], name) != read_turns(row[column], name):
            raise ValueError(unread_column(name, [column]))
    return as_conversation(whole, messages)


def as_conversation(reading: Reading, messages: list[Message]) -> Reading:
    """A reading whose prompt is all messages up to the last assistant turn; Dropped where there is
    none. Conversations that open alike are a cluster."""
    turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise Dropped("no assistant turn")
    opening = as_turns(messages[: turns[0]]) if turns[0] else None
    return reading._replace(prompt=messages[: turns[-1] + 1], completions=[""], cluster=opening)


def answer_columns(columns: Mapping[str, Any]) -> tuple[PromptColumns, str | None]:
    """The columns of a prompt, and that of its answer; none for both where there is no answer."""
    answer = next((name for name in ANSWERS if name in columns), None)
    return (PromptColumns() if answer is None else find_prompt_columns(columns, [answer])), answer


def read_answered(row: Row, texts: tuple[str, ...]) -> Reading:
    """A prompt and its answer, as texts or as messages; equal answers to nothing are a cluster.

    texts: columns whose text is never messages."""
    drop_bad(row)
    asked, column = answer_columns(row)
    if column is None:
        raise Dropped("empty completion")
    asked = asked._replace(texts=texts)
    answer = answer_of(row[column], f"column {column!r}", column in texts)
    if isinstance(answer, list) and len(answer) > 1:
        whole = make_reading(row, asked, [], (1,))
        prompt = whole.prompt
        prompt = text_as_messages(prompt) if isinstance(prompt, str) else prompt
        return as_conversation(whole, [*prompt, *answer])
    reading = make_reading(row, asked, [answer], (1,))
    if not reading.completions[0].strip():
        raise Dropped("empty completion")
    if isinstance(reading.prompt, str) and not reading.prompt.strip():
        return reading._replace(cluster=reading.completions[0])
    return reading


def read_text(row: Row) -> Reading:
    """A text, of which all is trained on; equal ones are a cluster."""
    text = text_of(row, "text")
    if not text.strip():
        raise Dropped("empty text")
    return Reading("", [text], (1,), cluster=text)


def drop_bad(row: Row) -> None:
    """Raise Dropped for a row that raters marked as bad, by false in the column `label`."""
    if says(row.get("label"), False):
        raise Dropped("marked as a bad answer")
