"""What responses continue, and what shapes them."""

from conftest import LONGROPE, make_model, make_tokenizer, tokenize
from tokenizers import processors

from ranking.data.examples import Dialogue, PreferenceData, PreferenceExample
from ranking.judging.responses import (
    generate_batches,
    preferred_answer,
    tokenize_prompts,
    unique_prompts,
)
from ranking.scoring.chat import AUTO, ChatOptions, Texts
from ranking.scoring.tokenization import tokenize_examples


def test_responses_continue_what_scoring_takes_for_the_prompt(sample_text):
    """A tokenizer's EOS behind the prompt is left out, BOS stands there once."""
    tokenizer = make_tokenizer(sample_text, bos=True, split_words=True)
    steps = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.backend_tokenizer.post_processor = steps
    prompts = [Texts("Is it?", [" yes"]), Texts("<s>Is it?", [" yes"])]
    plain = [0, *tokenizer("Is it?", add_special_tokens=False)["input_ids"]]
    assert tokenize_prompts(tokenizer, prompts, AUTO) == [plain, plain]
    for scored in tokenize(tokenizer, prompts):
        assert list(scored[0].ids[: scored[0].start]) == plain
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    assert tokenize_prompts(tokenizer, prompts[:1], ChatOptions("always")) == [plain]


def test_responses_do_not_depend_on_what_shares_their_batch(tokenizer):
    """LongRoPE: a short prompt beside a long one is answered as by itself."""
    model = make_model("phi3", {**LONGROPE, "max_position_embeddings": 512})
    settings = {"chat_template": False, "temperature": 0.0, "top_p": None, "max_new_tokens": 4,
                "eos_token_id": [1], "stop_strings": ["\n\nHuman:"]}  # fmt: skip
    prompts = [
        PreferenceExample(str(k), "p", text, (), (), (), None, "d", k)
        for k, text in enumerate(["Hi", "word " * 40])
    ]

    def responses(chosen):
        batches = generate_batches(model, tokenizer, chosen, set(), settings, AUTO, 8)
        return {row["id"]: row["response"] for batch in batches for row in batch}

    assert responses(prompts) == responses(prompts[:1]) | responses(prompts[1:])


def test_a_chat_template_opens_the_turn_or_goes_on_with_a_begun_one(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    prompt = "\n\nHuman: number 0?\n\nAssistant:"
    items = [Texts(prompt, ()), Texts(f"{prompt} It is", ())]
    ids = tokenize_prompts(tokenizer, items, ChatOptions("always"))
    texts = ["[user] number 0? [assistant]", "[user] number 0? [assistant] It is"]
    assert ids == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_prompts_of_dialogues_are_rendered_as_for_scoring(tokenizer):
    """With the system message that is asked for, once, in both."""
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    messages = ({"role": "user", "content": "number 0?"},)
    examples = [
        PreferenceExample("a-1", "a", "\n\nHuman: number 0?\n\nAssistant:", ("yes", "no"),
                          (" ", " "), (2, 1), None, "d", 0, Dialogue(messages)),
        PreferenceExample("b-1", "b", "Is it?", ("yes", "no"), (" ", " "), (1, 2), None, "d", 1),
    ]  # fmt: skip
    for chat in (AUTO, AUTO._replace(system="Be brief."), ChatOptions("always", "Be brief.")):
        prompts = unique_prompts(PreferenceData("d", None, None, None, examples, {}, []), chat)
        rendered = tokenize_prompts(tokenizer, prompts, chat)
        scored = tokenize_examples(tokenizer, examples, chat).completions
        for ids, (first, _), said in zip(rendered, scored, ("[user] number 0? ", "Is it?")):
            assert list(first.ids[: len(ids)]) == ids
            text = tokenizer.decode(ids)
            assert text.count("Be brief.") == (chat.system is not None and (
                chat.mode == "always" or said != "Is it?")) and said in text  # fmt: skip
    assert [preferred_answer(p) for p in prompts] == ["no", "yes"]


def test_prompts_are_asked_once_and_none_for_another_of_its_cluster():
    """Two questions of a cluster, one of them twice; the same words with other tools."""
    said = ({"role": "user", "content": "Three?"},)
    tools = [Dialogue(said, ({"name": name},)) for name in "fg"]
    asked = [
        ("One?", None),
        ("Two?", None),
        ("One?", None),
        ("Three?", tools[0]),
        ("Three?", tools[1]),
    ]
    examples = [
        PreferenceExample(str(k), "c", text, ("yes",), ("",), (1,), None, "d", k, dialogue)
        for k, (text, dialogue) in enumerate(asked)
    ]
    data = PreferenceData("d", None, None, None, examples, {}, [])
    assert [prompt.id for prompt in unique_prompts(data)] == ["0", "1", "3", "4"]
