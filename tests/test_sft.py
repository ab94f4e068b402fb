"""Labels of hand-marked dialogues, packing, and the original command line end to end."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer
from paused import CHECKPOINT_SAVED, start_paused
from safetensors.torch import load_file
from test_calculate_calibration_metrics import read_wandb_keys
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from ranking.data.splits import load_training_splits
from ranking.plumbing.outputs import release_outputs
from ranking.scoring.tokenization import exact_offset_tokenizer
from ranking.training.run_directory import mark_run
from ranking.training.texts import IGNORED, response_spans, sft_texts, tokenize_texts, trained_spans
from sft import main, parse_args

ROOT = Path(__file__).parents[1]
HH = ("Human:", "Assistant:")


def marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A text without its ⟦ ⟧ marks, and the spans they enclose."""
    plain, spans = "", []
    for piece in text.split("⟦"):
        inside, closed, rest = piece.partition("⟧")
        if closed:
            spans.append((len(plain), len(plain) + len(inside)))
        plain += inside + rest
    return plain, spans


@pytest.mark.parametrize(
    "text",
    [
        "\n\nHuman: Hi there\n\nAssistant:⟦ Hello. How are you?⟧",
        "\n\nHuman: a\n\nAssistant:⟦ b⟧\n\nHuman: c\n\nAssistant:⟦ d\n\nstill d⟧",
        # a template inside a turn opens nothing, nor one that follows a single newline
        "\n\nHuman: say Assistant: now\n\nAssistant:⟦ The word Assistant: and Human: too\nHuman: x⟧",
        "Human: no leading blank\n\nAssistant:⟦ yes⟧",
        "\n\nHuman: a\n\nAssistant:⟦ b⟧\n\nHuman: the text ends on a user turn",
        "\n\nHuman: a\n\nAssistant:\n\nHuman: an empty response\n\nAssistant:⟦ b⟧",
        "\n\nHuman: no response at all",
    ],
)
def test_response_spans(text):
    plain, spans = marked(text)
    assert response_spans(plain, *HH) == spans


def test_which_spans_are_trained():
    dialogue, turns = marked("\n\nHuman: a\n\nAssistant:⟦ b⟧\n\nHuman: c\n\nAssistant:⟦ d⟧")
    n = len(dialogue) - 2
    assert trained_spans(dialogue, n, None) == turns == trained_spans(dialogue, n, HH)
    assert trained_spans("Question: what?\nAnswer: this", 24, None) == [(24, 28)]
    assert trained_spans("Question: what?\nAnswer: this", 24, HH) == []
    assert trained_spans("### In\nq\n\n### Out\na", 16, ("### In", "### Out")) == [(17, 19)]


def decode_trained(tokenizer, row) -> list[str]:
    """The texts of the runs of trained tokens."""
    runs, previous = [], IGNORED
    for label in row["labels"]:
        if label != IGNORED:
            runs[-1:] = [[*runs[-1], label]] if previous != IGNORED else [*runs[-1:], [label]]
        previous = label
    return [tokenizer.decode(run) for run in runs]


def test_labels_are_the_response_turns(sample_text):
    text, spans = marked(
        "\n\nHuman: How do vaccines work?\n\nAssistant:⟦ They train cells.⟧\n\nHuman: And then?"
        "\n\nAssistant:⟦ You are immune, Human: or not.⟧"
    )
    row = {"id": "a", "text": text, "n_prompt_characters": spans[-1][0]}
    for bos in (False, True):
        tok = make_tokenizer(sample_text, bos, split_words=True)
        (plain,), dropped = tokenize_texts(tok, [row], None, 512, add_eos=False)
        assert decode_trained(tok, plain) == [text[a:b] for a, b in spans] and not dropped
        assert plain["input_ids"] == tok(text)["input_ids"]
        assert all(b in (a, IGNORED) for a, b in zip(plain["input_ids"], plain["labels"]))
        (ended,), _ = tokenize_texts(tok, [row], None, 512, add_eos=True)
        assert ended["labels"] == [*plain["labels"], tok.eos_token_id]
        twice = {**row, "text": f"{text}</s>\n"}  # a text that ends with EOS gets no second one
        assert tokenize_texts(tok, [twice], None, 512, add_eos=True)[0] == [ended]
        empty = {"id": "b", "text": "Q</s></s>", "n_prompt_characters": 5}
        assert tokenize_texts(tok, [empty], None, 512, True) == ([], {"no response turn": 1})


def test_token_across_the_start_of_a_turn_counts(tokenizer):
    """As in scoring: a token that begins before a turn and ends inside it belongs to the turn."""
    text, ((start, _),) = marked("\n\nHuman: a\n\nAssistant:⟦ They train cells.⟧")
    encoding = exact_offset_tokenizer(tokenizer).encode(text)
    across = [a < start < b for a, b in encoding.offsets]
    assert sum(across) == 1
    row = {"id": "a", "text": text, "n_prompt_characters": start}
    ((plain,), _) = tokenize_texts(tokenizer, [row], None, 512, add_eos=False)
    k = across.index(True)
    assert plain["labels"] == [IGNORED] * k + encoding.ids[k:]


