"""dpo.py as a user runs it: the original command, a kill, adapters, errors, agreement with scoring."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import assert_documented
from hub_server import HubServer
from huggingface_hub import ModelCard
from paused import CHECKPOINT_SAVED, start_paused
from preference_rows import write
from safetensors.numpy import load_file
from test_calculate_calibration_metrics import read_wandb_keys
from training_runs import BEST, as_killed, history, launch, wandb_config
from training_runs import dpo_command as command
from transformers import AutoModelForCausalLM

import calculate_calibration_metrics
import calculate_upper_bound_rlhf
from dpo import DPO, main, parse_args
from ranking.data.conversions import preference_pairs
from ranking.data.given_scores import REFERENCE_COLUMNS
from ranking.data.splits import load_training_splits
from ranking.plumbing.result_files import append_json_lines, read_json_lines
from ranking.reports.dynamics import read_dynamics
from ranking.scoring.loading import load_model
from ranking.scoring.models import model_fingerprint
from ranking.training.best_metric import check_best_metric
from ranking.training.dynamics_file import DynamicsRow
from ranking.training.early_checks import check_values
from ranking.training.known_flags import read_known_flags
from ranking.training.run_directory import TrainingRun
from ranking.training.splits import load_parts

ROOT = Path(__file__).parents[1]


def start(arguments, folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment):
    kept = ("TIMEOUT", "WAIT")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") or k.endswith(kept)}
    return subprocess.Popen(
        [sys.executable, ROOT / "dpo.py", *arguments], cwd=folder, text=True,
        stdout=stdout, stderr=stderr, env={**clean, **environment},
    )  # fmt: skip


def test_original_command(tiny_model_directory, tmp_path):
    output = tmp_path / "dpo"
    run = start(command(tiny_model_directory, output), tmp_path, HOME=str(tmp_path))
    out, err = run.communicate()
    assert run.returncode == 0, err[-3000:]
    assert "train: 103, validation: 13, test: 13" in err
    assert "policy log-likelihoods: segments" in err
    assert "wandb: this run is offline; upload it with `wandb sync " in err
    assert "Ranking dynamics" in out and "lowest" not in err
    assert "Likelihood displacement" in out

    rows = read_dynamics(output / "ranking_dynamics.jsonl")
    steps = sorted({row["step"] for row in rows})
    assert steps[:2] == [0, 4] and {row["part"] for row in rows} == {"train", "validation"}
    assert_documented(rows, DynamicsRow)
    assert_documented([json.loads((output / "run_config.json").read_text())], TrainingRun)
    keys = [(row["step"], row["part"], row["id"]) for row in rows]
    assert len(set(keys)) == len(keys)
    for row in rows:  # Eq. 4 in bfloat16, γ = 0.5: the loss is that of the recorded log-likelihoods
        ref = row["ref_chosen"] - row["ref_rejected"]
        margin = 0.1 * (row["chosen"] - row["rejected"] - 0.5 * ref)
        assert row["loss"] == pytest.approx(np.logaddexp(0, -margin), abs=1e-6)
    for name in ("ranking_dynamics", "loss_against_reference", "accuracy_against_distance",
                 "likelihood_displacement"):  # fmt: skip
        assert (output / f"{name}.png").stat().st_size > 10_000

    (log,) = output.glob("wandb/offline-run-*/run-*.wandb")
    logged = read_wandb_keys(log)
    assert b"second" in log.read_bytes()
    for name, value in (
        ("dataset_name", "sample"),
        ("ref_model_name_or_path", str(tiny_model_directory)),
        ("truncation_mode", "prompts from the left"),
    ):
        assert wandb_config(log.read_bytes(), name) == value
    assert "test ranking/accuracy" in logged
    card = ModelCard.load(output / "README.md")
    assert card.data.tags[0] == "dpo" and "β = 0.1, γ = 0.5" in card.text
    assert "](likelihood_displacement.png)" in card.text and str(tmp_path) not in card.content
    panels = {"ranking/accuracy", "ranking/ref_accuracy", "ranking/accuracy_normalized",
              "ranking/meets_theorem_4_1", "ranking/meets_threshold", "ranking/proposition_2_6",
              "displacement/chosen_fell", "displacement/incorrect_to_incorrect_mean_rejected_change",
              "rewards/accuracies", "logps/chosen",
              "groups/correct_to_correct_share", "groups/incorrect_to_incorrect_loss",
              "groups/incorrect_to_incorrect_reward_margin"}  # fmt: skip
    for part in ("validation", "train", "test"):
        assert {f"{part} {name}" for name in panels} <= logged
    again = [name for name in logged if name.startswith(("eval/", "test/")) and name.count("/") > 1]
    assert not again  # each metric is there once
    assert {
        "eval/loss",
        "train pairs/loss",
        "test/loss",
        "validation distance/squared",
        "figures/displacement",
        "examples/pairs",
        "dynamics/groups",
        "dynamics/displacement",
        "train/loss",
    } <= logged
    assert AutoModelForCausalLM.from_pretrained(output).config.model_type == "llama"
    assert "segments" not in (output / "config.json").read_text()


def other_pairs(folder) -> str:
    """A file of pairs to evaluate on beside those that are trained on."""
    pair = {"prompt": "Is it {}?", "chosen": " Yes, {}.", "rejected": " It is {}, no."}
    rows = [{key: text.format(k) for key, text in pair.items()} for k in range(7)]
    return write(folder / "other.jsonl", rows)


def nearly(value):
    """The value itself; a number up to rounding."""
    return pytest.approx(value, rel=1e-3, abs=1e-3) if isinstance(value, float) else value


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tiny_model_directory, tmp_path):
    """kill -9 after a checkpoint, the same command again: same losses, weights and dynamics file.

    Not to the bit: matrix products on a CPU depend on how memory happens to be aligned.
    """
    more = ["--report_to=none", "--warmup_steps=2", "--bf16=false", "--use_peft", "--lora_r=4",
            "--learning_rate=1e-3",
            "--lora_dropout=0.3", "--disable_dropout=false", "--lora_target_modules=all-linear", "--dynamics_sample_size=40",
            f"--eval_dataset_name={other_pairs(tmp_path)}"]  # fmt: skip
    main(command(tiny_model_directory, tmp_path / "whole", *more))
    killed = command(tiny_model_directory, tmp_path / "killed", *more)
    run = start_paused(CHECKPOINT_SAVED, 2, "dpo.py", *killed, cwd=tmp_path,
                       stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    assert (tmp_path / "killed/checkpoint-8/trainer_state.json").exists()
    run.kill()
    run.wait()
    unfinished = tmp_path / "killed/checkpoint-12"  # as a kill in the middle of saving leaves it
    unfinished.mkdir(exist_ok=True)
    (unfinished / "trainer_state.json").unlink(missing_ok=True)
    whole = read_dynamics(tmp_path / "whole/ranking_dynamics.jsonl")
    begun = [row for row in whole if (row["step"], row["part"]) == (12, "validation")]
    with (tmp_path / "killed/ranking_dynamics.jsonl").open("ab") as file:  # killed between two sets
        append_json_lines(file, begun)
        file.write(b'{"step": 12, "part": "oth')

    other = start([*killed, "--learning_rate=1e-4"], tmp_path)
    _, err = other.communicate()
    assert other.returncode == 2 and "other settings (learning_rate differ)" in err

    again = start(killed, tmp_path)
    _, err = again.communicate()
    assert again.returncode == 0, err[-3000:]
    assert "checkpoint-12 was not saved to the end: not resumed from" in err
    assert "resuming from " in err and "checkpoint-8" in err
    whole, resumed = tmp_path / "whole", tmp_path / "killed"
    name = "ranking_dynamics.jsonl"
    rows = [read_dynamics(folder / name) for folder in (whole, resumed)]
    assert begun and len(rows[0]) == len(rows[1])
    assert {row["part"] for row in rows[1]} == {"train", "validation", "other"}
    for one, two in zip(*rows):
        assert one == {k: nearly(v) for k, v in two.items()}
    logs = [history(folder) for folder in (whole, resumed)]
    assert len(logs[0]) == len(logs[1])
    for one, two in zip(*logs):
        assert one == {k: nearly(v) for k, v in two.items()}
    want = load_model(str(whole)).merge_and_unload().state_dict()
    got = load_model(str(resumed)).merge_and_unload().state_dict()
    assert max((want[key] - got[key]).abs().max() for key in want) < 1e-3


def test_dynamics_agree_with_the_evaluation_script(tiny_model_directory, tmp_path, capsys):
    """What training logs for the final model is what the scoring script prints for its directory."""
    output = tmp_path / "dpo"
    more = [
        "--report_to=none",
        "--bf16=false",
        "--warmup_steps=0",
        "--max_steps=4",
        "--max_length=4096",
    ]
    main(command(tiny_model_directory, output, *more))
    rows = [r for r in read_dynamics(output / "ranking_dynamics.jsonl") if r["step"] == 4]
    calculate_calibration_metrics.main(
        calculate_calibration_metrics.parse_args(
            ["--lm-name-or-path", str(output), "--dataset", "sample", "--sample-size", "-1",
             "--output-dir", str(tmp_path), "--output-filename", "scores.jsonl"]
        )
    )  # fmt: skip
    scores = {r["id"]: r for r in read_json_lines(tmp_path / "scores.examples.jsonl")}
    compared = 0
    for row in rows:
        example = scores[row["id"].split(":")[0]]
        i, j = (0, 1)
        if ":" in row["id"]:
            i, j = (int(k) for k in row["id"].split(":")[1].split(">"))
        elif example["ranks"][0] > example["ranks"][1]:
            i, j = (1, 0)
        for side, k in (("chosen", i), ("rejected", j)):
            assert row[side] == pytest.approx(example["completions"][k]["logp"], abs=1e-3)
            assert row[f"n_{side}"] == example["completions"][k]["n_tokens"]
        compared += 1
    assert compared > 200
    test = preference_pairs(load_training_splits("sample")[0]["test"].examples)
    logps = {(e["prompt"], c["text"]): c["logp"] for e in scores.values() for c in e["completions"]}
    sides = [[logps[p["prompt"], p[side]] for side in ("chosen", "rejected")] for p in test]
    right = np.mean([chosen >= rejected for chosen, rejected in sides])
    results = json.loads((output / "test_results.json").read_text())
    assert (results["n"], results["test_ranking/accuracy"]) == (len(test), pytest.approx(right))
    assert f"ranking accuracy {100 * right:.1f} % (reference:" in capsys.readouterr().out


def test_two_losses_and_their_pairs_in_the_idealized_script(
    tiny_model_directory, preferences, tmp_path, capsys
):
    """Two seeds of hinge, whose pairs are joined with those of the reference's examples; ipo's are
    of another setting. Each loss meets its own threshold where it ranks correctly."""
    files = {}
    for name, loss, seed in (("one", "hinge", 0), ("two", "hinge", 1), ("three", "ipo", 0)):
        more = ["--report_to=none", "--bf16=false", "--warmup_steps=0", "--max_steps=2",
                "--eval_steps=1", "--save_strategy=no", "--load_best_model_at_end=false", "--alpha=1",
                f"--loss_type={loss}", f"--seed={seed}", "--dynamics_sample_size=30",
                f"--dataset_name={preferences}",
                "--max_length=4096"]  # fmt: skip
        flags = command(tiny_model_directory, tmp_path / name, *more)
        main([flag for flag in flags if flag != "--dataset_name=sample"])
        files[name] = tmp_path / name / "ranking_dynamics.jsonl"
        test = json.loads((tmp_path / name / "test_results.json").read_text())
        accuracy = "test_ranking/accuracy" + "_normalized" * (loss == "ipo")
        assert test["test_ranking/meets_threshold"] == test[accuracy]
        assert test.get("test_ranking/proposition_2_6_right", 1) == 1
        assert 0 <= test["test_displacement/both_fell"] <= test["test_displacement/chosen_fell"]
        assert {row["loss_type"] for row in read_dynamics(files[name])} == {loss}

    def idealized(*dynamics):
        more = ["--lm-name-or-path", tiny_model_directory, "--dataset", preferences,
                "--assumed-proportion", 0.75,
                "--output-dir", tmp_path, "--output-filename", "i.jsonl", "--dynamics", *dynamics]  # fmt: skip
        calculate_upper_bound_rlhf.main(calculate_upper_bound_rlhf.parse_args(list(map(str, more))))

    with pytest.raises(
        ValueError, match="has loss hinge, .* ipo: a mean is over runs of one setting"
    ):
        idealized(files["one"], files["three"])
    idealized(files["one"], files["two"])
    runs = [read_dynamics(files[name]) for name in ("one", "two")]
    best = []
    for rows in runs:
        steps = {row["step"] for row in rows}
        means = {step: np.mean([r["loss"] for r in rows
                                if (r["step"], r["part"]) == (step, "validation")])
                 for step in steps}  # fmt: skip
        best.append({r["id"]: r for r in rows if r["step"] == min(means, key=means.get)})
    joined = 0
    for pair in read_json_lines(tmp_path / "i.pairs.jsonl"):
        own = [rows[pair["id"]] for rows in best if pair["id"] in rows]
        assert pair["n_runs"] == len(own)
        if own:
            joined += 1
            assert pair["tuned_loss"] == pytest.approx(np.mean([row["loss"] for row in own]))
            assert pair["flipped_in"] == sum(row["chosen"] >= row["rejected"] for row in own)
            c = np.mean([row["ref_rejected"] - row["ref_chosen"] for row in own])
            assert pair["c"] == pytest.approx(c, abs=1e-2)
    assert joined >= 30 + 12  # followed and validation
    assert f"{joined} of " in capsys.readouterr().err


def test_a_mixture_of_files_that_are_called_as_parts(tiny_model_directory, tmp_path, capsys):
    """Their metrics are neither those of the followed pairs nor those of the test split, and each
    line counts its own pairs."""
    pair = {"prompt": "Is it {}?", "chosen": " It is {}, and not {}.", "rejected": " No."}
    names = []
    for folder, name, first in (("a", "train", 0), ("b", "test", 100)):
        rows = [
            {k: text.format(n, n) for k, text in pair.items()} for n in range(first, first + 30)
        ]
        names.append(write(tmp_path / folder / f"{name}.jsonl", rows))
    more = ["--report_to=none", "--bf16=false", "--max_steps=1", "--warmup_steps=0", "--evaluate_test",
            "--save_strategy=no", "--load_best_model_at_end=false", "--dataset_name", *names]  # fmt: skip
    flags = command(tiny_model_directory, tmp_path / "dpo", *more)
    main([flag for flag in flags if flag != "--dataset_name=sample"])
    lines = re.findall(r"step 0 .*?  (\S+) +loss .* flipped 0 of (\d+),", capsys.readouterr().err)
    wrong = {name: int(n) for name, n in lines}  # the reference ranks the shorter answers first
    parts = {"train": 48, "validation": 6, "a/train": 3, "b/test": 3, "test": 6}
    assert wrong == {**parts, "test/a/train": 3, "test/b/test": 3}


def test_the_best_evaluation_by_another_metric(tiny_model_directory, tmp_path, capsys):
    """The reference's accuracy never changes: the first evaluation is the best, which --save_steps
    passes over, also when the run is killed after its last checkpoint and moved."""
    more = [*BEST, "--bf16=false", "--learning_rate=1e-1", "--max_steps=5", "--alpha=1"]
    accuracy = [f"--eval_dataset_name={other_pairs(tmp_path)}",
                "--metric_for_best_model=other/ranking/ref_accuracy"]  # fmt: skip
    main(command(tiny_model_directory, tmp_path / "dpo", *more, *accuracy))
    out = capsys.readouterr().out
    assert "step 1 of 5, the best eval_other/ranking/ref_accuracy, " in out
    assert "other (6)" in out  # --max_eval_samples
    parts = Counter(r["part"] for r in read_dynamics(tmp_path / "dpo/ranking_dynamics.jsonl"))
    assert list(parts) == ["validation", "other", "train"] and parts["other"] == 6 * 6
    logged = {name for entry in history(tmp_path / "dpo") for name in entry if "eval_" in name}
    data = load_parts(["sample"], eval_names=[other_pairs(tmp_path)])
    for name in logged:
        check_best_metric(name, data, of_pairs=True)
    model = json.loads((tmp_path / "dpo/run_config.json").read_text())["model"]
    assert (model["step"], model["max_steps"]) == (1, 5)
    saved, at_best, at_end = (
        load_file(tmp_path / "dpo" / name / "model.safetensors")
        for name in ("", "checkpoint-1", "checkpoint-5")
    )
    assert all((saved[name] == at_best[name]).all() for name in saved)
    assert any((saved[name] != at_end[name]).any() for name in saved)
    folder = as_killed(tmp_path / "dpo", tmp_path / "moved")
    before = (folder / "ranking_dynamics.jsonl").read_bytes()
    main(command(tiny_model_directory, folder, *more, *accuracy))
    err = capsys.readouterr().err
    assert "checkpoint-5 is after the last step, 5: nothing is left to train" in err
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 5 and (folder / "ranking_dynamics.jsonl").read_bytes() == before
    assert json.loads((folder / "run_config.json").read_text())["model"] == model
    again = load_file(folder / "model.safetensors")
    assert all((saved[name] == again[name]).all() for name in saved)
    capsys.readouterr()
    main(command(tiny_model_directory, tmp_path / "loss", *more, "--max_steps=1"))  # it diverges
    assert "eval_loss was 0.6931 before training, better than at any" in capsys.readouterr().err


@pytest.fixture
def adapter(tiny_model_directory, tmp_path):
    """A directory as `sft.py --use_peft` leaves it, and its merged model."""
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_model_directory)
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.5)
    tuned.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft", tuned.merge_and_unload()


@pytest.mark.parametrize("lora", [True, False])
def test_adapter_as_the_policy(adapter, tmp_path, capsys, lora):
    """Merged before training; a new adapter's base lies beside it; a full tuning moves all weights."""
    folder, merged = adapter
    output = tmp_path / "dpo"
    more = ["--report_to=none", "--bf16=false", "--max_steps=2", "--alpha=1", "--eval_steps=1",
            "--save_steps=1", "--metric_for_best_model=eval_ranking/accuracy", "--warmup_steps=0",
            *(["--use_peft", "--lora_target_modules=q_proj", "--merge_adapter"] if lora else [])]  # fmt: skip
    main(command(folder, output, *more))
    state = json.loads((output / "trainer_state.json").read_text())
    evaluations = [e for e in state["log_history"] if "eval_loss" in e]
    assert state["best_metric"] == max(e["eval_ranking/accuracy"] for e in evaluations[1:])
    rows = read_dynamics(output / "ranking_dynamics.jsonl")
    first = [row["loss"] for row in rows if row["step"] == 0]
    assert np.mean(first) == pytest.approx(math.log(2), abs=1e-4)  # the reference is the SFT model
    last = load_model(str(output))
    last = last.merge_and_unload() if lora else last
    moved = {
        name: (merged.get_parameter(name) - parameter).abs().max().item()
        for name, parameter in last.named_parameters()
    }
    assert moved["model.layers.0.self_attn.q_proj.weight"] > 0
    if lora:
        said = capsys.readouterr().err  # on tiny models, whose weights are most of a directory
        base, merged_size = (
            (output / name / "model.safetensors").stat().st_size / 1e3
            for name in ("base", "merged")
        )
        told = re.search(r"([\d,]+) kB of its base, ([\d,]+) kB of it merged into its base", said)
        assert float(told[1]) == pytest.approx(base, rel=0.5) and float(told[1]) > base
        assert float(told[2]) == pytest.approx(merged_size, rel=0.02)
        whole = AutoModelForCausalLM.from_pretrained(output / "merged").state_dict()
        assert all(torch.equal(whole[name], p) for name, p in last.named_parameters())
        assert {f.name for f in (output / "merged").iterdir()} == {
            "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json",
        }  # fmt: skip
        base = AutoModelForCausalLM.from_pretrained(output / "base").state_dict()
        assert all((base[name] == p).all() for name, p in merged.named_parameters())
    assert (moved["model.layers.0.mlp.up_proj.weight"] > 0) != lora
    if lora:
        moved = output.rename(tmp_path / "moved")  # its base goes with it, for checkpoints too
        names = [path.name for path in moved.glob("checkpoint-*")]
        for place in (moved, *(moved / name for name in names)):
            again = load_model(str(place)).get_base_model().state_dict()
            key = "model.layers.0.mlp.up_proj.weight"
            assert (again[key] == merged.get_parameter(key)).all()
        assert len(names) == 2 and "None" not in (moved / "README.md").read_text()
        moved.rename(output)

    with pytest.raises(ValueError, match="holds a finished run"):
        main(command(folder, output, *more))
    other = [flag for flag in more if not re.search("peft|lora|merge", flag)]
    other += [] if lora else ["--use_peft", "--lora_target_modules=q_proj"]
    main(command(folder, output, *other, "--overwrite_output_dir"))  # nothing of the first is left
    assert (output / "adapter_config.json").exists() != lora
    assert not (output / "merged").exists()
    assert (output / "model.safetensors").exists() == lora


