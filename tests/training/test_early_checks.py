"""Wrong flags end a script before PyTorch is imported, with the line that the dataclasses give."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "trl", "datasets", "peft", "accelerate", "scipy", "wandb")
# runs a script of the command line, and says which of HEAVY are imported when it ends
RUN = f"""
import atexit, runpy, sys
atexit.register(lambda: print("imported:", *sorted({{*{HEAVY!r}}} & {{*sys.modules}})))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BASE = ["--model_name=m", "--output_dir=o", "--report_to=none"]


def run(*command) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", RUN, *map(str, command)], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("sft.py", ["--wrong_flag"], "error: unknown flag --wrong_flag"),
        ("dpo.py", [*BASE, "--no_cuda"], "error: --no_cuda cannot be honoured; use --use_cpu"),
        ("dpo.py", [*BASE, "--learning_rate=x"], "error: --learning_rate: invalid float value: 'x'"),
        ("dpo.py", [*BASE, "--lora_r=2"], "error: --lora_r without --use_peft"),
        ("dpo.py", [*BASE, "--use_peft", "--lora_r=0"], "error: --lora_r 0: give a finite number"),
        ("sft.py", ["--output_dir=o"], "error: --model_name_or_path is required"),
        ("sft.py", ["--model_name=./absent", "--output_dir=o"], "error: no such model directory"),
        ("dpo.py", [*BASE, "--dataset_name=absent.jsonl"], "error: unknown dataset 'absent.jsonl'"),
        ("dpo.py", [*BASE, "--resume_from_checkpoint=absent"], "_checkpoint absent is no directory"),
        ("sft.py", [*BASE, "--output_dir=README.md/run"],
         "error: --output_dir README.md/run: README.md is no directory, choose another"),
        ("sft.py", [*BASE, "--fsdp_config=absent"], "error: --fsdp_config absent: no such file"),
        ("sft.py", [*BASE, "--load_in_4bit"], "error: --load_in_4bit without --use_peft"),
        ("sft.py", [*BASE, "--chat_template_file=absent.jinja"],
         "error: --chat_template_file absent.jinja: No such file"),
        ("dpo.py", [*BASE, "--config=absent.yaml"], "error: --config absent.yaml: No such file"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_one_line_without_pytorch(script, flags, message):
    ended = run(script, *flags)
    assert ended.returncode == 2 and ended.stdout == "imported:\n"
    (line,) = ended.stderr.splitlines()
    assert message in line


def test_an_output_directory_that_is_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    ended = run("dpo.py", *BASE, "--dataset_name=sample", f"--output_dir={tmp_path}/link")
    assert ended.returncode == 2 and "/link is no directory, choose another" in ended.stderr


def test_one_of_several_processes_says_what_is_wrong():
    """As of torchrun, which ends the others when the first one ends."""
    processes = [
        subprocess.Popen(
            [sys.executable, "sft.py", "--wrong_flag"], stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    said = processes[0].communicate()[1]
    processes[1].terminate()
    assert said.startswith("error: unknown flag --wrong_flag") and processes[0].returncode == 2
    assert processes[1].communicate()[1] == ""


@pytest.mark.parametrize("script", ["sft.py", "dpo.py"])
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_needs_no_pytorch(script, flag):
    ended = run(script, flag)
    assert ended.returncode == 0 and ended.stderr == ""
    assert ended.stdout.endswith("imported:\n") and "--max_length, --seq_length" in ended.stdout
