"""reproduce/: conventions and lengths by hand; the driver."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from result_rows import HH, ranking_rows
from scipy import stats

from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import read_json_lines, write_json_lines
from reproduce import conventions, length_difference, run, tables

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------------------- conventions, lengths
def record(number, logps, ranks, prompt="p", dataset="d", n_tokens=None, votes=None):
    return {
        "id": str(number), "prompt_id": prompt, "dataset": dataset, "split": None, "row": number,
        "dataset_config": None,
        "model": "m", "prompt": prompt, "ranks": ranks, "votes": votes,
        "completions": [
            {"text": "", "logp": logp, "n_tokens": n}
            for logp, n in zip(logps, n_tokens or [1] * len(logps))
        ],
    }  # fmt: skip


def test_ranking_conventions_by_hand():
    """One post with a right and a wrong pair; a tied pair 4 % apart; a tied list in its order."""
    posts = [record(0, [-1, -2], [1, 2]), record(1, [-2, -1], [1, 2]),
             record(2, [-1, -2], [1, 2], prompt="q")]  # fmt: skip
    found = conventions.ranking_conventions(posts, "non-length-normalized")
    assert found == {"definition": [1, 0, 1], "answers grouped by prompt": [0, 1]}
    ties = [record(0, [-100, -104], [1, 1]), record(1, [-1, -2], [1, 2], prompt="q"),
            record(2, [-1, -1.005], [1, 1], prompt="r"), record(3, [-1, -9], [1, 1], prompt="s")]  # fmt: skip
    found = conventions.ranking_conventions(ties, "non-length-normalized")
    assert found == {"definition": [0, 1, 1, 0], "ties within 5 %": [1, 1, 1, 0]}
    lists = [record(0, [-1, -2, -3], [1, 2, 2]), record(1, [-1, -2, -3], [1, 2, 3], prompt="q")]
    found = conventions.ranking_conventions(lists, "non-length-normalized")
    assert found == {"definition": [1, 1], "tied lists are wrong": [0, 1]}
    rows = conventions.convention_rows(
        [{**r, "dataset": "stanfordnlp/SHP"} for r in posts], "length-normalized", 0
    )
    assert [(r["convention"], r["n"], r["published"]) for r in rows] == [
        ("definition", 3, False), ("answers grouped by prompt", 2, True)]  # fmt: skip


def test_conventions_of_several_models_and_splits_stay_apart():
    records = [record(k, [-1 - k % 2, -2 + k % 2], [1, 2], prompt=str(k)) for k in range(4)]
    rows = []
    for model, split in (("gpt2", "test"), ("gpt2", "train"), ("EleutherAI/pythia-1.4b", "test")):
        mine = [{**r, "model": model, "dataset": HH, "split": split} for r in records]
        for kind in ("length-normalized", "non-length-normalized"):
            rows += conventions.convention_rows(mine, kind, 0)
    _, lines = tables.conventions_table(rows)
    assert [line[1:3] for line in lines] == [
        [f"{HH}:test", "gpt2"], [f"{HH}:train", "gpt2"], [f"{HH}:test", "pythia-1.4b"]]  # fmt: skip
    assert [line[-1] for line in lines] == [
        "49.9, 46.0 (gpt2)",
        "52.7, 46.8 (gpt2)",
        "51.2, 46.2 (pythia-1.4b)",
    ]
    with pytest.raises(ValueError, match="two runs of gpt2"):
        tables.conventions_table(rows + rows)
    with pytest.raises(ValueError, match=f"two runs of gpt2 on {HH}:test"):
        tables.accuracy_beside_paper(ranking_rows() + ranking_rows())
    harmless = [{**row, "dataset_config": "harmless-base"} for row in ranking_rows()]
    _, (line,) = tables.accuracy_beside_paper(harmless)
    assert line[0] == f"{HH}:harmless-base:test" and line[4] == "–"  # a part has no published value


def test_length_difference_against_scipy(tmp_path, capsys):
    rng = np.random.default_rng(0)
    records = []
    for number in range(60):
        lengths = rng.integers(1, 20, 2)
        scores = (-lengths + rng.normal(0, 4, 2)).tolist()
        ranks = [1, 2] if number % 3 else [2, 1]
        records.append(record(number, scores, ranks, str(number), n_tokens=lengths.tolist()))
    write_json_lines(tmp_path / "e.jsonl", records)
    arguments = ["--examples", str(tmp_path / "e.jsonl"), "--output", str(tmp_path / "l.jsonl")]
    length_difference.main(length_difference.parse_args(arguments))
    normalized, summed = read_json_lines(tmp_path / "l.jsonl")
    correct, difference = [], []
    for r in records:
        w, l = (0, 1) if r["ranks"] == [1, 2] else (1, 0)  # noqa: E741
        correct.append(r["completions"][w]["logp"] >= r["completions"][l]["logp"])
        difference.append(r["completions"][w]["n_tokens"] - r["completions"][l]["n_tokens"])
    expected = stats.pointbiserialr(correct, difference)
    assert summed["correlation"] == pytest.approx(expected.statistic) and expected.statistic < -0.3
    interval = summed[
        "correlation_95"
    ]  # one pair a prompt: the bootstrap is near Fisher's interval
    fisher = stats.pearsonr(correct, difference).confidence_interval(0.95)
    assert interval == pytest.approx(list(fisher), abs=0.08)
    shorter = np.array(difference) < 0
    assert summed["accuracy_shorter"] == pytest.approx(np.mean(np.array(correct)[shorter]))
    assert summed["n_shorter"] == shorter.sum() and sum(b["n"] for b in summed["bins"]) == 60
    shares = [b["n"] * b["accuracy"] for b in summed["bins"]]
    assert sum(shares) == pytest.approx(np.sum(correct))
    assert f"{summed['correlation']:+.2f}" in capsys.readouterr().out


# ---------------------------------------------------------------------------- driver
def check_it_parses(command: list[str]) -> None:
    """python SCRIPT.py … or python -m MODULE …, with a `> FILE` at the end or without."""
    words = command[1 : command.index(">")] if ">" in command else command[1:]
    module, arguments = words[words[0] == "-m"], words[1 + (words[0] == "-m") :]
    name = module.removesuffix(".py").replace("/", ".")
    importlib.import_module(name).parse_args(arguments)


def printed_commands(capsys, *arguments) -> list[list[str]]:
    run.main(run.parse_args([*arguments, "--print"]))
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("scale", run.SCALES)
def test_every_command_of_the_driver_parses(scale, capsys, tmp_path):
    commands = printed_commands(
        capsys, "--scale", scale, "--output-dir", str(tmp_path), "--data-dir", str(tmp_path)
    )
    assert len(commands) > 10
    for command in commands:
        check_it_parses(command)
    trained = [c for c in commands if c[1] == "dpo.py"]
    settings = run.SCALES[scale]
    n_runs = len(settings.train) * len(settings.gammas) * len(settings.seeds)
    assert len(trained) == len({c[3] for c in trained}) == n_runs


def finish(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "run_config.json").write_text('{"finished": true}')


def test_report_and_win_rate_commands_parse_and_say_when_they_are_done(capsys, tmp_path):
    """With a result file of each kind there, every command of the report parses."""
    arguments = ["--scale", "embedded", "--output-dir", str(tmp_path), "--gammas", "0", "1",
                 "--seeds", "0"]  # fmt: skip
    plan = replace(run.SCALES["embedded"], out=tmp_path, gammas=[0, 1], seeds=[0])
    (model,) = plan.train
    runs = list(plan.runs(model).values())
    for folder in runs:
        finish(folder)
    for folder, ending in (("ranking", "sample"), ("idealized", "sample"), ("win_rate", "dpo")):
        (tmp_path / folder).mkdir()
        for kind in ("", ".examples", ".pairs", ".curve"):
            (tmp_path / folder / f"{model}_{ending}{kind}.jsonl").write_text("")
    (tmp_path / "ranking" / "half_sample.examples.jsonl").write_text("")  # without a summary
    commands = printed_commands(capsys, "report", "win-rate", *arguments)
    assert len(commands) > 15 and not any("half_sample" in word for c in commands for word in c)
    for command in commands:
        check_it_parses(command)
    judge = next(c for c in commands if "calculate_win_rate.py" in c)
    assert judge[judge.index("--dataset") + 1].endswith("_reward_model/policy_examples.jsonl")

    (part,) = [p for p in run.win_rate_parts(plan) if p.models]
    assert not run.is_done(part)
    write_json_lines(part.done, [{"model": str(runs[0])}])
    assert not run.is_done(part)  # the other run was missing when it was judged
    write_json_lines(part.done, [{"model": str(folder)} for folder in runs])
    assert run.is_done(part)
    assert [run.is_done(p) for p in run.training_parts(plan)] == [False, True, True]


def test_models_whose_names_end_alike_are_refused(tmp_path, capsys):
    arguments = ["ranking", "--scale", "embedded", "--output-dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        run_script(run.main, run.parse_args([*arguments, "--models", "a/final", "b/final"]))
    assert "two parts would write" in capsys.readouterr().err
    names = [run.slug(name) for name in ("a/checkpoint-10", "b/checkpoint-10", "x/m-v1.5.gguf")]
    assert names == ["a_checkpoint-10", "b_checkpoint-10", "m-v1.5"]


@pytest.mark.slow
def test_driver_on_a_tiny_model(tiny_model_directory, tmp_path):
    """Training, ranking, idealized accuracy and report; a failing model does not stop the others;
    what is done is not done again."""
    out, broken = tmp_path / "out", tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    command = [sys.executable, "-m", "reproduce.run", "training", "ranking", "idealized", "report",
               "--scale", "embedded", "--output-dir", out, "--train", tiny_model_directory,
               "--models", broken, "--gammas", "0", "1", "--seeds", "0"]  # fmt: skip
    first = subprocess.run([str(x) for x in command], cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 2, first.stdout + first.stderr
    assert "error: 1 parts failed; the same command tries them again" in first.stderr
    assert "failed: ranking: broken × sample: error: " in first.stderr
    report = {file.name for file in (out / "report").iterdir()}
    name = run.slug(str(tiny_model_directory))
    assert {"ranking.md", "ranking.png", "idealized.md", "conventions.md", "length.png",
            f"{name}_sweep.md", f"{name}_sweep.png", f"{name}_dpo_gamma1_seed0_dynamics.png"} <= report  # fmt: skip
    ranked = read_json_lines(out / "ranking" / f"{name}_sft_sample.jsonl")
    value = next(r for r in ranked if r["distance_metric"] == "acc")["distance_metric_value_mean"]
    assert f" {100 * value:.1f} [" in (out / "report" / "ranking.md").read_text()
    assert len((out / "report" / f"{name}_sweep.md").read_text().splitlines()) == 2 + 4
    state = json.loads((out / f"{name}_sft" / "trainer_state.json").read_text())
    assert state["global_step"] > 0
    again = subprocess.run([str(x) for x in command[:4]] + ["ranking"] + [str(x) for x in command[7:]],
                           cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert again.stdout.count("done before") == 5 and again.returncode == 2


def test_unknown_step_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_script(run.main, run.parse_args(["tabels", "--scale", "paper", "--output-dir", "x"]))
    assert "unknown step tabels: choose from training, ranking" in capsys.readouterr().err


def test_a_second_stop_of_the_driver_ends_its_part_too(tmp_path):
    """The first SIGTERM is handed on, once, and waited for; the second one kills what still runs."""
    child = (
        "import os, signal, time;"
        f"signal.signal(signal.SIGTERM, lambda *_: open({str(tmp_path / 'told')!r}, 'a').write('.'));"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()) + '\\n'); time.sleep(1e6)"
    )
    driver = (
        "from pathlib import Path;"
        "from ranking.plumbing.command_line import run_script; from reproduce.run import Part, run_part;"
        f"folder = Path({str(tmp_path)!r});"
        f"part = Part('part', ['python', '-c', {child!r}], folder / 'done');"
        "run_script(lambda args: run_part(part, folder / 'log'), None)"
    )
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT, stderr=subprocess.DEVNULL)
    pid_file = tmp_path / "pid"
    while not (pid_file.exists() and pid_file.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    while not (tmp_path / "told").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143 and (tmp_path / "told").read_text() == "."
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
