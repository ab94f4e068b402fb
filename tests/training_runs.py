"""Commands of sft.py and dpo.py on the sample data, and what their runs leave."""

import json
import re
import subprocess
import sys
from pathlib import Path

from ranking.plumbing.outputs import release_outputs
from ranking.training.run_directory import mark_run

BEST = ["--report_to=none", "--warmup_steps=0", "--lr_scheduler_type=constant", "--eval_steps=1",
        "--save_steps=4", "--max_train_samples=20", "--max_eval_samples=6"]  # fmt: skip


def sft_command(model, output, *more) -> list[str]:
    """The original README's command, quotes in the templates and old spellings included."""
    return [
        f"--model_name={model}", "--dataset_name=sample", "--dataset_text_field=chosen",
        '--instruction_template="Human:"', '--response_template="Assistant:"',
        "--sanity_check=false", f"--output_dir={output}", "--wandb_run_name=first",
        "--gradient_accumulation_steps=2", "--per_device_train_batch_size=4",
        "--per_device_eval_batch_size=4", "--learning_rate=1e-3", "--warmup_steps=2",
        "--num_train_epochs=1", "--logging_steps=2", "--log_level=info",
        "--evaluation_strategy=steps", "--eval_steps=4", "--save_strategy=steps", "--save_steps=4",
        "--load_best_model_at_end=true", "--save_total_limit=2", "--seq_length=512", *more,
    ]  # fmt: skip


def dpo_command(model, output, *more) -> list[str]:
    """The original README's command on the sample data, old spellings included."""
    return [
        f"--model_name_or_path={model}", "--dataset_name=sample", "--beta=0.1", "--alpha=0.5",
        "--loss_type=alpha_scaling", "--sanity_check=false", "--logging_first_step=true",
        "--warmup_steps=150", "--bf16=true", f"--output_dir={output}", "--wandb_run_name=second",
        "--gradient_accumulation_steps=2", "--per_device_train_batch_size=8",
        "--per_device_eval_batch_size=8", "--learning_rate=1e-2", "--num_train_epochs=1",
        "--log_level=info", "--save_strategy=steps", "--save_steps=4",
        "--load_best_model_at_end=true", "--max_length=512", "--evaluation_strategy=steps",
        "--logging_steps=2", "--eval_steps=4", "--optim=rmsprop", *more,
    ]  # fmt: skip


def launch(script: str, arguments, sharded: bool) -> int:
    """torchrun of a script with two processes, under FSDP2 if asked; number of sharded weights."""
    root = Path(__file__).parents[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
                "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    launcher += [root / "tests" / "fsdp_on_cpu.py"] * sharded
    run = subprocess.run([*launcher, root / script, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return max(map(int, re.findall(r"(\d+) weights are sharded", run.stderr)), default=0)


def history(folder) -> list[dict]:
    """What was logged, without times and without Trainer's entry on its last start, which a run
    resumed after its last step does not have."""
    state = json.loads((folder / "trainer_state.json").read_text())
    return [
        {k: v for k, v in entry.items() if not re.search("runtime|second|preparation", k)}
        for entry in state["log_history"]
        if "train_loss" not in entry
    ]


def wandb_config(log: bytes, name: str):
    """The last value of a setting in the log of an offline run."""
    return json.loads(re.findall(re.escape(name.encode()) + rb'[^"]{1,3}("[^"]*")', log)[-1])


def as_killed(folder: Path, moved: Path) -> Path:
    """The folder as a kill between the last checkpoint and the end leaves it, in another place."""
    release_outputs()
    run = json.loads((folder / "run_config.json").read_text())
    mark_run(folder, run["settings"], finished=False)
    for name in ("model.safetensors", "test_results.json", "trainer_state.json"):
        (folder / name).unlink()
    return folder.rename(moved)
