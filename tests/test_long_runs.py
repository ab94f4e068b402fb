"""Slow tests: kills at random moments, 20 000 examples, a stopped training run, the same numbers
whatever the batches."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_calculate_calibration_metrics import assert_same_results
from test_dpo import command, history
from test_peers import NEEDS_SMOLLM2

from ranking_dynamics import read_dynamics
from result_files import read_json_lines, write_json_lines

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SMOLLM2 = "SmolLM2-135M-Instruct"


def kill_after(command_line: list[str], seconds: float, environment: dict) -> bool:
    """Start, kill -9 after so many seconds; False if it had ended by itself, and well."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command_line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return True
        log.seek(0)
        assert process.returncode == 0, log.read()[-3000:]
        return False


def duration(command_line: list[str], environment: dict) -> float:
    begun = time.monotonic()
    subprocess.run(command_line, cwd=ROOT, env=environment, check=True, capture_output=True)
    return time.monotonic() - begun


def test_thirty_kills_of_scoring_and_summaries(tiny_model_directory, tmp_path):
    """Whatever is read back was written whole, and the last run equals an uninterrupted one."""

    def scoring(folder):
        return [str(x) for x in (
            sys.executable, "calculate_calibration_metrics.py", "--lm-name-or-path",
            tiny_model_directory, "--dataset", "sample", "--batch-size", "1", "--output-dir", folder,
            "--output-filename", "run.jsonl")]  # fmt: skip

    seconds = duration(scoring(tmp_path / "whole"), dict(os.environ))
    rng, folder, n_kills = random.Random(0), tmp_path / "killed", 0
    n_before = n_partly = 0
    while n_kills < 30:
        # the first half of a run imports; kills are most use after it
        n_kills += kill_after(scoring(folder), seconds * rng.uniform(0.45, 1.0), dict(os.environ))
        examples = folder / "run.examples.jsonl"
        if (folder / "run.jsonl").exists():  # it got there: whole, then start over
            assert_same_results(folder, tmp_path / "whole")
            shutil.rmtree(folder)
            n_before = 0
        elif examples.exists():
            content = examples.read_bytes()
            rows = [
                json.loads(line)
                for line in content.splitlines(keepends=True)
                if line.endswith(b"\n")
            ]
            assert len(rows) >= n_before and len({row["id"] for row in rows}) == len(rows)
            n_before = len(rows)
            n_partly += len(rows) > 0
    assert n_partly >= 3  # kills that hit a run in its scoring
    subprocess.run(scoring(folder), cwd=ROOT, check=True, capture_output=True)
    assert_same_results(folder, tmp_path / "whole")


@NEEDS_SMOLLM2
def test_eight_kills_of_a_model_conversion(tmp_path):
    code = (
        "import hashlib; from pathlib import Path; from model_loading import resolve_model;"
        f"path = Path(resolve_model({SMOLLM2!r})) / 'model.safetensors';"
        "print(hashlib.sha256(path.read_bytes()).hexdigest())"
    )
    environments = [
        {**os.environ, "RANKING_ACC_CACHE": str(tmp_path / name)} for name in ("whole", "killed")
    ]
    convert = [sys.executable, "-c", code]
    begun = time.monotonic()
    whole = subprocess.run(convert, cwd=ROOT, env=environments[0], capture_output=True, text=True)
    seconds = time.monotonic() - begun
    rng, n_partly = random.Random(1), 0
    for _ in range(8):
        if not kill_after(convert, seconds * rng.uniform(0.3, 1.0), environments[1]):
            shutil.rmtree(tmp_path / "killed")
        n_partly += any((tmp_path / "killed").glob(".*"))  # a copy that was being written
    assert n_partly >= 1
    killed = subprocess.run(convert, cwd=ROOT, env=environments[1], capture_output=True, text=True)
    assert killed.returncode == 0 and killed.stdout == whole.stdout


