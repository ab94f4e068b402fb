"""reproduce/run.py: the driver's commands parse; what is done, what failed, how it stops."""

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

import pytest

from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import read_json_lines, write_json_lines
from reproduce import run, steps
from reproduce.scales import ANY, Training, slug

ROOT = Path(__file__).parents[1]


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
    for run_folder in runs:
        (run_folder / "run_config.json").write_text(
            '{"finished": true, "settings": {"evaluate_test": true}}'
        )
    (tmp_path / "pairs").mkdir()
    for kind in ("", ".examples", ".pairs"):
        (tmp_path / "pairs" / f"{model}_dpo{kind}.jsonl").write_text("")
    commands = printed_commands(capsys, "report", "win-rate", *arguments)
    assert len(commands) > 15 and not any("half_sample" in word for c in commands for word in c)
    for command in commands:
        check_it_parses(command)
    judge = next(c for c in commands if "calculate_win_rate.py" in c)
    assert judge[judge.index("--dataset") + 1].endswith("_reward_model/policy_examples.jsonl")

    figures = [c[2] for c in commands if c[1] == "plot_results.py"]
    assert figures.count("flips") == 2 and figures.count("losses") == 1 + 2
    for file in (tmp_path / "ranking").glob("*.examples.jsonl"):
        file.unlink()
    without = printed_commands(capsys, "report", *arguments)
    assert sum("--examples" in command for command in without) == 0 < len(without)

    (table,) = [c for c in commands if "pairs" in c]
    assert [word.partition("_dpo.")[2] for word in table[4:6]] == ["pairs.jsonl", "examples.jsonl"]

    part, on_test = [p for p in steps.win_rate_parts(plan) if p.models]
    written = next(p for p in steps.win_rate_parts(plan) if "write_part" in p.command[2])
    last = len(on_test.command) - on_test.command[::-1].index("--dataset")
    assert on_test.command[last] == str(written.done) and written.done in on_test.needs
    assert on_test.done != part.done and on_test.models == part.models
    assert not run.is_done(part)
    write_json_lines(part.done, [{"model": str(runs[0])}])
    assert not run.is_done(part)  # the other run was missing when it was judged
    write_json_lines(part.done, [{"model": str(folder)} for folder in runs])
    assert run.is_done(part)
    assert [run.is_done(p) for p in steps.training_parts(plan)] == [False, True, True]


def flags_of(command: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in command if "=" in word)


def test_a_search_is_the_papers_grid_and_training_takes_its_choice(capsys, tmp_path):
    """One SFT and one DPO grid for each model, on the first seed; the chosen SFT run is the one
    that DPO starts from."""
    arguments = ["--scale", "paper", "--output-dir", str(tmp_path)]
    commands = printed_commands(capsys, "search", *arguments)
    assert len(commands) == (16 + 48 + 2) + (9 + 32 + 2) + (6 + 4 + 2)
    points = [c for c in commands if c[1] == "dpo.py" and "gpt2_sft_seed0" in c[2]]
    batches = {flags_of(c)["per_device_train_batch_size"] for c in points}
    assert len(points) == 48 and batches == {"32", "64", "128"}
    assert commands[16][-2:] == ["--link", str(tmp_path / "gpt2_sft_seed0")]
    assert flags_of(points[0])["model_name_or_path"] == str(tmp_path / "gpt2_sft_seed0")

    before = printed_commands(capsys, "training", *arguments, "--train", "/models/gpt2")
    for script, values in (("sft", {"learning_rate": 1e-6, "batch_size": 256}),
                           ("dpo", {"learning_rate": 5e-7, "batch_size": 128, "beta": 10})):  # fmt: skip
        file = tmp_path / "search" / f"gpt2_{script}.jsonl"
        file.parent.mkdir(exist_ok=True)
        write_json_lines(file, [{"chosen": False}, {"chosen": True, **values}])
    launched = ["--launcher", "torchrun --nproc_per_node 2", "--processes", "2"]
    after = printed_commands(capsys, "training", *arguments, "--train", "/models/gpt2", *launched)
    assert len(before) == len(after) == 3 + 27
    changed = []
    for old, new in zip(before, after):
        old, new = flags_of(old), flags_of(new)
        changed.append({name: new[name] for name in new if new[name] != old[name]})
        assert new["num_train_epochs"] == "5"
    assert (
        changed
        == [{"learning_rate": "1e-06", "per_device_train_batch_size": "128"}] * 3
        + [
            {"learning_rate": "5e-07", "beta": "10"}  # 64 as before, by each of two processes
        ]
        * 27
    )
    starts = [flags_of(c).get("model_name_or_path", "") for c in after]
    assert [name.rsplit("_", 1)[-1] for name in starts[3:6]] == ["seed0", "seed1", "seed2"]
    for command in [commands[0], points[0], commands[16]]:
        check_it_parses(command)


