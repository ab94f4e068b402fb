"""The chat template in training: what goes through it, and which answers end their turn."""

from collections.abc import Mapping, Sequence

from ranking.data.examples import PreferenceData, PreferenceExample
from ranking.plumbing.processes import announce
from ranking.scoring.chat import (
    ChatOptions,
    Texts,
    check_template,
    closes_turns,
    goes_through_template,
)
from ranking.scoring.chat_notes import describe_rendering


def use_template(
    tokenizer, chat: ChatOptions, name: str, examples: Sequence[PreferenceExample]
) -> None:
    """Give the tokenizer of model `name` the template of --chat_template_file, which is saved with
    it, where training examples go through it. ValueError where --chat_template always has none to
    use."""
    check_template(tokenizer, chat, name)
    used = any(goes_through_template(tokenizer, example, chat) for example in examples)
    if chat.template is not None and used:
        tokenizer.chat_template = chat.template


def ends_turn(
    tokenizer, item: PreferenceExample | Texts, chat: ChatOptions, add_eos: bool | None
) -> bool:
    """Whether an example's completions end their turn: `add_eos`, or, where that is None, if it is
    a dialogue that goes through the chat template, as every chat model is trained."""
    if add_eos is not None:
        return add_eos
    return item.dialogue is not None and goes_through_template(tokenizer, item, chat)


def describe_template(
    tokenizer, parts: Mapping[str, PreferenceData], chat: ChatOptions, add_eos: bool | None
) -> None:
    """Lines that say how the training examples are rendered, and which end their turn."""
    examples = parts["train"].examples
    for line in describe_rendering(tokenizer, examples, chat):
        announce(f"train: {line}")
    rendered = [goes_through_template(tokenizer, e, chat) for e in examples]
    ended = [ends_turn(tokenizer, e, chat, add_eos) for e in examples]
    if any(ended):
        default = " (the default for dialogues; --no_add_eos)" if add_eos is None else ""
        how = describe_endings(tokenizer, [r for r, e in zip(rendered, ended) if e], chat)
        announce(
            f"the answers of {sum(ended)} of {len(ended)} training examples end {how}{default}"
        )
    elif any(rendered):
        announce("the answers do not end their turn (--add_eos has them do so)")


def describe_endings(tokenizer, rendered: Sequence[bool], chat: ChatOptions) -> str:
    """What ends the answers of examples, of which some go through the chat template."""
    if not any(rendered):
        return "with EOS"
    if not closes_turns(tokenizer, chat):
        return "with EOS, as the template closes no turn"
    return "as the template closes a turn" + (", or with EOS" if not all(rendered) else "")
