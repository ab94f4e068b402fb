"""When a run's model card is written, and what goes with the run."""

from datasets import Dataset

from ranking.training.run_card import metrics_at, write_card
from ranking.training.run_directory import discard_run

SETTINGS = {
    "dataset_name": "sample", "model_name_or_path": "SmolLM2-135M-Instruct",
    "model_fingerprints": ["0f"], "data_fingerprints": {"train": "1f"}, "optim": "adamw_torch",
    "per_device_train_batch_size": 2, "max_steps": 3,
}  # fmt: skip
METRICS = {
    "eval_loss": 2.0,
    "eval_C/loss": 5.0,
    "test_loss": 3.0,
    "test_A/loss": 4.0,
    "test_B/loss": 2.0,
}


def write_into(folder, **settings) -> None:
    parts = {"train": Dataset.from_dict({"x": [0] * 9}), "validation": Dataset.from_dict({"x": [0]}),
             "test": Dataset.from_dict({"x": [0] * 3, "dataset": ["A", "B", "A"]}),
             "C": Dataset.from_dict({"x": [0] * 7})}  # fmt: skip
    write_card(
        folder, "sft.py", {}, SETTINGS | settings, {"step": 3, "max_steps": 3, "chosen_by": "last"}, METRICS,
        parts, data_commit=None, pictures={},
    )  # fmt: skip


def write(folder, **settings) -> str:
    write_into(folder, **settings)
    return (folder / "README.md").read_text()


def test_each_dataset_of_a_mixture_has_its_line(tmp_path):
    lines = write(tmp_path).splitlines()
    for line in ("| validation | 1 | 2.0000 |", "| test | 3 | 3.0000 |", "| test A | 2 | 4.0000 |",
                 "| test B | 1 | 2.0000 |", "| C | 7 | 5.0000 |", "- saved model: step 3 of 3, the last"):  # fmt: skip
        assert line in lines


def test_an_adapter_of_an_adapter_is_loaded_on_base(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first/adapter_config.json").write_text("{}")
    lora = {"use_peft": True, "lora_r": 4, "lora_alpha": 8}
    card = write(tmp_path, model_name_or_path=str(tmp_path / "first"), **lora)
    assert "merged into its base it is in `base/` of this directory, on which this adapter" in card
    card = write(tmp_path, **lora)
    assert "(fingerprint `0f`), on which this adapter is to be loaded" in card


def test_the_users_own_readme_stays(tmp_path, capsys):
    """A run's is written again, and discarded with it."""
    first = write(tmp_path)
    (tmp_path / "README.md").write_text(first + "edited")
    assert write(tmp_path) == first
    discard_run(tmp_path)
    assert not (tmp_path / "README.md").exists()
    (tmp_path / "README.md").write_text("my notes")
    assert write(tmp_path) == "my notes"
    assert "README.md is your own: no model card is written" in capsys.readouterr().err
    discard_run(tmp_path)
    assert (tmp_path / "README.md").exists()
    (tmp_path / "README.md").write_bytes(b"my caf\xe9")  # no UTF-8
    write_into(tmp_path)
    discard_run(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == b"my caf\xe9"
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    write_into(tmp_path)
    discard_run(tmp_path)
    assert (tmp_path / "README.md").is_dir()
    assert capsys.readouterr().err.count("is your own") == 2


def test_metrics_of_the_saved_step():
    history = [
        {"step": 1, "loss": 1.0},
        {"step": 1, "eval_loss": 2.0},
        {"step": 2, "eval_loss": 3.0},
        {"step": 2, "eval_train_loss": 4.0},
    ]
    assert metrics_at(history, 2) == {"step": 2, "eval_loss": 3.0}
    assert metrics_at(history, 3) == {}
