"""Hub datasets, read through a filled cache, a local copy, or a server that speaks as the hub."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import HubServer
from preference_rows import FARM, HH, PAIR, SHP, write

from ranking.data.hub import ALPACA_FARM, ALPACA_FARM_FILE, explain_hub_error, split_name
from ranking.data.preferences import load_preferences
from ranking.data.sources import available_splits

COMMIT = "c0ffee" + "0" * 34
CARD = (
    "---\nconfigs:\n"
    "- config_name: default\n  data_files:\n"
    "  - split: train_prefs\n    path: data/train_prefs-*\n"
    "  - split: test_prefs\n    path: data/test_prefs-*\n"
    "- config_name: chat\n  data_files:\n  - split: raw\n    path: chat/*.jsonl\n---\n"
)


def rows_of(word, n):
    return [{**PAIR, "prompt": f"{word} {k}"} for k in range(n)]


def write_repository(folder: Path) -> None:
    """Two configurations, two splits, shards, parquet and JSON lines."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "data").mkdir()
    for split, shards in (("train_prefs", 3), ("test_prefs", 2)):
        for k in range(shards):
            table = pyarrow.Table.from_pylist(rows_of(f"{split}{k}", 5))
            file = folder / "data" / f"{split}-0000{k}-of-0000{shards}.parquet"
            pyarrow.parquet.write_table(table, file)
    write(folder / "chat" / "a.jsonl", rows_of("chat", 4))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub's, and of what `datasets` prepares."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    return tmp_path / "hub"


def cache_repository(hub_cache: Path, name: str) -> Path:
    """The folder of a snapshot of `name` at COMMIT, which is main."""
    folder = hub_cache / f"datasets--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


def first_words(data):
    return list(dict.fromkeys(example.prompt.split()[0] for example in data.examples))


def test_any_dataset_is_read_from_a_filled_cache(hub_cache):
    """A dataset outside the paper's six, offline: default split, configurations, shards, commit."""
    write_repository(cache_repository(hub_cache, "team/prefs"))
    data = load_preferences("team/prefs")
    assert first_words(data) == ["test_prefs0", "test_prefs1"] and len(data.examples) == 10
    assert (data.name, data.config, data.split, data.commit) == (
        "team/prefs", None, "test_prefs", COMMIT
    )  # fmt: skip
    assert data.notes == ["split test_prefs of train_prefs, test_prefs", f"commit {COMMIT}"]
    train = load_preferences("team/prefs:train_prefs", sample_size=6, seed=1)
    assert len(train.examples) == 6 and len(first_words(train)) > 1
    assert train.notes == [f"commit {COMMIT}"]
    assert first_words(load_preferences("team/prefs:chat")) == ["chat"]
    chat = load_preferences("team/prefs:chat:raw")
    assert (chat.config, chat.split, len(chat.examples)) == ("chat", "raw", 4)
    assert available_splits("team/prefs") == ["train_prefs", "test_prefs"]
    assert available_splits("team/prefs:chat") == ["raw"]
    for spec, expected in (
        ("team/prefs:dev", "expected split 'dev', found train_prefs, test_prefs .config.*chat"),
        ("team/prefs:chat:dev", "team/prefs:chat: expected split 'dev', found raw"),
        ("team/prefs:maths:test", "no configuration 'maths': it has default, chat"),
    ):
        with pytest.raises(FileNotFoundError, match=expected):
            load_preferences(spec)


def test_a_commit_without_a_branch_and_a_shard_that_is_missing(hub_cache):
    snapshot = cache_repository(hub_cache, "team/prefs")
    write_repository(snapshot)
    (snapshot.parents[1] / "refs" / "main").unlink()
    assert load_preferences("team/prefs").commit == COMMIT
    (snapshot / "data" / "test_prefs-00000-of-00002.parquet").unlink()
    with pytest.raises(
        FileNotFoundError, match="of the 2 files of this split, numbers 1 are there"
    ):
        load_preferences("team/prefs")