def test_truncation_and_drops(sample_text):
    tokenizer = make_tokenizer(sample_text, bos=True, split_words=True)
    text, (first, second) = marked(
        "\n\nHuman: a b\n\nAssistant:⟦ one two⟧\n\nHuman: c\n\nAssistant:⟦ three⟧"
    )
    row = {"id": "a", "text": text, "n_prompt_characters": second[0]}
    ids = tokenizer(text)["input_ids"]
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    start = next(t for t, (_, end) in enumerate(offsets) if end > first[0])
    (cut,), dropped = tokenize_texts(tokenizer, [row], None, start + 2, add_eos=False)
    assert cut["input_ids"] == ids[: start + 2] and not dropped  # in the middle of the first turn
    assert cut["labels"] == [IGNORED] * start + ids[start : start + 2]
    assert tokenize_texts(tokenizer, [row], None, start, False) == ([], {"too long": 1})
    other = {"id": "b", "text": "no turn", "n_prompt_characters": 3}
    rows, dropped = tokenize_texts(tokenizer, [row, other, other], HH, 512, add_eos=False)
    assert len(rows) == 1 and dropped == {"no response turn": 2}


def test_other_data_trains_on_the_preferred_completion(tokenizer, tmp_path):
    rows = [
        {"prompt": f"Q{k}?", "completions": ["bad", "good", "fine"], "ranks": [3, 1, 2]}
        for k in range(20)
    ]
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts, _ = load_training_splits(str(path))
    texts = sft_texts(parts["train"].examples)
    (first, *_), _ = tokenize_texts(tokenizer, texts, None, 512, add_eos=False)
    assert decode_trained(tokenizer, first) == [" good"]


# ---------------------------------------------------------------------------- losses
def test_loss_and_packing_without_contamination(tiny_model_directory, tokenizer, tmp_path):
    """The packed and the padded loss both equal cross-entropy by hand in float64, text by text."""
    parts, _ = load_training_splits("sample")
    texts = sft_texts(parts["validation"].examples)
    rows, _ = tokenize_texts(tokenizer, texts, None, 256, add_eos=False)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory)
    nll, n = 0.0, 0
    double = AutoModelForCausalLM.from_pretrained(tiny_model_directory).double()
    for row in rows:
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        with torch.no_grad():
            logps = double(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        nll -= logps[labels[1:] != IGNORED].sum().item()
        n += int((labels[1:] != IGNORED).sum())
    from datasets import Dataset

    for packing in (False, True):
        arguments = SFTConfig(
            output_dir=str(tmp_path), per_device_eval_batch_size=len(rows), report_to="none",
            use_cpu=True, bf16=False, packing=packing, max_length=4096, disable_tqdm=True,
            gradient_checkpointing=False,
        )  # fmt: skip
        data = Dataset.from_list(rows)
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=data, eval_dataset=data,
                             processing_class=tokenizer)  # fmt: skip
        assert trainer.evaluate()["eval_loss"] == pytest.approx(nll / n, rel=1e-5)


# ---------------------------------------------------------------------------- the command
def command(model, output, *more) -> list[str]:
    """The original README's command, quotes in the templates and old spellings included."""
    return [
        f"--model_name={model}", "--dataset_name=sample", "--dataset_text_field=chosen",
        '--instruction_template="Human:"', '--response_template="Assistant:"',
        "--sanity_check=false", f"--output_dir={output}", "--wandb_run_name=first",
        "--gradient_accumulation_steps=2", "--per_device_train_batch_size=4",
        "--per_device_eval_batch_size=4", "--learning_rate=1e-3", "--warmup_steps=2",
        "--num_train_epochs=1", "--logging_steps=2", "--log_level=info",
        "--evaluation_strategy=steps", "--eval_steps=4", "--save_strategy=steps", "--save_steps=4",
        "--load_best_model_at_end=true", "--save_total_limit=2", "--seq_length=512", *more,
    ]  # fmt: skip


def wandb_config(log: bytes, name: str):
    """The last value of a setting in the log of an offline run."""
    return json.loads(re.findall(re.escape(name.encode()) + rb'[^"]{1,3}("[^"]*")', log)[-1])


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
    assert {"train/loss", "eval/loss"} <= read_wandb_keys(log)
    content = log.read_bytes()
    assert b"first" in content  # the run's name
    assert {"test/loss"} <= read_wandb_keys(log)
    assert wandb_config(content, "dataset_name") == "sample"
    assert wandb_config(content, "truncation_mode") == "texts at the end"
    results = json.loads((output / "test_results.json").read_text())
    assert f"test       loss {results['test_loss']:.4f} nats" in run.stdout and results["n"] == 13
    assert not (output / "README.md").exists()  # TRL's would name the base model None
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
    assert again.returncode == 2
    assert "holds a finished run: choose another --output_dir" in again.stderr.splitlines()[-1]


