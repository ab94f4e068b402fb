"""reproduce/gpu.sh: every part on the CPU, after a kill; and what it runs on a GPU parses."""

import importlib
import json
import os
import shutil
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
import json, os, sys
from pathlib import Path

words = sys.argv[1:]
with open({commands!r}, "a") as file:
    file.write(json.dumps(words) + "\\n")
with open({devices!r}, "a") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "all") + "\\n")
if {{"-m", "pytest"}} <= set(words) and os.environ.get("NO_PYTEST"):
    sys.exit(f"{{sys.executable}}: No module named pytest")
given = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
if "--junitxml" in given:
    Path(given["--junitxml"]).write_text("<testsuites/>")
if "--output" in words:
    file = Path(words[words.index("--output") + 1])
    parts = words[words.index("--parts") + 1 : words.index("--output")] if "--parts" in words else []
    found = {{part: {{}} for part in parts}} or {{"cuda, bfloat16 autocast": {{}}}}
    file.write_text(json.dumps(found, indent=1))
if "--output_dir" in given:
    folder = Path(given["--output_dir"])
    for name, code in json.loads(os.environ.get("FAILING", "{{}}")).items():
        if folder.name == name:
            print("out of memory")
            sys.exit(code)
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


@pytest.fixture
def recording_python(tmp_path):
    python = tmp_path / "python"
    files = {name.split(".")[0]: str(tmp_path / name) for name in ("commands.jsonl", "devices.txt")}
    python.write_text(RECORDING_PYTHON.format(python=sys.executable, **files))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def test_what_is_run_on_a_gpu_parses_and_is_run_once(tmp_path, recording_python):
    commands = tmp_path / "commands.jsonl"
    (tmp_path / "data of hub").mkdir()
    how = {"PYTHON": recording_python, "DATA_DIR": tmp_path / "data of hub", "JOBS": 2}
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


def test_a_part_that_fails_is_said_and_the_others_go_on(tmp_path, recording_python):
    failing = {"sft_seed2": 1, "gamma0_seed0": 1, "gamma2_seed1": 124}  # of timeout: 124
    how = {"PYTHON": recording_python, "JOBS": 1, "NO_PYTEST": 1, "FAILING": json.dumps(failing)}
    printed = run_script(tmp_path / "out", **how)
    assert printed[1].startswith("tests: exit code 1: ")
    assert printed[1].endswith("No module named pytest")
    assert [line for line in printed if "_seed" in line] == [
        "sft_seed2: exit code 1: out of memory",
        "gamma1_seed2: not started, sft_seed2 is not finished",
        "gamma0_seed0: exit code 1: out of memory",
        "gamma0_seed2: not started, sft_seed2 is not finished",
        "gamma0.5_seed2: not started, sft_seed2 is not finished",
        "gamma2_seed1: its time is over; the same command goes on",
        "gamma2_seed2: not started, sft_seed2 is not finished",
    ]
    assert "sweep: 6 of 12 runs" in printed
    assert printed[-1] == "there: speed determinism; missing: tests sweep"


def test_what_is_half_there_goes_on(tmp_path, recording_python):
    out = tmp_path / "out"
    run_script(out, PYTHON=recording_python, JOBS=1)
    speed = json.loads((out / "speed.json").read_text())
    speed["dpo-7b"] = {"ours in 8": {}, "unfinished": {"missing": ["trl-best in 8"]}}
    (out / "speed.json").write_text(json.dumps(speed, indent=1))
    (out / "determinism.json").write_text('{"scoring": {"cuda, bfloat16": {}}, "training": {}}')
    printed = run_script(out, PYTHON=recording_python, JOBS=1)
    assert printed[1:] == [
        "tests: there already",
        "sweep: there already",
        "there: tests speed sweep determinism; missing: nothing",
    ]


@pytest.mark.parametrize("flags, other", [(["--dry-run"], []), ([], ["--dry-run"])])
def test_results_of_a_dry_run_are_not_taken_for_real_ones(tmp_path, recording_python, flags, other):
    how = {"PYTHON": recording_python, "MODEL": tmp_path, "JOBS": 1}
    (tmp_path / "out.work" / "tiny").mkdir(parents=True)
    (tmp_path / "out.work" / "tiny" / "model.safetensors").write_text("made")
    run_script(tmp_path / "out", *flags, **how)
    devices = set((tmp_path / "devices.txt").read_text().splitlines())
    assert devices == {"" if flags else "0"}  # of several GPUs one
    environment = {**os.environ, **{key: str(value) for key, value in how.items()}}
    for kept in ("out", "out.work"):  # each of them by itself
        run = subprocess.run([SCRIPT, *other, tmp_path / "out"], env=environment,
                             capture_output=True, text=True)  # fmt: skip
        assert run.returncode == 2 and "give another OUT_DIR" in run.stderr and not run.stdout
        shutil.rmtree(tmp_path / "out", ignore_errors=kept == "out.work")


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
