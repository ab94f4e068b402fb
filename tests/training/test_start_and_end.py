"""When a run counts as finished, when its model card is written, and what goes with the run."""

import json
import os

import pytest
from datasets import Dataset

from ranking.training.run_directory import discard_run, mark_run, read_run
from ranking.training.start_and_end import Run, finish_and_publish, metrics_at, write_card

SETTINGS = {
    "dataset_name": "sample", "model_name_or_path": "SmolLM2-135M-Instruct",
    "model_fingerprints": ["0f"], "data_fingerprints": {"train": "1f"}, "optim": "adamw_torch",
    "per_device_train_batch_size": 2, "max_steps": 3,
}  # fmt: skip
LAST = {"step": 3, "max_steps": 3, "chosen_by": "last"}


def test_a_run_is_finished_when_its_card_is_written(tmp_path):
    """Not before: one that ends between the two has the same command write what is missing."""
    mark_run(tmp_path, SETTINGS, finished=False)
    run = Run("sft.py", {}, tmp_path, SETTINGS, None, [])
    parts = {part: Dataset.from_dict({"x": [0, 0]}) for part in ("train", "validation", "test")}
    validation, test = {"eval_loss": 2.0}, {"test_loss": 3.0}

    def end():
        finish_and_publish(
            run, [], LAST, validation, test, parts, data_commit=None, pictures={}, tables={}
        )

    in_the_way = tmp_path / f".README.md.{os.getpid()}.partial"
    in_the_way.mkdir()
    with pytest.raises(OSError):
        end()
    assert not read_run(tmp_path)["finished"]
    in_the_way.rmdir()
    end()
    assert read_run(tmp_path)["finished"] and read_run(tmp_path)["model"] == LAST
    assert "| test | 2 | 3.0000 |" in (tmp_path / "README.md").read_text()
    results = json.loads((tmp_path / "test_results.json").read_text())
    assert results == {"n": 2, "model": LAST, **test}


# ---------------------------------------------------------------------------- the card
def write(folder, **settings) -> None:
    parts = {"train": Dataset.from_dict({"x": [0] * 9}), "validation": Dataset.from_dict({"x": [0]}),
             "test": Dataset.from_dict({"x": [0] * 3, "dataset": ["A", "B", "A"]}),
             "C": Dataset.from_dict({"x": [0] * 7})}  # fmt: skip
    metrics = {"eval_loss": 2.0, "eval_C/loss": 5.0, "test_loss": 3.0, "test_A/loss": 4.0,
               "test_B/loss": 2.0}  # fmt: skip
    run = Run("sft.py", {}, folder, SETTINGS | settings, None, [])
    write_card(run, LAST, metrics, parts, data_commit=None, pictures={})


def written(folder, **settings) -> str:
    write(folder, **settings)
    return (folder / "README.md").read_text()


def test_each_dataset_of_a_mixture_has_its_line(tmp_path):
    lines = written(tmp_path).splitlines()
    for line in ("| validation | 1 | 2.0000 |", "| test | 3 | 3.0000 |", "| test A | 2 | 4.0000 |",
                 "| test B | 1 | 2.0000 |", "| C | 7 | 5.0000 |", "- saved model: step 3 of 3, the last"):  # fmt: skip
        assert line in lines


def test_an_adapter_of_an_adapter_is_loaded_on_base(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first/adapter_config.json").write_text("{}")
    lora = {"use_peft": True, "lora_r": 4, "lora_alpha": 8}
    card = written(tmp_path, model_name_or_path=str(tmp_path / "first"), **lora)
    assert "merged into its base it is in `base/` of this directory, on which this adapter" in card
    card = written(tmp_path, **lora)
    assert "(fingerprint `0f`), on which this adapter is to be loaded" in card


def test_the_users_own_readme_stays(tmp_path, capsys):
    """A run's is written again, and discarded with it."""
    first, file = written(tmp_path), tmp_path / "README.md"
    file.write_text(first + "edited")
    assert written(tmp_path) == first
    discard_run(tmp_path)
    assert not file.exists()
    for own in (b"my notes", b"my caf\xe9"):  # which is no UTF-8
        file.write_bytes(own)
        write(tmp_path)
        assert "README.md is your own: no model card is written" in capsys.readouterr().err
        discard_run(tmp_path)
        assert file.read_bytes() == own
    file.unlink()
    file.mkdir()
    write(tmp_path)
    discard_run(tmp_path)
    assert file.is_dir() and "is your own" in capsys.readouterr().err


def test_metrics_of_the_saved_step():
    history = [
        {"step": 1, "loss": 1.0},
        {"step": 1, "eval_loss": 2.0},
        {"step": 2, "eval_loss": 3.0},
        {"step": 2, "eval_train_loss": 4.0},
    ]
    assert metrics_at(history, 2) == {"step": 2, "eval_loss": 3.0}
    assert metrics_at(history, 3) == {}
