"""Spans of the assistant's turns in hand-marked renderings of templates in known styles."""

import pytest
from conftest import make_tokenizer
from marked_texts import marked

from ranking.data.cells import Dropped
from ranking.data.examples import Dialogue
from ranking.scoring.chat import ChatOptions, Texts
from ranking.training.turns import rendered_turns

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
GENERATION = """{%- for m in messages -%}
    {%- if m.role == 'assistant' -%}
        <|im_start|>assistant
{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}
{%- else -%}
        <|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif -%}
{%- endfor -%}"""
LLAMA_3 = """<s>{% for m in messages %}<|start|>{{ m.role }}<|end|>

{{ m.content | trim }}<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>

{% endif %}"""
# the last turn keeps its thinking, and has an empty one written where it has none
QWEN_3 = """{% for m in messages %}<|im_start|>{{ m.role }}
{% set text = m.content.split('</think>')[-1].lstrip() %}{% if m.role == 'assistant' and loop.last %}{% if
'</think>' in m.content %}{{ m.content }}{% else %}<think>

</think>

{{ m.content }}{% endif %}{% else %}{{ text }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
MISTRAL = """<s>{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{
raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{%
else %} {{ m.content }}</s>{% endif %}{% endfor %}"""
UPPER = """{% for m in messages %}{{ m.role }}: {{ m.content | upper }}{% if not loop.last %} / {%
endif %}{% endfor %}{% if add_generation_prompt %} > {% endif %}"""
TALK = (("user", "Hi"), ("assistant", "Hello."), ("user", "More"), ("assistant", "No."))


def messages(*turns) -> tuple:
    return tuple({"role": role, "content": text} for role, text in turns)


def turns_of(template: str, *turns, ended: bool = True, **kwargs) -> tuple[str, list]:
    """The rendering of a conversation, and the spans that are trained."""
    tokenizer = make_tokenizer("some words", bos=False)
    chat = ChatOptions(template=template, kwargs=kwargs)
    return rendered_turns(
        tokenizer, Texts("", ("",), ("",), None, Dialogue(messages(*turns))), chat, ended
    )


IM = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "written", "kwargs"),
    [
        (CHATML, IM + "⟦Hello.<|im_end|>\n⟧<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n⟦No.<|im_end|>\n⟧", {}),
        (GENERATION, IM + "⟦Hello.<|im_end|>⟧\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n⟦No.<|im_end|>⟧\n", {}),
        (LLAMA_3, "<s><|start|>user<|end|>\n\nHi<|eot|><|start|>assistant<|end|>\n\n⟦Hello.<|eot|>⟧"
                  "<|start|>user<|end|>\n\nMore<|eot|><|start|>assistant<|end|>\n\n⟦No.<|eot|>⟧", {}),
        (MISTRAL, "<s>[INST] Hi [/INST]⟦ Hello.</s>⟧[INST] More [/INST]⟦ No.</s>⟧", {}),
        # its prompt is not how a turn begins: it begins where another answer would
        (UPPER, "user: HI / assistant: ⟦HELLO.⟧ / user: MORE / assistant: ⟦NO.⟧", {}),
        (QWEN_3, IM + "⟦Hello.<|im_end|>\n⟧<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"
                 "⟦<think>\n\n</think>\n\nNo.<|im_end|>\n⟧", {}),
        (QWEN_3, IM + "⟦Hello.<|im_end|>\n⟧<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"
                 "<think>\n\n</think>\n\n⟦No.<|im_end|>\n⟧", {"enable_thinking": False}),
    ],
)  # fmt: skip
def test_turns_of_a_conversation(template, written, kwargs):
    """With what closes them, and without."""
    text, spans = turns_of(template, *TALK, **kwargs)
    assert (text, spans) == marked(written)
    _, bare = turns_of(template, *TALK, ended=False, **kwargs)
    wanted = [text[a:b].replace("<|im_end|>", "").rstrip("\n") for a, b in spans]
    wanted = [turn.replace("<|eot|>", "").replace("</s>", "") for turn in wanted]
    assert [text[a:b] for a, b in bare] == wanted


def test_thinking_that_a_later_rendering_leaves_out():
    """Of a past turn only what stands in the whole dialogue is trained; of the last, all."""
    talk = (("user", "Hi"), ("assistant", "<think>\nmh\n</think>\n\nHello."), ("user", "More"),
            ("assistant", "<think>\nso\n</think>\n\nNo."))  # fmt: skip
    text, spans = turns_of(QWEN_3, *talk)
    turns = [text[a:b] for a, b in spans]
    assert turns == ["Hello.<|im_end|>\n", "<think>\nso\n</think>\n\nNo.<|im_end|>\n"]
    assert "mh" not in text


def test_assistant_first_and_twice():
    talk = (("assistant", "Welcome."), ("assistant", "Ask."), ("user", "Hi"), ("assistant", "Yes."))
    text, spans = turns_of(CHATML, *talk)
    ends = [text[a:b] for a, b in spans]
    assert ends == ["Welcome.<|im_end|>\n", "Ask.<|im_end|>\n", "Yes.<|im_end|>\n"]


def test_refused_and_lost_turns_are_dropped_with_their_reason():
    twice = (("user", "Hi"), ("user", "There"), ("assistant", "Yes."))
    with pytest.raises(Dropped, match="chat template refuses the dialogue"):
        turns_of(MISTRAL, *twice)
    counted = "{{ messages | length }} {% for m in messages %}{{ m.content | length }},{% endfor %}"
    with pytest.raises(Dropped, match="an assistant turn is not found in what the chat template"):
        turns_of(counted, *TALK)


def test_system_tools_and_arguments_reach_the_template():
    template = "{% if tools %}{{ tools[0].name }} {% endif %}{{ tone }}|" + CHATML
    tokenizer = make_tokenizer("some words", bos=False)
    dialogue = Dialogue(messages(*TALK[:2]), ({"name": "search"},), {"tone": "kind"})
    chat = ChatOptions(template=template, system="Be brief.")
    text, spans = rendered_turns(tokenizer, Texts("", ("",), ("",), None, dialogue), chat, True)
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert (text, spans) == marked("search kind|" + system + IM + "⟦Hello.<|im_end|>\n⟧")