def test_a_large_split_is_streamed_for_a_sample(hub_cache, monkeypatch):
    """Its first rows, no shard after those needed; the whole of it where all is asked for."""
    import ranking.data.hub

    snapshot = cache_repository(hub_cache, "team/prefs")
    write_repository(snapshot)
    small = load_preferences("team/prefs", sample_size=5, stream_shuffle_buffer=10)
    assert "--stream-shuffle-buffer does nothing: it is not streamed" in small.notes
    monkeypatch.setattr(ranking.data.hub, "STREAMED_BYTES", 100)
    (snapshot / "data" / "train_prefs-00002-of-00003.parquet").write_text("never read")
    data = load_preferences("team/prefs:train_prefs", sample_size=7)
    assert [e.prompt for e in data.examples] == [
        *(f"train_prefs0 {k}" for k in range(5)), "train_prefs1 0", "train_prefs1 1"
    ]  # fmt: skip
    assert "the first rows" in data.notes[0]
    shuffled = load_preferences("team/prefs", sample_size=5, stream_shuffle_buffer=10)
    assert [e.prompt for e in shuffled.examples] != [f"test_prefs0 {k}" for k in range(5)]
    with pytest.raises(ValueError, match="train_prefs-00002-of-00003.parquet: cannot be read"):
        load_preferences("team/prefs:train_prefs")
    lines = load_preferences("team/prefs:chat", sample_size=3)
    assert [e.prompt for e in lines.examples] == ["chat 0", "chat 1", "chat 2"]


def test_the_papers_datasets_keep_their_defaults(hub_cache):
    """hh-rlhf: all subsets together, or a folder as a configuration; SHP's test."""
    snapshot = cache_repository(hub_cache, "Anthropic/hh-rlhf")
    for folder in ("harmless-base", "helpful-base"):
        write(snapshot / folder / "test.jsonl", [HH])
        write(snapshot / folder / "train.jsonl", [HH] * 3)
    write(snapshot / "red-team-attempts" / "red_team_attempts.jsonl", [PAIR])
    data = load_preferences("Anthropic/hh-rlhf")
    assert (data.config, data.split, len(data.examples)) == (None, "test", 2)
    assert data.separator == "" and data.notes == [f"commit {COMMIT}"]
    assert len(load_preferences("Anthropic/hh-rlhf:train").examples) == 6
    for spec, n in (("harmless-base", 1), ("harmless-base:test", 1), ("helpful-base:train", 3)):
        found = load_preferences(f"Anthropic/hh-rlhf:{spec}")
        assert (found.config, len(found.examples)) == (spec.split(":")[0], n)
    shp = cache_repository(hub_cache, "stanfordnlp/SHP")
    write(shp / "askacademia" / "test.json", [SHP, {**SHP, "labels": 1}])
    write(shp / "askacademia" / "train.json", [SHP])
    data = load_preferences("stanfordnlp/SHP")
    assert [e.ranks for e in data.examples] == [(2, 1), (1, 2)]
    assert (data.separator, data.commit) == (" ", COMMIT)


def test_alpaca_farm_is_read_from_a_filled_hub_cache(hub_cache):
    rows = [FARM, {**FARM, "preference": 1}]
    write(cache_repository(hub_cache, ALPACA_FARM) / f"{ALPACA_FARM_FILE}.json", rows)
    data = load_preferences(ALPACA_FARM, include_ties=True)
    (example,) = data.examples
    assert example.votes == {(0, 1): (1, 1)}
    assert (data.config, data.split) == (ALPACA_FARM_FILE, ALPACA_FARM_FILE)
    assert data.commit == COMMIT and f"commit {COMMIT}" in data.notes


def test_what_datasets_has_prepared_is_read_as_well(hub_cache):
    """A cache of its own, of which the hub's has no files; the newest commit."""
    import datasets

    for commit, word in (("a" * 40, "old"), (COMMIT, "new")):
        folder = hub_cache.parent / "prepared" / "team___my_prefs" / "default" / "0.0.0" / commit
        folder.mkdir(parents=True)
        made = {s: datasets.Dataset.from_list(rows_of(f"{word}-{s}", 3)) for s in ("train", "test")}
        splits = {}
        for split, table in made.items():
            with datasets.arrow_writer.ArrowWriter(
                path=str(folder / f"my_prefs-{split}.arrow")
            ) as w:
                w.write_table(table.data.table)
            splits[split] = datasets.SplitInfo(split, num_examples=3, dataset_name="my_prefs")
        info = datasets.DatasetInfo(dataset_name="my_prefs", splits=datasets.SplitDict(splits))
        info.write_to_directory(str(folder))
    data = load_preferences("team/MyPrefs")
    assert first_words(data) == ["new-test"] and data.commit == COMMIT
    assert available_splits("team/MyPrefs") == ["train", "test"]


