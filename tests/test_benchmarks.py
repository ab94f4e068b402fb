"""The benchmarks of training, by a tiny model: what they count, and that their sides train alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from benchmarks import determinism, gpu
from benchmarks.command import measure_apart
from benchmarks.cost_estimate import SHAPES, paper_runs
from benchmarks.machine import device_name
from benchmarks.models import make_or_load, make_random_llama
from benchmarks.scoring_speed import measure, select_examples
from benchmarks.steps import forward_operations
from benchmarks.training_speed import compare, parse_args
from ranking.scoring.loading import load_tokenizer
from ranking.scoring.tokenization import TokenizedCompletion
from ranking.training.sft_trainer import trained_text

ROOT = Path(__file__).parents[1]


def run_benchmark(module: str, *flags) -> str:
    """What it prints, on the sample data."""
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, flags)], cwd=ROOT, check=True,
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ).stdout  # fmt: skip


def test_operations_are_twice_the_parameters_of_unique_and_of_scored_tokens():
    tokenizer = load_tokenizer("SmolLM2-135M-Instruct")
    model = make_random_llama("tiny", tokenizer, "float32", "cpu")
    words = len(tokenizer)
    # a layer: q and o 64 × 64, k and v 64 × 32, three of 64 × 128, two norms; one more at the end
    body = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    pair = [TokenizedCompletion((5, 6, 7, 8), 2, False), TokenizedCompletion((5, 6, 9), 2, False)]
    other = [trained_text([5, 6, 1, 2, 3], [-100, 6, -100, 2, -100])]
    # inputs 5 6 7 | and of the other text, whose last token is its second trained one, 5 6 1
    n_unique, operations = forward_operations(model, [pair, other])
    assert n_unique == 4
    assert operations == 2 * (4 * body + (3 + 2) * 64 * words)


def test_ours_is_compared_by_its_fastest_split_with_the_fastest_of_each_side():
    def side(speed: float, *losses: float) -> dict:
        speeds = {"pairs_per_second": speed, "pairs_per_cpu_second": speed**2}
        return {**speeds, "peak_gib": 1.0, "losses": list(losses)}

    found = compare(
        {
            "trl_online_8x1": side(1.0, 0.5, 0.4),
            "ours_online_8x1": side(4.0, 0.5, 0.4),
            "trl-best_cached_8x1": side(2.0, 0.5, 0.4),
            "trl-best_cached_1x8": side(3.0, 0.5, 0.4),
            "flash-pref_cached_8x1": {"skipped": "not installed"},
            "ours_cached_8x1": side(6.0, 0.5, 0.25),
            "ours_cached_1x8": side(5.0, 0.5, 0.375),
        }
    )
    assert found == {
        "speedup_trl_online_by_second": 4.0,
        "speedup_trl_online_by_cpu_second": 16.0,
        "largest_loss_difference_online": 0.0,
        "speedup_trl-best_cached_by_second": 2.0,
        "speedup_trl-best_cached_by_cpu_second": 4.0,
        "largest_loss_difference_cached": pytest.approx(0.125),
    }


def test_a_split_that_is_not_one_is_an_error(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--splits", "8"])
    assert "give device batch x accumulation" in capsys.readouterr().err


def test_gpu_hours_of_the_papers_runs():
    """By hand for Llama-2-7B's SFT on texts of one token; the committed figures are of its counts."""
    runs = paper_runs(pair=2.0, preferred=1.0, share=0.5).set_index(["model", "run"])
    llama = runs.loc["meta-llama/Llama-2-7b-hf"]
    needed = 2 * 6_738_415_616 * (3 * 160_800 + 50 * 1000 + 1000)
    assert llama.loc["SFT", "GPU-hours"] == pytest.approx(needed / 156e12 / 3600)
    assert llama.loc["SFT", "its share of the peak"] == pytest.approx(needed / 312e12 / 3600 / 30)
    scored = 160_800 + 1000 + 1000 + 50 * 3000 + 1000  # the reference, evaluations, the test split
    needed = 2 * 6_738_415_616 * 2 * (3 * 160_800 + scored)
    assert llama.loc["DPO", "GPU-hours"] == pytest.approx(needed / 156e12 / 3600)
    searched = 2 * 6_738_415_616 * 2 * (3 * 160_800 + scored - 50 * 1000)  # which are not tested
    assert llama.loc["DPO", "its GPU-hours"] == pytest.approx(4 * searched / 156e12 / 3600)
    assert list(runs["grid"]) == [16, 48, 9, 32, 6, 4]

    kept = json.loads((ROOT / "benchmarks/cost_estimate.json").read_text())
    pair = kept["tokens_per_example"]["Anthropic/hh-rlhf"]
    again = paper_runs(pair, kept["preferred_tokens_per_example"], kept["settings"]["share"])
    for row, found in zip(kept["runs"], again.to_dict("records"), strict=True):
        assert row == pytest.approx(found)