def test_other_reference(tiny_model_directory, tokenizer_without_bos, tmp_path):
    """Eq. 4 with a reference of its own; another tokenizer is refused."""
    from conftest import SMALL, make_model
    from transformers import AutoTokenizer

    other = make_model("llama", {**SMALL, "max_position_embeddings": 4096, "num_hidden_layers": 1})
    other.save_pretrained(tmp_path / "ref")
    AutoTokenizer.from_pretrained(tiny_model_directory).save_pretrained(tmp_path / "ref")
    more = ["--report_to=none", "--bf16=false", "--max_steps=1", "--alpha=1", "--beta=0.01",
            f"--ref_model_name_or_path={tmp_path / 'ref'}"]  # fmt: skip
    main(command(tiny_model_directory, tmp_path / "dpo", *more))
    rows = [r for r in read_dynamics(tmp_path / "dpo/ranking_dynamics.jsonl") if r["step"] == 0]
    policy_ratio = np.array([r["chosen"] - r["rejected"] for r in rows])
    ref_ratio = np.array([r["ref_chosen"] - r["ref_rejected"] for r in rows])
    assert abs(policy_ratio - ref_ratio).min() > 0
    losses = np.logaddexp(0, -0.01 * (policy_ratio - ref_ratio))
    assert [r["loss"] for r in rows] == pytest.approx(losses, abs=1e-6)

    tokenizer_without_bos.save_pretrained(tmp_path / "ref")
    with pytest.raises(ValueError, match="have different tokenizers"):
        main(command(tiny_model_directory, tmp_path / "again", *more))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes(tiny_model_directory, tmp_path, monkeypatch, sharded):
    """torchrun of the script: reference, dynamics file and weights of one process with double batch."""
    more = ["--report_to=none", "--bf16=false", "--max_steps=4", "--warmup_steps=0", "--optim=sgd",
            "--gradient_accumulation_steps=1", "--disable_tqdm=true",
            f"--eval_dataset_name={other_pairs(tmp_path)}"]  # fmt: skip
    main(command(tiny_model_directory, tmp_path / "one", *more, "--per_device_train_batch_size=8"))
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path / "cache"))
    arguments = command(
        tiny_model_directory, tmp_path / "two", *more, "--per_device_train_batch_size=4",
        "--tokens_per_batch=300",  # rows of the processes differ in number
    )  # fmt: skip
    n_weights = len(load_file(Path(tiny_model_directory) / "model.safetensors"))
    assert launch("dpo.py", arguments, sharded) == n_weights * sharded
    one, two = (
        read_dynamics(tmp_path / name / "ranking_dynamics.jsonl") for name in ("one", "two")
    )
    keys = ("step", "part", "id", "group")
    assert [[r[k] for k in keys] for r in one] == [[r[k] for k in keys] for r in two]
    assert sum(r["part"] == "other" for r in one) == 2 * 7
    columns = {"chosen": 2e-3, "rejected": 2e-3, "ref_chosen": 2e-3, "ref_rejected": 2e-3,
               "squared_distance": 1e-7}  # fmt: skip
    for name, tolerance in columns.items():
        values = [[r[name] or 0.0 for r in rows] for rows in (one, two)]
        assert values[0] == pytest.approx(values[1], abs=tolerance), name
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert weights.keys() == others.keys()
    for name in weights:
        np.testing.assert_allclose(weights[name], others[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_sharded_in_half_precision(tiny_model_directory, tmp_path):
    """FSDP2 with --bf16: log-likelihoods stay float32 (those of tokens, below −1, would be multiples
    of 1/128 in bfloat16), and the distance is that of the float32 weights: none at the start."""
    more = ["--report_to=none", "--max_steps=1", "--warmup_steps=0", "--disable_tqdm=true",
            "--gradient_accumulation_steps=1", "--eval_steps=1", "--save_steps=1"]  # fmt: skip
    arguments = command(tiny_model_directory, tmp_path / "run", *more)
    assert "--bf16=true" in arguments and launch("dpo.py", arguments, sharded=True) > 0
    rows = read_dynamics(tmp_path / "run" / "ranking_dynamics.jsonl")
    start = [row for row in rows if row["step"] == 0]
    values = np.array([row["chosen"] for row in start])
    assert ((values * 128) % 1 != 0).mean() > 0.9
    differences = values - [row["ref_chosen"] for row in start]
    assert np.abs(differences).mean() < 0.5
    distances = {
        row["step"]: row["squared_distance"] for row in rows if row["part"] == "validation"
    }
    assert distances[0] == 0.0 < distances[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gamma=0.5"], "--gamma cannot be honoured; use --alpha"),
        (["--max_prompt_length=256"], "use --max_length: prompts are cut from the left"),
        (["--precompute_ref_log_probs=false"], "always computed once and cached"),
        (["--gamma=0"], "--gamma cannot be honoured; use --alpha"),
        (["--ld_alpha", "0.0"], "--ld_alpha cannot be honoured"),
        (["--max_steps=0"], "--max_steps 0: give a finite number, 1 or more"),
        (["--loss_typ=sigmoid"], "unknown flag --loss_typ; did you mean --loss_type?"),
        (
            ["--label_smoothing=0.1"],
            "--label_smoothing 0.1: leave it out, it would change the loss",
        ),
        (["--loss_type=sigmoid", "--alpha=2"], "--alpha 2.0: needs --loss_type alpha_scaling"),
        (["--reference_free=true"], "use --loss_type=alpha_scaling --alpha=0"),
        (["--hub_token=hf_x"], "use the environment variable HF_TOKEN"),
        (["--beta=0"], "--beta 0.0: give a finite number, more than 0"),
        (["--loss_type=sigmoid", "--alpha=1", "--label_smoothing=0.1"], "only aot, aot_unpaired,"),
        (["--loss_type=sigmoid", "--alpha=1", "--label_smoothing_factor=0.1"], "no loss uses it"),
        (["--loss_type=ipo", "--alpha=1", "--discopop_tau=0.1"], "only discopop use it"),
        (["--lora_r=8"], "--lora_r without --use_peft"),
        (["--merge_adapter"], "--merge_adapter without --use_peft: the whole model is saved"),
        (["--eval_strategy=no"], "--load_best_model_at_end needs evaluations"),
        (["--alpha=nan"], "--alpha nan: give a finite number, 0 or more"),
        (
            ["--loss_type=foo"],
            "--loss_type foo: give one or more of alpha_scaling, alpha_scaling_norm",
        ),
        (["--target_margin=1"], "--target_margin 1.0: needs --loss_type alpha_scaling_norm"),
        (["--simpo_gamma=1"], "use --loss_type=alpha_scaling_norm --alpha=0 --target_margin=SIMPO"),
        (["--dynamics_sample_size=-1"], "--dynamics_sample_size -1: give"),
        (["--max_length=-1"], "--max_length -1: give a finite number, at least 1"),
        (["--per_device_eval_batch_size=0"], "--per_device_eval_batch_size 0: give"),
        (["--gradient_accumulation_steps=0"], "--gradient_accumulation_steps 0: give"),
        (["--learning_rate=nan"], "--learning_rate nan: give"),
        (["--num_train_epochs=-1"], "--num_train_epochs -1.0: give"),
        (["--report_to=tensorbord"], "did you mean tensorboard?"),
        (["--output_dir="], "--output_dir is required"),
    ],
)
def test_bad_flags(flags, message):
    """Before PyTorch is imported (`check_values`), and by the dataclasses."""
    for check in (parse_args, lambda argv: check_values(DPO, read_known_flags(), argv, "")):
        with pytest.raises(ValueError) as error:
            check([*command("m", "o"), *flags])
        assert message in str(error.value) and "\n" not in str(error.value)


def test_a_run_that_diverges_ends_with_one_line(tiny_model_directory, tmp_path):
    """And is marked as diverged, not as finished."""
    more = ["--report_to=none", "--bf16=false", "--warmup_steps=0", "--logging_steps=1",
            "--learning_rate=1e30", "--max_grad_norm=0"]  # fmt: skip
    with pytest.raises(ValueError, match="the training loss is nan at step 2"):
        main(command(tiny_model_directory, tmp_path / "out", *more))
    run = json.loads((tmp_path / "out" / "run_config.json").read_text())
    assert not run["finished"] and run["diverged"] == 2


def test_a_metric_of_no_evaluation_ends_it_before_a_model_is_read(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/config.json").write_text("no model")
    more = ["--report_to=none", "--bf16=false", "--metric_for_best_model=ranking/acuracy"]
    with pytest.raises(ValueError, match="did you mean ranking/accuracy?"):
        main(command(tmp_path / "sft", tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_the_test_part_with_each_evaluation(tiny_model_directory, tmp_path):
    """What it gives after the last step is what the end of the run gives for the same model."""
    more = [*BEST, "--bf16=false", "--max_steps=2", "--evaluate_test", "--dynamics_sample_size=0",
            "--load_best_model_at_end=false", "--save_strategy=no"]  # fmt: skip
    main(command(tiny_model_directory, tmp_path / "dpo", *more))
    evaluations = [e for e in history(tmp_path / "dpo") if "eval_test/loss" in e]
    assert [e["step"] for e in evaluations] == [0, 1, 2]
    at_end = json.loads((tmp_path / "dpo/test_results.json").read_text())
    for name in ("loss", "ranking/accuracy", "rewards/margins"):
        assert evaluations[-1][f"eval_test/{name}"] == pytest.approx(at_end[f"test_{name}"])
    assert evaluations[-1]["eval_test/loss"] != evaluations[0]["eval_test/loss"]
    rows = read_dynamics(tmp_path / "dpo/ranking_dynamics.jsonl")
    last = [row["loss"] for row in rows if (row["part"], row["step"]) == ("test", 2)]
    assert np.mean(last) == pytest.approx(at_end["test_loss"])
    assert list(dict.fromkeys(row["part"] for row in rows)) == ["validation", "test"]


def test_group_by_length(tiny_model_directory, tmp_path):
    more = ["--report_to=none", "--bf16=false", "--train_sampling_strategy=group_by_length",
            "--max_steps=2", "--eval_strategy=no", "--save_strategy=no",
            "--load_best_model_at_end=false"]  # fmt: skip
    main(command(tiny_model_directory, tmp_path / "out", *more))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_revisions_of_policy_and_reference(tiny_model_directory, tmp_path):
    """Each its own; none for a local model. The hub's is served here."""
    more = ["--report_to=none", f"--ref_model_name_or_path={tiny_model_directory}"]
    for flag in ("--model_revision", "--ref_model_revision"):
        with pytest.raises(ValueError, match=f"{flag} v1: .* is a local model, without revisions"):
            main(command(tiny_model_directory, tmp_path / "out", *more, f"{flag}=v1"))
    server = HubServer("team/tiny", tiny_model_directory, "a" * 40)
    more = ["--report_to=none", "--bf16=false", "--max_steps=1", "--max_train_samples=8"]
    names = ["--model_revision=" + "a" * 40, f"--ref_model_name_or_path={tiny_model_directory}"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    clean |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hub")}
    run = subprocess.run(
        [sys.executable, ROOT / "dpo.py", *command("team/tiny", tmp_path / "out", *more, *names)],
        env=clean, capture_output=True, text=True,
    )  # fmt: skip
    server.go_away()
    assert run.returncode == 0, run.stderr[-3000:]
    assert "WANDB" not in run.stdout  # a library's line where WANDB_MODE=offline
    settings = json.loads((tmp_path / "out/run_config.json").read_text())["settings"]
    fingerprints = settings["model_fingerprints"]
    assert fingerprints == ["commit " + "a" * 40, model_fingerprint(str(tiny_model_directory))]


def test_missing_things_are_one_line(tiny_model_directory, tmp_path):
    """Missing model, dataset and split; an output directory that holds something else."""
    cases = {
        "no such model directory: ./nowhere": command("./nowhere", tmp_path / "a"),
        "unknown dataset 'absent.jsonl'": command(
            tiny_model_directory, tmp_path / "b", "--dataset_name=absent.jsonl", "--report_to=none"
        ),
        "holds a model (config.json)": command(
            tiny_model_directory, tmp_path / "other", "--report_to=none"
        ),
        "lies in --output_dir": command(
            tiny_model_directory, tiny_model_directory, "--overwrite_output_dir"
        ),
    }
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text("{}")
    for message, arguments in cases.items():
        with pytest.raises((OSError, ValueError)) as error:
            main(arguments)
        assert message in str(error.value)
    assert not (tmp_path / "b").exists() and (tiny_model_directory / "config.json").exists()
    run = start(command("./nowhere", tmp_path / "a"), tmp_path)
    _, err = run.communicate()
    assert (
        run.returncode == 2 and err.splitlines()[-1] == "error: no such model directory: ./nowhere"
    )


def test_an_exported_file_trains_as_the_data_it_is_of(tiny_model_directory, tmp_path, capsys):
    """In float32, the log-likelihoods of the file instead of the reference's: same losses, step by
    step, as the run on the same file without them, which scores the reference itself."""
    script = calculate_upper_bound_rlhf
    file = tmp_path / "pairs.parquet"
    flags = ["--lm-name-or-path", tiny_model_directory, "--dataset", "sample", "--output-dir", tmp_path,
             "--output-filename", "ideal.jsonl", "--sample-size", 30, "--add-eos", "--export", file]  # fmt: skip
    script.main(script.parse_args([str(x) for x in flags]))
    bare = pq.read_table(file).drop_columns([*REFERENCE_COLUMNS, "n_chosen", "n_rejected"])
    pq.write_table(bare, tmp_path / "bare.parquet")
    more = [*BEST, "--bf16=false", "--max_steps=3", "--add_eos", "--alpha=1", "--max_length=4096",
            "--logging_steps=1", "--eval_strategy=no", "--save_strategy=no", "--learning_rate=1e-3",
            "--load_best_model_at_end=false", "--gradient_accumulation_steps=1"]  # fmt: skip
    losses = {}
    for name in ("pairs", "bare"):
        capsys.readouterr()
        run = command(tiny_model_directory, tmp_path / name, *more)
        run[run.index("--dataset_name=sample")] = f"--dataset_name={tmp_path}/{name}.parquet"
        main(run)
        said = capsys.readouterr().err
        taken = re.search(r"(\d+) of (\d+) pairs from ref_chosen_logps and ref_rejected", said)
        assert (taken is not None) == (name == "pairs") and (not taken or taken[1] == taken[2])
        results = json.loads((tmp_path / name / "test_results.json").read_text())
        losses[name] = [entry["loss"] for entry in history(tmp_path / name) if "loss" in entry]
        losses[name] += [results["test_loss"], results["test_ranking/ref_accuracy"]]
    assert len(losses["pairs"]) == 5 and np.std(losses["bare"]) > 1e-3
    assert losses["pairs"] == pytest.approx(losses["bare"], abs=1e-4)
