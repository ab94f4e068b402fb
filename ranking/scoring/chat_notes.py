"""Lines that say how the examples of a dataset are rendered."""

from collections.abc import Sequence
from dataclasses import replace

from jinja2.meta import find_undeclared_variables

from ranking.scoring.chat import (
    AUTO,
    PROBE,
    Asked,
    ChatOptions,
    Texts,
    applied_to,
    as_key,
    goes_through_template,
    has_system,
    has_template,
    messages_of,
    parse_template,
    render_example,
    render_prompt,
    takes_system,
)


def describe_rendering(tokenizer, examples: Sequence[Asked], chat: ChatOptions = AUTO) -> list[str]:
    """What users should know of how examples are rendered, in lines."""
    inside = [goes_through_template(tokenizer, example, chat) for example in examples]
    dialogues = [example.dialogue for example in examples if example.dialogue]
    n, n_inside, n_dialogues = len(examples), sum(inside), len(dialogues)
    lines = []
    if n_inside < n and chat.mode == "auto" and has_template(tokenizer, chat):
        lines.append(
            f"{n - n_inside} of {n} prompts are plain text and stay so, although the model has a "
            "chat template (--chat-template always puts them into it)"
        )
    if n_dialogues and not n_inside:
        why = "as asked" if chat.mode == "never" else "the model has no chat template"
        lines.append(f"{n_dialogues} dialogues are written as Human: and Assistant: turns ({why})")
    if chat.system is not None and not n_inside and not n_dialogues:
        lines.append("--system does nothing: the prompts are plain text")
    given = {"kwargs": chat.kwargs, "file": chat.template}
    for name in [name for name, value in given.items() if value and not n_inside]:
        lines.append(f"--chat-template-{name} does nothing: no prompt goes through a template")
    if n_inside:
        lines.append(f"{n_inside} of {n} prompts go through the chat template")
        rendered = [example for example, goes in zip(examples, inside) if goes]
        lines += peculiarities(tokenizer, rendered, chat)
    return lines


def peculiarities(tokenizer, examples: Sequence[Asked], chat: ChatOptions) -> list[str]:
    """What a template does otherwise than others, if it matters for these examples."""
    template, _, settings = applied_to(tokenizer, chat, None)
    lines = []
    read = find_undeclared_variables(parse_template(template))
    if unread := sorted(chat.kwargs.keys() - read):
        lines.append(f"it does not read {', '.join(unread)} of --chat-template-kwargs")
    systems = any(has_system(messages_of(example, chat)) for example in examples)
    if systems and not takes_system(tokenizer, template, as_key(settings)):
        lines.append("it takes no system message, which stands before the next user message")
    with_tools = [example for example in examples if example.dialogue and example.dialogue.tools]
    if with_tools and not writes_tools(tokenizer, with_tools[0], chat):
        lines.append(f"it writes no tools: those of {len(with_tools)} dialogues are not seen")
    if "strftime_now" in template and not {"date_string", "date"} & settings.keys():
        lines.append(
            "it writes today's date, with which log-likelihoods change (some take "
            """--chat-template-kwargs '{"date_string": "26 Jul 2024"}')"""
        )
    question = Texts("a", [PROBE])
    always = chat._replace(mode="always")
    if render_example(tokenizer, question, always).prompt != render_prompt(
        tokenizer, question, always
    ):
        lines.append(
            "it opens an answer that is to be written otherwise than a finished one: answers are "
            "scored as finished turns"
        )
    return ["the chat template: " + line for line in lines]


def writes_tools(tokenizer, item: Asked, chat: ChatOptions) -> bool:
    """Whether the tools of a dialogue are in its rendering."""
    bare = Texts(item.prompt, (), dialogue=replace(item.dialogue, tools=None))
    try:
        return render_prompt(tokenizer, item, chat) != render_prompt(tokenizer, bare, chat)
    except ValueError:
        return True  # it is dropped
