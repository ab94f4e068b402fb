"""Which files of a folder are which configuration and split, and what is read where none is named."""

import gzip
import json
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from preference_rows import PAIR, write

from ranking.data.folders import keyword_splits
from ranking.data.preferences import load_preferences
from ranking.data.sources import read_dataset


def rows_of(word, n=1):
    return [{**PAIR, "prompt": f"{word} {k}"} for k in range(n)]


def first_words(spec, **how):
    """The first words of the prompts that are read: what they were written with."""
    examples = load_preferences(spec, **how).examples
    return list(dict.fromkeys(example.prompt.split()[0] for example in examples))


def test_a_card_says_which_files_are_a_configuration(tmp_path):
    """As hub repositories declare them; files that are not there are none."""
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n"
        "- config_name: chat\n  data_files:\n"
        "  - split: raw\n    path: chat/raw-*\n"
        "  - split: filtered\n    path: [chat/a.jsonl, chat/b.jsonl]\n"
        "  - split: gone\n    path: chat/gone-*\n"
        "- config_name: code\n  default: true\n  data_files: code/**/*.jsonl\n"
        "- config_name: maths\n  data_dir: maths\n---\n# A card\n"
    )
    for k in range(2):
        write(tmp_path / f"chat/raw-0000{k}-of-00002.jsonl", rows_of(f"raw{k}"))
    for file in ("chat/a", "chat/b", "code/x/y", "code/z", "maths/test", "maths/train"):
        write(tmp_path / f"{file}.jsonl", rows_of(file))
    folder = str(tmp_path)
    assert first_words(f"{folder}:chat:raw") == ["raw0", "raw1"]
    assert first_words(f"{folder}:chat:filtered") == ["chat/a", "chat/b"]
    assert first_words(folder) == ["code/x/y", "code/z"]
    assert first_words(f"{folder}:maths") == ["maths/test"]
    assert first_words(f"{folder}:maths", split="train") == ["maths/train"]
    data = load_preferences(f"{folder}:maths")
    assert (data.config, data.split, data.notes) == ("maths", "test", ["split test of train, test"])
    for spec, expected in (
        (f"{folder}:chat", "expected one data file, found raw, filtered: choose one by .*:chat:raw"),
        (f"{folder}:chat:gone", "expected split 'gone', found raw, filtered .configurations: chat, code"),
        (f"{folder}:physics:test", "no configuration 'physics': it has chat, code, maths"),
        (f"{folder}:physics", "expected split 'physics', found train .configurations: chat, code"),
    ):  # fmt: skip
        with pytest.raises(FileNotFoundError, match=expected):
            load_preferences(spec)
    (tmp_path / "README.md").write_text("---\nconfigs: [chat\n---\n")
    with pytest.raises(ValueError, match=r"README.md: cannot be read: "):
        load_preferences(folder)
    (tmp_path / "README.md").write_text("---\nconfigs: [chat]\n---\n")
    with pytest.raises(ValueError, match="`configs` should be a list of objects"):
        load_preferences(folder)


def test_folders_inside_are_configurations_or_splits(tmp_path):
    write(tmp_path / "hhh/helpful/test.jsonl", rows_of("helpful"))
    write(tmp_path / "hhh/other/test.jsonl", rows_of("other"))
    write(tmp_path / "hhh/.cache/test.jsonl", rows_of("hidden"))
    name = "hhh"
    assert first_words(f"{name}:helpful:test", data_dir=tmp_path) == ["helpful"]
    assert first_words(f"{name}:other", data_dir=tmp_path) == ["other"]
    with pytest.raises(FileNotFoundError, match="it has the configurations helpful, other: choose"):
        load_preferences(name, data_dir=tmp_path)
    for file in ("train/a", "train/b", "test/c"):
        write(tmp_path / f"parts/data/{file}.jsonl", rows_of(file))
    assert first_words("parts:train", data_dir=tmp_path) == ["train/a", "train/b"]
    assert first_words("parts", data_dir=tmp_path) == ["test/c"]
    write(tmp_path / "one/deep/down/only.jsonl", rows_of("only"))
    data = load_preferences("one", data_dir=tmp_path)
    assert (data.config, data.split, len(data.examples)) == ("deep/down", None, 1)


