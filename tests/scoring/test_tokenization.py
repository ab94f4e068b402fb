"""Which token ids belong to a completion, against the tokenizer and by hand."""

import numpy as np
import pytest
from conftest import make_tokenizer, reasons_to_drop, tokenize
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ranking.data.dialogues import parse_dialogue
from ranking.scoring.chat import ChatOptions
from ranking.scoring.tokenization import EXAMPLES_PER_CALL

ALWAYS = ChatOptions("always")

PAIRS = [
    ("Hello wor", ["ld is here", "k"]),  # mid-word
    ("Question:", [" leading space", "\n\nnewlines"]),
    ("Ünïcode 世界", ["你好，世界", " — naïve"]),
    ("Emoji 👩‍👩‍👧", ["👧👧 yes", "\U0001f600"]),
    ("Ends in spaces   ", ["   and more", "x"]),
    ("Answer:\n", ["\n\n\ntext", "…"]),
]  # fmt: skip


@pytest.mark.parametrize("trim_offsets", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_boundary_is_the_first_token_that_ends_after_the_prompt(sample_text, bos, trim_offsets):
    tokenizer = make_tokenizer(sample_text, bos, trim_offsets)
    for (prompt, texts), completions in zip(PAIRS, tokenize(tokenizer, PAIRS)):
        for text, completion in zip(texts, completions):
            ids = list(completion.ids)
            assert ids == tokenizer(prompt + text)["input_ids"]
            assert (ids[0] == tokenizer.bos_token_id) == bos
            front = int(bos)
            ends = np.cumsum([len(token_bytes(tokenizer, i)) for i in ids[front:]])
            after = np.flatnonzero(ends > len(prompt.encode()))
            assert completion.start == front + after[0]


def token_bytes(tokenizer, token_id: int) -> str:
    """Byte-level tokens have one character for each byte of text."""
    return tokenizer.convert_ids_to_tokens(token_id)


def test_separator_belongs_to_the_completion(tokenizer):
    (with_space,) = tokenize(tokenizer, [("a b", ["c", "d"], (" ", ""))])
    (glued,) = tokenize(tokenizer, [("a b", [" c", "d"])])
    assert with_space == glued


def test_eos_only_on_demand_and_mask_by_position(tokenizer):
    plain, closed = (tokenize(tokenizer, [("a", [" b</s> c", " d"])], add_eos=e)[0] for e in (0, 1))
    assert [c.ids[-1] for c in closed] == [1, 1] and plain[1].ids[-1] != 1
    assert [a.ids for a in closed] == [(*b.ids, 1) for b in plain]
    assert (
        1 in plain[0].ids[plain[0].start :]
    )  # an EOS inside the text is scored although pad = EOS


def test_a_text_that_ends_with_eos_gets_no_second(tokenizer):
    """As the same text without, white space after it included; its own EOS counts without the flag."""
    (once,) = tokenize(tokenizer, [("a", [" b", " c"])], add_eos=True)
    for ending in ("</s>", "</s>\n", "</s></s>"):
        (twice,) = tokenize(tokenizer, [("a", [f" b{ending}", " c"])], add_eos=True)
        assert twice == once
    (own,) = tokenize(tokenizer, [("a", [" b</s>", " c"])])
    assert own[0] == once[0]


def test_completions_equal_in_tokens_cannot_be_ranked(tokenizer, chat):
    texts, same = ["yes", " yes\n", "no"], {"identical completions": 1}
    assert reasons_to_drop(chat, [("q", texts[:2])], chat=ALWAYS) == same
    ranked = [("q", texts, None, (1, 2, 3))]
    assert reasons_to_drop(chat, ranked, chat=ALWAYS) == same
    (tied,) = tokenize(chat, [("q", texts, None, (1, 1, 2))], chat=ALWAYS)
    assert len(tied) == 3
    assert reasons_to_drop(tokenizer, [("q", [" a</s>", " a"])], add_eos=True) == same
    assert len(tokenize(tokenizer, [("q", texts[:2])])) == 1


def test_many_texts_are_tokenized_in_parts(tokenizer):
    examples = [(f"p {k}", [f" a {k}", f" b {k % 7}"]) for k in range(2 * EXAMPLES_PER_CALL + 3)]
    parts = tokenize(tokenizer, examples)
    assert parts == [tokenize(tokenizer, [example])[0] for example in examples]
    ids = [i for example in parts for c in example for i in c.ids]
    assert len({id(i) for i in ids}) == len(set(ids))  # one object for a number: 8 bytes a token


def test_token_ids_may_have_gaps():
    """A vocabulary of three words, of which the last has a large id."""
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 70_000}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    gapped = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b")
    (example,) = tokenize(gapped, [("a b", [" c", " a"])])
    assert [c.ids for c in example] == [(0, 1, 70_000), (0, 1, 0)]