def test_data_dir_serves_hub_names_splits_and_configs(tmp_path):
    write(tmp_path / "Anthropic/hh-rlhf/test.jsonl", [HH])
    write(tmp_path / "Anthropic/hh-rlhf/train.jsonl", [HH, HH])
    write(tmp_path / "Anthropic/hh-rlhf/helpful-base/test.jsonl", [HH, HH, HH])
    write(tmp_path / ALPACA_FARM / f"{ALPACA_FARM_FILE}.jsonl", [FARM])
    assert len(load_preferences("Anthropic/hh-rlhf", data_dir=tmp_path).examples) == 1
    assert len(load_preferences("Anthropic/hh-rlhf:train", data_dir=tmp_path).examples) == 2
    helpful = load_preferences("Anthropic/hh-rlhf:helpful-base", data_dir=tmp_path)
    assert (helpful.config, helpful.split, len(helpful.examples)) == ("helpful-base", "test", 3)
    farm = load_preferences(ALPACA_FARM, data_dir=tmp_path)
    assert (farm.config, farm.separator, len(farm.examples)) == (ALPACA_FARM_FILE, " ", 1)
    with pytest.raises(FileNotFoundError, match="split 'validation', found test, train"):
        load_preferences("Anthropic/hh-rlhf:validation", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder stanfordnlp/SHP"):
        load_preferences("stanfordnlp/SHP", data_dir=tmp_path)


def test_a_slash_behind_a_name_is_no_part_of_it(tmp_path):
    """A shell completes folders with one; results of a dataset are joined by its name."""
    folder = write(tmp_path / "mine/train.jsonl", [PAIR]).removesuffix("/train.jsonl")
    write(tmp_path / "mine/test.jsonl", [PAIR, PAIR])
    write(tmp_path / "Anthropic/hh-rlhf/test.jsonl", [HH])
    for spec, part in ((folder, ""), (folder, ":train"), ("Anthropic/hh-rlhf", "")):
        data = load_preferences(f"{spec}{part}", data_dir=tmp_path)
        assert load_preferences(f"{spec}/{part}", data_dir=tmp_path) == data
        assert data.name == spec


def test_a_slash_says_that_a_folder_is_ones_own(tmp_path, monkeypatch):
    """Which is called like the bundled data, or like data of the hub."""
    monkeypatch.chdir(tmp_path)
    for name in ("sample", "Anthropic/hh-rlhf"):
        write(tmp_path / name / "train.jsonl", [PAIR])
        assert len(load_preferences(f"{name}/").examples) == 1
        assert len(load_preferences(f"{name}/:train").examples) == 1


# ---------------------------------------------------------------------------- errors
def test_no_name_is_not_the_folder_at_hand(tmp_path, monkeypatch):
    """As an unset variable of a shell has it."""
    monkeypatch.chdir(write(tmp_path / "rows.jsonl", [PAIR]).removesuffix("rows.jsonl"))
    assert len(load_preferences(".").examples) == 1
    for name in ("", " "):
        with pytest.raises(ValueError, match=f"--dataset '{name}': expected NAME"):
            load_preferences(name)
    assert split_name("/:rows") == ("/", None, "rows")


def test_unknown_names_come_with_the_nearest_known_ones(hub_cache, tmp_path):
    write_repository(cache_repository(hub_cache, "team/prefs"))
    for name, expected in (
        ("team/perfs", "not in the hub's cache .*did you mean team/prefs"),
        ("stanfordnlp/shp", "did you mean stanfordnlp/SHP"),
        ("hh-rlhf", "no such file or folder.*did you mean Anthropic/hh-rlhf"),
        ("data/train.jsonl", "no such file or folder"),
        ("smaple", "did you mean sample"),
        ("nope", "not one of sample, Anthropic/hh-rlhf"),
    ):
        with pytest.raises(FileNotFoundError, match=f"unknown dataset '{name}': .*{expected}") as e:
            load_preferences(name)
        assert "\n" not in str(e.value)
    (tmp_path / "local" / "team" / "others").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no folder team/other, .*did you mean team/others"):
        load_preferences("team/other", data_dir=tmp_path / "local")
    with pytest.raises(ValueError, match="expected NAME, NAME:SPLIT, NAME:CONFIG or NAME:CONFIG"):
        load_preferences("team/prefs:a:b:c")


def test_a_repository_without_files_that_can_be_read(hub_cache):
    snapshot = cache_repository(hub_cache, "team/code")
    snapshot.mkdir(parents=True)
    (snapshot / "images.tar").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"team/code: no data file .found .tar"):
        load_preferences("team/code")
    (snapshot / "code.py").write_text("raise SystemExit")
    with pytest.raises(
        OSError, match="Python script of its own .code.py., which is not run: `hf d"
    ):
        load_preferences("team/code")


