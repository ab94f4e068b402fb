"""wandb without a key, without a server, and with one that goes away in the middle of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import wandb
from training_runs import dpo_command as command
from wandb.sdk.lib.wbauth import write_netrc_auth
from wandb_server import WandbServer

from ranking.plumbing.result_files import read_json_lines
from ranking.plumbing.wandb_runs import MODES, has_wandb_key

ROOT = Path(__file__).parents[2]


def test_wandb_key_is_wandbs(tmp_path, monkeypatch):
    """A .netrc without the entry that `wandb login` writes is no key, of whatever server."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC", "XDG_CONFIG_HOME", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert not has_wandb_key()
    (tmp_path / ".netrc").write_text("machine github.com login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert not has_wandb_key()
    key = "0123456789" * 4
    write_netrc_auth(host=wandb.Settings().base_url, api_key=key)
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_key()
    write_netrc_auth(host="https://wandb.example.org", api_key=key)
    assert has_wandb_key()
    monkeypatch.delenv("WANDB_BASE_URL")
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {key}\n")
    assert has_wandb_key()  # of an earlier version


def test_modes_are_wandbs():
    assert set(MODES) == set(get_args(wandb.Settings.model_fields["mode"].annotation))


@pytest.mark.slow
def test_a_wandb_outage_makes_the_run_an_offline_one(tiny_model_directory, tmp_path):
    """A key, but no server: results are there, the run can be uploaded later."""
    kept = ("TIMEOUT", "WAIT")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("WANDB") or k.endswith(kept)
    }
    environment |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9",
                    "WANDB_INIT_TIMEOUT": "4", "WANDB_DIR": str(tmp_path)}  # fmt: skip
    script = ROOT / "calculate_calibration_metrics.py"
    finished = subprocess.run(
        [str(x) for x in (
            sys.executable, script, "--lm-name-or-path", tiny_model_directory, "--dataset", "sample",
            "--sample-size", "8", "--wandb-project", "p", "--output-dir", tmp_path / "out",
            "--output-filename", "run.jsonl")],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "wandb: this run is offline; upload it with `wandb sync " in finished.stderr
    assert (tmp_path / "out" / "run.jsonl").exists()
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert log.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("script", ["calculate_calibration_metrics.py", "dpo.py"])
def test_a_wandb_server_that_dies_in_the_middle(script, tiny_model_directory, tmp_path):
    """Training goes on, results are whole, one line says how to upload; nothing waits for ever."""
    server = WandbServer("UpsertBucket" if script.startswith("calculate") else "file_stream")
    kept = ("TIMEOUT", "WAIT")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("WANDB") or k.endswith(kept)
    }
    environment |= {"WANDB_API_KEY": "0" * 40, "WANDB_DIR": str(tmp_path), "WANDB_FINISH_TIMEOUT": "2",
                    "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}  # fmt: skip
    out = tmp_path / "out"
    flags = {
        "calculate_calibration_metrics.py": [
            "--lm-name-or-path", tiny_model_directory, "--dataset", "sample", "--sample-size", "8",
            "--wandb-project", "p", "--output-dir", out, "--output-filename", "run.jsonl"],
        "dpo.py": command(tiny_model_directory, out, "--report_to=wandb", "--warmup_steps=2",
                          "--bf16=false", "--dynamics_sample_size=40"),
    }[script]  # fmt: skip
    finished = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, flags)],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert server.gone.is_set() and "Traceback" not in finished.stderr
    assert "wandb: the run is not all uploaded after 2 s" in finished.stderr
    (folder,) = tmp_path.glob("wandb/run-*")
    assert f"`wandb sync {folder}`" in finished.stderr and list(folder.glob("run-*.wandb"))
    if script.startswith("calculate"):
        assert len(read_json_lines(out / "run.jsonl")) > 0
    else:
        assert json.loads((out / "run_config.json").read_text())["finished"]
        assert (out / "model.safetensors").exists()