def test_files_that_are_no_splits_are_chosen_or_read_together(tmp_path):
    """The subsets of a benchmark; one table in three kinds."""
    for subset in ("chat_filtered", "code_filtered"):
        lines = "".join(json.dumps(row) + "\n" for row in rows_of(subset, 2))
        (tmp_path / f"{subset}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    folder = str(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        load_preferences(folder)
    assert str(error.value) == (
        f"{folder}: expected one data file, found chat_filtered, code_filtered: choose one by "
        f"{folder}:chat_filtered, or read them together as {folder}:*"
    )
    assert first_words(f"{folder}:code_filtered") == ["code_filtered"]
    assert first_words(folder, split="code_filtered.jsonl.gz") == ["code_filtered"]
    together = load_preferences(f"{folder}:*")
    assert [e.row for e in together.examples] == [0, 1, 2, 3] and together.split == "*"
    with pytest.raises(
        FileNotFoundError, match="expected split 'maths', found chat_filtered, code"
    ):
        load_preferences(f"{folder}:maths")

    write(tmp_path / "twice/rows.jsonl", rows_of("lines"))
    (tmp_path / "twice/rows.json").write_text(json.dumps(rows_of("list")))
    with pytest.raises(FileNotFoundError, match="found rows.json, rows.jsonl: choose"):
        load_preferences(str(tmp_path / "twice"))
    assert first_words(f"{tmp_path}/twice:rows.json") == ["list"]


def test_the_usual_splits_in_their_order(tmp_path):
    """One is taken away after the other; the last two have no usual name."""
    order = ["test", "test_prefs", "validation", "valid", "val", "dev", "eval", "evaluation",
             "test_sft"]  # fmt: skip
    for split in [*order, "train", "odd"]:
        write(tmp_path / f"{split}.jsonl", rows_of(split))
    for split in order:
        assert first_words(str(tmp_path)) == [split]
        assert load_preferences(str(tmp_path)).notes[0].startswith(f"split {split} of ")
        (tmp_path / f"{split}.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="found odd, train: choose one"):
        load_preferences(str(tmp_path))
    (tmp_path / "odd.jsonl").unlink()
    data = load_preferences(str(tmp_path))
    assert (data.split, data.notes) == (None, []) and len(data.examples) == 1


def test_names_of_splits_in_a_repository_without_a_card():
    """What `datasets` does, on the files of Anthropic/hh-rlhf and others."""
    names = [f"{folder}/{split}.jsonl.gz" for folder in ("harmless-base", "helpful-base")
             for split in ("test", "train")]  # fmt: skip
    hh = [*names, "red-team-attempts/red_team_attempts.jsonl.gz"]
    assert keyword_splits(hh) == {"train": names[1::2], "test": names[::2]}
    shards = [f"data/{s}-0000{k}-of-00002.parquet" for s in ("test_prefs", "train") for k in (0, 1)]
    assert keyword_splits(shards) == {"train": shards[2:], "test_prefs": shards[:2]}
    assert keyword_splits(["b/dev.json", "a/my-eval.json"]) == {
        "validation": ["b/dev.json"], "test": ["a/my-eval.json"]
    }  # fmt: skip
    assert keyword_splits(["b.json", "a.json"]) == {"train": ["a.json", "b.json"]}
    assert keyword_splits([]) == {}


def test_a_saved_dictionary_may_lack_a_split_it_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows_of("saved", 3))}).save_to_disk(
        tmp_path / "d"
    )
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert first_words(str(tmp_path / "d")) == ["saved"]
    with pytest.raises(FileNotFoundError, match="expected split 'test', found train"):
        load_preferences(str(tmp_path / "d"), split="test")
    with pytest.raises(FileNotFoundError, match="no configuration 'chat': it holds no configurati"):
        load_preferences(f"{tmp_path}/d:chat:train")


