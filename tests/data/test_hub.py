"""Hub datasets, read through a filled cache or a local copy."""

import pytest
from preference_rows import FARM, HH, SHP, write

from ranking.data.hub import ALPACA_FARM, ALPACA_FARM_FILE, DATASETS
from ranking.data.preferences import load_preferences


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
