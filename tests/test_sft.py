"""sft.py as a user runs it: the original command, a kill, the best model, flags."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import GPT, make_model
from dialogue_rows import (
    CHATML,
    VOCABULARY,
    chat_tokenizer,
    dialogues,
    said,
    sharegpt,
    split_folder,
)
from huggingface_hub import ModelCard
from paused import CHECKPOINT_SAVED, start_paused
from safetensors.torch import load_file
from test_calculate_calibration_metrics import read_wandb_keys
from training_runs import BEST, as_killed, history, launch, wandb_config
from training_runs import sft_command as command
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from ranking.data.conversions import sft_texts
from ranking.scoring.chat import ChatOptions
from ranking.training.early_checks import check_values
from ranking.training.known_flags import read_known_flags
from ranking.training.splits import load_parts
from ranking.training.texts import IGNORED, tokenize_texts
from sft import SFT, main, parse_args

ROOT = Path(__file__).parents[1]


def test_original_command(tiny_model_directory, tmp_path):
    output = tmp_path / "sft"
    kept = ("TIMEOUT", "WAIT")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("WANDB") or k.endswith(kept)
    }
    run = subprocess.run(
        [sys.executable, ROOT / "sft.py", *command(tiny_model_directory, output)],
        capture_output=True, text=True, cwd=tmp_path, env={**environment, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert "train: 103, validation: 13, test: 13" in run.stderr
    assert "wandb: this run is offline; upload it with `wandb sync " in run.stderr
    assert "validation loss" in run.stdout
    (log,) = output.glob("wandb/offline-run-*/run-*.wandb")
    logged = read_wandb_keys(log)
    assert {"train/loss", "eval/loss", "test/loss"} <= logged
    assert not any(name.startswith(("validation", "test ")) for name in logged)
    content = log.read_bytes()
    assert b"first" in content  # the run's name
    assert wandb_config(content, "dataset_name") == "sample"
    assert wandb_config(content, "truncation_mode") == "texts at the end"
    results = json.loads((output / "test_results.json").read_text())
    assert f"test       loss {results['test_loss']:.4f} nats" in run.stdout and results["n"] == 13
    card = ModelCard.load(output / "README.md")
    assert card.data.library_name == "transformers" and card.data.base_model is None
    assert f"| test | 13 | {results['test_loss']:.4f} |" in card.text
    assert str(tmp_path) not in card.content and f"--output_dir={output.name}" in card.text
    tuned = AutoModelForCausalLM.from_pretrained(output)
    start = AutoModelForCausalLM.from_pretrained(tiny_model_directory)
    assert not torch.equal(tuned.lm_head.weight, start.lm_head.weight)
    assert AutoTokenizer.from_pretrained(output).eos_token == "</s>"
    state = json.loads((output / "trainer_state.json").read_text())
    evaluations = [e["eval_loss"] for e in state["log_history"] if "eval_loss" in e]
    assert state["best_metric"] == min(evaluations) and math.isfinite(min(evaluations))

    again = subprocess.run(
        [sys.executable, ROOT / "sft.py", *command(tiny_model_directory, output)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert again.returncode == 2 and again.stdout == ""  # no line of a library's on WANDB_MODE
    assert "holds a finished run: choose another --output_dir" in again.stderr.splitlines()[-1]


def test_lora_packing_and_sanity_check(tiny_model_directory, tmp_path, capsys):
    output = tmp_path / "sft"
    more = ["--use_peft", "--lora_r=4", "--lora_target_modules", "q_proj", "v_proj", "--packing",
            "--report_to=none", "--max_train_samples=12", "--max_steps=3", "--add_eos"]  # fmt: skip
    main(command(tiny_model_directory, output, *more))
    err = capsys.readouterr().err
    assert "train limited to 12 examples" in err and "texts share rows anyway" in err
    assert (output / "adapter_config.json").is_file()
    from ranking.scoring.loading import load_model

    assert load_model(str(output)).peft_config["default"].r == 4
    assert not (output / "wandb").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_seq_len=3"], "unknown flag --max_seq_len; did you mean --max_seq_length?"),
        (["--completion_only_loss=false"], "cannot be honoured; use nothing: only response turns"),
        (["--dataset_text_field=text"], "only `chosen` is trained on"),
        (["--packing", "--packing_strategy=wrapped"], "use bfd"),
        (["--response_template=x"], "go together"),
        (["--learning_rate=fast"], "learning_rate"),
        (["--max_train_samples=0"], "give a positive number"),
        (["--split_seed=-1"], "--split_seed -1: give a finite number, 0 or more"),
        (["--seed=-1"], "--seed -1: give a finite number, from 0 to"),
        (["--no_cuda"], "cannot be honoured; use --use_cpu"),
        (["--torch_compile"], "use nothing: rows differ in length"),
        (["--tokens_per_batch=0"], "--tokens_per_batch 0: give a finite number, at least 1"),
        (["--lora_r=8"], "--lora_r without --use_peft: all weights would be trained"),
        (["--use_dora"], "--use_dora without --use_peft"),
        (["--load_best_model_at_end"], "--load_best_model_at_end needs evaluations: --eval_strat"),
        (["--load_best_model_at_end", "--eval_strategy=epoch"], "needs --save_strategy=epoch or"),
        (["--save_strategy=best"], "--save_strategy=best needs evaluations"),
        (["--early_stopping_patience=2"], "--early_stopping_patience needs evaluations"),
        (["--early_stopping_patience=2", "--eval_strategy=epoch"], "needs --metric_for_best_model"),
        (["--early_stopping_patience=0"], "--early_stopping_patience 0: give a finite number, at"),
        (["--early_stopping_threshold=1"], "without --early_stopping_patience"),
        (["--eval_strategy=steps", "--eval_steps=0"], "--eval_steps 0.0: give a finite number, mo"),
        (["--save_steps=0"], "--save_steps 0.0: give a finite number, more than 0"),
        (["--logging_steps=-5"], "--logging_steps -5.0: give a finite number, more than 0"),
        (["--save_total_limit=0"], "--save_total_limit 0: give a finite number, at least 1"),
        (["--lr_scheduler_type=constant", "--warmup_steps=9"], "constant has no warm-up"),
        (["--push_to_hub=true"], "--push_to_hub: the environment variable HF_HUB_OFFLINE forbids"),
        (["--push_to_hub", "--hub_token=hf_x"], "--hub_token cannot be honoured; use the environm"),
        (["--report_to", "wandb", "none"], "--report_to wandb none: none stands alone"),
        (["--report_to=clearml"], "--report_to clearml is not installed: pip install clearml"),
        (["--project=a/b"], "wandb project a/b: at most 128 characters"),
        (["--save_safetensors=false"], "--save_safetensors cannot be honoured"),
    ],
)
def test_bad_flags(flags, message):
    """Before PyTorch is imported (`check_values`), and by the dataclasses."""
    for check in (parse_args, lambda argv: check_values(SFT, read_known_flags(), argv, "")):
        with pytest.raises(ValueError) as error:
            check(["--model_name=m", "--output_dir=o", *flags])
        assert message in str(error.value) and "\n" not in str(error.value)


def test_what_a_run_cannot_be_is_said(tiny_model_directory, tmp_path, capsys, monkeypatch):
    """More rows in a batch than there are, a warm-up without end, FSDP on a CPU."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    more = ["--report_to=none", "--max_train_samples=4", "--max_steps=2", "--warmup_steps=150",
            "--gradient_accumulation_steps=128"]  # fmt: skip
    main(command(tiny_model_directory, tmp_path / "out", *more))
    err = capsys.readouterr().err
    assert "a step's batch is 512 (" in err and "and there are 4 rows: each step takes" in err
    assert "--warmup_steps is 150 and the run has 2 steps: the learning rate only rises, to" in err
    rate = float(re.search(r"rises, to (\S+) of 0.001\n", err)[1])
    state = json.loads((tmp_path / "out/trainer_state.json").read_text())
    rates = [e["learning_rate"] for e in state["log_history"] if "learning_rate" in e]
    assert rate == pytest.approx(max(rates), rel=1e-2)
    assert err.count("FSDP shards over GPUs only") == 1