def test_a_full_disk_is_one_line():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("An error occurred\nwhile generating") from error
    except RuntimeError as error:
        message = explain_hub_error("team/prefs", error)
    assert "no room left on the disk of the hub's cache" in message and "\n" not in message


# ---------------------------------------------------------------------------- the hub itself
READ = """
import json, sys
from ranking.data.preferences import load_preferences
import ranking.data.hub
ranking.data.hub.STREAMED_BYTES = int(sys.argv[1])
try:
    data = load_preferences(sys.argv[2], sample_size=int(sys.argv[3]) or None)
except (OSError, ValueError) as error:
    print(json.dumps([type(error).__name__, str(error)]))
else:
    print(json.dumps([[e.prompt for e in data.examples], data.config, data.split, data.commit]))
"""


@pytest.mark.slow
def test_a_dataset_of_the_hub(tmp_path):
    """A process of its own against a server: what it fetches, then offline; moved on; gated."""
    write_repository(tmp_path / "repository")
    server = HubServer("team/prefs", tmp_path / "repository", commit="a" * 40, kind="datasets")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") or "TIMEOUT" in k}
    environment |= {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1",
                    "HF_HOME": str(tmp_path / "home")}  # fmt: skip
    root = Path(__file__).parents[2]

    def read(spec, sample_size=0, streamed_bytes=2**30, **more):
        server.served.clear()
        command = [sys.executable, "-c", READ, str(streamed_bytes), spec, str(sample_size)]
        found = subprocess.run(
            command, env=environment | more, capture_output=True, text=True, cwd=root
        )
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout.splitlines()[-1])

    train = [f"train_prefs{k} {n}" for k in range(3) for n in range(5)]
    test = [f"test_prefs{k} {n}" for k in range(2) for n in range(5)]
    # a large split for a sample: its first rows, and no shard after those needed
    assert read("team/prefs:train_prefs", 7, streamed_bytes=9) == [
        train[:7], None, "train_prefs", "a" * 40
    ]  # fmt: skip
    assert {f for f in server.served if f.endswith("parquet")} == {
        f"data/train_prefs-0000{k}-of-00003.parquet" for k in (0, 1)
    }
    # a small one: its files and no other's
    assert read("team/prefs") == [test, None, "test_prefs", "a" * 40]
    assert {f for f in server.served if "." in f and f != "README.md"} == {
        f"data/test_prefs-0000{k}-of-00002.parquet" for k in (0, 1)
    }
    assert read("team/prefs", HF_HUB_OFFLINE="1") == [test, None, "test_prefs", "a" * 40]
    kind, message = read("team/prefs:chat", HF_HUB_OFFLINE="1")
    assert kind == "OSError" and "files of this split are not all in its cache" in message
    assert read("team/prefs:chat:raw")[1:3] == ["chat", "raw"]
    server.commit = "b" * 40
    assert read("team/prefs")[3] == "b" * 40
    kind, message = read("team/nothing")
    assert "unknown dataset 'team/nothing'" in message and "not on the hub (or private" in message
    server.gated = True
    server.commit = "d" * 40
    kind, message = read("team/prefs")
    assert message == (
        "team/prefs is gated: accept its terms at https://huggingface.co/datasets/team/prefs, then "
        "`hf auth login` or set HF_TOKEN"
    )
    server.go_away()
    assert read("team/prefs")[0] == test  # from the cache
    kind, message = read("team/nothing")
    assert "unknown dataset 'team/nothing'" in message and "the hub cannot be reached" in message
