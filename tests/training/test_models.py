"""Models that training loads: with code of their own, quantized, adapters on quantized weights."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL, make_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from training_runs import dpo_command, sft_command

import dpo
import sft
from ranking.reports.dynamics import read_dynamics
from ranking.scoring.loading import load_model, load_tokenizer
from ranking.training.models import check_adapter, load_for_training

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
FEW = ["--report_to=none", "--bf16=false", "--max_steps=2", "--warmup_steps=0", "--eval_steps=1",
       "--max_train_samples=12", "--max_eval_samples=6", "--gradient_accumulation_steps=1",
       "--load_best_model_at_end=false", "--save_strategy=no", "--disable_tqdm=true"]  # fmt: skip
LORA = ["--use_peft", "--lora_r=4", "--lora_alpha=8", "--lora_target_modules", "q_proj", "up_proj",
        "--lora_dropout=0"]  # fmt: skip


# ---------------------------------------------------------------------------- modules of LoRA
@pytest.mark.parametrize(
    ("kind", "modules", "problem"),
    [
        ("llama", ["q_prj"], "--lora_target_modules q_prj: the model has no such module"),
        ("llama", ".*_proj", None),
        ("llama", "all-linear", None),
        ("llama", None, None),
        ("olmo2", None, "--use_peft: peft has no default modules for a olmo2 model"),
    ],
)
def test_lora_of_no_module_is_one_line(kind, modules, problem):
    """As peft itself finds, which says it later."""
    lora, model = LoraConfig(target_modules=modules), make_model(kind, SMALL)
    if problem is None:
        check_adapter(lora, model)
        assert any(p.requires_grad for p in get_peft_model(model, lora).parameters())
        return
    with pytest.raises(ValueError) as error:
        check_adapter(lora, model)
    assert str(error.value) == (
        f"{problem}; give --lora_target_modules=all-linear, or some of down_proj, gate_proj, "
        "k_proj, o_proj, q_proj, up_proj, v_proj"
    )
    with pytest.raises(ValueError):
        get_peft_model(model, lora)


# ---------------------------------------------------------------------------- code of a model
def test_code_of_a_model_trains_when_asked(tiny_model_directory, tmp_path, capsys):
    """SFT and DPO; what they save has the code, and is loaded with it."""
    model, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny_model_directory, model)
    (model / "modeling_own.py").write_text(
        f"open({str(mark)!r}, 'w').write('ran')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((model / "config.json").read_text())
    own = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": own}
    (model / "config.json").write_text(json.dumps(config))

    with pytest.raises(
        OSError, match="Python code of its own, which only --trust-remote-code runs"
    ):
        sft.main(sft_command(model, tmp_path / "refused", *FEW))
    assert not mark.exists()
    sft.main(sft_command(model, tmp_path / "sft", *FEW, "--trust_remote_code"))
    said = f"--trust_remote_code: Python files that come with {model} are run"
    assert mark.exists() and said in capsys.readouterr().err
    dpo.main(dpo_command(tmp_path / "sft", tmp_path / "dpo", *FEW, "--trust_remote_code=true"))
    tuned = load_model(str(tmp_path / "dpo"), trust_remote_code=True)
    assert type(tuned).__name__ == "OwnForCausalLM"
    settings = json.loads((tmp_path / "sft/run_config.json").read_text())["settings"]
    assert settings["trust_remote_code"] is True


# ---------------------------------------------------------------------------- precision of weights
@pytest.mark.parametrize(("more", "name", "dtype"), [
    ([], "model", torch.bfloat16), (LORA, "adapter_model", torch.float32),
])  # fmt: skip
def test_weights_are_trained_and_saved_as_dtype_says(tiny_model_directory, tmp_path, more, name, dtype):  # fmt: skip
    """All of them; an adapter on them is float32, as peft makes it."""
    flags = [*FEW, *more, "--dtype=bfloat16", "--learning_rate=1e-2"]
    sft.main(sft_command(tiny_model_directory, tmp_path / "sft", *flags))
    weights = load_file(tmp_path / f"sft/{name}.safetensors")
    assert {weight.dtype for weight in weights.values()} == {dtype}
    if not more:
        start = load_file(tiny_model_directory / "model.safetensors")
        assert not torch.equal(weights["lm_head.weight"], start["lm_head.weight"].bfloat16())


# ---------------------------------------------------------------------------- quantized weights
def added_squares(folder) -> float:
    """‖(α/r) B A‖² of an adapter's files, in float64."""
    weights = {
        k: v.double().numpy() for k, v in load_file(folder / "adapter_model.safetensors").items()
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    scale, total = config["lora_alpha"] / config["r"], 0.0
    for name in weights:
        if "lora_A" in name:
            product = weights[name.replace("lora_A", "lora_B")] @ weights[name]
            total += float(((scale * product) ** 2).sum())
    return total


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_adapters_on_quantized_weights(bits, tiny_model_directory, tmp_path, monkeypatch):
    """SFT, then DPO on what SFT saved, which is itself an adapter: gradients reach the adapter, the
    reference is the model without it, the distance is that of what it adds."""
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path / "cache"))
    more = [*FEW, *LORA, f"--load_in_{bits}", "--learning_rate=1e-2"]
    if bits == "4bit":
        more += ["--use_bnb_nested_quant", "--bnb_4bit_quant_type=fp4"]
    sft.main(sft_command(tiny_model_directory, tmp_path / "sft", *more))
    assert added_squares(tmp_path / "sft") > 0
    dpo.main(dpo_command(tmp_path / "sft", tmp_path / "dpo", *more, "--merge_adapter"))
    rows = read_dynamics(tmp_path / "dpo/ranking_dynamics.jsonl")
    differences = {
        step: np.array([r["chosen"] - r["ref_chosen"] for r in rows if r["step"] == step])
        for step in (0, 2)
    }
    # 8-bit kernels round activations by what stands in the same batch
    assert np.abs(differences[0]).max() < (1e-3 if bits == "4bit" else 1)
    assert np.abs(differences[2]).max() > 10 * np.abs(differences[0]).max()
    (distance,) = {
        r["squared_distance"] for r in rows if r["step"] == 2 and r["part"] == "validation"
    }
    assert distance == pytest.approx(added_squares(tmp_path / "dpo"), rel=1e-5)
    weights = load_file(tmp_path / "dpo/adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}

    merged = load_model(str(tmp_path / "dpo/merged"))
    assert not getattr(merged, "is_quantized", False) and merged.dtype == torch.float32
    base = json.loads((tmp_path / "dpo/base/config.json").read_text())["quantization_config"]
    assert base[f"load_in_{bits}"] and base["bnb_4bit_use_double_quant"] == (bits == "4bit")
    if bits == "4bit":
        assert base["bnb_4bit_quant_type"] == "fp4"


@needs_bitsandbytes
def test_an_adapter_on_quantized_weights_is_merged_whole(tiny_model_directory, tmp_path):
    """Its base is saved as 4-bit weights: they are made whole, and take what the adapter adds."""
    quantized = load_model(str(tiny_model_directory), quantization="4bit")
    whole = quantized.dequantize(dtype=torch.float32)
    wanted = {name: weight.clone() for name, weight in whole.state_dict().items()}
    quantized = load_model(str(tiny_model_directory), quantization="4bit")
    quantized.save_pretrained(tmp_path / "base")
    quantized.name_or_path = quantized.config._name_or_path = str(tmp_path / "base")
    tuned = get_peft_model(quantized, LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"]))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    tuned.save_pretrained(tmp_path / "adapter")
    load_tokenizer(str(tiny_model_directory)).save_pretrained(tmp_path / "adapter")
    for name, module in tuned.named_modules():
        if name.endswith("q_proj"):
            key = name.removeprefix("base_model.model.") + ".weight"
            wanted[key] = wanted[key] + module.get_delta_weight("default").detach()
    how = {"dtype": "float32", "attn_implementation": None, "allow_pickle": False,
           "trust_remote_code": False, "device": "cpu"}  # fmt: skip
    merged, _ = load_for_training(str(tmp_path / "adapter"), None, **how)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in merged.parameters())
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, wanted[name], atol=1e-5, rtol=0)

    more = [*FEW, "--load_best_model_at_end=false"]
    with pytest.raises(
        ValueError, match="has quantized weights, which cannot be trained: --use_peft"
    ):
        load_tokenizer(str(tiny_model_directory)).save_pretrained(tmp_path / "base")
        sft.main(sft_command(tmp_path / "base", tmp_path / "out", *more))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load_in_4bit"], "--load_in_4bit without --use_peft: quantized weights cannot"),
        (["--load_in_4bit", "--load_in_8bit", "--use_peft"], "--load_in_8bit: give one of them"),
        (["--load_in_8bit", "--use_peft", "--use_dora"], "--load_in_8bit with --use_dora"),
        (["--use_bnb_nested_quant"], "--use_bnb_nested_quant without --load_in_4bit: nothing"),
    ],
)
def test_what_cannot_be_quantized_is_one_line(flags, message):
    for script in (sft, dpo):
        with pytest.raises(ValueError) as error:
            script.parse_args(["--model_name=m", "--output_dir=o", *flags])
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"
)
def test_without_bitsandbytes_it_is_one_line():
    with pytest.raises(ValueError, match="^--load_in_4bit needs bitsandbytes: pip install bits"):
        dpo.parse_args(["--model_name=m", "--output_dir=o", "--load_in_4bit", "--use_peft"])