def test_of_a_table_only_the_drawn_rows_are_made(tmp_path):
    """Parquet in shards: the rows that numpy draws, and blocks of rows where all are read."""
    for k in range(2):
        table = pyarrow.Table.from_pylist(rows_of(f"part{k}", 700))
        pyarrow.parquet.write_table(table, tmp_path / f"train-0000{k}-of-00002.parquet")
    whole = load_preferences(str(tmp_path)).examples
    drawn = load_preferences(str(tmp_path), sample_size=20, seed=3).examples
    expected = np.random.default_rng(3).choice(1400, 20, replace=False).tolist()
    assert [e.row for e in drawn] == expected
    assert [e.prompt for e in drawn] == [whole[number].prompt for number in expected]

    rows = read_dataset(str(tmp_path), n_rows=20).rows
    for number in expected:
        assert rows[number]["prompt"] == whole[number].prompt and len(rows.block) == 1
    rows = read_dataset(str(tmp_path), n_rows=20).rows
    blocks = Counter()
    for _ in rows:
        blocks[rows.start, len(rows.block)] += 1
    assert blocks == {(0, 500): 500, (500, 500): 500, (1000, 400): 400}
    assert [row["prompt"] for row in rows[698:702]] == [e.prompt for e in whole[698:702]]
    assert rows[-1] == rows[1399] and rows[1399]["prompt"] == "part1 699"
    with pytest.raises(IndexError):
        rows[1400]
    assert list(rows) == read_dataset(str(tmp_path)).rows


def test_rows_of_different_types_stay_as_they_are(tmp_path):
    """Tools of another type in each row, which no table can hold."""
    tools = [[{"name": "f", "parameters": {"x": 1}}], [{"name": "g", "parameters": {"x": ["a"]}}]]
    rows = [{**PAIR, "prompt": f"p{k}", "note": tool} for k, tool in enumerate(tools)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert read_dataset(str(tmp_path / "rows.json")).rows == rows


def test_a_file_is_never_taken_for_another_of_its_name(tmp_path):
    """In `data/` and beside it; a folder and a file that are one split."""
    for file in ("train.jsonl", "data/train.jsonl", "test.jsonl"):
        write(tmp_path / file, rows_of(file))
    folder = str(tmp_path)
    assert first_words(f"{folder}:test") == ["test.jsonl"]
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="found train.jsonl, data/train.jsonl: choose"):
        load_preferences(folder)
    for file in ("train.jsonl", "data/train.jsonl"):
        assert first_words(f"{folder}:{file}") == [file]
    write(tmp_path / "test/a.jsonl", rows_of("inside"))
    assert first_words(f"{folder}:test") == ["inside"]
    write(tmp_path / "test.jsonl", rows_of("beside"))
    with pytest.raises(ValueError, match=r"split test is there twice \(test.jsonl, test/a.jsonl\)"):
        load_preferences(f"{folder}:test")


def test_what_is_left_out_of_a_split_is_said(tmp_path):
    for file in ("test/a.jsonl", "test/b.jsonl", "test/c.json"):
        write(tmp_path / file, rows_of(file))
    data = load_preferences(str(tmp_path))
    assert [e.prompt for e in data.examples] == ["test/a.jsonl 0", "test/b.jsonl 0"]
    assert data.notes == ["files of another kind, left out: test/c.json"]


def test_a_split_in_the_name_goes_before_the_flag_and_only_then_a_line_says_so(tmp_path):
    for file in ("train-v2", "test-v2"):
        write(tmp_path / f"{file}.jsonl", rows_of(file))
    said = load_preferences(f"{tmp_path}:train-v2", split="test-v2").notes
    assert said == ["the name has a split: train-v2 is read, not --split test-v2"]
    assert load_preferences(str(tmp_path), split="train").notes == []
