"""The model that is trained, its tokenizer, and its LoRA adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)
from trl import get_peft_config

from ranking.scoring.loading import load_model, load_tokenizer
from ranking.training.flags import ModelArguments


@contextmanager
def whole_weights(training_args) -> Iterator[None]:
    """Inside, models are loaded whole, where DeepSpeed ZeRO-3 would share out their weights at
    once: the reference is scored first."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(training_args.deepspeed_plugin.dschf)


def load_for_training(args: ModelArguments, name: str, revision: str | None, device: str):
    """Model in evaluation mode with every adapter merged, and its tokenizer."""
    tokenizer = load_tokenizer(name, revision)
    model = load_model(
        name, dtype=args.dtype, device=device, revision=revision,
        attn_implementation=args.attn_implementation, allow_pickle=args.allow_pickle,
    )  # fmt: skip
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload().requires_grad_(True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def make_peft_config(args: ModelArguments, model, tokenizer, output_dir: str):
    """TRL's LoRA configuration, or None. Where the model to tune is itself an adapter, the merged
    weights are saved as OUTPUT_DIR/base, so that the new adapter has a base to be loaded on."""
    peft_config = get_peft_config(args)
    name = args.model_name_or_path
    if peft_config is None:
        return None
    if (Path(name) / "adapter_config.json").is_file():
        name = str((Path(output_dir) / "base").resolve())
        if PartialState().is_main_process:
            model.save_pretrained(name)
            tokenizer.save_pretrained(name)
        PartialState().wait_for_everyone()
        model.config._name_or_path = model.name_or_path = name
    elif args.model_revision != "main":
        peft_config.revision = args.model_revision
    return peft_config