@pytest.mark.parametrize("name, config", [
    ("gpt2", GPT2Config()),
    ("EleutherAI/pythia-2.8b", GPTNeoXConfig(
        hidden_size=2560, num_hidden_layers=32, num_attention_heads=32, intermediate_size=10240,
        vocab_size=50304)),
    ("meta-llama/Llama-2-7b-hf", LlamaConfig()),
])  # fmt: skip
def test_shapes_are_those_of_the_models(name, config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    n_weights = sum(weight.numel() for weight in model.parameters())
    assert SHAPES[name] == (n_weights, config.num_hidden_layers, config.hidden_size)


def test_a_device_that_is_not_there_and_a_side_that_fails_are_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed"])
    with pytest.raises(ValueError, match="--device nowhere"):
        device_name("nowhere")
    with pytest.raises(ValueError, match="ours: exit code 1"):
        measure_apart("benchmarks.not_there", "ours")


def test_what_a_peer_raises_is_its_reason_and_runs_that_are_there_stay(tmp_path, monkeypatch):
    """lm-eval raises at its import; what ours scored, an earlier process did, a nat apart."""
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").write_text("raise AttributeError('no kernel\\nof it')")
    monkeypatch.syspath_prepend(tmp_path)
    model = "SmolLM2-135M-Instruct"
    tokenizer = load_tokenizer(model)
    tiny = make_or_load("tiny", model, tokenizer, "bfloat16", "cpu")
    logps = measure("padded", tiny, tokenizer, select_examples("sample", None, 1, None))["logps"]
    ours = {"completions_per_second": 8.0, "peak_gib_above_model": 1.0}
    unfinished = {"logps_of_ours": [[x + 1 for x in example] for example in logps]}
    file = tmp_path / "gpu.json"
    file.write_text(
        json.dumps({"dpo-1b": {}, "score-1b": {"ours": ours, "unfinished": unfinished}})
    )
    size = gpu.Size("tiny", 2, "cpu", False, 1)
    gpu.measure_part("score-1b", size, ("sample", None, model), None, file)
    found = json.loads(file.read_text())
    assert found["dpo-1b"] == {} and found["score-1b"].keys() == {"ours", "padded", "lm-eval"}
    assert found["score-1b"]["ours"] == ours
    assert found["score-1b"]["padded"]["mean_difference_nats"] == pytest.approx(1.0)
    assert found["score-1b"]["lm-eval"] == {"failed": "AttributeError: no kernel"}


def test_a_part_that_ends_early_twice_is_closed(tmp_path):
    file, figures = tmp_path / "gpu.json", {"pairs_per_second": 2.0}
    found = {"ours in 8": figures}
    gpu.end_early("dpo-7b", found, "stopped after 90 s")
    gpu.write_part(file, "dpo-7b", found)
    found = json.loads(file.read_text())["dpo-7b"]
    assert found["unfinished"] == {"ended": "stopped after 90 s", "missing": ["trl-best in 8"]}
    gpu.end_early("dpo-7b", found, "exit code 1")
    gpu.write_part(file, "dpo-7b", found)
    reason = "the part ended twice before it: stopped after 90 s; exit code 1"
    assert json.loads(file.read_text())["dpo-7b"] == {
        "ours in 8": figures, "trl-best in 8": {"failed": reason},
    }  # fmt: skip


def test_determinism_is_written_as_it_comes(tmp_path, tiny_model_directory):
    """The second device is none: what the first gave is in the file."""
    file = tmp_path / "determinism.json"
    flags = ["--lm-name-or-path", str(tiny_model_directory), "--sample-size", "1",
             "--training-pairs", "0", "--dtypes", "float32", "--output", str(file)]  # fmt: skip
    with pytest.raises(ValueError, match="--device nowhere"):
        determinism.main(determinism.parse_args([*flags, "--devices", "cpu", "nowhere"]))
    (variants,) = json.loads(file.read_text())["scoring"].values()
    assert variants["float32 on the CPU"]["largest_nats"] == 0


@pytest.mark.slow
def test_sft_and_its_peers_have_the_same_losses(tmp_path):
    file = tmp_path / "sft.json"
    run_benchmark("sft_speed", "--random-llama", "tiny", "--n-train", 6, "--batch-size", 2,
                  "--n-eval", 2, "--parts", "speed", "--output", file)  # fmt: skip
    found = json.loads(file.read_text())
    for side in ("trl", "trl-padding-free"):
        assert found[side]["largest_loss_difference"] < 1e-5
        assert found[side]["evaluation"]["loss"] == pytest.approx(
            found["ours"]["evaluation"]["loss"],
            abs=1e-3,  # after Adam, which enlarges rounding
        )
    assert file.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.slow
def test_dpo_and_its_peers_have_the_same_losses(tmp_path):
    file = tmp_path / "dpo.json"
    run_benchmark("training_speed", "--random-llama", "tiny", "--n-pairs", 4, "--batch-size", 2,
                  "--splits", "2x1", "1x2", "--reference", "cached", "--against", "trl-best",
                  "flash-pref", "--output", file)  # fmt: skip
    found = json.loads(file.read_text())
    assert found["largest_loss_difference_cached"] < 1e-3
    assert found["speedup_trl-best_cached_by_second"] > 0
    assert "skipped" in found["flash-pref_cached_2x1"]


@pytest.mark.slow
def test_parts_for_one_gpu_are_written_as_they_come_and_measured_once(tmp_path):
    file = tmp_path / "gpu.json"
    flags = ("--dry-run", "--output", file, "--minutes", 30, "--parts")
    kept = {"pairs_per_second": 123.0, "peak_gib": 1.0}
    file.write_text(json.dumps({"rows-1b": {"rows of 65536": kept}}))
    first = run_benchmark("gpu", *flags, "rows-1b", "flash-pref")
    found = json.loads(file.read_text())
    speeds = [run["pairs_per_second"] for run in found["rows-1b"].values()]
    assert len(speeds) == 3 and min(speeds) > 0
    assert found["rows-1b"]["rows of 65536"] == kept and found["device"]
    assert "skipped" in found["flash-pref"]["flash-pref in 4"]
    assert first.count("rows-1b, rows of") == 3
    assert run_benchmark("gpu", *flags, "rows-1b") == f"rows-1b: in {file} already\n"
