"""Rows without a preference, which SFT trains on: conversations, prompts with an answer, texts.

An example of them has one completion. That of a conversation is empty: its dialogue ends with an
assistant turn, which stays as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ranking.data.cells import Dropped, Reading, Row, is_empty, text_of
from ranking.data.messages import has_messages, read_turns
from ranking.data.prompts import (
    DIALOGUES,
    TEXTS,
    PromptColumns,
    find_prompt_columns,
    make_reading,
    unread,
)

ANSWERS = ("completion", "response", "output")


def recognize_conversations(columns: Mapping[str, Any]) -> Callable[[Row], Reading] | None:
    """How rows are read that are like this one; None where none of the forms fits."""
    if any(has_messages(columns.get(name)) for name in DIALOGUES):
        return read_conversation
    if answer_columns(columns)[0].main not in (None, "text"):
        return read_answer
    return read_text if isinstance(columns.get("text"), str) else None


def read_conversation(row: Row) -> Reading:
    """Messages up to the last assistant turn, with what else the template is given."""
    drop_bad(row)
    column = next((name for name in DIALOGUES if not is_empty(row.get(name))), None)
    if column is None:
        raise Dropped("empty conversation")
    asked = find_prompt_columns(row, [name for name in DIALOGUES if name != column])
    whole = make_reading(row, asked._replace(main=column, input=None, repeats=()), [], (1,))
    messages = list(whole.prompt) if isinstance(whole.prompt, list) else []
    said = {message["content"].strip() for message in messages}
    for name in TEXTS[:-1]:  # but for `text`, which may be all of it once more
        text = row.get(name)
        if not is_empty(text) and not (isinstance(text, str) and text.strip() in said):
            raise ValueError(unread(name, [column]))
    return whole._replace(prompt=up_to_answer(messages), completions=[""])


def up_to_answer(messages: list[dict]) -> list[dict]:
    """Messages up to the last assistant turn; Dropped where there is none."""
    last = max((k for k, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        raise Dropped("no assistant turn")
    return messages[: last + 1]


def answer_columns(columns: Mapping[str, Any]) -> tuple[PromptColumns, str | None]:
    """The columns of a prompt, and that of its answer; none for both where there is no answer."""
    answer = next((name for name in ANSWERS if name in columns), None)
    return (PromptColumns() if answer is None else find_prompt_columns(columns, [answer])), answer


def read_answer(row: Row) -> Reading:
    """A prompt and its answer, as texts or as messages."""
    drop_bad(row)
    asked, column = answer_columns(row)
    answer = read_turns(row[column], f"column {column!r}")
    if isinstance(answer, list) and len(answer) > 1:
        whole = make_reading(row, asked, [], (1,))
        prompt = whole.prompt
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        return whole._replace(prompt=up_to_answer([*prompt, *answer]), completions=[""])
    return make_reading(row, asked, [answer], (1,))


def read_text(row: Row) -> Reading:
    """A text, of which all is trained on."""
    return Reading("", [text_of(row, "text")], (1,))


def drop_bad(row: Row) -> None:
    """Raise Dropped for a row that raters marked as bad, by false in the column `label`."""
    if row.get("label") is False:
        raise Dropped("marked as a bad answer")
