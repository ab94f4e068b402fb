"""data_utils.py: six schemas, plain schemas, sampling, drops by reason, and one-line errors."""

import csv
import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from ranking.data.conversions import preference_pairs, sft_texts
from ranking.data.examples import fingerprint, joining
from ranking.data.hub import ALPACA_FARM, ALPACA_FARM_FILE, DATASETS
from ranking.data.preferences import load_preferences
from ranking.data.splits import load_training_splits

DATA_DIR = Path(os.environ.get("DATA_DIR", "DATA_DIR"))


def write(path: Path, rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


HH = {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: Well",
      "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: Wet"}  # fmt: skip
SHP = {"post_id": "p1", "history": "h", "human_ref_A": "A", "human_ref_B": "B", "labels": 0}
FARM = {"instruction": "i", "output_1": "x", "output_2": "y", "preference": 2, "annotator_index": 1}


def test_hh_prompt_ends_at_the_last_assistant_of_chosen(tmp_path):
    path = write(tmp_path / "hh.jsonl", [HH, {**HH, "rejected": "\n\nHuman: z\n\nAssistant: Wet"}])
    data = load_preferences(path)
    (example,) = data.examples
    assert example.prompt == "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert example.completions == (" Well", " Wet") and example.ranks == (1, 2)
    assert data.dropped == {"no common prompt": 1}


def test_shp_rows_are_pairs_by_label_and_posts_are_clusters(tmp_path):
    path = write(tmp_path / "shp.jsonl", [SHP, {**SHP, "labels": 1, "human_ref_A": "C"}])
    first, second = load_preferences(path).examples
    assert (first.ranks, second.ranks) == ((2, 1), (1, 2))
    assert first.prompt_id == second.prompt_id and first.id != second.id


def test_scores_become_ranks(tmp_path):
    answers = [{"response": t, "overall_score": s} for t, s in zip("abcd", (7.5, 9, 7.5, 2))]
    ultra = write(tmp_path / "u.jsonl", [{"instruction": "i", "completions": answers}])
    assert load_preferences(ultra).examples[0].ranks == (2, 1, 2, 4)
    answers = [{"text": t, "pm_score": s} for t, s in zip("abc", (0, 3, 1))]
    stack = write(tmp_path / "s.jsonl", [{"qid": 1, "question": "<p>q</p>", "answers": answers}])
    assert load_preferences(stack).examples[0].ranks == (3, 1, 2)
    missing = [{"response": "a", "overall_score": None}, {"response": "b", "overall_score": 1}]
    both = [
        {"instruction": "i", "completions": missing},
        {"instruction": "i", "completions": missing},
    ]
    with pytest.raises(ValueError, match=r"no usable example left of 2 \(missing score: 2\)"):
        load_preferences(write(tmp_path / "m.jsonl", both))


def test_rater_rows_are_grouped_before_sampling(tmp_path):
    rows = [
        {**FARM, "instruction": f"i{pair}", "preference": p}
        for p in (1, 1, 2, 0)
        for pair in range(10)
    ]
    path = write(tmp_path / "farm.jsonl", rows)
    data = load_preferences(path)
    assert len(data.examples) == 10
    assert data.examples[0].votes == {(0, 1): (2.5, 1.5)} and data.examples[0].ranks == (1, 2)
    some = load_preferences(path, sample_size=4, seed=3)
    drawn = np.random.default_rng(3).choice(10, 4, replace=False)
    assert [e.prompt for e in some.examples] == [f"i{k}" for k in drawn]
    assert all(sum(e.votes[0, 1]) == 4 for e in some.examples)


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


@pytest.mark.parametrize(
    "kind", ["json", "jsonl", "jsonl.gz", "csv", "parquet", "parquet.gz", "JSONL.GZ", "data.json"]
)
def test_file_kinds(tmp_path, kind):
    rows = [
        {"prompt": "p,\n“q”", "chosen": "ja 👍", "rejected": "b"},
        {"prompt": "", "chosen": "c", "rejected": "d"},
    ]
    path = tmp_path / f"rows.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "data.json":
        path.write_text(json.dumps({"version": "1", "data": rows}, indent=1))
    elif kind == "jsonl":
        write(path, rows)
    elif kind.lower() == "jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    if kind == "parquet.gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    examples = load_preferences(str(path)).examples
    assert [(e.prompt, *e.completions) for e in examples] == [tuple(row.values()) for row in rows]


def test_shards_hub_clones_and_saved_datasets(tmp_path):
    """All files of a split are one dataset, rows counted file by file in messages."""
    rows = [{**PAIR, "prompt": f"p{k}"} for k in range(20)]
    for folder in (tmp_path / "flat", tmp_path / "clone" / "data"):
        write(folder / "train-00000-of-00002.jsonl", rows[:3])
        write(folder / "train-00001-of-00002.jsonl", rows[3:])
    write(tmp_path / "clone" / "data" / "test-00000-of-00001.jsonl", rows[:1])
    assert [e.prompt for e in load_preferences(str(tmp_path / "flat")).examples] == [
        f"p{k}" for k in range(20)
    ]
    clone = str(tmp_path / "clone")
    assert len(load_preferences(clone, split="train").examples) == 20
    assert load_training_splits(clone, train_split="train", eval_split="train")[0]
    with pytest.raises(FileNotFoundError, match="expected one data file, found test-00000"):
        load_preferences(clone)
    write(tmp_path / "flat" / "train-00001-of-00002.jsonl", [rows[3], {**rows[4], "chosen": 1}])
    with pytest.raises(ValueError, match="train-00001-of-00002.jsonl: row 2: column 'chosen'"):
        load_preferences(str(tmp_path / "flat"))
    (tmp_path / "flat" / "train-00001-of-00002.jsonl").unlink()
    with pytest.raises(
        FileNotFoundError, match="of the 2 files of this split, numbers 0 are there"
    ):
        load_preferences(str(tmp_path / "flat"))

    (tmp_path / "flat" / "train-00000-of-00002.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(FileNotFoundError, match="numbers 0, 0 are there"):
        load_preferences(str(tmp_path / "flat"))  # as many as there should be, one of them twice
    old = tmp_path / "old"  # as push_to_hub named files, with its records in the root
    for k, part in enumerate((rows[:9], rows[9:])):
        write(old / "data" / f"train-0000{k}-of-00002-1e5d57b93c448e7{k}.jsonl", part)
    write(old / "dataset_infos.json", [{}])
    (old / "data" / "._train.jsonl").write_bytes(b"of a Mac")
    assert len(load_preferences(str(old)).examples) == 20
    assert len(load_training_splits(str(old))[0]["train"].examples) == 16

    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(rows)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(tmp_path / "two")
    assert len(load_preferences(str(tmp_path / "one")).examples) == 20
    assert len(load_training_splits(str(tmp_path / "one"))[0]["train"].examples) == 16
    assert len(load_preferences(str(tmp_path / "two"), split="test").examples) == 1
    parts, _ = load_training_splits(str(tmp_path / "two"), eval_split="train")
    assert len(parts["train"].examples) == 16
    with pytest.raises(FileNotFoundError, match="found test, train"):
        load_preferences(str(tmp_path / "two"))


def test_data_dir_serves_hub_names_splits_and_configs(tmp_path):
    write(tmp_path / "Anthropic/hh-rlhf/test.jsonl", [HH])
    write(tmp_path / "Anthropic/hh-rlhf/train.jsonl", [HH, HH])
    write(tmp_path / ALPACA_FARM / f"{ALPACA_FARM_FILE}.jsonl", [FARM])
    assert len(load_preferences("Anthropic/hh-rlhf", data_dir=tmp_path).examples) == 1
    assert len(load_preferences("Anthropic/hh-rlhf:train", data_dir=tmp_path).examples) == 2
    farm = load_preferences(ALPACA_FARM, data_dir=tmp_path)
    assert (farm.config, farm.separator, len(farm.examples)) == (ALPACA_FARM_FILE, " ", 1)
    with pytest.raises(
        FileNotFoundError, match="split 'validation', found test.jsonl, train.jsonl"
    ):
        load_preferences("Anthropic/hh-rlhf:validation", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder stanfordnlp/SHP"):
        load_preferences("stanfordnlp/SHP", data_dir=tmp_path)


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "chosen": "a"}], "missing column rejected .found prompt, chosen"),
        ([PAIR, {"prompt": "p", "chosen": "a"}], "row 2: missing column rejected"),
        ([PAIR, {**PAIR, "chosen": 3}], "row 2: column 'chosen' should be text, found int"),
        ([{**PAIR, "rejected": None}], "row 1: column 'rejected' should be text, found NoneType"),
        ([{**SHP, "labels": 7}], "row 1: labels should be 0 or 1, found 7"),
        ([FARM, {**FARM, "preference": 3}], "row 2: preference should be 1, 2 or 0"),
        ([{"instruction": "i", "completions": [{"response": "a"}]}], "no 'overall_score'"),
        ([{"question": "q", "answers": "none"}], "should be a list of objects"),
        ([{"prompt": "p", "completions": ["a", "b"], "ranks": [1]}], "one integer"),
        ([{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "votes": [1, 3]}], "contradict"),
        ([{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "votes": [2, 2]}], "contradict"),
        ([{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "votes": [1, -3]}], "≥ 0"),
        ([{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "votes": {"0,2": [1, 0]}}], "2 comp"),
        ([{**PAIR, "reject": "b"} | {"rejected": None}], "row 1: column 'rejected' should be text"),
        ([{"prompt": "p", "chosen_response": "a", "rejected_response": "b"}], "is it 'chosen_response'"),
        ([{"question": "p", "response_chosen": "a", "response_rejected": "b"}], "prompt .is it 'question'.*'response_chosen'"),
        ([{"request": "p", "answer_a": "a", "answer_b": "b"}], "unknown columns: request, answer_a"),
        ([{"topic": "p", "chosen": "a", "rejected": "b"}], "without a column `prompt`.*found topic"),
        ([], "no rows"),
        ([{**PAIR, "prompt": "\ud83d"}], "lone surrogate: 1"),
    ],
)  # fmt: skip
def test_bad_rows_are_one_line_with_file_and_row(tmp_path, rows, message):
    path = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(ValueError, match=message) as error:
        load_preferences(path)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


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


