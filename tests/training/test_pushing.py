"""sft.py pushes to a stand-in of the hub, by the hub's own client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import PushServer
from huggingface_hub import ModelCard
from training_runs import sft_command as command
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # whole runs


def run_sft(model, folder, server, *more):
    few = ["--report_to=none", "--warmup_steps=0"]
    flags = command(model, folder, "--max_train_samples=12", "--max_eval_samples=4", "--max_steps=4",
                    "--eval_steps=2", "--save_steps=2", *few, "--push_to_hub", *more)  # fmt: skip
    return subprocess.run(
        [sys.executable, ROOT / "sft.py", *flags], capture_output=True, text=True, cwd=folder.parent,
        env={**os.environ, **server.environment},
    )  # fmt: skip


def test_the_pushed_model_is_the_runs(tiny_model_directory, tmp_path):
    server, folder = PushServer(), tmp_path / "tuned"
    run = run_sft(tiny_model_directory, folder, server, "--hub_strategy=all_checkpoints",
                  "--hub_always_push", "--hub_private_repo=true")  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert (
        "hub: me/tuned is open for the results" in run.stderr and "hub       me/tuned" in run.stdout
    )
    messages = [message for _, message in server.commits]
    steps = [f"Training in progress, step {n}{x}" for n in (2, 4) for x in ("", ", checkpoint")]
    assert messages == [*steps, "End of training"] and server.private["me/tuned"]
    for name, content in server.files["me/tuned"]["main"].items():
        (tmp_path / "pushed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pushed" / name).write_bytes(content)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / x) for x in ("pushed", "tuned")]
    for pushed, own in zip(*(model.parameters() for model in models)):
        assert (pushed == own).all()
    assert AutoTokenizer.from_pretrained(tmp_path / "pushed").eos_token == "</s>"
    state = tmp_path / "pushed/checkpoint-4"
    assert {"optimizer.pt", "trainer_state.json"} <= {path.name for path in state.iterdir()}
    card = ModelCard.load(tmp_path / "pushed/README.md")
    assert "sft" in card.data.tags and str(tmp_path) not in card.content
    assert not {"run_config.json", "trainer_state.json", "training_args.bin"} & {
        p.name for p in (tmp_path / "pushed").iterdir()
    }


def test_an_adapter_beside_ones_own_readme(tiny_model_directory, tmp_path):
    """The README stays as it is, and the results too where the hub is gone at the end."""
    server, folder = PushServer(last="Training in progress, step 2"), tmp_path / "tuned"
    folder.mkdir()
    (folder / "README.md").write_text("my notes")
    run = run_sft(tiny_model_directory, folder, server, "--use_peft", "--lora_r=2",
                  "--lora_target_modules", "q_proj")  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert "hub: me/tuned was not pushed (" in run.stderr and "hf upload me/tuned" in run.stderr
    assert "Traceback" not in run.stderr
    assert json.loads((folder / "run_config.json").read_text())["finished"]
    assert (folder / "README.md").read_text() == "my notes"
    assert (folder / "adapter_model.safetensors").exists()
    assert not list(folder.glob("checkpoint-*/README.md"))
