"""calculate_win_rate.py with a reward model trained on the spot: whole runs."""

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import peft
import pytest
import torch
from judges import error_of, flags, free_port, run, write_responses
from paused import ROWS_WRITTEN, start_paused
from result_rows import bootstrap_of_scipy
from test_calculate_calibration_metrics import read_wandb_keys
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ranking.plumbing.result_files import read_json_lines, write_json_lines
from ranking.training.run_directory import find_checkpoints, gamma_of

ROOT = Path(__file__).parents[1]


def test_chosen_responses_beat_rejected_ones_and_sides_mirror(
    preferences, reward_model, two_models, tmp_path
):
    """Stated beforehand: at least 85 %. With the sides swapped, exactly the complement."""
    good, bad = two_models
    answers = []
    for model, side in ((good, "chosen"), (bad, "rejected")):
        answers += [
            "--responses",
            write_responses(tmp_path / f"{side}.jsonl", model, preferences, side),
        ]
    results = []
    for policy, reference in ((good, bad), (bad, good)):
        name = f"{policy.name}.jsonl"
        run(*flags(tmp_path, f"reward-model:{reward_model}", "--lm-name-or-path", policy, *answers,
                   "--reference-name-or-path", reference, "--dataset", preferences, "--device", "cpu",
                   name=name))  # fmt: skip
        results.append(read_json_lines(tmp_path / name)[0])
    ours, mirrored = results
    assert ours["win_rate"] >= 0.85 and ours["n"] == 120
    assert mirrored["win_rate"] == pytest.approx(1 - ours["win_rate"], abs=1e-12)
    assert (ours["n_wins"], ours["n_ties"]) == (mirrored["n_losses"], mirrored["n_ties"])
    assert mirrored["mean_characters_other"] == ours["mean_characters_policy"]
    rows = read_json_lines(tmp_path / f"{good.name}.examples.jsonl")
    wins = [row["win"] for row in rows]
    interval = bootstrap_of_scipy(wins, [1] * len(wins), [r["prompt_id"] for r in rows])
    wide = interval if interval[0] < interval[1] else [None, None]  # all may be wins
    assert ours["bootstrap_95"] == pytest.approx(wide)


def test_model_against_itself_is_all_ties_when_greedy(
    reward_model, preferences, two_models, tmp_path
):
    good, bad = two_models  # the same weights
    greedy = [
        "--temperature",
        "0",
        "--max-new-tokens",
        "12",
        "--sample-size",
        "30",
        "--device",
        "cpu",
    ]
    run(*flags(tmp_path, f"reward-model:{reward_model}", "--lm-name-or-path", good, *greedy,
               "--reference-name-or-path", bad, "--dataset", preferences))  # fmt: skip
    (row,) = read_json_lines(tmp_path / "wins.jsonl")
    assert row["win_rate"] == 0.5 and row["n_ties"] == row["n"] == 30
    sampled = ["--max-new-tokens", "12", "--device", "cpu", "--seed", "3"]
    run(*flags(tmp_path, f"reward-model:{reward_model}", "--lm-name-or-path", good, *sampled,
               "--reference-name-or-path", bad, "--dataset", preferences, name="copies.jsonl"))  # fmt: skip
    (row,) = read_json_lines(tmp_path / "copies.jsonl")
    # four standard errors: the samples depend on where pytest put the models
    assert row["n_ties"] < 30 and abs(row["win_rate"] - 0.5) < 4 * 0.5 / 120**0.5
    run(*flags(tmp_path, f"reward-model:{reward_model}", "--lm-name-or-path", good, *sampled,
               "--reference-name-or-path", good, "--dataset", preferences, name="same.jsonl"))  # fmt: skip
    (row,) = read_json_lines(tmp_path / "same.jsonl")  # one directory: two draws
    assert row["n_ties"] < 30 and abs(row["win_rate"] - 0.5) < 4 * 0.5 / 120**0.5
    run(*flags(tmp_path, f"reward-model:{reward_model}", "--lm-name-or-path", good, *sampled,
               "--against", "chosen", "--dataset", preferences, name="sampled.jsonl"))  # fmt: skip
    (row,) = read_json_lines(tmp_path / "sampled.jsonl")
    assert row["win_rate"] < 0.2  # random text against completions with thanks