def test_a_column_of_the_prompt_that_is_not_read_is_refused(tmp_path):
    rows = [{"system": "", "tools": [], **PAIR}, {"system": "Be brief.", **PAIR}]
    path = write(tmp_path / "s.jsonl", rows)
    with pytest.raises(ValueError, match="s.jsonl: row 2: column 'system' is part of the prompt"):
        load_preferences(path)
    for column, row in {"input": FARM, "context": PAIR, "history": LISTED, "question": HH,
                        "systemPrompt": PAIR, "chat_history": PAIR}.items():  # fmt: skip
        assert load_preferences(write(tmp_path / "s.jsonl", [{**row, column: " "}])).examples
        with pytest.raises(ValueError, match=f"row 1: column '{column}' is part of the prompt"):
            load_preferences(write(tmp_path / "s.jsonl", [{**row, column: "x"}]))


LISTED = {"prompt": "p", "completions": ["a", "b"], "ranks": [1.0, 2.0]}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    "text",
    [json.dumps(MESSAGES), json.dumps(MESSAGES, indent=1), str(MESSAGES), str(MESSAGES[1]),
     str(np.array(MESSAGES)), repr(np.array(MESSAGES)), json.dumps([{"from": "human", "value": "Hi"}]),
     json.dumps([{"weight": 1.0, **m} for m in MESSAGES]), json.dumps({"messages": MESSAGES})],
)  # fmt: skip
def test_messages_written_as_text_are_refused(tmp_path, text):
    pattern = "row 1: .* holds chat messages written as text"
    for row in ({**PAIR, "chosen": text}, {**PAIR, "prompt": text}, {**FARM, "output_2": text},
                {**LISTED, "completions": ["a", text]}):  # fmt: skip
        with pytest.raises(ValueError, match=pattern):
            load_preferences(write(tmp_path / "m.jsonl", [row]))
    fair = ['[{"name": "x"}]', '{"role": "admin", "content": "x"}', "[{role: 'user'}]", f"See {text}",
            '[{"value": 3, "label": "A"}]', '[{"role": "developer", "salary": 3}]',
            '[{"from": "2020", "to": "2021"}]', '[{"content": "x"}]']  # fmt: skip
    rows = [{**PAIR, "chosen": answer} for answer in fair]
    assert len(load_preferences(write(tmp_path / "m.jsonl", rows)).examples) == len(fair)


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


