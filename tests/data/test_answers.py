"""Answers of a row, where more than their text is read."""

import json

from preference_rows import PAIR, write

from ranking.data.preferences import load_preferences
from ranking.plumbing.result_files import write_json_lines


def test_both_questions_of_reward_bench_2_ties_are_one_cluster(tmp_path):
    """ref:7 and tied:7 belong together, tied:8 and a row of another kind of id do not."""
    rows = [
        {"id": name, "prompt": f"Question {k}?", "chosen": right, "rejected": ["no", "none"],
         "num_correct": len(right), "subset": "Ties"}
        for k, (name, right) in enumerate(
            [("ref:7", ["one"]), ("tied:7", ["one", "two"]), ("tied:8", ["one", "two"]), ("7", ["one"])]
        )
    ]  # fmt: skip
    write_json_lines(tmp_path / "ties.jsonl", rows)
    examples = load_preferences(str(tmp_path / "ties.jsonl"), group_by=["subset"]).examples
    ref, tied, *others = sorted(examples, key=lambda example: example.row)
    assert ref.prompt_id == tied.prompt_id
    assert len({example.prompt_id for example in examples}) == 3 and len(others) == 2
    assert [example.ranks for example in (ref, tied)] == [(1, 2, 2), (1, 1, 2, 2)]
    assert tied.groups["subset"] == "Ties"


def test_one_answer_that_is_json_stays_text(tmp_path):
    """A column holds messages where most of its cells do; not where somebody asked for some."""
    x, y = (json.dumps([{"role": "assistant", "content": text}]) for text in "xy")
    path = tmp_path / "rows.jsonl"
    asked = {**PAIR, "prompt": "Write messages as JSON."}
    for json_row in (
        {**asked, "chosen": x},
        {**asked, "chosen": x, "rejected": y},
        {**asked, "chosen": str(json.loads(x))},
    ):
        first, second = load_preferences(write(path, [json_row, PAIR])).examples
        assert first.completions == (json_row["chosen"], json_row["rejected"])
        assert first.dialogue is None and second.completions == ("a", "b")
    quoted = {**PAIR, "prompt": json.dumps([{"role": "user", "content": "Hi"}])}
    assert load_preferences(write(path, [PAIR, quoted])).examples[1].prompt == quoted["prompt"]
    labelled = {"prompt": "p", "response_a": "a", "response_b": "b", "label": "A"}
    first, _ = load_preferences(write(path, [{**labelled, "response_b": y}, labelled])).examples
    assert first.completions == ("a", y)
    messages = {**PAIR, "chosen": x, "rejected": y}
    (example,) = load_preferences(write(path, [messages])).examples
    assert example.completions == ("x", "y") and example.dialogue is not None


def test_lists_of_the_papers_columns_with_other_scores(tmp_path):
    """A question and its answers, an instruction and its completions, ranked in their own way."""
    scored = {
        "instruction": "p",
        "completions": [{"response": t, "score": s} for t, s in (("a", 1), ("b", 2))],
    }
    ranked = {
        "question": "p",
        "answers": [{"answer": t, "rank": r} for t, r in (("a", 2), ("b", 1))],
    }
    for row in (scored, ranked):
        (example,) = load_preferences(write(tmp_path / "rows.jsonl", [row])).examples
        assert (example.prompt, example.completions, example.ranks) == ("p", ("a", "b"), (2, 1))