def test_lora_packing_and_sanity_check(tiny_model_directory, tmp_path, capsys):
    output = tmp_path / "sft"
    more = ["--use_peft", "--lora_r=4", "--lora_target_modules", "q_proj", "v_proj", "--packing",
            "--report_to=none", "--max_train_samples=12", "--max_steps=3", "--add_eos"]  # fmt: skip
    main(command(tiny_model_directory, output, *more))
    assert "train limited to 12 examples" in capsys.readouterr().err
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
        (["--no_cuda"], "cannot be honoured; use --use_cpu"),
        (["--lora_r=8"], "--lora_r without --use_peft: all weights would be trained"),
        (["--use_dora"], "--use_dora without --use_peft"),
        (["--load_best_model_at_end"], "--load_best_model_at_end needs evaluations: --eval_strat"),
        (["--load_best_model_at_end", "--eval_strategy=epoch"], "needs --save_strategy=epoch or"),
        (["--save_strategy=best"], "--save_strategy=best needs evaluations"),
        (["--eval_strategy=steps", "--eval_steps=0"], "--eval_steps 0.0: give a finite number, mo"),
        (["--save_steps=0"], "--save_steps 0.0: give a finite number, more than 0"),
        (["--logging_steps=-5"], "--logging_steps -5.0: give a finite number, more than 0"),
        (["--save_total_limit=0"], "--save_total_limit 0: give a finite number, at least 1"),
        (["--lr_scheduler_type=constant", "--warmup_steps=9"], "constant has no warm-up"),
        (["--push_to_hub=true"], "--push_to_hub cannot be honoured"),
        (["--save_safetensors=false"], "--save_safetensors cannot be honoured"),
    ],
)
def test_bad_flags(flags, message):
    with pytest.raises(ValueError) as error:
        parse_args(["--model_name=m", "--output_dir=o", *flags])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_neutral_values_of_retired_flags_and_flags_without_effect(capsys):
    flags = ["--push_to_hub=false", "--load_in_4bit", "False", "--no_cuda=0", "--do_train=true",
             "--warmup_ratio=0.0", "--completion_only_loss=true", "--hub_token=none"]  # fmt: skip
    base = ["--model_name=m", "--output_dir=o"]
    parsed, plain = parse_args([*base, *flags]), parse_args(base)
    for one, two in zip(parsed, plain):
        values = [
            {k: v for k, v in vars(arguments).items() if isinstance(v, (bool, int, float, str))}
            for arguments in (one, two)
        ]
        assert values[0] == values[1]
    assert "no effect" not in capsys.readouterr().err
    parse_args([*base, "--eval_steps=5", "--metric_for_best_model=loss", "--lora_alpha=32",
                "--use_peft"])  # fmt: skip
    assert capsys.readouterr().err.splitlines() == [
        "--eval_steps has no effect: --eval_strategy is no",
        "--metric_for_best_model has no effect: --load_best_model_at_end is not given",
    ]


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
    """OPT's positions do not restart in a packed row."""
    from conftest import SMALL, make_model

    config = {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}
    make_model("opt", config).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    more = ["--packing", "--report_to=none", "--max_steps=1"]
    with pytest.raises(ValueError, match="--packing: this model's attention lets packed texts"):
        main(command(tmp_path / "opt", tmp_path / "out", *more))


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
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "killed")]
    torch.testing.assert_close(
        models[0].lm_head.weight, models[1].lm_head.weight, atol=1e-4, rtol=0
    )


BEST = ["--report_to=none", "--warmup_steps=0", "--lr_scheduler_type=constant", "--eval_steps=1",
        "--save_steps=4", "--max_train_samples=20", "--max_eval_samples=6"]  # fmt: skip
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


def as_killed(folder: Path, moved: Path) -> Path:
    """The folder as a kill between the last checkpoint and the end leaves it, in another place."""
    release_outputs()
    run = json.loads((folder / "run_config.json").read_text())
    mark_run(folder, run["settings"], finished=False)
    for name in ("model.safetensors", "test_results.json", "trainer_state.json"):
        (folder / name).unlink()
    return folder.rename(moved)


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


def test_wrong_template_is_one_clear_line(tiny_model_directory, tmp_path):
    flags = ["--instruction_template=User:", "--response_template=Bot:", "--report_to=none"]
    arguments = [*command(tiny_model_directory, tmp_path / "out"), *flags]
    with pytest.raises(ValueError, match="no text left to train on .*no response turn: 103"):
        main(arguments)
