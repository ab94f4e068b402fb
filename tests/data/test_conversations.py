"""Rows without a preference, in the forms that SFT data have."""

import json

import pytest
from preference_rows import write

from ranking.data.preferences import load_preferences

TALK = [("user", "Hi"), ("assistant", "Hello."), ("user", "More"), ("assistant", "No.")]
MESSAGES = [{"role": role, "content": text} for role, text in TALK]
SHAREGPT = [{"from": {"user": "human"}.get(role, "gpt"), "value": text} for role, text in TALK]
SYSTEM = {"role": "system", "content": "Be brief."}
THANKS = {"role": "user", "content": "Thanks"}


def read(tmp_path, *rows):
    return load_preferences(write(tmp_path / "rows.jsonl", rows), conversations=True)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": MESSAGES}, MESSAGES),
        ({"conversations": SHAREGPT}, MESSAGES),
        ({"messages": [*MESSAGES, THANKS], "source": "x"}, MESSAGES),  # ends with an answer
        ({"system": "Be brief.", "conversations": SHAREGPT}, [SYSTEM, *MESSAGES]),
        ({"prompt": "Hi", "messages": MESSAGES, "prompt_id": "7"}, MESSAGES),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, MESSAGES),
        ({"messages": MESSAGES, "label": True}, MESSAGES),
    ],
)
def test_conversations(tmp_path, row, messages):
    """All their messages, no completion beside them, and what stands in without a template."""
    (example,) = read(tmp_path, row).examples
    assert list(example.dialogue.messages) == messages
    turns = "".join(
        m["content"] if m["role"] == "system" else f"\n\n{speaker}: {m['content']}"
        for m in messages
        for speaker in [{"user": "Human", "assistant": "Assistant"}.get(m["role"])]
    )
    assert example.prompt + example.separators[0] + example.completions[0] == turns
    assert example.completions == ("",) and example.ranks == (1,) and example.votes is None


def test_tools_and_template_arguments_go_with_a_conversation(tmp_path):
    row = {"messages": MESSAGES, "tools": '[{"name": "f"}]', "chat_template_kwargs": {"a": True}}
    (example,) = read(tmp_path, row).examples
    assert example.dialogue.tools == ({"name": "f"},)
    assert example.dialogue.template_kwargs == {"a": True}


@pytest.mark.parametrize(
    ("row", "text", "has_dialogue"),
    [
        ({"prompt": "Q?", "completion": "A."}, "Q? A.", False),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "Add\n1 2 3", False),
        ({"text": "Some text."}, "Some text.", False),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:2]},
         "\n\nHuman: Hi\n\nAssistant: Hello.", True),
        ({"system": "Be brief.", "prompt": "Hi", "response": "Hello."},
         "Be brief.\n\nHuman: Hi\n\nAssistant: Hello.", True),
    ],
)  # fmt: skip
def test_prompts_with_an_answer_and_texts(tmp_path, row, text, has_dialogue):
    (example,) = read(tmp_path, row).examples
    assert example.prompt + example.separators[0] + example.completions[0] == text
    assert (example.dialogue is not None) == has_dialogue


def test_drops_and_notes(tmp_path):
    rows = [
        {"messages": MESSAGES}, {"messages": MESSAGES, "label": False}, {"messages": [THANKS]},
        {"messages": []}, {"messages": [THANKS, {"role": "assistant", "content": " "}]},
    ]  # fmt: skip
    data = read(tmp_path, *rows)
    assert data.dropped == {
        "marked as a bad answer": 1, "no assistant turn": 1, "empty conversation": 1,
        "empty turn": 1,
    }  # fmt: skip
    assert data.notes == ["conversations, without a preference"]


def test_conversations_that_open_alike_are_one_cluster(tmp_path):
    other = [*MESSAGES[:1], {"role": "assistant", "content": "Yes?"}]
    apart = [THANKS, *MESSAGES[1:]]
    examples = read(tmp_path, *({"messages": m} for m in (MESSAGES, other, apart))).examples
    first, second, third = (example.prompt_id for example in examples)
    assert first == second != third


