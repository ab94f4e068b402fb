"""What a model is given of an example: its text, or its dialogue in the model's chat template.

Scoring, training, generation and judging all render here.
"""

import json
import os.path
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import loopcontrols

from ranking.data.dialogues import is_begun, parse_dialogue
from ranking.data.examples import Dialogue, Message, PreferenceExample
from ranking.data.joining import ends_with_marker

TEMPLATE_MODES = ("auto", "always", "never")
RESERVED = {  # arguments of `apply_chat_template` that are not the template's own
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "return_dict", "return_tensors",
}  # fmt: skip
GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # transformers' own
PROBE = "probe"  # a completion whose end in a rendering shows what closes a turn
# what templates raise for a dialogue they are not made for
REFUSALS = (TemplateError, ValueError, TypeError, LookupError, AttributeError)


class ChatOptions(NamedTuple):
    """How dialogues are rendered.

    mode: "auto": dialogues go through the template of a tokenizer that has one, all else stays
    text; "always": texts are read as dialogues, too; "never". system: the system message of
    dialogues that have none. kwargs: what else the template is given; an example's own come first.
    template: instead of the tokenizer's.
    """

    mode: str = "auto"
    system: str | None = None
    kwargs: Mapping[str, Any] = {}
    template: str | None = None


AUTO = ChatOptions()


class Texts(NamedTuple):
    """What is tokenized of an example, where there is no `PreferenceExample`.

    separators stand between prompt and completions (default: nothing); completions that differ in
    ranks (default: all differ) have to differ in tokens.
    """

    prompt: str
    completions: Sequence[str]
    separators: Sequence[str] | None = None
    ranks: Sequence[int] | None = None
    dialogue: Dialogue | None = None


Asked = PreferenceExample | Texts  # what is rendered


class Rendered(NamedTuple):
    """An example in the chat template: prompt + turn + closing is the text of a completion.

    turns: what the template writes of the assistant's turns behind the prompt, which may be more
    than the completions (an empty thinking block). closing: what it closes such a turn with.
    """

    prompt: str
    turns: list[str]
    closing: str


# ---------------------------------------------------------------------------- which template
def has_template(tokenizer, chat: ChatOptions) -> bool:
    """Whether there is a template to render with."""
    return bool(chat.template or getattr(tokenizer, "chat_template", None))


def check_template(tokenizer, chat: ChatOptions, name: str) -> None:
    """ValueError where a template is asked for and model `name` has none."""
    if chat.mode == "always" and not has_template(tokenizer, chat):
        raise ValueError(f"--chat-template: {name} has none (--chat-template-file gives it one)")


def goes_through_template(tokenizer, item: Asked, chat: ChatOptions) -> bool:
    """Whether an example is rendered by a template; else its text is taken as it stands."""
    if chat.mode == "never" or not has_template(tokenizer, chat):
        return False
    return chat.mode == "always" or item.dialogue is not None


# ---------------------------------------------------------------------------- from flags
def read_kwargs(text: str) -> dict[str, Any]:
    """--chat-template-kwargs. ValueError where it is no JSON object, or of what is given anyway."""
    try:
        kwargs = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--chat-template-kwargs {text}: not JSON ({error})") from None
    if not isinstance(kwargs, dict):
        raise ValueError(f"--chat-template-kwargs {text}: not a JSON object, such as {{}}")
    if taken := kwargs.keys() & RESERVED:
        raise ValueError(
            f"--chat-template-kwargs: {min(taken)} is given by the data, not by a flag"
        )
    return kwargs


def parse_template(text: str) -> nodes.Template:
    """A template as Jinja reads it. Raises TemplateSyntaxError."""
    return Environment(extensions=[loopcontrols]).parse(GENERATION_TAG.sub("", text))


