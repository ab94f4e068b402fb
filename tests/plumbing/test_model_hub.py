"""Pushing by the real client of the hub, which talks to a stand-in of it."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import PushServer

ROOT = Path(__file__).parents[2]
PUSH = """
import sys
from pathlib import Path
from huggingface_hub import HfApi
from ranking.plumbing.model_hub import open_repository, push_checkpoint, push_results
folder, name, revision = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None
try:
    repository = open_repository(name, True, revision)
except ValueError as error:
    sys.exit(str(error))
jobs = push_checkpoint(HfApi(), folder / "checkpoint-4", repository, revision, "last-checkpoint")
push_results(folder, repository, revision, jobs)
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """What a run leaves, of one word each."""
    folder = tmp_path / "my-model"
    for name in ("README.md", "model.safetensors", "config.json", "run_config.json", "training_args.bin",
                 "trainer_state.json", "checkpoint-4/training_args.bin",
                 ".run_config.lock", "wandb/run.wandb", "trackio/dpo.db", "runs/events.out.tfevents.1",
                 "checkpoint-4/model.safetensors", "checkpoint-4/optimizer.pt",
                 "checkpoint-4/trainer_state.json"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "README.md").write_text("---\ntags:\n- dpo\n---\n# my-model\n")
    return folder


def push(server, folder, name="my-model", revision="", **changes):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **server.environment, **changes}
    return subprocess.run(
        [sys.executable, "-c", PUSH, folder, name, revision],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("revision", ["", "a/b"])
def test_results_and_checkpoints(folder, revision):
    """Models at the root, the state beside, the results last; what names local paths stays."""
    server = PushServer()
    run = push(server, folder, revision=revision)
    assert run.returncode == 0, run.stderr[-2000:]
    branch = revision.replace("/", "%2F") or "main"
    assert server.commits == [(branch, "Training in progress, step 4"),
                              (branch, "Training in progress, step 4, checkpoint"),
                              (branch, "End of training")]  # fmt: skip
    pushed = server.files["me/my-model"][branch]
    state = {f"last-checkpoint/{x}" for x in ("model.safetensors", "optimizer.pt",
                                              "trainer_state.json")}  # fmt: skip
    own = {"README.md", "model.safetensors", "config.json"}
    assert pushed.keys() == own | state
    for name in own:  # and not the checkpoint's
        assert pushed[name] == (folder / name).read_bytes()
    assert server.private == {"me/my-model": True}
    assert "hub       me/my-model" in run.stdout
    server.go_away()


def test_an_adapters_base_is_named_without_its_path(folder):
    """`base` beside the adapter, in the results and in both places of a checkpoint."""
    (folder / "base").mkdir()
    (folder / "base/config.json").write_text("base")
    config = {"base_model_name_or_path": str(folder / "base"), "r": 2}
    for place in (folder, folder / "checkpoint-4"):
        (place / "adapter_config.json").write_text(json.dumps(config))
    server = PushServer()
    run = push(server, folder)
    assert run.returncode == 0, run.stderr[-2000:]
    pushed = server.files["me/my-model"]["main"]
    for name in ("adapter_config.json", "last-checkpoint/adapter_config.json"):
        assert json.loads(pushed[name]) == {"base_model_name_or_path": "base", "r": 2}
    assert pushed["base/config.json"] == b"base"
    assert json.loads((folder / "adapter_config.json").read_text()) == config
    assert not any(str(folder).encode() in content for content in pushed.values())
    server.go_away()


def test_a_hub_that_goes_away_costs_a_line(folder):
    config = {"base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    server = PushServer(last="Training in progress, step 4, checkpoint")
    run = push(server, folder)
    assert run.returncode == 0 and "Traceback" not in run.stderr
    (line,) = [line for line in run.stderr.splitlines() if "was not pushed" in line]
    assert line.startswith("hub: me/my-model was not pushed (")
    assert f"push it with `hf upload me/my-model {folder} . --exclude 'checkpoint-*'" in line
    command = shlex.split(line.split("`")[1])
    command[0] = str(Path(sys.executable).parent / "hf")
    tried = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert "offline mode is enabled" in tried.stderr  # so that all words of it were understood
    assert line.endswith(
        "`, which shows the local path in adapter_config.json to all who may read it"
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("other/model", {}, "cannot open other/model on the hub: "),
        ("my-model", {"HF_TOKEN": "hf_wrong"}, "cannot open my-model on the hub: "),
        ("my-model", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot open my-model on the hub: "),
        ("a//b", {}, "cannot open a//b on the hub: Repo id must "),
    ],
)
def test_what_cannot_be_opened_is_one_line(folder, name, changes, message):
    server = PushServer()
    run = push(server, folder, name, **changes)
    assert run.returncode == 1 and f"--push_to_hub: {message}" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert not server.files
    server.go_away()


def test_without_a_token_nothing_starts(tmp_path):
    """Nor where the client is told to stay offline."""
    code = "from ranking.plumbing.model_hub import check_hub_access as c; c()"
    for changes, message in (
        ({"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}, "set HF_TOKEN, or run `hf auth login`"),
        ({"HF_HUB_OFFLINE": "1", "HF_TOKEN": "x"}, "HF_HUB_OFFLINE forbids it"),
    ):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_TOKEN")}
        run = subprocess.run(
            [sys.executable, "-c", code], env={**environment, "PYTHONPATH": str(ROOT), **changes},
            capture_output=True, text=True,
        )  # fmt: skip
        assert message in run.stderr.splitlines()[-1]
