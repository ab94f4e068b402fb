"""Chat messages in the notations that files hold, and where the prompt ends in lists of them."""

import json
from collections.abc import Sequence
from typing import Any

from ranking.data.cells import Dropped, checked_text, is_message_dump, without_nulls
from ranking.data.dialogues import text_as_messages
from ranking.data.examples import Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool",
    "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
# keys of a message that no template reads
NOT_KEPT = {"role", "from", "content", "value", "weight", "loss_weight", "loss", "train"}
Turns = str | list[Message]


def has_messages(value: Any) -> bool:
    """Whether a cell is a chat message or a list of them (or an object with the list)."""
    if isinstance(value, dict):
        return "role" in value or "from" in value or has_messages(value.get("messages"))
    return isinstance(value, list) and bool(value) and all(is_message(item) for item in value)


def is_message(value: Any) -> bool:
    """Whether a value is one chat message."""
    return isinstance(value, dict) and ("role" in value or "from" in value)


def read_turns(value: Any, what: str) -> Turns:
    """A cell that is text or messages; messages that are written as JSON text are read."""
    if isinstance(value, str) and is_message_dump(value):
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = None
        if not has_messages(parsed):
            checked_text(value, what)  # which says what is wrong
        value = parsed
    if has_messages(value):
        value = value["messages"] if isinstance(value, dict) and "messages" in value else value
        return [read_message(m, what) for m in ([value] if isinstance(value, dict) else value)]
    return checked_text(value, what)


def read_message(value: Any, what: str) -> Message:
    """{role, content} or {from, value} → a message with a role that templates know, its content as
    text, and all else it holds."""
    name = value.get("role") if value.get("role") is not None else value.get("from")
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        known = "system, user, assistant, tool"
        raise ValueError(f"{what}: the role of a message should be one of {known}, found {name!r}")
    content = value.get("content") if value.get("content") is not None else value.get("value")
    message = {"role": role, "content": content_text(content, what)}
    for key, item in value.items():
        if key not in NOT_KEPT and item not in (None, [], {}):
            message[key] = without_nulls(item)
    return message


def content_text(content: Any, what: str) -> str:
    """The text of a message: a string, or parts of type text one after the other."""
    if isinstance(content, str) or content is None:
        return content or ""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        found = type(content).__name__
        raise ValueError(f"{what}: the content of a message should be text, found {found}")
    texts = []
    for part in content:
        kind = str(part.get("type") or "text") if isinstance(part, dict) else "text"
        text = part
        if isinstance(part, dict):
            text = part["text"] if part.get("text") is not None else part.get("value")
        if "image" in kind:
            raise Dropped("images")
        if not kind.endswith("text") or not isinstance(text, str):  # text, input_text, output_text
            raise Dropped("a message that is not text")
        texts.append(text)
    return "".join(texts)


def split_answers(
    prompt: Turns | None, answers: Sequence[Turns]
) -> tuple[Turns, list[str], tuple[str, ...]]:
    """Prompt and completions of answers that are text, assistant turns, or whole dialogues, and
    remarks. Whole dialogues begin alike, up to the last turn of the first: that is the prompt.

    Raises Dropped where they do not, or where an answer is something else than one assistant turn.
    """
    if all(isinstance(answer, str) for answer in answers):
        if prompt is None:
            raise ValueError("there is no prompt: without one, answers should be whole dialogues")
        return prompt, [answer for answer in answers if isinstance(answer, str)], ()
    if any(isinstance(answer, str) for answer in answers):
        raise ValueError("of the answers, some are text and some are messages")
    lists = [answer for answer in answers if isinstance(answer, list)]
    remarks = []
    if isinstance(prompt, list):
        n = len(prompt)
        rests = [a[n:] if len(a) > n and a[:n] == prompt else a for a in lists]
        if any(len(rest) < len(whole) for rest, whole in zip(rests, lists)):
            remarks.append("messages repeat the prompt, which is read once")
    elif prompt is not None and all(len(a) == 1 and a[0]["role"] == "assistant" for a in lists):
        prompt, rests = text_as_messages(prompt), lists
    else:
        text, prompt = prompt, lists[0][:-1]
        rests = [a[len(prompt) :] if a[: len(prompt)] == prompt else a for a in lists]
        if not prompt or any(a[:1] != prompt[:1] for a in lists):
            raise Dropped("no common prompt")
        asked = [turn["content"].strip() for turn in prompt if turn["role"] == "user"]
        if text and text.strip() not in asked:
            before = [turn for turn in prompt if turn["role"] == "system"]
            if prompt[len(before) : len(before) + 1] and prompt[len(before)]["role"] == "user":
                remarks.append("the prompt differs from the message lists, which are read")
            else:  # the lists go on with what the prompt asks
                question: Message = {"role": "user", "content": text}
                prompt = [*prompt[: len(before)], question, *prompt[len(before) :]]
    completions = [completion_of(rest) for rest in rests]
    if any(set(rest[0]) - {"role", "content", "name"} for rest in rests):
        remarks.append("completions hold more than text (reasoning, say), which is left out")
    return prompt, completions, tuple(remarks)


def completion_of(turns: list[Message]) -> str:
    """The text of one assistant turn; Dropped says why it is none."""
    if len(turns) != 1:
        raise Dropped("completion of several turns" if turns else "empty completion")
    if turns[0]["role"] != "assistant":
        raise Dropped("completion is not the assistant's")
    if turns[0].get("tool_calls") or turns[0].get("function_call"):
        raise Dropped("completion is a tool call")
    return turns[0]["content"]


def check_turns(messages: Sequence[Message]) -> None:
    """Raise Dropped for a turn of the prompt that says nothing."""
    for message in messages:
        silent = not message["content"].strip() and not message.get("tool_calls")
        if silent and message["role"] == "tool":
            raise Dropped("tool result without text")
        if silent and message["role"] != "system" and not message.get("function_call"):
            raise Dropped("empty turn")