def test_packing_is_refused_where_texts_see_each_other(tokenizer, tmp_path):
    """ALiBi's distances do not restart in a packed row."""
    make_model("bloom", {**GPT, "hidden_size": 32}).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    more = ["--packing", "--report_to=none", "--max_steps=1"]
    with pytest.raises(ValueError, match="--packing: this model's attention lets packed texts"):
        main(command(tmp_path / "bloom", tmp_path / "out", *more))


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tiny_model_directory, tmp_path):
    """Same losses and weights after a stop at a checkpoint."""
    more = ["--report_to=none", "--disable_tqdm=true"]
    main(command(tiny_model_directory, tmp_path / "whole", *more))
    run = start_paused(
        CHECKPOINT_SAVED, 1, "sft.py", *command(tiny_model_directory, tmp_path / "killed", *more),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert (tmp_path / "killed/checkpoint-4/trainer_state.json").exists()
    run.kill()
    run.wait()
    main(command(tiny_model_directory, tmp_path / "killed", *more))
    states = [
        json.loads((tmp_path / name / "trainer_state.json").read_text())
        for name in ("whole", "killed")
    ]
    losses = [[e.get("loss", e.get("eval_loss")) for e in state["log_history"]] for state in states]
    assert len(losses[0]) > 8 and losses[0][:-1] == pytest.approx(losses[1][:-1], abs=1e-4)
    counts = [[e["num_tokens"] for e in x["log_history"] if "num_tokens" in e] for x in states]
    assert counts[0] == counts[1]
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "killed")]
    torch.testing.assert_close(
        models[0].lm_head.weight, models[1].lm_head.weight, atol=1e-4, rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes(tiny_model_directory, tmp_path, sharded):
    """Losses and weights of one process with the double batch, though rows differ in number."""
    more = ["--report_to=none", "--max_steps=4", "--warmup_steps=0", "--optim=sgd", "--logging_steps=1",
            "--learning_rate=0.1", "--gradient_accumulation_steps=1", "--eval_steps=2"]  # fmt: skip
    main(command(tiny_model_directory, tmp_path / "one", *more, "--per_device_train_batch_size=8"))
    arguments = command(tiny_model_directory, tmp_path / "two", *more, "--tokens_per_batch=300")
    n_weights = len(load_file(Path(tiny_model_directory) / "model.safetensors"))
    assert launch("sft.py", arguments, sharded) == n_weights * sharded
    logged = [history(tmp_path / name) for name in ("one", "two")]
    for name in ("loss", "eval_loss", "num_tokens", "grad_norm"):
        one, two = ([entry[name] for entry in entries if name in entry] for entries in logged)
        assert len(one) >= 2 and two == pytest.approx(one, abs=1e-4, rel=1e-4), name
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], atol=1e-5, rtol=0)


