"""Which checkpoints are whole."""

import json
import shutil

import pytest
from checkpoint_files import make_checkpoint

from ranking.training.checkpoints import checkpoint_fault, last_checkpoint


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("model.safetensors", "damaged file"),
        ("optimizer.pt", "damaged file"),
        ("rng_state.pth", "damaged file"),
        ("training_args.bin", "damaged file"),
        ("adapter_config.json", "damaged file"),
        ("trainer_state.json", "not saved to the end"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, name, fault, capsys):
    whole, damaged = make_checkpoint(tmp_path, 4), make_checkpoint(tmp_path, 12)
    assert checkpoint_fault(damaged) is None
    for path in (whole, damaged):
        (path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[: len(content) // 2])
    assert fault in checkpoint_fault(damaged)
    assert last_checkpoint(tmp_path) == whole
    assert f"{damaged} " in capsys.readouterr().err


def test_incomplete_checkpoints(tmp_path):
    path = make_checkpoint(tmp_path, 4)
    index = {"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(path / "model.safetensors", path / "model-1.safetensors")
    assert checkpoint_fault(path) == "lacks model-2.safetensors"
    (path / "model.safetensors.index.json").unlink()
    for file in path.glob("*.safetensors"):
        file.unlink()
    assert checkpoint_fault(path) == "has no weights"
    (path / "optimizer.pt").unlink()
    assert "no optimizer state" in checkpoint_fault(path)
