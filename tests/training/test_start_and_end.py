"""When a run counts as finished."""

import json
import os

import pytest
from datasets import Dataset

from ranking.training.run_directory import mark_run, read_run
from ranking.training.start_and_end import Run, finish_and_publish

SETTINGS = {
    "dataset_name": "sample", "model_name_or_path": "SmolLM2-135M-Instruct",
    "model_fingerprints": ["0f"], "data_fingerprints": {"train": "1f"}, "optim": "adamw_torch",
    "per_device_train_batch_size": 2, "max_steps": 3,
}  # fmt: skip


def test_a_run_is_finished_when_its_card_is_written(tmp_path):
    """Not before: one that ends between the two has the same command write what is missing."""
    mark_run(tmp_path, SETTINGS, finished=False)
    run = Run("sft.py", {}, tmp_path, SETTINGS, None, [])
    parts = {part: Dataset.from_dict({"x": [0, 0]}) for part in ("train", "validation", "test")}
    step = {"step": 3, "max_steps": 3, "chosen_by": "last"}
    validation, test = {"eval_loss": 2.0}, {"test_loss": 3.0}

    def end():
        finish_and_publish(
            run, [], step, validation, test, parts, data_commit=None, pictures={}, tables={}
        )

    in_the_way = tmp_path / f".README.md.{os.getpid()}.partial"
    in_the_way.mkdir()
    with pytest.raises(OSError):
        end()
    assert not read_run(tmp_path)["finished"]
    in_the_way.rmdir()
    end()
    assert read_run(tmp_path)["finished"] and read_run(tmp_path)["model"] == step
    assert "| test | 2 | 3.0000 |" in (tmp_path / "README.md").read_text()
    results = json.loads((tmp_path / "test_results.json").read_text())
    assert results == {"n": 2, "model": step, **test}
