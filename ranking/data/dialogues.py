"""Chat messages and the two ways text holds them: `\\n\\nHuman: …` turns, there and back."""

import re
from collections.abc import Sequence

from ranking.data.examples import Message

SPEAKERS = {"user": "Human", "assistant": "Assistant", "tool": "Tool"}


def parse_dialogue(prompt: str) -> list[Message]:
    """Chat messages of a prompt: `\\n\\nHuman:`/`\\n\\nAssistant:` turns, or one user message.

    Text before the first turn is the system message (the user's, if the assistant speaks first).
    """
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", prompt)
    if len(parts) < 3:
        return [{"role": "user", "content": prompt.strip()}]
    roles = {"Human": "user", "Assistant": "assistant"}
    messages: list[Message] = []
    if parts[0].strip():
        first = "system" if parts[1] == "Human" else "user"
        messages.append({"role": first, "content": parts[0].strip()})
    for role, text in zip(parts[1::2], map(str.strip, parts[2::2])):
        if role == "Assistant" and not text:
            continue  # it opens the turn that is to come
        if messages and messages[-1]["role"] == roles[role]:
            both = filter(None, (messages[-1]["content"], text))
            messages[-1]["content"] = "\n\n".join(both)
        else:
            messages.append({"role": roles[role], "content": text})
    return messages or [{"role": "user", "content": ""}]


def is_dialogue_text(prompt: str) -> bool:
    """Whether a prompt is text of turns that ends where the assistant's begins."""
    opened = prompt.startswith("Human:") or "\n\nHuman:" in prompt
    return opened and prompt.rstrip().endswith("\n\nAssistant:")


def text_as_messages(text: str) -> list[Message]:
    """Text of turns as messages; other text as one message of the user's, as it stands."""
    return parse_dialogue(text) if is_dialogue_text(text) else [{"role": "user", "content": text}]


def is_begun(messages: Sequence[Message]) -> bool:
    """Whether a dialogue ends inside an assistant turn, which the completion goes on with."""
    return messages[-1]["role"] == "assistant"


def as_turns(messages: Sequence[Message]) -> str:
    """Messages as a model without a chat template is given them: `\\n\\nHuman: …` turns, the system
    message as text before them, and an open `\\n\\nAssistant:` at the end."""
    text = ""
    for message in messages:
        content = (message.get("content") or "").strip()
        if message["role"] == "system":
            text += ("\n\n" if text else "") + content
        else:
            text += f"\n\n{SPEAKERS[message['role']]}: {content}"
    return text if is_begun(messages) else text + "\n\nAssistant:"
