"""Which columns make up the prompt, and a row's prompt read from all of them."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ranking.data.cells import (
    Dropped,
    Reading,
    Row,
    checked_text,
    holds_nothing,
    is_empty,
    is_message_dump,
    parsed,
    plain_name,
    without_nulls,
)
from ranking.data.columns import names_of, values_of
from ranking.data.dialogues import text_as_messages
from ranking.data.examples import Message, Votes
from ranking.data.messages import Turns, check_turns, has_messages, read_turns, split_answers

# names of columns, in small letters without underscores
TEXTS = ("prompt", "instruction", "question", "query", "request", "problem", "input", "text")
DIALOGUES = ("conversations", "conversation", "messages", "trajectory", "dialogue", "dialog",
             "turns")  # fmt: skip
EARLIER = ("context", "history", "chathistory", "conversationhistory", "dialoguehistory")
SYSTEM = ("system", "systemprompt", "systemmessage", "systeminstruction")
IMAGES = ("image", "images", "imagepath", "imagepaths")
RECORDINGS = ("video", "videos", "audio", "audios")
SOME = 1000  # rows, by which it is decided whether a column is text or messages
# columns that are part of a prompt wherever they stand: read, or refused
PROMPT_COLUMNS = {
    *TEXTS, *DIALOGUES, *EARLIER, *SYSTEM, *IMAGES, *RECORDINGS, "tools", "functions",
    "chattemplatekwargs", "document", "documents", "passage", "article", "post",
} - {"text"}  # fmt: skip


class PromptColumns(NamedTuple):
    """The columns that a prompt is read from; None or () for those that a file lacks.

    main: the question as text or messages. input: what an instruction is applied to. earlier: what
    comes before. images: pictures and recordings. repeats: columns that may hold the prompt once
    more, and nothing else. texts: columns whose text is never messages (`text_columns`).
    """

    main: str | None = None
    input: str | None = None
    system: str | None = None
    earlier: tuple[str, ...] = ()
    tools: str | None = None
    template_kwargs: str | None = None
    images: tuple[str, ...] = ()
    repeats: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def read(self) -> set[str]:
        """Their names."""
        single = (self.main, self.input, self.system, self.tools, self.template_kwargs)
        return {c for c in single if c} | {*self.earlier, *self.images, *self.repeats}


def find_prompt_columns(columns: Iterable[str], others: Iterable[str]) -> PromptColumns:
    """What of the columns (but for `others`, which hold answers) makes up the prompt."""
    taken = set(others)
    named = {plain_name(column): column for column in columns if column not in taken}

    def present(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(named[name] for name in names if name in named)

    texts, dialogues, earlier = present(TEXTS), present(DIALOGUES), present(EARLIER)
    if len(texts) > 1 and plain_name(texts[-1]) == "text":
        texts = texts[:-1]  # `text` is a prompt only where nothing else is
    main = next(iter(texts or dialogues or earlier), None)
    second = named.get("input") if main == named.get("instruction", "") else None
    return PromptColumns(
        main=main,
        input=second,
        system=next(iter(present(SYSTEM)), None),
        earlier=tuple(c for c in earlier if c != main),
        tools=named.get("tools"),
        template_kwargs=named.get("chattemplatekwargs"),
        images=present((*IMAGES, *RECORDINGS)),
        repeats=tuple(c for c in (*texts, *dialogues) if c not in (main, second)),
    )


def is_absent(row: Row, column: str) -> bool:
    """Whether a row has nothing in a column that could be part of its prompt: a number is nothing
    (an id, how many turns), but not of a picture, nor as what an instruction is applied to."""
    value, name = row.get(column), plain_name(column)
    if name in (*IMAGES, *RECORDINGS):
        return holds_nothing(value)
    return is_empty(value) or (isinstance(value, int | float) and name != "input")


def text_columns(rows: Sequence[Row], columns: Iterable[str]) -> tuple[str, ...]:
    """The columns of text in which messages, if any, are what somebody wrote: half of the first
    thousand texts, or more, are none."""

    def is_text(column: str) -> bool:
        cells = islice(values_of(rows, column), SOME)
        texts = [value for value in cells if isinstance(value, str) and value.strip()]
        return bool(texts) and 2 * sum(map(is_message_dump, texts)) <= len(texts)

    present = set(names_of(rows))
    return tuple(column for column in columns if column in present and is_text(column))


def make_reading(
    row: Row,
    asked: PromptColumns,
    answers: Sequence[Turns],
    ranks: Sequence[int],
    votes: Votes | None = None,
    cluster: str | None = None,
) -> Reading:
    """A row's prompt, from all columns that hold a part of it, with its answers.

    It is text; messages, where there are messages, tools, template arguments or a system column.
    """
    for column in asked.images:
        if not is_absent(row, column):
            raise Dropped("video or audio" if plain_name(column) in RECORDINGS else "images")
    tools = read_tools(row.get(asked.tools), asked.tools) if asked.tools else None
    main, inner_tools = read_main(row, asked)
    if main is None and asked.main and not any(isinstance(answer, list) for answer in answers):
        raise Dropped("empty prompt")
    prompt, completions, remarks = split_answers(main, answers)
    for column in reversed(asked.earlier):
        prompt = with_earlier(row.get(column), prompt, column)
    arguments = None
    if asked.template_kwargs:
        arguments = parsed(row.get(asked.template_kwargs), f"column {asked.template_kwargs!r}")
        if arguments is not None and not isinstance(arguments, dict):
            raise ValueError(f"column {asked.template_kwargs!r} should be an object")
        arguments = without_nulls(arguments) or None
    tools = tools or inner_tools
    if isinstance(prompt, str) and (asked.system or tools or arguments):
        prompt = text_as_messages(prompt)
    if asked.system and not is_empty(system := row.get(asked.system)):
        system = checked_text(system, f"column {asked.system!r}")
        prompt = with_system(system, prompt if isinstance(prompt, list) else [])
    if isinstance(prompt, list):
        check_turns(prompt)
    for column in asked.repeats:
        check_repeated(row, column, prompt, completions, asked)
    return Reading(prompt, completions, ranks, votes, cluster, tools, arguments, remarks)


def read_main(row: Row, asked: PromptColumns) -> tuple[Turns | None, list[dict[str, Any]] | None]:
    """The question as text or messages, and the tools that stand beside the messages in an object;
    None where there is none, unless the answers hold it."""
    value, tools = row[asked.main] if asked.main else None, None
    if value is None or value == []:
        return None, None
    if isinstance(value, dict) and has_messages(value.get("messages")):
        tools = read_tools(value.get("tools"), asked.main)
    elif isinstance(value, dict) and isinstance(value.get("full_text"), str):
        value = value["full_text"]  # WebGPT's question
    as_text = isinstance(value, str) and asked.main in asked.texts
    prompt = value if as_text else read_turns(without_pairs(value), f"column {asked.main!r}")
    if asked.input and not is_absent(row, asked.input):
        text = checked_text(row[asked.input], f"column {asked.input!r}")
        if not isinstance(prompt, str):
            raise ValueError(f"column {asked.input!r} is text, but {asked.main!r} messages")
        prompt = f"{prompt}\n{text}"
    return prompt, tools


def without_pairs(value: Any) -> Any:
    """A history of [user, assistant] pairs, or {input, output} objects, as messages; all else as
    it is."""
    if not isinstance(value, list) or not value:
        return value
    pairs = [[p.get("input"), p.get("output")] if isinstance(p, dict) else p for p in value]
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return value
        if not all(isinstance(text, str) for text in pair):
            return value
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair)]


def with_earlier(value: Any, prompt: Turns, column: str) -> Turns:
    """A prompt after what comes before it: text and a blank line, or messages."""
    if is_empty(value):
        return prompt
    earlier = read_turns(without_pairs(value), f"column {column!r}")
    if isinstance(earlier, str):
        if not isinstance(prompt, str):
            raise ValueError(f"column {column!r} is text, but the prompt is messages")
        return f"{earlier}\n\n{prompt}"
    asked = prompt if isinstance(prompt, list) else text_as_messages(prompt)
    repeated = asked[: len(earlier)] == earlier or earlier[-len(asked) :] == asked
    return max(earlier, asked, key=len) if repeated else [*earlier, *asked]


def with_system(system: str, messages: list[Message]) -> list[Message]:
    """Messages after a system message, unless they begin with the same one."""
    first: Message = {"role": "system", "content": system}
    if messages[:1] == [first]:
        return messages
    if messages and messages[0]["role"] == "system":
        raise Dropped("two system messages")
    return [first, *messages]


def read_tools(value: Any, column: str) -> list[dict[str, Any]] | None:
    """Descriptions of tools: a list of objects, or its JSON."""
    tools = parsed(value, f"column {column!r}")
    if is_empty(tools):
        return None
    if isinstance(tools, list):
        tools = [parsed(tool, f"a tool of column {column!r}") for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"column {column!r} should be a list of objects that describe tools")
    return without_nulls(tools)


def check_repeated(
    row: Row, column: str, prompt: Turns, completions: Sequence[str], asked: PromptColumns
) -> None:
    """Raise ValueError if a column holds anything but the prompt, or the prompt and an answer."""
    if is_absent(row, column):
        return
    value = row[column]
    turns = read_turns(without_pairs(value), f"column {column!r}")
    if isinstance(turns, str):
        said = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
        known = turns.strip() in [text.strip() for text in said]
    else:
        whole = prompt if isinstance(prompt, list) else text_as_messages(prompt)
        rest = turns[len(whole) :]
        known = turns == whole[: len(turns)] or (
            turns[: len(whole)] == whole and len(rest) == 1 and rest[0]["content"] in completions
        )
    if not known:
        raise ValueError(unread(column, sorted(asked.read() - {column})))


def unread(column: str, read: Sequence[str]) -> str:
    """What is said of a column of the prompt that is not read."""
    beside = f"with the columns {', '.join(read)} " if read else ""
    return (
        f"column {column!r} is part of the prompt, but {beside}it is "
        "not read: put its text into the prompt (--columns prompt=COLUMN says which column that "
        "is), or take the column out"
    )
