"""The chat template in training: what goes through it, and which answers end their turn."""

from collections.abc import Mapping

from ranking.data.examples import PreferenceData, PreferenceExample
from ranking.plumbing.processes import announce
from ranking.scoring.chat import ChatOptions, Texts, check_template, goes_through_template


def use_template(tokenizer, chat: ChatOptions, name: str) -> None:
    """Give the tokenizer of model `name` the template of --chat_template_file, which is saved with
    it. ValueError where --chat_template always has none to use."""
    check_template(tokenizer, chat, name)
    if chat.template is not None:
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
    """Lines that say how many of the training examples go through the chat template, and which end
    their turn."""
    examples = parts["train"].examples
    n = len(examples)
    n_rendered = sum(goes_through_template(tokenizer, e, chat) for e in examples)
    n_dialogues = sum(e.dialogue is not None for e in examples)
    n_ended = sum(ends_turn(tokenizer, e, chat, add_eos) for e in examples)
    if n_rendered:
        announce(f"{n_rendered} of {n} training examples go through the chat template")
    elif n_dialogues:
        why = "--chat_template never" if chat.mode == "never" else "the tokenizer has no template"
        announce(f"{n_dialogues} dialogues are written as Human: and Assistant: turns ({why})")
    elif getattr(tokenizer, "chat_template", None) and chat.mode == "auto":
        announce("the data are text, and stay so beside the tokenizer's chat template "
                 "(--chat_template always puts them through it)")  # fmt: skip
    if n_ended:
        default = " (the default for dialogues; --no_add_eos)" if add_eos is None else ""
        how = "as the template closes a turn" if n_rendered == n else "as a template or with EOS"
        announce(f"the answers of {n_ended} of {n} training examples end {how}{default}")
    elif n_rendered:
        announce("the answers do not end their turn (--add_eos has them do so)")
