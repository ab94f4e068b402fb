"""What joins a prompt to its completion, and prompts that completions repeat."""

import pytest
from preference_rows import HH, PAIR, SHP, write

from ranking.data.examples import joining
from ranking.data.preferences import load_preferences


def test_separator_follows_the_schema(tmp_path):
    assert load_preferences(write(tmp_path / "shp.jsonl", [SHP])).separator == " "
    assert load_preferences(write(tmp_path / "hh.jsonl", [HH])).examples[0].separators == ("", "")
    name = "Dahoas/synthetic-instruct-gptj-pairwise"
    local, named = write(tmp_path / "own.jsonl", [PAIR]), tmp_path / name / "train.jsonl"
    write(named, [PAIR])
    for data in (load_preferences(local), load_preferences(name, data_dir=tmp_path)):
        assert data.examples[0].separators == (" ", " ")  # whatever the file is named


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("A fruit.", "An apple", " "), ("A fruit.\n", "An apple", ""), ("A fruit.", "\nAn apple", ""),
        ("\n\nHuman: A fruit.\n\nAssistant:", "An apple", ""), ("Assistant:", "An apple", ""),
        ("Answer:", "An apple", " "), ("the assistant:", "An apple", " "),
        ("<|user|>A fruit.<|assistant|>", "An apple", ""), ("[INST] A fruit. [/INST]", "An apple", ""),
        ("a <|> b", "An apple", " "), ("", "An apple", ""),
    ],
)  # fmt: skip
def test_texts_that_touch_are_joined_by_a_space(tmp_path, prompt, completion, expected):
    row = {"prompt": prompt, "chosen": completion, "rejected": " other"}
    data = load_preferences(write(tmp_path / "p.jsonl", [row]))
    assert data.examples[0].separators == (expected, "")
    assert joining(data.examples) == ({"": 2} if expected == "" else {" ": 1, "": 1})
    asked = load_preferences(write(tmp_path / "p.jsonl", [row]), separator=r"\n")
    assert asked.examples[0].separators == ("\n", "\n") and asked.separator == "\n"


def test_a_repeated_prompt_is_read_once(tmp_path):
    """In whole files of whole texts, and wherever the prompt is a dialogue; an answer that happens
    to begin like its question stays as it is."""
    whole = [
        {"prompt": f"Q{k}?", "chosen": f"Q{k}? yes", "rejected": f"Q{k}? no"} for k in range(3)
    ]
    data = load_preferences(write(tmp_path / "w.jsonl", whole))
    assert [e.completions for e in data.examples] == [(" yes", " no")] * 3
    assert "completions repeat the prompt, which is read once: 3 examples" in data.notes
    mixed = load_preferences(write(tmp_path / "w.jsonl", [*whole, PAIR]))
    assert mixed.examples[0].completions == ("Q0? yes", "Q0? no")
    assert "completions begin with the prompt, and stay as they are: 3 examples" in mixed.notes
    nearly = load_preferences(
        write(tmp_path / "w.jsonl", [*whole * 4, {**PAIR, "chosen": ""}, PAIR])
    )
    assert nearly.examples[0].completions == (" yes", " no")  # and one row is no such text
    words = [{"prompt": p, "chosen": f"{p}pple", "rejected": f"{p}nanas"} for p in "AB"]
    (inside, _) = load_preferences(write(tmp_path / "w.jsonl", words)).examples
    assert inside.completions == ("Apple", "Ananas")
    dialogue = {"prompt": "\n\nHuman: q\n\nAssistant: ", **HH}
    dialogue |= {side: f"\n\nHuman: q\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    first, _ = load_preferences(write(tmp_path / "w.jsonl", [dialogue, PAIR])).examples
    assert first.completions == ("chosen", "rejected")
    same = {**whole[0], "rejected": "Q0? yes"}
    assert load_preferences(write(tmp_path / "w.jsonl", [same, whole[1]])).dropped
