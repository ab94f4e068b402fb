"""Where the assistant's turns stand in a dialogue that the chat template has rendered."""

import re
from collections.abc import Callable, Sequence
from functools import partial

from ranking.data.cells import Dropped
from ranking.data.dialogues import is_begun
from ranking.data.examples import Message
from ranking.scoring.chat import (
    ChatOptions,
    Texts,
    applied_to,
    apply_template,
    assistant_turn,
    closing_text,
    messages_of,
)

Span = tuple[int, int]  # of characters
GENERATION = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
MARK = "\ue000"  # for private use: no text of a person's
PROBE_TURN = "XTURNX"


def rendered_turns(
    tokenizer, item: Texts, chat: ChatOptions, ended: bool
) -> tuple[str, list[Span]]:
    """A dialogue with its one completion in the chat template, and the spans of the assistant's
    turns in it; `ended`: with what closes them.

    The spans are what the template itself marks with `generation`, if it does; else each turn is
    what it writes behind the dialogue before the turn. Templates that write a turn differently
    once others follow it (without its thinking) have it where it stands in the whole dialogue.
    Raises `Dropped` where the template refuses the dialogue, or a turn cannot be located.
    """
    messages = messages_of(item, chat)
    if item.completions[0] or not is_begun(messages):
        begun = messages.pop() if is_begun(messages) else None
        messages.append(assistant_turn(item, 0, begun, item.completions[0]))
    closing = closing_or_none(tokenizer, item, chat)
    try:
        render = partial(apply_template, tokenizer, chat=chat, item=item)
        text = render(messages)
        template = applied_to(tokenizer, chat, item.dialogue).template
        spans = None
        if GENERATION.search(template):
            marked = GENERATION.sub(rf"{{%\1 if true %}}{MARK}{{% endif \2%}}", template)
            spans = marked_spans(
                text, apply_template(tokenizer, messages, chat._replace(template=marked), item)
            )
        if spans is None:
            turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
            spans = [locate_turn(render, text, messages, k, closing) for k in turns]
    except ValueError:
        raise Dropped("chat template refuses the dialogue") from None
    if not ended:
        spans = [(a, b - len(ending(text[a:b], closing))) for a, b in spans]
    return text, spans


def closing_or_none(tokenizer, item: Texts, chat: ChatOptions) -> str:
    """What closes an assistant's turn; "" where the template refuses the question after it."""
    try:
        return closing_text(tokenizer, chat, item.dialogue)
    except ValueError:
        return ""


def marked_spans(text: str, marked: str) -> list[Span] | None:
    """The spans between marks; None where the text without them is another."""
    pieces = marked.split(MARK)
    if "".join(pieces) != text or len(pieces) % 2 == 0:
        return None
    ends = [len("".join(pieces[: k + 1])) for k in range(len(pieces))]
    return list(zip(ends[:-1:2], ends[1::2]))


def locate_turn(
    render: Callable[..., str], text: str, messages: Sequence[Message], k: int, closing: str
) -> Span:
    """The span of message k, an assistant's turn, in `text`, with what closes it.

    It begins where the dialogue before it ends, ready for an answer, and ends where the dialogue
    with it ends, if `text` begins with these; else where another answer in its place would stand.
    """
    before = rendering(render, messages[:k], add_generation_prompt=True) if k else None
    behind = rendering(render, messages[: k + 1])
    start = len(before) if before and text.startswith(before) else None
    end = len(behind) if behind and text.startswith(behind) else None
    if start is None or end is None:
        probe = {"role": "assistant", "content": PROBE_TURN}
        other = rendering(render, [*messages[:k], probe, *messages[k + 1 :]])
        head, found, tail = (other or "").partition(PROBE_TURN)
        if start is None and found and text.startswith(head):
            start = len(head)
        if end is None and found and text.endswith(tail):
            end = len(text) - len(tail) + len(ending_ahead(tail, closing))
    if start is None or end is None or start > end:
        raise Dropped("an assistant turn is not found in what the chat template writes")
    return start, end


def rendering(render: Callable[..., str], messages: Sequence[Message], **how) -> str | None:
    """Messages in the template, or None where it refuses them."""
    try:
        return render(list(messages), **how)
    except ValueError:
        return None


def ending(turn: str, closing: str) -> str:
    """What closes a turn, as far as the turn has it."""
    return next((c for c in (closing, closing.rstrip()) if c and turn.endswith(c)), "")


def ending_ahead(tail: str, closing: str) -> str:
    """What closes a turn, at the beginning of what follows its content."""
    return next((c for c in (closing, closing.rstrip()) if c and tail.startswith(c)), "")