def test_twelve_kills_of_training(tiny_model_directory, tmp_path):
    """Reference cache, checkpoints and dynamics file: the end equals an uninterrupted run."""
    more = ["--report_to=none", "--warmup_steps=2", "--bf16=false", "--save_steps=2",
            "--eval_steps=2", "--learning_rate=1e-3", "--dynamics_sample_size=40"]  # fmt: skip

    def training(name):
        return [sys.executable, "dpo.py", *command(tiny_model_directory, tmp_path / name, *more)]

    environments = {
        name: {**os.environ, "RANKING_ACC_CACHE": str(tmp_path / f"{name}_cache")}
        for name in ("whole", "killed")
    }
    seconds = duration(training("whole"), environments["whole"])
    rng, n_kills, n_partly = random.Random(2), 0, 0
    while n_kills < 12:
        killed = kill_after(
            training("killed"), seconds * rng.uniform(0.35, 0.9), environments["killed"]
        )
        n_kills += killed
        n_partly += killed and any((tmp_path / "killed").glob("checkpoint-*"))
        run_file = tmp_path / "killed" / "run_config.json"  # a kill may come when all is done
        finished = run_file.exists() and json.loads(run_file.read_text())["finished"]
        if not killed or finished:
            shutil.rmtree(tmp_path / "killed")
            shutil.rmtree(tmp_path / "killed_cache")
    assert n_partly >= 2  # kills that hit a run in its training
    subprocess.run(
        training("killed"), cwd=ROOT, env=environments["killed"], check=True, capture_output=True
    )
    assert history(tmp_path / "killed") == [
        {
            k: pytest.approx(v, rel=1e-3, abs=1e-3) if isinstance(v, float) else v
            for k, v in entry.items()
        }
        for entry in history(tmp_path / "whole")
    ]
    rows, expected = (
        {
            (r["step"], r["part"], r["id"]): r
            for r in read_dynamics(tmp_path / name / "ranking_dynamics.jsonl")
        }
        for name in ("killed", "whole")
    )
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        assert row["chosen"] == pytest.approx(expected[key]["chosen"], rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("script", ["dpo.py", "sft.py"])
def test_a_kill_after_the_last_checkpoint(script, tiny_model_directory, tmp_path):
    """kill -9 while the run, its training done, waits to write trainer_state.json into a pipe that
    nobody reads: the same command trains nothing more and ends as an uninterrupted run."""
    flags = [f"--model_name_or_path={tiny_model_directory}", "--dataset_name=sample",
             "--report_to=none", "--max_steps=3", "--eval_strategy=steps", "--eval_steps=1",
             "--save_steps=2", "--load_best_model_at_end", "--max_train_samples=40"]  # fmt: skip

    def training(name):
        return [sys.executable, script, *flags, f"--output_dir={tmp_path / name}"]

    environment = {**os.environ, "RANKING_ACC_CACHE": str(tmp_path / "cache")}
    run = partial(subprocess.run, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run(training("whole")).returncode == 0
    folder = tmp_path / "killed"
    folder.mkdir()
    os.mkfifo(folder / "trainer_state.json")
    process = subprocess.Popen(
        training("killed"), cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (folder / "model.safetensors").exists():  # saved after training
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    (folder / "trainer_state.json").unlink()
    assert not json.loads((folder / "run_config.json").read_text())["finished"]
    again = run(training("killed"))
    assert again.returncode == 0 and "nothing is left to train" in again.stderr, again.stderr[
        -3000:
    ]
    states, results, models = (
        [json.loads((tmp_path / name / file).read_text()) for name in ("whole", "killed")]
        for file in ("trainer_state.json", "test_results.json", "run_config.json")
    )
    assert states[1]["global_step"] == states[1]["max_steps"] == 3
    assert models[1]["model"]["step"] == models[0]["model"]["step"]
    assert results[1]["test_loss"] == pytest.approx(results[0]["test_loss"], abs=1e-4)
    names = [
        {path.name for path in (tmp_path / name).glob("*") if path.name != "trainer_state.json"}
        for name in ("whole", "killed")
    ]
    assert names[0] == names[1]
    if script == "dpo.py":
        rows = [read_dynamics(tmp_path / n / "ranking_dynamics.jsonl") for n in ("whole", "killed")]
        steps = [[(r["step"], r["part"], r["id"]) for r in part] for part in rows]
        assert steps[0] == steps[1]


def wait_for(pattern: str, log: Path, process: subprocess.Popen) -> None:
    """Return once the log shows the pattern; AssertionError if the process ends before."""
    deadline = time.monotonic() + 240
    while not re.search(pattern, log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.02)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.parametrize(
    "starter",
    [[sys.executable, "dpo.py"], [sys.executable, "sft.py"], [*TORCHRUN, "dpo.py"],
     [sys.executable, "sft.py", "--save_strategy=best", "--eval_strategy=steps", "--eval_steps=1",
      "--learning_rate=0"]],
    ids=["dpo", "sft", "dpo with two processes", "sft that saves the best only"],
)  # fmt: skip
def test_stopped_training_saves_a_checkpoint_and_resumes(starter, tiny_model_directory, tmp_path):
    """With --overwrite_output_dir too, which discards finished runs only."""
    out = tmp_path / "out"
    flags = [f"--model_name={tiny_model_directory}", "--dataset_name=sample", f"--output_dir={out}",
             "--report_to=none", "--per_device_train_batch_size=8", "--num_train_epochs=8",
             "--save_steps=100", "--overwrite_output_dir"]  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as file:
        run = subprocess.Popen(
            [*starter, *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=file,
            env={**os.environ, "RANKING_ACC_CACHE": str(tmp_path / "cache")},
        )  # fmt: skip
    wait_for(r" [3-9]/\d+ \[", log, run)
    run.send_signal(signal.SIGTERM)
    run.wait()
    alone = starter[0] == sys.executable and "-m" not in starter
    assert run.returncode == (143 if alone else 1), log.read_text()[-3000:]  # 1: torchrun's own
    found = re.search(
        r"stopped by SIGTERM: checkpoint-(\d+) is saved in .*out; the same command resumes",
        log.read_text(),
    )
    assert found, log.read_text()[-3000:]
    again = subprocess.run([*starter, *flags], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count(f"resuming from {out / f'checkpoint-{found[1]}'}") == 1
    assert json.loads((out / "run_config.json").read_text())["finished"]


@pytest.mark.parametrize("kilobytes", [150, 300])
def test_a_full_disk_in_training_is_one_line(kilobytes, tiny_model_directory, tmp_path):
    """Whatever file is the first that does not fit; with room again, the run goes on."""
    out = tmp_path / "out"
    words = [sys.executable, "dpo.py",
             *command(tiny_model_directory, out, "--report_to=none", "--bf16=false")]  # fmt: skip
    clean = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    clean["RANKING_ACC_CACHE"] = str(tmp_path / "cache")
    limited = ["bash", "-c", f"ulimit -f {kilobytes} && exec " + " ".join(map(str, words))]
    full = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, env=clean)
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr[-3000:]
    errors = re.findall(r"error: .*", full.stderr)
    assert len(errors) == 1 and "File too large" in errors[0], full.stderr[-1000:]
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=clean)
    assert again.returncode == 0, again.stderr[-3000:]


def resident(pid: int) -> tuple[float, int]:
    """Resident memory in MiB, and open files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024, len(os.listdir(f"/proc/{pid}/fd"))


def test_20_000_examples_in_flat_memory(tiny_model_directory, tmp_path):
    """Memory grows by what the records themselves need, files stay as many, progress is right."""
    rows = [{"prompt": f"Question {k}:", "chosen": f" yes, {k} it is", "rejected": f" no {k}"} for k in range(20_000)]  # fmt: skip
    write_json_lines(tmp_path / "many.jsonl", rows)
    process = subprocess.Popen(
        [str(x) for x in (
            sys.executable, "calculate_calibration_metrics.py", "--lm-name-or-path", tiny_model_directory,
            "--dataset", tmp_path / "many.jsonl", "--sample-size", "-1", "--output-dir", tmp_path,
            "--output-filename", "run.jsonl")],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    stderr: list[str] = []
    reader = threading.Thread(target=lambda: stderr.append(process.stderr.read()))
    reader.start()
    samples = []
    examples = tmp_path / "run.examples.jsonl"
    while process.poll() is None:
        if examples.exists():
            try:
                samples.append((examples.stat().st_size, *resident(process.pid)))
            except (FileNotFoundError, ProcessLookupError, TypeError):
                break  # it has just ended
        time.sleep(0.5)
    process.wait()
    reader.join()
    assert process.returncode == 0, stderr[0][-2000:]
    size = examples.stat().st_size
    during = [s for s in samples if 0.1 * size < s[0] < size]
    written, memory, files = np.array(during).T
    n_examples = written / size * 20_000
    slope = np.polyfit(n_examples, memory, 1)[0] * 1024  # KiB per example
    print(f"memory: {memory[0]:.0f} to {memory[-1]:.0f} MiB, {slope:.1f} KiB per example")
    assert slope < 8 and files.max() - files.min() <= 2
    last = re.findall(r"(\d+)/20000 examples", stderr[0])[-1]
    assert last == "20000" and re.search(r"scoring: 100%", stderr[0])
    assert read_json_lines(tmp_path / "run.jsonl")[0]["n"] == 20_000


@NEEDS_SMOLLM2
def test_real_model_scores_do_not_depend_on_how_they_are_computed(tmp_path):
    """SmolLM2 on bundled data: batches, row budgets, order of the examples, number of processes
    and a stop change nothing: 1e-3 nats, the same rankings."""
    rows = read_json_lines(ROOT / "data/sample_preferences.jsonl")[:30]
    write_json_lines(tmp_path / "data.jsonl", rows)
    random.Random(0).shuffle(rows)
    write_json_lines(tmp_path / "shuffled.jsonl", rows)
    script = "calculate_calibration_metrics.py"
    variants = {
        "whole": (sys.executable, []),
        "alone": (sys.executable, ["--batch-size", "1"]),
        "rows of 300": (sys.executable, ["--tokens-per-batch", "300"]),
        "rows of 4000": (sys.executable, ["--tokens-per-batch", "4000"]),
        "shuffled": (sys.executable, []),
        "stopped": (sys.executable, []),
        "two processes": (TORCHRUN, []),
    }
    logps = {}
    for name, (starter, more) in variants.items():
        folder = tmp_path / name
        words = [*([starter] if isinstance(starter, str) else starter), script,
                 "--lm-name-or-path", SMOLLM2, "--dtype", "float32", "--device", "cpu",
                 "--dataset", tmp_path / ("shuffled.jsonl" if name == "shuffled" else "data.jsonl"),
                 "--sample-size", "-1",
                 "--output-dir", folder, "--output-filename", "run.jsonl", *more]  # fmt: skip
        if name == "stopped":
            with (tmp_path / "log").open("w") as log:
                first = subprocess.Popen(list(map(str, words)), cwd=ROOT, stderr=log)
            examples = folder / "run.examples.jsonl"
            while not examples.exists() or examples.stat().st_size == 0:
                assert first.poll() is None
                time.sleep(0.02)
            first.send_signal(signal.SIGTERM)
            assert first.wait() == 143 and not (folder / "run.jsonl").exists()
        finished = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr[-3000:]
        logps[name] = {
            (row["id"], c["text"]): (c["logp"], c["n_tokens"], row["ranks"][k])
            for row in read_json_lines(folder / "run.examples.jsonl")
            for k, c in enumerate(row["completions"])
        }
        accuracies = {
            row["calib_property"]: row["distance_metric_value_mean"]
            for row in read_json_lines(folder / "run.jsonl")
            if row["distance_metric"] in ("acc", "pairwise_acc")
        }
        if name == "whole":
            expected = accuracies
        assert accuracies == expected, name
        assert logps[name].keys() == logps["whole"].keys()
        worst = max(abs(v[0] - logps["whole"][k][0]) for k, v in logps[name].items())
        print(f"{name}: largest difference {worst:.2g} nats")
        assert worst < 1e-3, name
        assert all(v[1:] == logps["whole"][k][1:] for k, v in logps[name].items()), name
