"""The model that is trained, its tokenizer, and its LoRA adapter."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from ranking.scoring.loading import load_model, load_tokenizer
from ranking.scoring.models import check_model_path, check_revision


def model_source(
    name: str, revision: str | None, flag: str = "--model_revision"
) -> tuple[str, str | None]:
    """A model's name and revision, None for the main branch; an error where it cannot be there."""
    check_model_path(name)
    revision = None if revision == "main" else revision
    check_revision(flag, revision, name)
    return name, revision


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
    device: str,
    prefer_flash: bool = False,
):
    """Model in evaluation mode with every adapter merged, and its tokenizer.

    prefer_flash: where no attention is asked for, FlashAttention if it is there and has a GPU.
    """
    has_flash = importlib.util.find_spec("flash_attn") is not None and torch.cuda.is_available()
    if attn_implementation is None and prefer_flash and has_flash:
        attn_implementation = "flash_attention_2"
    tokenizer = training_tokenizer(name, revision)
    model = load_model(
        name, dtype=dtype, device=device, revision=revision,
        attn_implementation=attn_implementation, allow_pickle=allow_pickle,
    )  # fmt: skip
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload().requires_grad_(True)
    return model, tokenizer


def training_tokenizer(name: str, revision: str | None):
    """A model's tokenizer, which pads with EOS if with nothing else."""
    tokenizer = load_tokenizer(name, revision)
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


def with_base(peft_config, model, tokenizer, source: tuple[str, str | None], folder: Path):
    """The LoRA configuration (None: none) with the base that its adapter is to be loaded on.

    Where the model to tune is itself an adapter, that is its merged weights, saved as
    FOLDER/base. source: name and revision of that model.
    """
    name, revision = source
    if peft_config is None:
        return None
    if (Path(name) / "adapter_config.json").is_file():
        base = str((folder / "base").resolve())
        if PartialState().is_main_process:
            model.save_pretrained(base)
            tokenizer.save_pretrained(base)
        PartialState().wait_for_everyone()
        model.config._name_or_path = model.name_or_path = base
    elif revision is not None:
        peft_config.revision = revision
    return peft_config
