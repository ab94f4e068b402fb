"""reproduce/settings.py: the paper's settings as data, as commands, recipes and optimizers."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, Trainer, TrainerState

import dpo
import sft
from reproduce import settings
from reproduce.scales import SCALES

ROOT = Path(__file__).parents[1]
PARSERS = {"sft": sft.parse_args, "dpo": dpo.parse_args}
RUNS = [(model, script) for model in settings.PAPER_MODELS for script in PARSERS]


def test_every_row_says_what_it_is_and_where_it_is_from():
    for row in settings.PAPER_SETTINGS:
        assert ("flag" in row) != ("fact" in row)
        assert row.get("script", "sft") in PARSERS and row["value"] in row.get(
            "searched", [row["value"]]
        )
        assert row["source"].startswith(("paper", "released command line", "inferred: ", "ours"))
    keys = [tuple(row.get(k) for k in ("script", "model", "flag", "fact"))
            for row in settings.PAPER_SETTINGS]  # fmt: skip
    assert Counter(keys).most_common(1)[0][1] == 1


def test_grids_are_the_papers():
    """App. D.1: sizes of the six grids."""
    sizes = [math.prod(map(len, settings.paper_grid(*run).values())) for run in RUNS]
    assert sizes == [4 * 4, 4 * 3 * 4, 3 * 3, 4 * 2 * 4, 3 * 2, 2 * 2 * 1]


def values_of_flags(script: str, flags: dict, output: Path):
    batch = flags.pop("batch_size")
    words = [f"--{flag}={value}" for flag, value in flags.items()]
    words += ["--model_name_or_path=m", f"--output_dir={output}", "--report_to=none"]
    return PARSERS[script]([*words, f"--per_device_train_batch_size={batch}"])


@pytest.mark.parametrize("model, script", RUNS)
def test_the_optimizer_of_a_run_is_the_papers(model, script, tmp_path, tiny_model_directory):
    """Every group of weights, as transformers builds it from the flags of --scale paper; and the
    run has 50 evaluations."""
    *_, args = values_of_flags(
        script, SCALES["paper"].training(model, script).flags.copy(), tmp_path
    )
    tiny = AutoModelForCausalLM.from_pretrained(tiny_model_directory)
    optimizer = Trainer(model=tiny, args=args, eval_dataset=[]).create_optimizer()
    rows = settings.paper_settings(model, script)
    wanted = dict(rows["optimizer"]["value"])
    kind = getattr(torch.optim, wanted.pop("name"))
    wanted |= {"weight_decay": rows["weight_decay"]["value"]} if "weight_decay" in rows else {}
    wanted |= {"lr": rows["learning_rate"]["value"]}
    wanted |= {"betas": tuple(wanted["betas"])} if "betas" in wanted else {}
    assert isinstance(optimizer, kind) and len(optimizer.param_groups) == 2
    for group in optimizer.param_groups:
        assert {name: group[name] for name in wanted} == wanted
    assert args.lr_scheduler_type == rows["lr_scheduler_type"]["value"]
    assert args.max_grad_norm == rows["max_grad_norm"]["value"]

    state = TrainerState()
    state.max_steps = math.ceil(160_800 / rows["batch_size"]["value"]) * args.num_train_epochs
    assert state.max_steps == pytest.approx(2_513 if "Llama" in model else 12_563, abs=5)
    state.compute_steps(args, state.max_steps)
    assert state.max_steps // state.eval_steps in (49, 50) and state.save_steps == state.eval_steps


@pytest.mark.parametrize("script", PARSERS)
def test_recipes_are_the_papers(script):
    """reproduce/recipes/*.yaml are of GPT-2; what they have beside the settings is named here."""
    recipe = yaml.safe_load((ROOT / f"reproduce/recipes/{script}.yaml").read_text())
    flags = settings.paper_flags("gpt2", script)
    flags["per_device_train_batch_size"] = flags.pop("batch_size")
    words = {"true": True}
    for name, value in flags.items():
        found = recipe.pop(name, 1000 if name == "max_eval_samples" else 0)
        assert (
            float(found) == value if isinstance(value, float) else found == words.get(value, value)
        ), name
    beside = {"sft": {"model_name_or_path": "gpt2"}, "dpo": {"alpha": 1, "save_total_limit": 2}}
    assert recipe == {"run_name": script, **beside[script]}


def test_table_of_settings():
    columns, lines = settings.settings_table(settings.PAPER_SETTINGS)
    cells = {tuple(line[:2]): dict(zip(columns, line)) for line in lines}
    assert cells["num_train_epochs", "both"]["value"] == "5 / 5 / 1"
    assert cells["batch_size", "DPO"]["searched"] == "32, 64, 128 / 32, 64 / 32, 64"
    assert cells["batch_size", "DPO"]["value"] == "64"
    assert cells["sharding", "both, Llama-2-7b-hf"]["value"] == "FSDP, full shard"
    assert cells["optimizer", "SFT"]["value"] == "AdamW, betas 0.9, 0.999, eps 1e-08"
    with pytest.raises(ValueError, match="not a file of settings"):
        settings.settings_table([{"flag": "beta"}])