def test_equal_texts_are_one_cluster(tmp_path):
    """Of different ones, and of answers to nothing, each is its own."""
    for column in ("text", "completion"):
        rows = [{"prompt": "", column: text} for text in ("Once.", "Once.", "Twice.")]
        first, second, third = (e.prompt_id for e in read(tmp_path, *rows).examples)
        assert first == second != third


def test_a_preference_comes_first(tmp_path):
    """Of rows that hold both; and a question that is not in the messages is not lost silently."""
    pair = {"prompt": "Hi", "messages": MESSAGES[:2], "chosen": MESSAGES[:2],
            "rejected": [*MESSAGES[:1], {"role": "assistant", "content": "No."}]}  # fmt: skip
    (example,) = read(tmp_path, pair).examples
    assert example.completions == ("Hello.", "No.")
    with pytest.raises(ValueError, match="row 1: column 'prompt' is part of the prompt"):
        read(tmp_path, {"prompt": "Something else", "messages": MESSAGES})


def test_without_being_asked_for_they_are_refused_in_one_line(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"messages": MESSAGES}])
    with pytest.raises(ValueError) as error:
        load_preferences(path)
    assert str(error.value).endswith("; conversations are for sft.py")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown columns"):
        read(tmp_path, {"x": 1})


@pytest.mark.parametrize("target", ["ranks", "scores", "votes", "chosen"])
def test_a_preference_that_is_named_and_not_found_is_no_conversation(tmp_path, target):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
             "w": 1}]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", rows)
    assert load_preferences(path, conversations=True).examples
    with pytest.raises(ValueError) as error:
        load_preferences(path, conversations=True, columns={target: "w"})
    assert "\n" not in str(error.value)


def test_rows_without_an_answer_are_dropped(tmp_path):
    rows = [
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q"},
        {"prompt": "Q", "completion": None},
        {"prompt": "Q", "completion": ""},
    ]
    data = read(tmp_path, *rows)
    assert data.dropped == {"empty completion": 3} and len(data.examples) == 1


def test_one_answer_that_is_json_stays_text(tmp_path):
    """Where somebody asked for some; in a column that holds messages throughout they are read."""
    written = json.dumps([{"role": "assistant", "content": "Hello."}])
    asked = {"prompt": "Write messages as JSON.", "completion": written}
    first, _ = read(tmp_path, asked, {"prompt": "Q", "completion": "A"}).examples
    assert first.completions == (written,) and first.dialogue is None
    (example,) = read(tmp_path, {"prompt": "Hi", "completion": written}).examples
    assert example.completions == ("Hello.",) and example.dialogue is not None


@pytest.mark.parametrize("bad", ["False", "false"])
def test_a_bad_answer_in_a_table_of_text(tmp_path, bad):
    (tmp_path / "rows.csv").write_text(f"prompt,completion,label\nQ,A,True\nQ,B,{bad}\n")
    data = load_preferences(str(tmp_path / "rows.csv"), conversations=True)
    assert data.dropped == {"marked as a bad answer": 1}
    assert [e.completions for e in data.examples] == [("A",)]


def test_of_two_dialogues_and_two_answers_it_is_said_which_is_read(tmp_path):
    """The same in two notations is one; an id is none; another one is not lost silently."""
    for other in (SHAREGPT, "id-7", 2):
        (example,) = read(tmp_path, {"conversation": other, "messages": MESSAGES}).examples
        assert list(example.dialogue.messages) == MESSAGES
    with pytest.raises(ValueError, match="row 1: column 'messages' is part of the prompt"):
        read(tmp_path, {"conversations": SHAREGPT, "messages": MESSAGES[:2]})
    data = read(tmp_path, {"prompt": "Q", "response": "B", "completion": "A"})
    assert data.notes == ["prompts with an answer in completion, without a preference"]
