"""What a user reads while the scripts run: on stderr, their own lines and no library's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paused import CHECKPOINT_SAVED, start_paused

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
OURS = [  # lines of the scripts, as they begin
    r"sample: (\d+ examples, dropped|divided by prompt into|train: |joined to the prompt by nothing)",
    r"sample: train limited to \d+ examples$",
    r"(train|validation|test): \d+ (pairs|texts)", r"reference log-likelihoods: ", r"reference: ",
    r"wandb: this run is offline; upload it with ", r"policy log-likelihoods: ",
    r"plan: ", r"      (--|one alone)", r"disk: ", r"resuming from ",
    r"step +\d+  epoch \d\.\d\d  (loss|validation  loss|train       loss) ",
    r"trained \d+ steps? in ", r"test: exact_ties(_normalized)? ", r"eval_loss was ",
]  # fmt: skip


def run(script: str, folder: Path, *flags) -> subprocess.CompletedProcess:
    """A script as a user starts it: without what the tests set for wandb."""
    kept = ("TIMEOUT", "WAIT")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("WANDB") or k.endswith(kept)
    }
    return subprocess.run(
        [sys.executable, ROOT / script, *map(str, flags)], cwd=folder, text=True,
        capture_output=True, env={**environment, "RANKING_ACC_CACHE": str(folder / "cache")},
    )  # fmt: skip


def strange_lines(stderr: str) -> list[str]:
    """Those that are none of ours."""
    lines = [line for line in re.split(r"[\r\n]", stderr) if line]
    return [line for line in lines if not any(re.match(start, line) for start in OURS)]


COMMON = ["--dataset_name=sample", "--max_train_samples=12", "--max_steps=4", "--logging_steps=1",
          "--eval_strategy=steps", "--eval_steps=2", "--save_strategy=steps", "--save_steps=2",
          "--load_best_model_at_end=true", "--per_device_train_batch_size=2"]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("sft.py", ["--report_to=wandb", "--dataloader_num_workers=1"]),
        ("sft.py", ["--report_to=none", "--use_peft", "--gradient_checkpointing=true"]),
        ("dpo.py", ["--report_to=wandb", "--loss_type=alpha_scaling", "--gradient_checkpointing=true"]),
        ("dpo.py", ["--report_to=none", "--use_peft", "--loss_type=ipo"]),
    ],
)  # fmt: skip
def test_a_run_and_its_resume_print_our_lines_only(script, flags, tiny_model_directory, tmp_path):
    flags = [f"--model_name_or_path={tiny_model_directory}", "--output_dir=out", *COMMON, *flags]
    environment = {**os.environ, "RANKING_ACC_CACHE": str(tmp_path / "cache")}
    with (tmp_path / "err").open("w") as err:
        process = start_paused(CHECKPOINT_SAVED, 1, script, *flags, cwd=tmp_path, env=environment,
                               stdout=subprocess.DEVNULL, stderr=err)  # fmt: skip
        process.kill()
        process.wait()
    killed = (tmp_path / "err").read_text()
    assert strange_lines(killed) == [] and "plan: 4 steps of 2 " in killed
    again = run(script, tmp_path, *flags)
    assert again.returncode == 0 and strange_lines(again.stderr) == []
    assert "plan: steps 3 to 4 of 2 " in again.stderr and "step 4  epoch" in again.stderr


@pytest.mark.parametrize("script", ["sft.py", "dpo.py"])
def test_an_error_is_the_last_of_our_lines(script, tiny_model_directory, tmp_path):
    for flags, said in (
        (["--model_name_or_path=no/model", "--dataset_name=sample"], "error: cannot load no/model"),
        ([f"--model_name_or_path={tiny_model_directory}", "--dataset_name=no/data"],
         "error: unknown dataset 'no/data'"),
    ):  # fmt: skip
        failed = run(script, tmp_path, "--output_dir=out", *flags)
        assert failed.returncode == 2
        (error,) = strange_lines(failed.stderr)
        assert error.startswith(said) and failed.stderr.rstrip().endswith(error)