FIRST = ["--learning_rate=3e-2", "--greater_is_better=true"]  # the highest loss is the first one


def test_the_best_evaluation_is_saved(tiny_model_directory, tmp_path, capsys):
    """At a step that --save_steps passes over: the weights of a run that ends there."""
    more = [*BEST, *FIRST]
    main(command(tiny_model_directory, tmp_path / "best", *more, "--max_steps=5"))
    state = json.loads((tmp_path / "best/trainer_state.json").read_text())
    losses = {e["step"]: e["eval_loss"] for e in reversed(state["log_history"]) if "eval_loss" in e}
    best = max(losses, key=losses.get)
    assert best == 1 and len(losses) == 5
    model = json.loads((tmp_path / "best/run_config.json").read_text())["model"]
    assert model == {"step": best, "max_steps": 5, "chosen_by": "eval_loss", "value": losses[best]}
    assert f"step {best} of 5, the best eval_loss, {losses[best]:.4f}" in capsys.readouterr().out
    more = [*more, f"--max_steps={best}", "--load_best_model_at_end=false"]
    main(command(tiny_model_directory, tmp_path / "last", *more))
    assert f"step {best} of {best}, the last" in capsys.readouterr().out
    saved, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("best", "last"))
    for name in wanted:
        torch.testing.assert_close(saved[name], wanted[name], atol=1e-5, rtol=0)


