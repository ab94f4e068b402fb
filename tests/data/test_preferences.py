"""Rows become examples: sampling, drops by reason, fingerprints, one-line errors."""

import re
from dataclasses import replace

import numpy as np
import pytest
from preference_rows import DATA_DIR, HH, write

from ranking.data.examples import fingerprint
from ranking.data.hub import ALPACA_FARM, DATASETS
from ranking.data.preferences import load_preferences


def test_sampling_draws_the_rows_of_the_definition(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(50)]
    path = write(tmp_path / "pairs.jsonl", rows)
    expected = np.random.default_rng(seed=0).choice(50, size=20, replace=False)
    assert [e.row for e in load_preferences(path, sample_size=20).examples] == expected.tolist()
    few = load_preferences(path, sample_size=51)
    assert len(few.examples) == 50 and "fewer than the 51 asked for" in few.notes[0]


def test_duplicates_stay_distinct_and_drops_are_counted(tmp_path):
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [pair, pair, {**pair, "rejected": "a"}, {**pair, "rejected": " \n"}]
    data = load_preferences(write(tmp_path / "d.jsonl", rows))
    first, second = (e.id for e in data.examples)
    assert first.removesuffix("-1") == second.removesuffix("-2")
    assert data.dropped == {"identical completions": 1, "empty completion": 1}


def test_ties_are_dropped_unless_included(tmp_path):
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1], "votes": [2, 2]}
    other = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 2],
             "votes": {"0,1": [3, 1], "2,0": [0, 4], "1,2": [1, 1]}}  # fmt: skip
    path = write(tmp_path / "t.jsonl", [row, other])
    data = load_preferences(path)
    assert data.dropped == {"all ranks tied": 1}
    assert data.examples[0].votes == {(0, 1): (3, 1), (0, 2): (4, 0), (1, 2): (1, 1)}
    assert len(load_preferences(path, include_ties=True).examples) == 2


def test_everything_results_depend_on_changes_the_fingerprint(tmp_path):
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "votes": [3, 1]}
    changes = [
        {}, {"ranks": [2, 1], "votes": [1, 3]}, {"votes": [4, 0]}, {"votes": None}, {"prompt": "q"},
        {"completions": ["a", "c"]}, {"completions": [" a", "b"]},
    ]  # fmt: skip
    loaded = [load_preferences(write(tmp_path / "f.jsonl", [row, {**row, **c}])) for c in changes]
    found = [fingerprint(data.examples) for data in loaded]
    found.append(fingerprint(loaded[0].examples[::-1]))
    found.append(fingerprint(load_preferences(str(tmp_path / "f.jsonl"), separator="").examples))
    assert len(set(found)) == len(found)
    again = load_preferences(write(tmp_path / "again.jsonl", [row, row]))
    assert fingerprint(again.examples) == found[0]


def test_what_a_template_is_given_is_part_of_the_id_and_turns_of_text_are_not(tmp_path):
    """Answers to one question, asked with and without thinking, are not the same example; text that
    is a dialogue has the fingerprint of its text, as before dialogues were known."""
    row = {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}
    rows = [row, *({**row, "chat_template_kwargs": {"enable_thinking": x}} for x in (True, False))]
    loaded = [load_preferences(write(tmp_path / "f.jsonl", [r])).examples[0] for r in rows]
    assert len({example.id for example in loaded}) == 3
    turns = {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"}
    (dialogue,) = load_preferences(write(tmp_path / "f.jsonl", [turns])).examples
    assert dialogue.dialogue is not None
    assert fingerprint([dialogue]) == fingerprint([replace(dialogue, dialogue=None)])


def test_what_cannot_be_honoured_is_refused(tmp_path):
    write(tmp_path / "Anthropic/hh-rlhf/test.jsonl", [HH])
    with pytest.raises(FileNotFoundError, match="holds no configurations"):
        load_preferences("Anthropic/hh-rlhf:harmless-base:test", data_dir=tmp_path)
    with pytest.raises(ValueError, match="one file, without splits"):
        load_preferences("sample:train")
    with pytest.raises(ValueError, match="one file, without splits"):
        load_preferences("sample", split="train")


def test_bundled_sample():
    data = load_preferences("sample", include_ties=True)
    assert len(data.examples) >= 120
    sizes = [len(e.completions) for e in data.examples]
    assert set(sizes) == {2, 3, 4}
    for example in data.examples:
        k = len(example.completions)
        assert len(example.votes) == k * (k - 1) // 2
        assert all(sum(counts) == 4 for counts in example.votes.values())
    counts = [tuple(sorted(v)) for e in data.examples for v in e.votes.values()]
    assert {(0, 4), (1, 3), (2, 2)} == set(counts)
    best_longer = [
        len(e.completions[np.argmin(e.ranks)]) > len(e.completions[np.argmax(e.ranks)])
        for e in data.examples if len(set(e.ranks)) > 1
    ]  # fmt: skip
    assert 0.4 < np.mean(best_longer) < 0.6
    assert any(re.search(r"[\u3040-\u9fff]", e.prompt) for e in data.examples)


@pytest.mark.skipif(not (DATA_DIR / "pandalm").is_dir(), reason="set DATA_DIR to the real datasets")
@pytest.mark.parametrize("name", [*DATASETS, "pandalm"])
def test_real_files_load(name):
    data = load_preferences(name, data_dir=DATA_DIR)
    everything = load_preferences(name, data_dir=DATA_DIR, include_ties=True)
    assert len(data.examples) >= 130
    assert len({e.id for e in everything.examples}) == len(everything.examples)
    ties = data.dropped.get("all ranks tied", 0)
    assert len(everything.examples) == len(data.examples) + ties
    if name == ALPACA_FARM:
        assert len(everything.examples) == 430
