"""Threads that wait sleep: OMP_WAIT_POLICY is there before torch loads its OpenMP library, which
reads it once; what the user sets stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("calculate_calibration_metrics", "calculate_win_rate", "dpo", "sft")
AT_TORCH = """
import os, sys

class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, AtTorch())
import importlib
importlib.import_module(sys.argv[1])
import torch
"""


def policy_at_torch(module: str, **environment: str) -> str:
    """OMP_WAIT_POLICY when torch is looked for, in a process of its own that imports `module`."""
    spinning = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
    clean = {k: v for k, v in os.environ.items() if k not in spinning}
    return subprocess.run(
        [sys.executable, "-c", AT_TORCH, module], cwd=ROOT, env={**clean, **environment},
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout.strip()  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_threads_of_every_script_sleep_while_they_wait(script):
    assert policy_at_torch(script) == "PASSIVE"


@pytest.mark.parametrize(
    "given, seen",
    [
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "1000"}, "None"),
        ({"KMP_BLOCKTIME": "200"}, "None"),
    ],
)
def test_what_the_user_sets_stands(given, seen):
    assert policy_at_torch("ranking", **given) == seen


def test_the_library_torch_loads_heard_of_it():
    """As libgomp itself says what it has read (OMP_DISPLAY_ENV)."""
    code = "import ranking, torch; print(torch.__config__.parallel_info())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True,
        env={**environment, "OMP_DISPLAY_ENV": "TRUE"},
    )  # fmt: skip
    if "OMP_WAIT_POLICY" not in run.stderr:
        pytest.skip("this build of torch has no OpenMP library that displays its environment")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in run.stderr