def test_early_stopping_by_a_named_set(tiny_model_directory, tmp_path, capsys):
    """Two evaluations after the best one, whichever checkpoint the run is resumed from."""
    prompt = "\n\nHuman: Question {}?\n\nAssistant:"
    rows = [{"prompt": prompt.format(k), "completion": f" It is {k}."} for k in range(9)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = [*BEST, *FIRST, "--max_steps=5", "--save_steps=1", "--save_total_limit=9",
            f"--eval_dataset_name={tmp_path / 'other.jsonl'}", "--early_stopping_patience=2",
            "--metric_for_best_model=other/loss", "--max_eval_samples=4"]  # fmt: skip
    main(command(tiny_model_directory, tmp_path / "run", *more))
    printed = capsys.readouterr()
    assert "other: the evaluation set limited to 4 examples" in printed.err
    end = "best eval_other/loss, {:.4f}; stopped early at step 3: eval_other/loss was no better in "
    model = json.loads((tmp_path / "run/run_config.json").read_text())["model"]
    assert f"step 1 of 5, the {end.format(model['value'])}the last 2 evaluations" in printed.out
    assert model["stopped_early"]["step"] == 3 and model["chosen_by"] == "eval_other/loss"
    wanted = history(tmp_path / "run")
    losses = [entry["eval_other/loss"] for entry in wanted if "eval_loss" in entry]
    assert losses[0] == max(losses) and f"  other: loss {losses[0]:.4f}, n = 4" in printed.out
    folder = tmp_path / "run"
    for last, resumed in ((3, "checkpoint-3 is where the run stopped early, 3: nothing is left"),
                          (2, "checkpoint-2\n")):  # fmt: skip
        folder = as_killed(folder, tmp_path / f"killed-{last}")
        for step in range(last + 1, 5):
            shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
        main(command(tiny_model_directory, folder, *more))
        assert resumed in capsys.readouterr().err
        again = json.loads((folder / "run_config.json").read_text())["model"]
        assert again == {**model, "value": pytest.approx(model["value"], abs=1e-4)}
        steps = [entry["step"] for entry in history(folder)]
        assert steps == [entry["step"] for entry in wanted]


@pytest.mark.parametrize("length", ["--max_steps=5", "--num_train_epochs=1.6"])
def test_nothing_is_trained_after_the_last_checkpoint(tiny_model_directory, tmp_path, length):
    """The same command finishes the run: same step, best model, test loss and checkpoints."""
    more = [*BEST, *FIRST, length]

    def command_without_limit(folder):
        words = command(tiny_model_directory, folder, *more)
        return [word for word in words if not word.startswith("--save_total_limit")]

    main(command_without_limit(tmp_path / "run"))
    weights = (tmp_path / "run/model.safetensors").read_bytes()
    results = json.loads((tmp_path / "run/test_results.json").read_text())
    folder = as_killed(tmp_path / "run", tmp_path / "moved")
    names = {path.name for path in folder.glob("checkpoint-*")}
    shutil.copytree(folder / "checkpoint-5", folder / "checkpoint-3")  # a best one before the best
    main(command_without_limit(folder))
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == state["max_steps"] == results["model"]["max_steps"] == 5
    assert {path.name for path in folder.glob("checkpoint-*")} == names
    assert (folder / "model.safetensors").read_bytes() == weights
    again = json.loads((folder / "test_results.json").read_text())
    assert again["model"] == results["model"] and results["model"]["step"] < 5
    assert again["test_loss"] == pytest.approx(results["test_loss"], abs=1e-4) and again["n"] == 6
    assert not any("train_loss" in entry for entry in state["log_history"])  # of no step
    other = [f"--resume_from_checkpoint={folder / 'checkpoint-5'}", *more, "--max_steps=3"]
    with pytest.raises(ValueError, match="checkpoint-5 is step 5 of a longer run than this one"):
        main(command(tiny_model_directory, tmp_path / "shorter", *other))


def test_a_checkpoint_at_the_end_of_an_epoch_holds_its_evaluation(tiny_model_directory, tmp_path):
    """Or a kill while it evaluates would lose it: the same command goes on after that step."""
    more = [*BEST, "--evaluation_strategy=epoch", "--save_strategy=steps", "--save_steps=1",
            "--load_best_model_at_end=false", "--max_steps=5", "--save_total_limit=9"]  # fmt: skip
    main(command(tiny_model_directory, tmp_path / "run", *more))
    history = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    evaluated = {entry["step"] for entry in history if "eval_loss" in entry}
    assert 5 in evaluated and len(evaluated) >= 2
    for step in evaluated:
        state = json.loads((tmp_path / f"run/checkpoint-{step}/trainer_state.json").read_text())
        assert step in {e["step"] for e in state["log_history"] if "eval_loss" in e}


def test_mixture_of_conversations_and_preferences(tmp_path, sample_text):
    """A template of a file, each dataset's loss beside that of all, the best model by the latter."""
    tokenizer = chat_tokenizer(sample_text, None)
    make_model("llama", VOCABULARY).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "chatml.jinja").write_text(CHATML)
    talks = [
        {"messages": [*row["prompt"], said("assistant", row["chosen"])]} for row in dialogues()
    ]
    names = [
        split_folder(tmp_path / "talks", talks, 2),
        split_folder(tmp_path / "pairs", [sharegpt(row) for row in dialogues(first=21)], 1),
    ]
    out = tmp_path / "out"
    main([f"--model_name={tmp_path / 'model'}", "--dataset_name", *names, f"--output_dir={out}",
          f"--chat_template_file={tmp_path / 'chatml.jinja'}", "--report_to=none", "--max_steps=2",
          "--eval_strategy=steps", "--eval_steps=1", "--save_strategy=steps", "--save_steps=1",
          "--load_best_model_at_end=true", "--learning_rate=1e-3"])  # fmt: skip
    state = json.loads((out / "trainer_state.json").read_text())
    evaluations = [e for e in state["log_history"] if "eval_loss" in e]
    examples = load_parts(names, conversations=True)["validation"].examples
    template = ChatOptions(template=CHATML)
    rows, _ = tokenize_texts(tokenizer, sft_texts(examples), None, 1024, None, template)
    n = Counter()
    for row in rows:
        n[row["dataset"]] += sum(label != IGNORED for label in row["labels"])
    for logged in evaluations:  # the mean over tokens
        total = sum(n[name] * logged[f"eval_{name}/loss"] for name in ("talks", "pairs"))
        assert logged["eval_loss"] == pytest.approx(total / n.total(), rel=1e-6)
    assert state["best_metric"] == min(e["eval_loss"] for e in evaluations)
    results = json.loads((out / "test_results.json").read_text())
    assert (
        results["n"] == 3 and {"test_talks/loss", "test_pairs/loss", "test_loss"} <= results.keys()
    )
    answering = pipeline("text-generation", model=str(out))
    assert answering.tokenizer.chat_template == CHATML
    assert (
        answering.tokenizer.decode(answering.model.generation_config.eos_token_id[-1])
        == "<|im_end|>"
    )
    (answer,) = answering([said("user", "Is it late?")], max_new_tokens=2)
    assert answer["generated_text"][-1]["role"] == "assistant"
    settings = json.loads((out / "run_config.json").read_text())["settings"]
    assert settings["dataset_name"] == names and settings["chat_template_file"] == CHATML


def test_wrong_template_is_one_clear_line(tiny_model_directory, tmp_path):
    flags = ["--instruction_template=User:", "--response_template=Bot:", "--report_to=none"]
    arguments = [*command(tiny_model_directory, tmp_path / "out"), *flags]
    with pytest.raises(ValueError, match="no text left to train on .*no response turn: 103"):
        main(arguments)