def test_what_a_search_cannot_be_is_one_line(capsys, tmp_path):
    arguments = ["search", "--scale", "paper", "--output-dir", str(tmp_path), "--print"]
    (tmp_path / "gpt2_dpo_seed0" / "gpt2_dpo_gamma1_seed0").mkdir(parents=True)
    launched = ["--launcher", "torchrun", "--processes"]
    for more, error in (
        ([], "gpt2_dpo_gamma1_seed0 was trained without a search: move it away"),
        (["--train", "gpt2-xl"], "--train gpt2-xl: the paper's settings are of gpt2, "),
        (["--seeds", "1", *launched, "3"], "--processes 3 do not divide batches of 64"),
        (["--processes", "2"], "--processes 2 without --launcher"),
    ):
        with pytest.raises(SystemExit) as stop:
            run_script(run.main, run.parse_args([*arguments, *more]))
        printed = capsys.readouterr().err
        assert stop.value.code == 2 and error in printed and printed.count("\n") == 1


def test_training_waits_for_a_search_that_was_begun(tmp_path):
    """A search that failed has made the folders of its runs and has chosen nothing; training with
    other values would stand in its way when it is tried again."""
    plan = replace(run.SCALES["embedded"], out=tmp_path)
    (model,) = plan.train
    parts = list(steps.training_parts(plan))
    assert not any("search" in str(needed) for part in parts for needed in part.needs)
    next(iter(steps.search_parts(plan))).done.parent.mkdir(parents=True)
    failed = run.run_parts(list(steps.training_parts(plan)), tmp_path / "logs", always=False)
    waits = f"needs {tmp_path}/search/{model}_dpo.jsonl, which is not there yet"
    assert failed == [(part.name, waits) for part in parts]
    assert [file.name for file in tmp_path.iterdir()] == ["search"]
    assert list(steps.search_parts(plan))  # is not refused
    write_json_lines(plan.search_file(model, "dpo"), [{"chosen": True, "learning_rate": 2e-5}])
    sft, dpo, *_ = steps.training_parts(plan)
    assert all(map(run.is_finished, sft.needs)) and "--learning_rate=2e-05" in dpo.command


def test_a_paid_judge_is_asked_by_name_only(capsys, tmp_path):
    arguments = ["--scale", "paper", "--output-dir", str(tmp_path), "--train", "gpt2", "--print"]
    run.main(run.parse_args(arguments))
    printed = capsys.readouterr()
    assert "dpo.py" in printed.out and "calculate_win_rate.py" not in printed.out
    assert printed.err.startswith("win-rate left out: its judge, alpaca_eval:alpaca_eval_gpt4, ")
    assert printed.err.count("\n") == 1
    judged = [c for c in printed_commands(capsys, "win-rate", *arguments[:-1])
              if c[1] == "calculate_win_rate.py"]  # fmt: skip
    assert len(judged) == 2 * (3 + 1)  # the runs of each seed and the checkpoints of one, twice
    for command in judged:
        check_it_parses(command)
        price = command.index("--judge-price")
        assert command[price + 1 : price + 3] == ["30", "60"]
    assert "win-rate" in steps.steps_by_default(run.SCALES["embedded"])


@pytest.mark.slow
def test_a_search_on_a_tiny_model(tiny_model_directory, tmp_path):
    """A point that diverges is counted, not chosen and not run again; a run that was stopped goes
    on; the chosen SFT run is the one that training would make."""
    embedded = run.SCALES["embedded"]
    sft, dpo = embedded.sft[ANY], embedded.dpo[ANY]
    wild = {"max_grad_norm": 0, "logging_steps": 1, "warmup_steps": 0, "max_train_samples": 16}
    grid = {"learning_rate": [1e-4, 1e30]}
    plan = replace(
        embedded, out=tmp_path, train=[str(tiny_model_directory)], gammas=[1], seeds=[3],
        sft={ANY: Training(sft.flags | wild, grid)},
        dpo={ANY: Training(dpo.flags | wild | {"bf16": "false"}, {"beta": [0.1, 1]})},
    )  # fmt: skip
    parts = list(steps.search_parts(plan))
    assert len(parts) == 2 + 1 + 2 + 1
    assert run.run_parts(parts[:1], tmp_path / "logs", always=False) == []
    mark = json.loads(parts[0].done.read_text())
    parts[0].done.write_text(json.dumps(mark | {"finished": False}))  # as if killed
    assert run.run_parts(parts, tmp_path / "logs", always=False) == []
    for script, diverged in (("sft", [False, True]), ("dpo", [False, False])):
        points = read_json_lines(plan.search_file(plan.train[0], script))
        assert [p["diverged"] for p in points] == diverged
        losses = [p["lowest_loss"] for p in points if not p["diverged"]]
        (chosen,) = [p for p in points if p["chosen"]]
        assert chosen["lowest_loss"] == min(losses) and chosen["step"] >= 1
    assert list(tmp_path.glob("search/*/*/model.safetensors"))
    assert not list(tmp_path.glob("search/*/*/checkpoint-*"))
    times = {part.done: part.done.stat().st_mtime_ns for part in parts}
    assert run.run_parts(parts, tmp_path / "logs", always=False) == []
    trained, *_ = steps.training_parts(plan)
    assert run.is_done(trained) and trained.done.parent.is_symlink()
    assert times == {part.done: part.done.stat().st_mtime_ns for part in parts}


