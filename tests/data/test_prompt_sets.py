"""Prompts to be answered, in the forms of AlpacaEval, Arena-Hard, MT-bench, lines and tables."""

import json
from pathlib import Path

import pytest

from ranking.data.prompt_sets import load_prompts
from ranking.plumbing.result_files import write_json_lines


def asked_of(data) -> list[list[tuple[str, str]]]:
    return [[(m["role"], m["content"]) for m in e.dialogue.messages] for e in data.examples]


def user(*texts: str) -> list[list[tuple[str, str]]]:
    return [[("user", text)] for text in texts]


def test_alpaca_eval_has_an_output_beside_each_instruction(tmp_path):
    """Words as they stand; its outputs are what `--against chosen` takes."""
    rows = [
        {"dataset": "helpful_base", "instruction": " What is {output_1}?\n", "output": "A name.",
         "generator": "text_davinci_003"},
        {"dataset": "koala", "instruction": "Write a poem.", "output": "", "generator": "x"},
        {"dataset": "koala", "instruction": "", "output": "Well?", "generator": "x"},
    ]  # fmt: skip
    file = tmp_path / "alpaca_eval.json"
    file.write_text(json.dumps(rows))
    data = load_prompts(str(file), columns={"group": "dataset"})
    assert asked_of(data) == user(" What is {output_1}?\n", "Write a poem.")
    assert [e.completions for e in data.examples] == [("A name.",), ()]
    assert [e.groups["dataset"] for e in data.examples] == ["helpful_base", "koala"]
    assert data.examples[1].prompt == "\n\nHuman: Write a poem.\n\nAssistant:"
    assert data.dropped == {"empty prompt": 1} and data.name == str(file)
    assert "prompts are read from instruction, answers from output" in data.notes


@pytest.mark.parametrize(
    "row",
    [{"question_id": 81, "category": "writing", "turns": ["Why?", "Shorter."], "reference": ["a", "b"]},
     {"question_id": "x", "category": "hard", "cluster": "c", "turns": [{"content": "Why?"}]},
     {"uid": "y", "category": "hard_prompt", "subcategory": "code", "prompt": "Why?"},
     {"prompt": ["Why?", "Shorter."], "reference": []},
     {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
     {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": "So.", "rejected": "No."}],
    ids=["MT-bench", "Arena-Hard 0.1", "Arena-Hard 2", "MT-bench on the hub", "ShareGPT", "HH"],
)  # fmt: skip
def test_first_turns(row, tmp_path):
    file = tmp_path / "question.jsonl"
    write_json_lines(file, [row, {**row, "category": "other"}])
    data = load_prompts(str(file))
    assert asked_of(data) == user("Why?", "Why?")
    assert (
        len({e.id for e in data.examples}) == 2 and len({e.prompt_id for e in data.examples}) == 1
    )
    left_out = {"Shorter.": "turns after the first are left out: 2 prompts",
                "So.'}": "answers after the last question are left out: 2 prompts"}  # fmt: skip
    for text, note in left_out.items():
        assert (note in data.notes) == (text in str(row))
    if "category" in row:
        assert [e.groups["category"] for e in data.examples] == [row["category"], "other"]


def test_dialogues_stay_whole_up_to_the_question(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"},
             {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]  # fmt: skip
    file = tmp_path / "chats.jsonl"
    write_json_lines(file, [{"messages": turns}, {"messages": turns[2:3]}])
    data = load_prompts(str(file))
    assert asked_of(data) == [[(t["role"], t["content"]) for t in turns]]
    assert data.dropped == {"no turn of the user's": 1}


def test_lines_of_text_and_tables(tmp_path):
    """Any column by --columns; samples are drawn by the seed, as of other data."""
    lines = tmp_path / "prompts.txt"
    lines.write_text("\ufeffWhy?\n\n  \nHow?\n")
    assert asked_of(load_prompts(str(lines))) == user("Why?", "How?")
    table = tmp_path / "t.csv"
    table.write_text("id,goal,target\n1,Why?,So.\n2,How?,\n")
    columns = {"prompt": "goal", "completion": "target"}
    data = load_prompts(str(table), columns=columns)
    assert [e.completions for e in data.examples] == [("So.",), ()]
    many = tmp_path / "many.txt"
    many.write_text("\n".join(map(str, range(50))))
    few = [load_prompts(str(many), sample_size=10, seed=seed) for seed in (0, 0, 1)]
    drawn = [[e.row for e in data.examples] for data in few]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 10
    assert [e.prompt.split()[1] for e in few[0].examples] == list(map(str, drawn[0]))
    more = load_prompts(str(lines), sample_size=9)
    assert "2 prompts, fewer than the 9 asked for: all taken" in more.notes


def test_what_holds_no_prompts_is_one_line(tmp_path):
    file = tmp_path / "pairs.jsonl"
    write_json_lines(file, [{"chosen": "a", "rejected": "b"}])
    with pytest.raises(
        ValueError, match=r"pairs.jsonl: no column for the prompt \(found chosen, r"
    ):
        load_prompts(str(file))
    with pytest.raises(ValueError, match="--columns chosen: prompts have no preference"):
        load_prompts(str(file), columns={"prompt": "chosen", "chosen": "rejected"})
    for wrong in (3, ["a", 1]):
        write_json_lines(file, [{"prompt": "Why?"}, {"prompt": wrong}])
        with pytest.raises(ValueError, match=r"pairs.jsonl: row 2: column 'prompt' should be text"):
            load_prompts(str(file))
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    with pytest.raises(ValueError, match="blank.txt: no rows"):
        load_prompts(str(blank))
    Path(blank).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="blank.txt: cannot be read"):
        load_prompts(str(blank))
    write_json_lines(file, [{"prompt": ""}])
    with pytest.raises(ValueError, match=r"no usable prompt left of 1 \(empty prompt: 1\)"):
        load_prompts(str(file))


def test_a_line_ends_where_an_editor_says_so(tmp_path):
    """Other marks of Unicode stay inside of a prompt."""
    file = tmp_path / "prompts.txt"
    texts = ["One\u2028two\x0bthree\x85four?", "Why?"]
    file.write_bytes("\r\n".join([*texts, ""]).encode())
    assert asked_of(load_prompts(str(file))) == user(*texts)


def test_a_part_of_a_prompt_that_is_not_read_is_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    write_json_lines(
        file, [{"question": "Why?"}, {"question": "What is it?", "document": "A text."}]
    )
    with pytest.raises(ValueError, match="row 2: column 'document' is part of the prompt") as error:
        load_prompts(str(file))
    assert "\n" not in str(error.value)
    write_json_lines(file, [{"question": "Why?", "document": " "}])
    assert asked_of(load_prompts(str(file))) == user("Why?")


def test_an_answer_that_is_json_stays_text_and_a_number_is_no_missing_one(tmp_path):
    file = tmp_path / "rows.jsonl"
    written = json.dumps([{"role": "assistant", "content": "Hello."}])
    rows = [{"prompt": "Write JSON.", "output": written}, {"prompt": "Why?", "output": "So."}]
    write_json_lines(file, rows)
    assert [e.completions for e in load_prompts(str(file)).examples] == [(written,), ("So.",)]
    write_json_lines(
        file, [{"prompt": "1 + 1?", "output": None}, {"prompt": "1 + 1?", "output": 2}]
    )
    with pytest.raises(ValueError, match="row 2: column 'output' should be text, found int"):
        load_prompts(str(file))
