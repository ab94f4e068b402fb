"""Files of each kind, shards, clones and saved datasets give the same rows; others, one line."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from preference_rows import PAIR, write

from ranking.data.preferences import load_preferences
from ranking.data.splits import load_training_splits


@pytest.mark.parametrize(
    "kind",
    ["json", "jsonl", "jsonl.gz", "csv", "parquet", "parquet.gz", "JSONL.GZ", "data.json", "tsv",
     "TSV", "ndjson", "arrow", "arrow.gz", "feather.arrow"],
)  # fmt: skip
def test_file_kinds(tmp_path, kind):
    rows = [
        {"prompt": "p,\t\n“q”", "chosen": "ja 👍", "rejected": "b"},
        {"prompt": "", "chosen": "c", "rejected": "d"},
    ]
    path, table, suffix = tmp_path / f"rows.{kind}", pyarrow.Table.from_pylist(rows), kind.lower()
    suffix = suffix.removesuffix(".gz")
    if kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "data.json":
        path.write_text(json.dumps({"version": "1", "data": rows}, indent=1))
    elif suffix in ("jsonl", "ndjson"):
        write(path, rows)
    elif suffix in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if suffix == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        new = pyarrow.ipc.new_file if kind.startswith("feather") else pyarrow.ipc.new_stream
        with new(path, table.schema) as writer:
            writer.write_table(table)
    if kind.lower().endswith(".gz"):
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
    data = load_preferences(clone)
    assert (data.split, len(data.examples), data.notes) == (
        "test",
        1,
        ["split test of test, train"],
    )
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
    assert load_preferences(str(tmp_path / "two")).split == "test"
    with pytest.raises(FileNotFoundError, match="expected split 'dev', found test, train"):
        load_preferences(str(tmp_path / "two"), split="dev")


def test_reading_a_large_file_shows_its_progress(tmp_path, monkeypatch):
    """Megabytes of the file on disk, gzipped or not; nothing for a small one."""
    import ranking.data.files

    rng = np.random.default_rng(0)
    rows = [{**PAIR, "prompt": rng.bytes(50_000).hex()} for _ in range(60)]
    path = tmp_path / "rows.jsonl"
    zipped = tmp_path / "rows.jsonl.gz"
    zipped.write_bytes(gzip.compress(Path(write(path, rows)).read_bytes(), 1))
    shown = []

    class Bar:
        def __init__(self, text, total):
            shown.append([text, total, 0])

        def update(self, n):
            shown[-1][2] += n

        def close(self):
            shown[-1].append("closed")

    assert len(load_preferences(str(path), progress=Bar).examples) == 60 and not shown
    monkeypatch.setattr(ranking.data.files, "LARGE_FILE", 1000)
    for file in (path, zipped):
        assert len(load_preferences(str(file), progress=Bar).examples) == 60
        size = file.stat().st_size // 10**6
        assert size >= 2 and shown.pop() == [f"reading {file.name} (MB)", size, size, "closed"]