def test_votes_of_one_pair_in_both_orders_belong_together(tmp_path):
    flipped = {"instruction": "i", "output_1": "y", "output_2": "x"}
    rows = [
        FARM,
        {**flipped, "preference": 1},
        {**flipped, "preference": 2},
        {**FARM, "preference": 0},
    ]
    (example,) = load_preferences(write(tmp_path / "f.jsonl", rows), include_ties=True).examples
    assert example.completions == ("x", "y") and example.votes == {(0, 1): (1.5, 2.5)}


def test_graded_and_missing_preferences(tmp_path):
    other = {**FARM, "instruction": "j"}
    graded = [{**FARM, "preference": p} for p in (1.25, "2.0", None)]
    data = load_preferences(write(tmp_path / "g.jsonl", [*graded, {**other, "preference": None}]))
    (example,) = data.examples
    assert example.votes == {(0, 1): (0.75, 1.25)} and example.ranks == (2, 1)
    assert data.dropped == {"no preference": 1}
    assert data.notes == ["rater rows without a preference: 2"]


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


def test_what_cannot_be_honoured_is_refused(tmp_path):
    write(tmp_path / "Anthropic/hh-rlhf/test.jsonl", [HH])
    with pytest.raises(ValueError, match="holds no configurations"):
        load_preferences("Anthropic/hh-rlhf:harmless-base:test", data_dir=tmp_path)
    with pytest.raises(ValueError, match="one file, without splits"):
        load_preferences("sample:train")
    with pytest.raises(ValueError, match="one file, without splits"):
        load_preferences("sample", split="train")
    comma = tmp_path / "comma.csv"
    comma.write_text("prompt,chosen,rejected\nHi, how are you?,good,bad\n")
    with pytest.raises(ValueError, match="row 1: not as many fields as the header"):
        load_preferences(str(comma))


