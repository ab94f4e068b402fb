"""reproduce/write_part.py: the file is the part of the data that dpo.py has, and nothing else."""

import pytest

from ranking.data.preferences import load_preferences
from ranking.plumbing.result_files import write_json_lines
from ranking.training.splits import load_parts
from reproduce import write_part


def dialogues(split: str, n: int) -> list[dict]:
    """Rows in HH-RLHF's columns, every fifth a repetition, and one that is dropped."""
    prompts = [f"\n\nHuman: {split} {k - (k % 5 == 4)}\n\nAssistant:" for k in range(n)]
    rows = [{"chosen": f"{p} good {k % 3}", "rejected": f"{p} bad"} for k, p in enumerate(prompts)]
    return [*rows, {"chosen": f"{prompts[0]} same", "rejected": f"{prompts[0]} same"}]


def test_the_test_half_of_two_splits(tmp_path, capsys):
    folder = tmp_path / "Anthropic/hh-rlhf"
    folder.mkdir(parents=True)
    for split, n in (("train", 20), ("test", 60)):
        write_json_lines(folder / f"{split}.jsonl", dialogues(split, n))
    output = tmp_path / "part.jsonl"
    arguments = ["--data-dir", str(tmp_path), "--output", str(output)]
    write_part.main(write_part.parse_args(arguments))
    read = load_preferences(str(output), sample_size=None).examples
    parts = load_parts(["Anthropic/hh-rlhf"], data_dir=str(tmp_path), n_eval=-1)
    own = parts["test"].examples
    assert [e.id for e in read] == [e.id for e in own] and 15 < len(read) < 45
    assert [(e.prompt, e.completions) for e in read] == [(e.prompt, e.completions) for e in own]
    assert not {e.prompt for e in read} & {e.prompt for e in parts["validation"].examples}
    assert f"{len(read)} examples of test" in capsys.readouterr().out


def test_rows_that_mean_something_together_only_are_refused(tmp_path):
    """Several rows of votes are one example, of which one row is not the whole."""
    votes = [{"instruction": f"i{k // 3}", "output_1": "a", "output_2": "b", "preference": 1 + k % 3 // 2}
             for k in range(90)]  # fmt: skip
    write_json_lines(tmp_path / "votes.jsonl", votes)
    output = tmp_path / "part.jsonl"
    with pytest.raises(ValueError, match="read otherwise outside of it, so no file was written"):
        write_part.write_part(str(tmp_path / "votes.jsonl"), "test", None, output)
    assert not output.exists()


@pytest.mark.parametrize("name", ["part.csv", "none/part.jsonl"])
def test_where_the_file_goes_is_checked_first(tmp_path, name):
    with pytest.raises(ValueError, match="give a .jsonl in a directory that exists"):
        write_part.main(write_part.parse_args(["--output", str(tmp_path / name)]))