def test_kill_9_and_resume(reward_model, preferences, two_models, tmp_path):
    """Killed while generating: the same responses and rows as an uninterrupted run."""
    good, bad = two_models
    more = ["--lm-name-or-path", good, "--reference-name-or-path", bad, "--dataset", preferences,
            "--batch-size", "2", "--max-new-tokens", "20", "--sample-size", "40", "--device", "cpu"]  # fmt: skip
    run(*flags(tmp_path / "whole", f"reward-model:{reward_model}", *more))
    command = [sys.executable, ROOT / "calculate_win_rate.py",
               *flags(tmp_path / "killed", f"reward-model:{reward_model}", *more)]  # fmt: skip
    process = start_paused(
        ROWS_WRITTEN, 3, *command[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    responses = tmp_path / "killed" / "wins.responses.jsonl"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = responses.read_bytes()
    assert 0 < kept.count(b"\n") < 80
    with responses.open("ab") as file:
        file.write(b'{"torn')
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert responses.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    for file in ("wins.responses.jsonl", "wins.examples.jsonl"):
        whole, resumed = (
            {(r["model"], r["id"]): r for r in read_json_lines(tmp_path / name / file)}
            for name in ("whole", "killed")
        )
        assert whole.keys() == resumed.keys()
        for key in whole:
            for name in ("response", "policy_response", "other_response", "win"):
                assert whole[key].get(name) == resumed[key].get(name)
    assert read_json_lines(tmp_path / "killed" / "wins.jsonl") == read_json_lines(
        tmp_path / "whole" / "wins.jsonl"
    )


def test_checkpoints(reward_model, preferences, two_models, tmp_path, wandb_offline):
    """Win rate, accuracy and distance of every checkpoint, the picture with two axes, wandb."""
    good, bad = two_models
    run_folder = tmp_path / "dpo"
    for step in (2, 10, 4):
        model = AutoModelForCausalLM.from_pretrained(good)
        with torch.no_grad():
            model.lm_head.weight += 0.01 * step
        model.save_pretrained(run_folder / f"checkpoint-{step}")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (run_folder / f"checkpoint-{step}" / file).write_bytes((good / file).read_bytes())
    run(*flags(tmp_path, f"reward-model:{reward_model}", "--checkpoints", run_folder, "--device", "cpu",
               "--reference-name-or-path", bad, "--dataset", preferences, "--sample-size", "20",
               "--max-new-tokens", "8", "--wandb-project", "wins"))  # fmt: skip
    (log,) = wandb_offline.glob("wandb/offline-run-*/run-*.wandb")
    assert {"win_rate/table", "win_rate/figure", "examples/judged"} <= read_wandb_keys(log)
    rows = read_json_lines(tmp_path / "wins.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 10]
    n_weights = 600 * 32
    for row in rows:
        assert row["squared_distance"] == pytest.approx(
            (0.01 * row["step"]) ** 2 * n_weights, rel=1e-3
        )
        assert row["n_ranked"] == 20 and 0 <= row["ranking_accuracy"] <= 1
    assert [c["part"] for c in rows[-1]["correlations"]] == ["all", "near", "far"]
    summary = (tmp_path / "wins.jsonl").read_bytes()
    examples = (tmp_path / "wins.examples.jsonl").read_bytes()
    (tmp_path / "wins.jsonl").unlink()  # stopped in the third checkpoint
    lines = examples.splitlines(keepends=True)
    (tmp_path / "wins.examples.jsonl").write_bytes(b"".join(lines[:-7]))
    run(*flags(tmp_path, f"reward-model:{reward_model}", "--checkpoints", run_folder, "--device", "cpu",
               "--reference-name-or-path", bad, "--dataset", preferences, "--sample-size", "20",
               "--max-new-tokens", "8"))  # fmt: skip
    assert (tmp_path / "wins.jsonl").read_bytes() == summary
    again = (tmp_path / "wins.examples.jsonl").read_bytes().splitlines(keepends=True)
    assert again[:-7] == lines[:-7]
    whole, resumed = (
        {(r["model"], r["id"]): r for r in map(json.loads, x)} for x in (lines, again)
    )
    assert whole.keys() == resumed.keys()
    for key, row in whole.items():  # rewards depend on what shares their batch, by rounding
        assert resumed[key].pop("rewards", 0) == pytest.approx(row.pop("rewards", 0), abs=1e-5)
        assert resumed[key] == row
    assert (tmp_path / "wins.png").stat().st_size > 10_000


def test_adapters_and_a_checkpoint_that_says_nothing(
    reward_model, preferences, two_models, tmp_path, capsys
):
    """An adapter's distance is that of its merged weights; no responses, no win rate, no stop."""
    good, bad = two_models
    runs, answers = tmp_path / "dpo", []
    for step in (1, 2):
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"])
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(good), config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.fill_(0.1 * step)
        model.save_pretrained(runs / f"checkpoint-{step}")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (runs / f"checkpoint-{step}" / file).write_bytes((good / file).read_bytes())
    silent = runs / "checkpoint-2"
    answers = write_responses(tmp_path / "silent.jsonl", silent, preferences, "chosen")
    rows = [{**row, "response": ""} for row in read_json_lines(answers)]
    write_json_lines(answers, rows)
    more = ["--reference-name-or-path", good, "--dataset", preferences, "--responses", answers,
            "--sample-size", "10", "--device", "cpu"]  # fmt: skip
    run(*flags(tmp_path, f"reward-model:{reward_model}", "--checkpoints", runs, *more))
    assert f"every response of {silent} is empty: it gets no win rate" in capsys.readouterr().err
    first, second = read_json_lines(tmp_path / "wins.jsonl")
    for row in (first, second):  # B A = r × 0.1² = 0.02, times lora_alpha / r = 2, step² times
        change = 2 * 0.02 * row["step"] ** 2
        n_weights = sum(p.numel() for n, p in model.named_parameters() if "q_proj.base" in n)
        assert row["squared_distance"] == pytest.approx(n_weights * change**2, rel=1e-3)
    assert first["n"] == 10 and 0 <= first["win_rate"] <= 1
    assert (second["n"], second["win_rate"], second["n_unclear"]) == (0, None, 10)
    assert len(read_json_lines(tmp_path / "wins.examples.jsonl")) == 20
    alone = ["--lm-name-or-path", silent, *more]
    message = error_of(
        capsys, *flags(tmp_path, f"reward-model:{reward_model}", *alone, name="a.jsonl")
    )
    assert f"every response of {silent} is empty: nothing to judge" in message


def test_a_prompt_beyond_the_context_is_counted_and_a_chat_template_is_needed(
    reward_model, two_models, tmp_path, capsys
):
    good, bad = two_models
    rows = [{"prompt": f"\n\nHuman: number {k}?{' cat' * 5000 * (k == 3)}\n\nAssistant:",
             "chosen": " a cat", "rejected": " a dog"} for k in range(5)]  # fmt: skip
    write_json_lines(tmp_path / "long.jsonl", rows)
    more = ["--lm-name-or-path", good, "--reference-name-or-path", bad, "--max-new-tokens", "4",
            "--dataset", tmp_path / "long.jsonl", "--device", "cpu"]  # fmt: skip
    judge = f"reward-model:{reward_model}"
    run(*flags(tmp_path, judge, *more))
    (row,) = read_json_lines(tmp_path / "wins.jsonl")
    assert (row["n"], row["n_unanswered"]) == (4, 1)
    message = error_of(capsys, *flags(tmp_path, judge, *more, "--chat-template", name="c.jsonl"))
    assert f"--chat-template: {good} has none" in message


def test_only_the_flags_and_the_ends_of_turns_shape_responses(
    reward_model, preferences, two_models, tokenizer, tmp_path
):
    """Penalties, bans and forced tokens of generation_config.json do nothing; its two EOS end a
    response. Against greedy decoding by hand, also through an adapter that changes nothing."""
    good, _ = two_models
    row = read_json_lines(preferences)[0]
    write_json_lines(tmp_path / "one.jsonl", [row])
    model = AutoModelForCausalLM.from_pretrained(good)
    ids = tokenizer(row["prompt"])["input_ids"]
    new: list[int] = []
    while len(new) < 12:
        with torch.no_grad():
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    end = next(k for k, token in enumerate(new) if k > 2 and token not in new[:k])
    model.generation_config = GenerationConfig(
        eos_token_id=[1, new[end]], forced_eos_token_id=7, suppress_tokens=new[:2], min_p=0.5,
        bad_words_ids=[[new[1]]], repetition_penalty=50.0, no_repeat_ngram_size=1, do_sample=True,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "policy"),
        peft.LoraConfig(r=2, target_modules=["q_proj"]),
    ).save_pretrained(tmp_path / "adapter")
    for name in ("policy", "adapter"):
        run(*flags(tmp_path, f"reward-model:{reward_model}", "--lm-name-or-path", tmp_path / name,
                   "--against", "chosen", "--dataset", tmp_path / "one.jsonl", "--temperature", "0",
                   "--max-new-tokens", "12", "--device", "cpu", name=f"{name}.jsonl"))  # fmt: skip
        (found,) = read_json_lines(tmp_path / f"{name}.responses.jsonl")
        assert found["response"] == tokenizer.decode(new[:end]).strip()
        assert (found["n_tokens"], found["finished"]) == (end, True)
        (summary,) = read_json_lines(tmp_path / f"{name}.jsonl")
        assert summary["generation"]["eos_token_id"] == sorted([1, new[end]])


def test_runs_of_a_sweep_are_ordered_by_gamma(two_models, tmp_path):
    for name, gamma in (("a", 1.0), ("b", 0.0), ("c", 0.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "run_config.json").write_text(json.dumps({"settings": {"alpha": gamma}}))
    (tmp_path / "notes").mkdir()
    found = find_checkpoints(tmp_path)
    assert [(path.name, gamma_of(path)) for path in found] == [("b", 0.0), ("c", 0.5), ("a", 1.0)]
    with pytest.raises(ValueError, match="no checkpoint-\\* and no model directories"):
        find_checkpoints(tmp_path / "notes")


def test_errors_are_one_line(preferences, two_models, reward_model, tiny_model_directory, tmp_path,
                             monkeypatch, capsys):  # fmt: skip
    good, bad = two_models
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    more = ["--lm-name-or-path", good, "--reference-name-or-path", bad, "--dataset", preferences,
            "--sample-size", "4", "--max-new-tokens", "4", "--device", "cpu"]  # fmt: skip
    assert "set OPENAI_API_KEY" in error_of(capsys, *flags(tmp_path, "openai:m", *more))
    wrong = ["--responses", preferences]
    message = error_of(capsys, *flags(tmp_path, f"reward-model:{reward_model}", *more, *wrong))
    assert "train.jsonl: row 1: not a responses file" in message
    assert "reward-model:NAME_OR_PATH" in error_of(capsys, *flags(tmp_path, "gpt-4", *more))
    assert "no such model directory" in error_of(
        capsys, *flags(tmp_path, "reward-model:./none", *more)
    )
    message = error_of(capsys, *flags(tmp_path, f"reward-model:{tiny_model_directory}", *more))
    assert "is no reward model: it has no weights for score.weight" in message
    alone = ["--lm-name-or-path", good, "--dataset", preferences]
    assert "give --reference-name-or-path" in error_of(capsys, *flags(tmp_path, "openai:m", *alone))
    empty = [
        "--checkpoints",
        tmp_path / "cache",
        "--reference-name-or-path",
        bad,
        "--dataset",
        preferences,
    ]
    assert "no such directory" in error_of(
        capsys, *flags(tmp_path, f"reward-model:{reward_model}", *empty)
    )

    nobody = f"http://127.0.0.1:{free_port()}/v1"
    unreachable = [
        *more,
        "--judge-base-url",
        nobody,
        "--judge-retries",
        "1",
        "--judge-timeout",
        "2",
    ]
    message = error_of(capsys, *flags(tmp_path, "openai:m", *unreachable, name="u.jsonl"))
    assert f"judge m: {nobody}/ does not answer after 1 retries" in message
    n_lines = (tmp_path / "u.responses.jsonl").read_bytes().count(b"\n")
    assert n_lines == 8 and not (tmp_path / "u.jsonl").exists()  # the responses are kept

    monkeypatch.setenv("OPENAI_BASE_URL", nobody)  # named on the screen and in the record
    message = error_of(
        capsys, *flags(tmp_path, "openai:m", *more, "--judge-retries", "0", name="u2.jsonl")
    )
    assert f"judge m: {nobody}/ does not answer" in message
    assert json.loads((tmp_path / "u2.config.json").read_text())["judge_base_url"] == f"{nobody}/"
    assert "--temperature must be finite" in error_of(
        capsys, *flags(tmp_path, "openai:m", *more, "--temperature", "nan")
    )

    long = [*more[:-4], "--max-new-tokens", "5000", "--device", "cpu"]
    judge = f"reward-model:{reward_model}"
    assert "no prompt has tokens and leaves room" in error_of(
        capsys, *flags(tmp_path, judge, *long, name="l.jsonl")
    )
    run(*flags(tmp_path, judge, *more, name="done.jsonl"))
    before = (tmp_path / "done.jsonl").read_bytes()
    assert "done.jsonl exists" in error_of(
        capsys, *flags(tmp_path, judge, *more, name="done.jsonl")
    )
    assert (tmp_path / "done.jsonl").read_bytes() == before


def test_policies_that_cannot_answer_are_one_line(
    preferences, two_models, reward_model, tokenizer_without_bos, tmp_path, capsys
):
    """NaN weights, no token to pad or end with; an empty prompt is left out and counted."""
    good, _ = two_models
    judge = f"reward-model:{reward_model}"
    broken = AutoModelForCausalLM.from_pretrained(good)
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    for name in ("nan", "endless"):
        broken.save_pretrained(tmp_path / name)
    AutoTokenizer.from_pretrained(good).save_pretrained(tmp_path / "nan")
    plain = type(tokenizer_without_bos)(tokenizer_object=tokenizer_without_bos.backend_tokenizer)
    plain.save_pretrained(tmp_path / "endless")
    more = ["--against", "chosen", "--dataset", preferences, "--sample-size", "4",
            "--max-new-tokens", "4", "--device", "cpu"]  # fmt: skip
    for name, expected in (("nan", "cannot generate"), ("endless", "neither a pad nor an EOS")):
        found = error_of(
            capsys,
            *flags(
                tmp_path, judge, "--lm-name-or-path", tmp_path / name, *more, name=f"{name}.jsonl"
            ),
        )
        assert expected in found
    rows = [{"prompt": p, "chosen": " yes", "rejected": " no"} for p in ("", "Is it?")]
    write_json_lines(tmp_path / "empty.jsonl", rows)
    more[3] = tmp_path / "empty.jsonl"
    tokenizer_without_bos.save_pretrained(tmp_path / "without_bos")
    AutoModelForCausalLM.from_pretrained(good).save_pretrained(tmp_path / "without_bos")
    run(*flags(tmp_path, judge, "--lm-name-or-path", tmp_path / "without_bos", *more))
    (row,) = read_json_lines(tmp_path / "wins.jsonl")
    assert (row["n"], row["n_unanswered"]) == (1, 1)


def test_several_processes_are_refused(tmp_path, capsys, monkeypatch):
    """Each would ask the judge, and append to the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = flags(tmp_path / "out", "openai:m", "--lm-name-or-path", "m", "--against", "chosen")
    with pytest.raises(SystemExit):
        run(*arguments)
    assert "start it without torchrun" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value", "give"),
    [("--judge-retries", "-1", "0 or more"), ("--judge-timeout", "0", "a positive number"),
     ("--judge-timeout", "nan", "a positive number")],
)  # fmt: skip
def test_how_a_judge_is_asked_is_checked_first(flag, value, give, tmp_path, capsys):
    more = ["--lm-name-or-path", "x", "--against", "chosen", flag, value]
    assert f"{flag} {value}: give {give}" in error_of(capsys, *flags(tmp_path, "openai:m", *more))


@pytest.mark.parametrize(
    ("judge", "message"),
    [("alpaca_eval:alpaca_eval_gtp4", "has no such configuration; it has alpaca_eval_gpt4, "),
     ("openai:m", "set OPENAI_API_KEY"), ("reward-model:./none", "no such model directory: ./none")],
)  # fmt: skip
def test_a_judge_that_cannot_be_is_said_before_the_data_are_read(
    judge, message, tmp_path, monkeypatch, capsys
):
    if judge.startswith("alpaca_eval") and find_spec("alpaca_eval") is None:
        message = "pip install alpaca_eval"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    more = ["--lm-name-or-path", "x", "--against", "chosen", "--dataset", tmp_path / "none.jsonl"]
    assert message in error_of(capsys, *flags(tmp_path, judge, *more))