def test_unreadable_files(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(PAIR) + "\n{broken\n")
    with pytest.raises(ValueError, match="bad.jsonl: cannot be read: row 2: not JSON"):
        load_preferences(str(path))
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(json.dumps(PAIR).encode() * 100)[:-20])
    with pytest.raises(ValueError, match="torn.jsonl.gz: cannot be read"):
        load_preferences(str(torn))
    (tmp_path / "x.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match="x.parquet: cannot be read"):
        load_preferences(str(tmp_path / "x.parquet"))
    with pytest.raises(
        FileNotFoundError, match="unknown dataset 'nope'.*sample, Anthropic/hh-rlhf"
    ):
        load_preferences("nope")


def test_hub_datasets_are_read_through_datasets_offline(tmp_path, monkeypatch):
    """A local repository of the hub's layout, loaded by the `datasets` library under the hub name."""
    write(tmp_path / "stanfordnlp/SHP/data/test.jsonl", [SHP, {**SHP, "labels": 1}])
    (tmp_path / "stanfordnlp/SHP/README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test.jsonl\n---\n"
    )
    monkeypatch.chdir(tmp_path)
    from ranking.data.hub import read_hub

    rows = read_hub("stanfordnlp/SHP", DATASETS["stanfordnlp/SHP"], None, "test", 10, 0, 0)
    assert [row["labels"] for row in rows] == [0, 1]
    with pytest.raises(OSError, match="from the hub.*--data-dir"):
        read_hub("nobody/nothing", DATASETS["stanfordnlp/SHP"], None, "test", 10, 0, 0)


def test_alpaca_farm_is_read_from_a_filled_hub_cache(tmp_path, monkeypatch):
    """The layout `huggingface_hub` leaves on disk, offline."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit, folder = "0" * 40, tmp_path / "datasets--tatsu-lab--alpaca_eval"
    write(
        folder / "snapshots" / commit / f"{ALPACA_FARM_FILE}.json",
        [FARM, {**FARM, "preference": 1}],
    )
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    data = load_preferences(ALPACA_FARM, include_ties=True)
    (example,) = data.examples
    assert example.votes == {(0, 1): (1, 1)}
    assert data.commit == commit and f"commit {commit}" in data.notes


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


# ---------------------------------------------------------------------------- for training
def pair_rows(n, prefix="q"):
    return [{"prompt": f"{prefix}{k}?", "chosen": f"a{k}", "rejected": f"b{k}"} for k in range(n)]


def write_folder(folder, **splits):
    folder.mkdir(parents=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def prompts(parts):
    return {name: {e.prompt for e in data.examples} for name, data in parts.items()}


def test_one_split_is_divided_by_prompt_and_seed(tmp_path):
    """80/10/10 of the prompts; the several pairs of a prompt stay together."""
    rows = [{**row, "chosen": f"{row['chosen']}-{k}"} for row in pair_rows(50) for k in range(3)]
    spec = write_folder(tmp_path / "d", only=rows)
    parts, notes = load_training_splits(spec)
    found = prompts(parts)
    assert [len(found[name]) for name in ("train", "validation", "test")] == [40, 5, 5]
    assert len(set.union(*found.values())) == 50
    assert [len(data.examples) for data in parts.values()] == [120, 15, 15]
    assert notes[-1] == "train: 120, validation: 15, test: 15"
    assert prompts(load_training_splits(spec)[0]) == found
    assert prompts(load_training_splits(spec, seed=1)[0]) != found
    (tmp_path / "file.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prompts(load_training_splits(str(tmp_path / "file.jsonl"))[0]) == found


def test_evaluation_splits(tmp_path):
    """A lone test split is halved with seed 0; validation and test are taken as they are."""
    both = write_folder(tmp_path / "both", train=pair_rows(30, "r"), test=pair_rows(20, "s"))
    halved, notes = load_training_splits(both, seed=5)
    again, _ = load_training_splits(both, seed=6)
    assert prompts(halved) == prompts(again) and "test is halved" in notes[2]
    assert [len(d.examples) for d in halved.values()] == [30, 10, 10]
    whole = prompts(halved)["validation"] | prompts(halved)["test"]
    assert whole == {f"s{k}?" for k in range(20)}

    three = write_folder(tmp_path / "three", train=pair_rows(9, "r"), validation=pair_rows(4, "v"),
                         test=pair_rows(3, "s"))  # fmt: skip
    parts, _ = load_training_splits(three)
    assert {name: next(iter(p))[0] for name, p in prompts(parts).items()} == {
        "train": "r", "validation": "v", "test": "s"
    }  # fmt: skip
    parts, _ = load_training_splits(three, train_split="validation", eval_split="train")
    assert {name: next(iter(p))[0] for name, p in prompts(parts).items()} == {
        "train": "v", "validation": "r", "test": "s"
    }  # fmt: skip
    with pytest.raises(FileNotFoundError, match="split 'dev'"):
        load_training_splits(three, eval_split="dev")
    odd = write_folder(tmp_path / "odd", first=pair_rows(9), second=pair_rows(9))
    with pytest.raises(ValueError, match="choose one by --train_split"):
        load_training_splits(odd)
    dev = write_folder(tmp_path / "dev", train=pair_rows(9), dev=pair_rows(9, "v"))
    with pytest.raises(ValueError, match="choose one by --eval_split"):
        load_training_splits(dev)
    with pytest.raises(ValueError, match="names a split, and --train_split train another"):
        load_training_splits("Anthropic/hh-rlhf:test", data_dir=tmp_path, train_split="train")
    with pytest.raises(ValueError, match="too few examples to divide"):
        load_training_splits(write_folder(tmp_path / "few", train=pair_rows(3)))


def test_too_few_prompts_are_divided_by_example(tmp_path):
    """One prompt and 30 answers; a test split of one prompt."""
    rows = [{"prompt": "p", "chosen": f"a{k}", "rejected": f"b{k}"} for k in range(30)]
    parts, notes = load_training_splits(write_folder(tmp_path / "one", only=rows))
    assert [len(data.examples) for data in parts.values()] == [24, 3, 3]
    found = [e.completions[0] for data in parts.values() for e in data.examples]
    assert sorted(found) == sorted(row["chosen"] for row in rows)
    assert "divided by example into 80/10/10 % (seed 0): too few prompts to divide" in notes[1]
    spec = write_folder(tmp_path / "half", train=pair_rows(9), test=rows)
    parts, notes = load_training_splits(spec)
    assert [len(data.examples) for data in parts.values()] == [9, 15, 15]
    assert "test is halved by example (seed 0): too few prompts" in notes[2]


def test_dialogues_that_go_on_in_train_are_left_out(tmp_path):
    """A dialogue and its continuation are two prompts; none is trained on and validated."""
    rows = []
    for k in range(60):
        prompt = f"\n\nHuman: q{k}\n\nAssistant:"
        rows.append({"prompt": prompt, "chosen": " a", "rejected": " b"})
        rows.append(
            {"prompt": f"{prompt} a\n\nHuman: and?\n\nAssistant:", "chosen": " c", "rejected": " d"}
        )
    parts, notes = load_training_splits(write_folder(tmp_path / "d", only=rows))
    first = {
        name: {p.split("\n\nAssistant:")[0] for p in found}
        for name, found in prompts(parts).items()
    }
    assert not first["train"] & (first["validation"] | first["test"])
    n_left = sum(len(data.examples) for data in parts.values())
    assert f"also in train: {120 - n_left}" in notes[1] and 96 < n_left < 120


def test_training_conversions(tmp_path):
    """Every untied pair of a list; SFT takes the best-ranked completion."""
    row = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    examples = load_preferences(str(path)).examples
    pairs = preference_pairs(examples)
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [("b", "a"), ("b", "c")]
    assert len({p["id"] for p in pairs}) == 2
    (text,) = sft_texts(examples)
    assert text["text"] == "p b" and text["n_prompt_characters"] == 1


@pytest.mark.skipif(not DATA_DIR.is_dir(), reason="needs DATA_DIR")
def test_real_hh_is_divided():
    parts, notes = load_training_splits("Anthropic/hh-rlhf", data_dir=DATA_DIR)
    found = prompts(parts)
    assert not found["train"] & found["validation"] and not found["train"] & found["test"]
    assert len(parts["validation"].examples) + len(parts["test"].examples) == 1985
    assert not found["validation"] & found["test"] and "test is halved" in notes[2]