def read_template(path: str) -> str:
    """The text of --chat-template-file. ValueError where it cannot be read or does not compile."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--chat-template-file {path}: {reason}") from None
    try:
        parse_template(text)
    except TemplateSyntaxError as error:
        reason = f"line {error.lineno}: {error.message}"
        raise ValueError(f"--chat-template-file {path}: not a Jinja template ({reason})") from None
    if not text.strip():
        raise ValueError(f"--chat-template-file {path}: it is empty")
    return text


# ---------------------------------------------------------------------------- rendering
class Applied(NamedTuple):
    """A template and what it is given beside messages."""

    template: str
    tools: list[dict[str, Any]] | None
    settings: dict[str, Any]  # --chat-template-kwargs, behind them an example's own


def applied_to(tokenizer, chat: ChatOptions, dialogue: Dialogue | None) -> Applied:
    """The template for a dialogue. ValueError where there is none."""
    tools = list(dialogue.tools) if dialogue and dialogue.tools else None
    settings = {**chat.kwargs, **(dialogue.template_kwargs if dialogue else {})}
    return Applied(chat.template or tokenizer.get_chat_template(None, tools), tools, settings)


def apply_template(
    tokenizer, messages: Sequence[Message], chat: ChatOptions, item: Asked | None = None, **how
) -> str:
    """Messages in the template, with the tools and the template_kwargs of an item's dialogue.

    System messages stand in the next user turn where the template does not take them, as model
    cards have it. how: as `apply_chat_template` takes it. ValueError where the template refuses the
    dialogue, or leaves a tool's message out.
    """
    template, tools, settings = applied_to(tokenizer, chat, item.dialogue if item else None)

    def write(turns: Sequence[Message]) -> str:
        return tokenizer.apply_chat_template(
            list(turns), tools, chat_template=template, tokenize=False, **{**settings, **how}
        )

    try:
        if has_system(messages) and not takes_system(tokenizer, template, as_key(settings)):
            messages = system_in_user_turn(messages)
        text = write(messages)
        if left_out(write, messages, text, "system"):
            messages = [*messages[:1], *system_in_user_turn(messages[1:])]
            text = write(messages)
        if left_out(write, messages, text, "tool"):
            raise ValueError("it leaves out what the tool says")
        return text
    except REFUSALS as error:
        start = str(messages[-1].get("content") or "")[:60]
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the chat template refuses {start!r} ({reason})") from None


def left_out(
    write: Callable[[Sequence[Message]], str], messages: Sequence[Message], text: str, role: str
) -> bool:
    """Whether `text`, the rendering of messages, says nothing of one of this role behind the first:
    with other words in it, the rendering is the same."""
    said = [k for k, m in enumerate(messages) if k and m["role"] == role and m.get("content")]
    return any(
        write([*messages[:k], {**messages[k], "content": f"{PROBE} {k}"}, *messages[k + 1 :]])
        == text
        for k in said
    )


def has_system(messages: Sequence[Message]) -> bool:
    """Whether there is a system message."""
    return any(message["role"] == "system" for message in messages)


def as_key(settings: Mapping[str, Any]) -> str:
    """Arguments of a template as JSON, by which its probes are kept."""
    return json.dumps(settings, sort_keys=True)


@lru_cache(maxsize=64)
def takes_system(tokenizer, template: str, settings: str) -> bool:
    """Whether a template writes a system message; some raise, some leave it out."""
    messages = [{"role": "system", "content": PROBE}, {"role": "user", "content": "a"}]
    try:
        return PROBE in tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True,
            **json.loads(settings),
        )  # fmt: skip
    except REFUSALS:
        return False


def system_in_user_turn(messages: Sequence[Message]) -> list[Message]:
    """Messages without a system role: what it says stands before the next user message."""
    merged: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            content = "\n\n".join([*waiting, message["content"]])
            merged.append({**message, "content": content})
            waiting = []
        else:
            merged.append(message)
    if waiting:
        merged.append({"role": "user", "content": "\n\n".join(waiting)})
    return merged


@lru_cache(maxsize=64)
def closing_of(tokenizer, template: str, settings: str) -> str:
    """What a template writes behind the content of the last assistant turn."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, **json.loads(settings)
    )
    if PROBE not in text:
        raise ValueError("it leaves the assistant's text out")
    return text.rpartition(PROBE)[2]


def closing_text(tokenizer, chat: ChatOptions, dialogue: Dialogue | None = None) -> str:
    """What closes an assistant's turn in the chat template. ValueError where it refuses a question
    with its answer."""
    template, _, settings = applied_to(tokenizer, chat, dialogue)
    try:
        return closing_of(tokenizer, template, as_key(settings))
    except REFUSALS as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the chat template cannot be applied ({reason})") from None


def closes_turns(tokenizer, chat: ChatOptions) -> bool:
    """Whether the template itself ends an assistant's turn, with more than white space; where not,
    EOS does if an end is asked for. ValueError as `closing_text`."""
    return bool(closing_text(tokenizer, chat).strip())


def end_of_turn_id(tokenizer, chat: ChatOptions = AUTO) -> int | None:
    """Id of the token that closes an assistant's turn in the chat template; EOS where nothing
    closes it; None where text does that has no token of its own: answers can hold its parts."""
    closing = closing_text(tokenizer, chat).strip()
    if not closing:
        return tokenizer.eos_token_id
    ids = tokenizer(closing, add_special_tokens=False)["input_ids"]
    return next((i for i in ids if i in tokenizer.added_tokens_decoder), None)


