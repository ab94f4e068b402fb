"""The model that is trained, its tokenizer, its LoRA adapter, and their flags."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig

from ranking.plumbing.processes import announce
from ranking.scoring.loading import load_model, load_tokenizer, quantize
from ranking.training.flags import ModelFlags
from ranking.training.run_directory import BASE


@dataclass
class ModelArguments(ModelFlags, ModelConfig):
    """TRL's model and LoRA flags, with the original spellings."""

    def __post_init__(self):
        self.check()
        super().__post_init__()
        targets = self.lora_target_modules
        if isinstance(targets, str) and targets.isidentifier():
            self.lora_target_modules = [targets]  # TRL makes a regular expression of a lone name


@contextmanager
def whole_weights(deepspeed_plugin) -> Iterator[None]:
    """Inside, models are loaded whole, where DeepSpeed ZeRO-3 would share out their weights at
    once: the reference is scored first."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(deepspeed_plugin.dschf)


def load_for_training(
    name: str,
    revision: str | None,
    *,
    dtype: str,
    attn_implementation: str | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    device: str,
    quantization: str | None = None,
    quantization_options: Mapping[str, Any] | None = None,
    prefer_flash: bool = False,
):
    """Model in evaluation mode with every adapter merged, and its tokenizer.

    quantization: 8bit or 4bit, with options of BitsAndBytesConfig, for an adapter to be trained on.
    An adapter's base is not quantized before both are merged. prefer_flash: where no attention is
    asked for, FlashAttention if it is there and has a GPU.
    """
    has_flash = importlib.util.find_spec("flash_attn") is not None and torch.cuda.is_available()
    if attn_implementation is None and prefer_flash and has_flash:
        attn_implementation = "flash_attention_2"
    if trust_remote_code:
        announce(f"--trust_remote_code: Python files that come with {name} are run")
    tokenizer = training_tokenizer(name, revision, trust_remote_code)
    how: dict[str, Any] = {
        "dtype": dtype, "attn_implementation": attn_implementation, "allow_pickle": allow_pickle,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    bits: dict[str, Any] = {
        "quantization": quantization, "quantization_options": quantization_options,
    }  # fmt: skip
    if quantization is not None and is_adapter(name):
        merged = load_model(name, device="cpu", dequantize_base=True, **how).merge_and_unload()
        return quantize(merged, device=device, dtype=dtype, **bits), tokenizer
    model = load_model(name, revision=revision, device=device, dequantize_base=True, **how, **bits)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload().requires_grad_(True)
    return model, tokenizer


def is_adapter(name: str) -> bool:
    """Whether a model is an adapter in a directory."""
    return (Path(name) / "adapter_config.json").is_file()


def training_tokenizer(name: str, revision: str | None, trust_remote_code: bool):
    """A model's tokenizer, which pads with EOS if with nothing else."""
    tokenizer = load_tokenizer(name, revision, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_same_tokens(reference_name: str, reference, policy_name: str, policy) -> None:
    """ValueError where the tokenizers of reference and policy make other token ids of a text."""
    if reference.backend_tokenizer.to_str() != policy.backend_tokenizer.to_str():
        raise ValueError(
            f"{reference_name} and {policy_name} have different tokenizers: the reference must "
            "score the token ids that are trained on"
        )


def check_adapter(peft_config, model) -> None:
    """ValueError where no weights of the model are those that a LoRA configuration (None: none)
    names, or has by default for such a model."""
    if peft_config is None:
        return
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    wanted, kind = peft_config.target_modules, model.config.model_type
    if wanted is None and kind in DEFAULTS or wanted == "all-linear":
        return
    if wanted is None:
        problem = f"--use_peft: peft has no default modules for a {kind} model"
    elif any(check_target_module_exists(peft_config, name) for name, _ in model.named_modules()):
        return
    else:
        given = wanted if isinstance(wanted, str) else " ".join(sorted(wanted))
        problem = f"--lora_target_modules {given}: the model has no such module"
    head = model.get_output_embeddings()
    names = {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    raise ValueError(
        f"{problem}; give --lora_target_modules=all-linear, or some of {', '.join(sorted(names))}"
    )


def with_base(peft_config, model, tokenizer, source: tuple[str, str | None], folder: Path):
    """The LoRA configuration (None: none) with the base that its adapter is to be loaded on.

    Where the model to tune is itself an adapter, that is its merged weights (quantized, where they
    are), saved as FOLDER/base. ValueError for quantized weights without an adapter. source: name
    and revision of that model.
    """
    name, revision = source
    if peft_config is None:
        if getattr(model, "is_quantized", False):
            raise ValueError(
                f"{name} has quantized weights, which cannot be trained: --use_peft trains an "
                "adapter on them"
            )
        return None
    if is_adapter(name):
        base = str((folder / BASE).resolve())
        if PartialState().is_main_process:
            model.save_pretrained(base)
            tokenizer.save_pretrained(base)
        PartialState().wait_for_everyone()
        model.config._name_or_path = model.name_or_path = base
    elif revision is not None:
        peft_config.revision = revision
    return peft_config


def keep_adapters_in_float32(model) -> None:
    """On quantized weights TRL makes adapters bfloat16, in which a step of 1e-5 changes no weight
    of 0.01; they are small, and float32 costs little. Other weights stay as --dtype has them."""
    if not getattr(model, "is_quantized", False):
        return
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype == torch.bfloat16:
            weight.data = weight.data.float()
