"""Slow tests: kills at random moments, memory of long runs, a stopped training run, the same numbers
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
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from paused import (
    ROWS_WRITTEN,
    STEP_DONE,
    paused_command,
    start_paused,
    stopped_processes,
    wait_for_signal,
)
from test_calculate_calibration_metrics import assert_same_results
from test_peers import NEEDS_SMOLLM2
from training_runs import dpo_command as command
from training_runs import history

from ranking.data.preferences import SAMPLE_FILE
from ranking.plumbing.result_files import read_json_lines, write_json_lines
from ranking.reports.dynamics import read_dynamics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SMOLLM2 = "SmolLM2-135M-Instruct"


def kill_after(command_line: list[str], seconds: float, environment: dict) -> bool:
    """Start; killed by the system, as by kill -9, when it has computed for so many seconds, which
    does not depend on what else runs. False if it had ended by itself, and well."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command_line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log,
            preexec_fn=lambda: signal.setitimer(signal.ITIMER_PROF, seconds),
        )  # fmt: skip
        if process.wait() == -signal.SIGPROF:
            return True
        log.seek(0)
        assert process.returncode == 0, log.read()[-3000:]
        return False


def computing_seconds(command_line: list[str], environment: dict) -> tuple[float, str]:
    """Processor time of a run, and what it prints."""
    before = os.times()
    run = subprocess.run(command_line, cwd=ROOT, env=environment, check=True, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
    after = os.times()
    user, system = (
        getattr(after, n) - getattr(before, n) for n in ("children_user", "children_system")
    )
    return user + system, run.stdout


def test_thirty_kills_of_scoring_and_summaries(tiny_model_directory, tmp_path):
    """Whatever is read back was written whole, and the last run equals an uninterrupted one."""

    def scoring(folder):
        return [str(x) for x in (
            sys.executable, "calculate_calibration_metrics.py", "--lm-name-or-path",
            tiny_model_directory, "--dataset", "sample", "--batch-size", "1", "--output-dir", folder,
            "--output-filename", "run.jsonl")]  # fmt: skip

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that wait would count
    seconds, _ = computing_seconds(scoring(tmp_path / "whole"), environment)
    rng, folder, n_kills = random.Random(0), tmp_path / "killed", 0
    n_before = n_partly = 0
    while n_kills < 30 or n_partly < 3:  # three that hit a run in its scoring
        # the first half of a run imports; kills are most use after it
        n_kills += kill_after(scoring(folder), seconds * rng.uniform(0.45, 1.0), environment)
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
    subprocess.run(scoring(folder), cwd=ROOT, check=True, capture_output=True)
    assert_same_results(folder, tmp_path / "whole")


@NEEDS_SMOLLM2
def test_eight_kills_of_a_model_conversion(tmp_path):
    code = (
        "import hashlib; from pathlib import Path; from ranking.scoring.models import resolve_model;"
        f"path = Path(resolve_model({SMOLLM2!r})) / 'model.safetensors';"
        "print(hashlib.sha256(path.read_bytes()).hexdigest())"
    )
    environments = [
        {**os.environ, "OMP_NUM_THREADS": "1", "RANKING_ACC_CACHE": str(tmp_path / name)}
        for name in ("whole", "killed")
    ]
    convert = [sys.executable, "-c", code]
    seconds, whole = computing_seconds(convert, environments[0])
    rng, n_kills, n_partly = random.Random(1), 0, 0
    while n_kills < 8 or n_partly < 1:  # one that hit a copy that was being written
        n_kills += 1
        if not kill_after(convert, seconds * rng.uniform(0.3, 1.0), environments[1]):
            shutil.rmtree(tmp_path / "killed")
        n_partly += any((tmp_path / "killed").glob(".*"))
    killed = subprocess.run(convert, cwd=ROOT, env=environments[1], capture_output=True, text=True)
    assert killed.returncode == 0 and killed.stdout == whole


def test_twelve_kills_of_training(tiny_model_directory, tmp_path):
    """Reference cache, checkpoints and dynamics file: the end equals an uninterrupted run."""
    more = ["--report_to=none", "--warmup_steps=2", "--bf16=false", "--save_steps=2",
            "--eval_steps=2", "--learning_rate=1e-3", "--dynamics_sample_size=40"]  # fmt: skip

    def training(name):
        return [sys.executable, "dpo.py", *command(tiny_model_directory, tmp_path / name, *more)]

    environments = {
        name: {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RANKING_ACC_CACHE": str(tmp_path / f"{name}_cache"),
        }
        for name in ("whole", "killed")
    }
    seconds, _ = computing_seconds(training("whole"), environments["whole"])
    rng, n_kills, n_partly = random.Random(2), 0, 0
    while n_kills < 12 or n_partly < 2:  # two that hit a run in its training
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


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.parametrize(
    ("starter", "n", "script", "more"),
    [([sys.executable], 1, "dpo.py", []), ([sys.executable], 1, "sft.py", []), (TORCHRUN, 2, "dpo.py", []),
     ([sys.executable], 1, "sft.py", ["--save_strategy=best", "--eval_strategy=steps", "--eval_steps=1",
                                      "--learning_rate=0"])],
    ids=["dpo", "sft", "dpo with two processes", "sft that saves the best only"],
)  # fmt: skip
def test_stopped_training_saves_a_checkpoint_and_resumes(
    starter, n, script, more, tiny_model_directory, tmp_path
):
    """With --overwrite_output_dir too, which discards finished runs only."""
    out = tmp_path / "out"
    flags = [f"--model_name={tiny_model_directory}", "--dataset_name=sample", f"--output_dir={out}",
             "--report_to=none", "--per_device_train_batch_size=8", "--num_train_epochs=1",
             "--save_steps=100", "--overwrite_output_dir", *more]  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as file:
        run = subprocess.Popen(
            [*starter, *paused_command(STEP_DONE, 3, script, *flags)], cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=file,
            env={**os.environ, "RANKING_ACC_CACHE": str(tmp_path / "cache")},
        )  # fmt: skip
    stopped = stopped_processes(str(out), n, run)
    run.send_signal(signal.SIGTERM)
    for pid in stopped:
        wait_for_signal(pid, signal.SIGTERM)  # torchrun hands it on
        os.kill(pid, signal.SIGCONT)
    run.wait()
    assert run.returncode == (143 if n == 1 else 1), log.read_text()[-3000:]  # 1: torchrun's own
    found = re.search(
        r"stopped by SIGTERM: checkpoint-(\d+) is saved in .*out; the same command resumes",
        log.read_text(),
    )
    assert found, log.read_text()[-3000:]
    again = subprocess.run([*starter, script, *flags], cwd=ROOT, capture_output=True, text=True)
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


def dialogues(n: int) -> list[dict]:
    """Pairs of the lengths of HH-RLHF's (in characters, log-normal), all of them different."""
    rng = np.random.default_rng(0)
    words = Path(SAMPLE_FILE).read_text(encoding="utf-8")[:20_000].replace("\n", " ")

    def text(mean: float, spread: float) -> str:
        length = min(int(rng.lognormal(mean, spread)) + 3, 4000)
        return words[(first := rng.integers(0, 15_000)) : first + length].replace("Assistant:", "")

    rows = []
    for k in range(n):
        prompt = f"\n\nHuman: {k} {text(5.86, 1.18)}\n\nAssistant:"
        rows.append(
            {side: f"{prompt} {side} {text(5.21, 1.09)}" for side in ("chosen", "rejected")}
        )
    return rows


def test_memory_grows_by_what_examples_hold(tiny_model_directory, tmp_path):
    """Of a whole run, from reading to summary and picture: no more than 32 KiB an example, of which
    the texts are 2; files stay as many, progress is right."""
    peaks = {}
    for n in (2_000, 8_000):
        write_json_lines(tmp_path / f"{n}.jsonl", dialogues(n))
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [str(x) for x in (
                    sys.executable, "calculate_calibration_metrics.py", "--lm-name-or-path", tiny_model_directory,
                    "--dataset", tmp_path / f"{n}.jsonl", "--sample-size", "-1", "--output-dir", tmp_path,
                    "--output-filename", f"run{n}.jsonl")],
                cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log)  # fmt: skip
            examples, during, ended = tmp_path / f"run{n}.examples.jsonl", [], 0
            while not ended:
                if examples.exists():
                    open_files = len(os.listdir(f"/proc/{process.pid}/fd"))
                    during.append((examples.stat().st_size, open_files))
                time.sleep(0.1)
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        stderr = (tmp_path / "log").read_text()
        assert status == 0, stderr[-2000:]
        size = examples.stat().st_size
        files = [n_files for written, n_files in during if 0.1 * size < written < size]
        assert max(files) - min(files) <= 2
        assert re.findall(r"(\d+)/\d+ examples", stderr)[-1] == str(n)
        assert read_json_lines(tmp_path / f"run{n}.jsonl")[0]["n"] == n
        peaks[n] = usage.ru_maxrss
    slope = (peaks[8_000] - peaks[2_000]) / 6_000
    print(f"peak memory: {peaks} KiB, {slope:.1f} KiB per example")
    assert slope < 32


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
            first = start_paused(ROWS_WRITTEN, 1, *words[1:], cwd=ROOT, stderr=subprocess.DEVNULL)
            first.send_signal(signal.SIGTERM)
            first.send_signal(signal.SIGCONT)
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
