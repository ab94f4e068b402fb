"""A checkpoint as Trainer saves it, of a tensor."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def make_checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": torch.zeros(3)}, path / "model.safetensors")
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"a": torch.zeros(3)}, path / name)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path
