"""reproduce/gpu.sh: every part on the CPU, after a kill; and what it runs on a GPU parses."""

import importlib
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "reproduce" / "gpu.sh"
RECORDING_PYTHON = '''#!{python}
"""Writes its command down, and the files that the command would leave."""
import json, sys
from pathlib import Path

words = sys.argv[1:]
with open({commands!r}, "a") as file:
    file.write(json.dumps(words) + "\\n")
given = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
if "--junitxml" in given:
    Path(given["--junitxml"]).write_text("<testsuites/>")
if "--output" in words:
    file = Path(words[words.index("--output") + 1])
    parts = words[words.index("--parts") + 1 : words.index("--output")] if "--parts" in words else []
    file.write_text(json.dumps({{part: {{}} for part in parts}}, indent=1))
if "--output_dir" in given:
    folder = Path(given["--output_dir"])
    folder.mkdir()
    (folder / "ranking_dynamics.jsonl").write_text(given["--seed"])
    (folder / "run_config.json").write_text(json.dumps({{"finished": True}}, indent=1))
'''


def run_script(folder: Path, *flags, **environment) -> list[str]:
    """The lines that it prints."""
    return subprocess.run(
        [SCRIPT, *flags, folder], check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
    ).stdout.splitlines()  # fmt: skip


def session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def test_what_is_run_on_a_gpu_parses_and_is_run_once(tmp_path):
    python, commands = tmp_path / "python", tmp_path / "commands.jsonl"
    python.write_text(RECORDING_PYTHON.format(python=sys.executable, commands=str(commands)))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "data of hub").mkdir()
    how = {"PYTHON": python, "DATA_DIR": tmp_path / "data of hub", "JOBS": 2}
    out = tmp_path / "out"
    everything = "there: tests speed sweep determinism; missing: nothing"
    assert run_script(out, **how)[-1] == everything
    with tarfile.open(out / "sweep.tar.gz") as archive:
        files = {name for name in archive.getnames() if name.endswith("dynamics.jsonl")}
    assert files == {
        f"gamma{gamma}_seed{seed}/ranking_dynamics.jsonl"
        for gamma in ("0", "0.5", "1", "2")
        for seed in range(3)
    }
    assert len(list(out.iterdir())) <= 8

    run = [json.loads(line) for line in commands.read_text().splitlines()]
    assert [words[:2] for words in run[1:3]] == [["-m", "pytest"], ["-m", "benchmarks.gpu"]]
    assert run[-1][:2] == ["-m", "benchmarks.determinism"]
    trained = [words for words in run if words[0] in ("sft.py", "dpo.py")]
    assert len(trained) == 3 + 12
    for words in [*trained, run[2], run[-1]]:
        module, arguments = (
            (words[1], words[2:]) if words[0] == "-m" else (words[0][:-3], words[1:])
        )
        importlib.import_module(module).parse_args(arguments)
        assert str(tmp_path / "data of hub") in arguments

    assert run_script(out, **how)[-1] == everything  # asks for a GPU, and that is all
    assert len(commands.read_text().splitlines()) == len(run) + 1


def test_without_a_gpu_it_says_so(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    run = subprocess.run([SCRIPT, tmp_path / "out"], env={**os.environ, "PYTHON": str(python)},
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 2 and "torch finds no GPU here; --dry-run" in run.stderr


@pytest.mark.slow
def test_every_part_runs_on_the_cpu_and_goes_on_after_a_kill(tmp_path, tiny_model_directory):
    out = tmp_path / "out"
    how = {"MODEL": tiny_model_directory, "PYTHON": sys.executable, "OMP_NUM_THREADS": 1}
    environment = {**os.environ, **{key: str(value) for key, value in how.items()}}
    started = subprocess.Popen([SCRIPT, "--dry-run", out], env=environment, start_new_session=True)
    while not (out / "tests.xml").exists():
        assert started.poll() is None
        time.sleep(0.2)
    started.send_signal(signal.SIGTERM)  # while speed is measured
    assert started.wait() == 143
    deadline = time.monotonic() + 60
    while any(session_of(process) == started.pid for process in psutil.process_iter()):
        assert time.monotonic() < deadline, "something runs on"
        time.sleep(0.2)

    printed = run_script(out, "--dry-run", **how)
    assert printed[1] == "tests: there already"
    assert printed[-1] == "there: tests speed sweep determinism; missing: nothing"
    suite = ElementTree.parse(out / "tests.xml").getroot()[0]
    assert int(suite.get("tests")) > int(suite.get("skipped")) and suite.get("failures") == "0"
    speeds = json.loads((out / "speed.json").read_text())
    assert speeds["dpo-7b"]["ours in 8"]["pairs_per_second"] > 0
    scores = speeds["score-7b"]
    assert scores["ours"]["mean_difference_nats"] == 0 < scores["padded"]["completions_per_second"]
    assert scores["padded"]["mean_difference_nats"] < 0.5  # bfloat16
    with tarfile.open(out / "sweep.tar.gz") as archive:
        for gamma in (0, 1):
            config = json.load(archive.extractfile(f"gamma{gamma}_seed0/run_config.json"))
            assert config["finished"] and str(config["settings"]).count(f"'alpha': {gamma}.0")
            rows = archive.extractfile(f"gamma{gamma}_seed0/ranking_dynamics.jsonl").readlines()
            assert len({json.loads(row)["step"] for row in rows}) >= 2
    twice = json.loads((out / "determinism.json").read_text())["training"]
    assert {kind.split(", ")[1] for kind in twice} == {"float32", "bfloat16 autocast"}