def test_models_whose_names_end_alike_are_refused(tmp_path, capsys):
    arguments = ["ranking", "--scale", "embedded", "--output-dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        run_script(run.main, run.parse_args([*arguments, "--models", "a/final", "b/final"]))
    assert "two parts would write" in capsys.readouterr().err
    names = [slug(name) for name in ("a/checkpoint-10", "b/checkpoint-10", "x/m-v1.5.gguf")]
    assert names == ["a_checkpoint-10", "b_checkpoint-10", "m-v1.5"]


def test_pairs_have_a_part_of_each_reference(tmp_path):
    """An SFT model of each seed at the paper's scale, one of all seeds at ours; HH-RLHF has no
    votes, the bundled data have."""
    paper, embedded = (replace(run.SCALES[name], out=tmp_path) for name in ("paper", "embedded"))
    parts = [part for part in steps.pairs_parts(paper) if "gpt2" in part.name]
    assert [p.done.name for p in parts] == [f"gpt2_dpo_seed{k}.jsonl" for k in range(3)]
    for k, part in enumerate(parts):
        assert part.command[3] == str(tmp_path / f"gpt2_sft_seed{k}")
        assert {"Anthropic/hh-rlhf:test", "--assumed-proportion"} <= {*part.command}
        assert part.needs == (
            tmp_path / f"gpt2_dpo_seed{k}/gpt2_dpo_gamma1_seed{k}/run_config.json",
        )
    (part,) = steps.pairs_parts(embedded)
    assert "--assumed-proportion" not in part.command
    assert [file.parent.name[-12:] for file in part.needs] == ["gamma1_seed0", "gamma1_seed1"]


@pytest.mark.slow
def test_driver_on_a_tiny_model(tiny_model_directory, tmp_path):
    """Training, ranking, idealized accuracy and report; a failing model does not stop the others;
    what is done is not done again."""
    out, broken = tmp_path / "out", tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    command = [sys.executable, "-m", "reproduce.run", "training", "ranking", "idealized",
               "pairs", "report", "--scale", "embedded", "--output-dir", out, "--train", tiny_model_directory,
               "--models", broken, "--gammas", "0", "1", "--seeds", "0"]  # fmt: skip
    first = subprocess.run([str(x) for x in command], cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 2, first.stdout + first.stderr
    assert "error: 1 parts failed; the same command tries them again" in first.stderr
    assert "failed: ranking: broken × sample: error: " in first.stderr
    report = {file.name for file in (out / "report").iterdir()}
    name = slug(str(tiny_model_directory))
    assert {"ranking.md", "ranking.png", "idealized.md", "conventions.md", "length.png",
            f"{name}_sweep.md", f"{name}_sweep.png", f"{name}_dpo_gamma1_seed0_dynamics.png",
            f"{name}_flips.md", f"{name}_losses.png", f"{name}_pairs.md"} <= report  # fmt: skip
    ranked = read_json_lines(out / "ranking" / f"{name}_sft_sample.jsonl")
    value = next(r for r in ranked if r["distance_metric"] == "acc")["distance_metric_value_mean"]
    assert f" {100 * value:.1f} [" in (out / "report" / "ranking.md").read_text()
    assert len((out / "report" / f"{name}_sweep.md").read_text().splitlines()) == 2 + 6
    state = json.loads((out / f"{name}_sft" / "trainer_state.json").read_text())
    assert state["global_step"] > 0
    again = subprocess.run([str(x) for x in command[:4]] + ["ranking"] + [str(x) for x in command[8:]],
                           cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert again.stdout.count("done before") == 5 and again.returncode == 2


def test_unknown_step_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_script(run.main, run.parse_args(["tabels", "--scale", "paper", "--output-dir", "x"]))
    assert "unknown step tabels: choose from search, training" in capsys.readouterr().err


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