def test_bos_is_never_doubled(tokenizer):
    (example,) = tokenize(tokenizer, [("<s>Hi", [" a", " b"])])
    assert [example[0].ids.count(0), example[0].ids[0]] == [1, 0]


def test_long_prompts_are_cut_from_the_left_after_bos(tokenizer):
    prompt, texts = "one two three four five six seven eight nine ten", [" yes", " certainly not"]
    (whole,) = tokenize(tokenizer, [(prompt, texts)])
    limit = len(whole[1].ids) - 3
    (cut,) = tokenize(tokenizer, [(prompt, texts)], max_length=limit)
    assert cut[1].truncated and len(cut[1].ids) == limit and cut[1].ids[0] == 0
    assert cut[1].ids[1:] == whole[1].ids[4:] and cut[1].start == whole[1].start - 3
    assert cut[1].ids[cut[1].start :] == whole[1].ids[whole[1].start :]


def test_reasons_to_drop(tokenizer, tokenizer_without_bos):
    text = ["some longer completion text", "x"]
    assert reasons_to_drop(tokenizer, [("p", text)], max_length=3) == {"too long": 1}
    assert reasons_to_drop(tokenizer_without_bos, [("", text)]) == {"no token of context": 1}
    assert len(tokenize(tokenizer, [("", text)])) == 1
    n = len(tokenize(tokenizer_without_bos, [("p", text)])[0][0].ids)
    limited = reasons_to_drop(tokenizer_without_bos, [("p", text)], max_length=n - 1)
    assert limited == {"too long": 1}  # cutting would leave no context


@pytest.fixture(scope="module")
def chat(tokenizer):
    """The tokenizer with a chat template that writes BOS and closes turns with </s>."""
    import copy

    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return chat


def test_chat_template(chat):
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
    example = [(dialogue, [" Because.", " No."])]
    (found,) = tokenize(chat, example, chat=ALWAYS)
    prompt = "<s>[user]Hi</s>[assistant]Hello.</s>[user]Why?</s>[assistant]"
    assert list(found[0].ids) == chat(prompt + "Because.", add_special_tokens=False)["input_ids"]
    (closed,) = tokenize(chat, example, chat=ALWAYS, add_eos=True)
    assert closed[0].ids == (*found[0].ids, 1)
    ended = [(dialogue, [" Because.</s>", " No.</s>\n"])]
    assert tokenize(chat, ended, chat=ALWAYS) == [found]
    assert tokenize(chat, ended, chat=ALWAYS, add_eos=True) == [closed]


def test_dialogues_with_a_preamble_or_a_begun_answer(chat):
    """What stands before the first turn is the system's; a begun answer is gone on with."""
    turns = "\n\nHuman: A fruit?\n\nAssistant: An apple.\n\nHuman: Another?\n\nAssistant:"
    assert parse_dialogue(f"Talk like a pirate.{turns}") == [
        {"role": "system", "content": "Talk like a pirate."},
        {"role": "user", "content": "A fruit?"},
        {"role": "assistant", "content": "An apple."},
        {"role": "user", "content": "Another?"},
    ]
    again = "\n\nHuman: A fruit?\n\nAssistant: An\n\nAssistant:"  # an empty turn opens none
    assert parse_dialogue(again)[-1] == {"role": "assistant", "content": "An"}
    assert parse_dialogue("\n\nHuman:\n\nHuman: b\n\nAssistant:") == [
        {"role": "user", "content": "b"}
    ]
    assert parse_dialogue("Assistant:") == [{"role": "user", "content": ""}]
    assert parse_dialogue("A fruit?\n\nAssistant:") == [{"role": "user", "content": "A fruit?"}]
    texts = {
        "\n\nHuman: 6 times 7?\n\nAssistant: It is": (
            [" 42", "\n41"],
            [" "] * 2,
            "It is 42",
            "It is\n41",
        ),
        "\n\nHuman: 6 times 7?\n\nAssistant: It is ": (
            ["42", "41"],
            [""] * 2,
            "It is 42",
            "It is 41",
        ),
        "\n\nHuman: 6 times 7?\n\nAssistant: It": (["is 42", "'s"], [" ", ""], "It is 42", "It's"),
    }
    for prompt, (completions, separators, *expected) in texts.items():
        separators = ["" if c[0].isspace() else s for s, c in zip(separators, completions)]
        (found,) = tokenize(chat, [(prompt, completions, separators)], chat=ALWAYS)
        head = "<s>[user]6 times 7?</s>[assistant]"
        for completion, text in zip(found, expected):
            assert list(completion.ids) == chat(head + text, add_special_tokens=False)["input_ids"]