def messages_of(item: Asked, chat: ChatOptions) -> list[Message]:
    """The messages of an example's prompt, the asked system message first where it has none."""
    messages = list(item.dialogue.messages) if item.dialogue else parse_dialogue(item.prompt)
    if chat.system is not None and not has_system(messages):
        messages.insert(0, {"role": "system", "content": chat.system})
    return messages


def plain_prompt(item: Asked, chat: ChatOptions) -> str:
    """The prompt as text; the asked system message stands before a dialogue that has none."""
    if chat.system is None or (item.dialogue is None and chat.mode != "always"):
        return item.prompt
    if has_system(item.dialogue.messages if item.dialogue else parse_dialogue(item.prompt)):
        return item.prompt
    return f"{chat.system}\n\n{item.prompt.lstrip()}"


def render_prompt(tokenizer, item: Asked, chat: ChatOptions = AUTO) -> str:
    """What a model is given to answer: the prompt in the chat template, up to where a completion
    begins, or its text. ValueError where the template refuses the dialogue."""
    if not goes_through_template(tokenizer, item, chat):
        return plain_prompt(item, chat)
    messages = messages_of(item, chat)
    begun = is_begun(messages)
    return apply_template(
        tokenizer, messages, chat, item,
        add_generation_prompt=not begun, continue_final_message=begun,
    )  # fmt: skip


def assistant_turn(item: Asked, number: int, begun: Message | None, text: str) -> Message:
    """The assistant's message with `text` as completion `number`, behind what the prompt has begun.

    Messages are taken as they are. Of text, white space at the ends is no part of a turn, but for
    the indentation of a first line that no turn's marker precedes.
    """
    separator = item.separators[number] if item.separators else ""
    is_text = item.dialogue is None or item.dialogue.of_text
    if begun is None:
        return {"role": "assistant", "content": bare_turn(item.prompt, text) if is_text else text}
    start, space = begun["content"], item.prompt[len(item.prompt.rstrip()) :]
    if not start[-1:].isspace():
        start += space + separator
    return {**begun, "content": start + (text.rstrip() if is_text else text)}


def bare_turn(prompt: str, text: str) -> str:
    """A completion without white space at its ends; indentation stays, unless a marker such as
    `Assistant:` precedes it."""
    before = text[: len(text) - len(text.lstrip())]
    indentation = before.rpartition("\n")[2]
    keep = len(indentation) > 1 and not ends_with_marker(prompt.rstrip())
    return (indentation if keep else "") + text.strip()


def render_example(
    tokenizer, item: Asked, chat: ChatOptions = AUTO, completions: Sequence[str] = ()
) -> Rendered:
    """An example in the chat template; `completions`: in place of its own, as many.

    The assistant's turn is what the template writes of it behind the prompt's rendering. Where the
    template opens a finished turn in another way than one that is to be written (it leaves out the
    thinking that the prompt begins), the turn begins where the two part. Where it writes the
    dialogue before the turn differently, the completion's text stands behind the prompt's.
    ValueError where the template refuses the dialogue.
    """
    texts = completions or item.completions
    messages = messages_of(item, chat)
    begun = messages.pop() if is_begun(messages) else None
    prompt = render_prompt(tokenizer, item, chat)
    closing = closing_text(tokenizer, chat, item.dialogue)
    turns = [assistant_turn(item, k, begun, text) for k, text in enumerate(texts)]
    wholes = [apply_template(tokenizer, [*messages, turn], chat, item) for turn in turns]
    if not all(whole.startswith(prompt) for whole in wholes):
        before = apply_template(tokenizer, messages, chat, item) if messages else ""
        probe = assistant_turn(item, 0, begun, PROBE)
        finished = [*wholes, apply_template(tokenizer, [*messages, probe], chat, item)]
        shared = os.path.commonprefix([prompt, *finished])
        if len(shared) >= len(before):
            prompt = shared
        else:
            wholes = [prompt + turn["content"] + closing for turn in turns]
    behind = [whole[len(prompt) :] for whole in wholes]
    return Rendered(
        prompt,
        [without_closing(text, turn["content"], closing) for text, turn in zip(behind, turns)],
        closing,
    )


def without_closing(text: str, content: str, closing: str) -> str:
    """A rendered assistant's turn up to what closes it."""
    if text.endswith(closing):
        return text[: len(text) - len(closing)]
    end = text.rfind(content.strip())
    return text if end < 0 else text[: end + len(content.strip())]
