"""Load a causal language model and its tokenizer: adapters, quantized, spread over devices."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ranking.scoring.models import (
    LOADING_ERRORS,
    PICKLE_FLAG,
    REMOTE_CODE_FLAG,
    adapter_base,
    adapter_base_revision,
    choose_device,
    explain,
    resolve_dtype,
    resolve_model,
)

LONG = 10.0  # seconds after which a bar of transformers shows


def show_long_bars_only() -> None:
    """transformers' bars (weights that are loaded, saved) show where they last, those of datasets'
    maps never; downloads keep theirs."""
    from transformers.utils import logging

    logging.set_tqdm_hook(lambda make, given, named: make(*given, **{"delay": LONG, **named}))
    if "datasets" in sys.modules:
        from datasets import disable_progress_bars

        disable_progress_bars()


def load_tokenizer(name: str, revision: str | None = None, *, trust_remote_code: bool = False):
    """The tokenizer of a model directory or hub name (for an adapter: its own or its base's)."""
    from transformers import AutoTokenizer

    path = resolve_model(name)
    if (Path(path) / "adapter_config.json").is_file() and not (
        Path(path) / "tokenizer.json"
    ).is_file():
        path, revision = adapter_base(path), None
    try:
        return AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
    except LOADING_ERRORS as error:
        raise OSError(f"cannot load the tokenizer of {name}: {explain(error)}") from error


def load_config(path: str, revision: str | None, trust_remote_code: bool):
    """The configuration of a model, of a hub adapter's base for an adapter.

    ValueError where it names a repository whose code attention is to run: a configuration is data.
    """
    from transformers import AutoConfig
    from transformers.utils import find_adapter_config_file

    try:
        config = AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
    except OSError:
        if (file := find_adapter_config_file(path, revision=revision)) is None:
            raise
        base = adapter_base(str(Path(file).parent))
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    for part in (config, config.get_text_config()):
        asked = str(getattr(part, "_attn_implementation", None))
        if "/" in asked and not trust_remote_code:
            raise ValueError(
                f"its config.json asks for attention code of {asked}, which only "
                f"{REMOTE_CODE_FLAG} runs"
            )
    return config


def check_adapter_weights(path: str, revision: str | None, allow_pickle: bool) -> None:
    """Raise OSError where an adapter at `path` (directory or hub name) has pickled weights only."""
    from transformers.utils import cached_file, find_adapter_config_file

    if allow_pickle or find_adapter_config_file(path, revision=revision) is None:
        return
    weights = cached_file(
        path, "adapter_model.safetensors", revision=revision,
        _raise_exceptions_for_missing_entries=False,
    )  # fmt: skip
    if weights is None:
        raise OSError(f"{path} has no adapter_model.safetensors; for pickled ones: {PICKLE_FLAG}")


def placement(
    device: str,
    dtype: str,
    device_map: str | None,
    quantization: str | None,
    quantization_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of `from_pretrained` that spread a model over devices or quantize it.

    quantization_options: more of BitsAndBytesConfig's, in place of NF4.
    Raises ValueError where bitsandbytes is missing, or where each of several processes would
    spread its copy over the same devices.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if device_map is not None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "--device-map spreads one model over all devices: start one process, not several"
        )
    arguments: dict[str, Any] = {}
    if device_map is not None:
        arguments["device_map"] = device_map
    elif quantization is not None:
        arguments["device_map"] = {"": device}
    if quantization is not None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                f"--quantization {quantization} needs bitsandbytes: pip install bitsandbytes"
            )
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantization == "8bit",
            load_in_4bit=quantization == "4bit",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            **(quantization_options or {"bnb_4bit_quant_type": "nf4"}),
        )
    return arguments


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | None = None,
    quantization: str | None = None,
    quantization_options: Mapping[str, Any] | None = None,
    dequantize_base: bool = False,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
):
    """A causal LM in evaluation mode on `device`; adapters are loaded onto their base.

    dtype "auto": float32 on CPU, bfloat16 on GPU. device_map: spread the model over all devices
    (and main memory) instead. quantization: "8bit" or "4bit" (NF4, unless quantization_options say
    otherwise) weights by bitsandbytes. dequantize_base: where an adapter's base is saved with
    quantized weights, load these as whole ones.
    trust_remote_code: run Python files that come with the model. allow_pickle: read weights saved
    by pickle, which can run code.
    Raises OSError with one line if nothing loads, ValueError as `placement` does and where
    weights are missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    show_long_bars_only()
    device = choose_device(device)
    dtype = resolve_dtype(dtype, device)
    placed = placement(device, dtype, device_map, quantization, quantization_options)
    path = resolve_model(name)
    adapter = (Path(path) / "adapter_config.json").is_file()
    base = adapter_base(path) if adapter else path
    base_revision = adapter_base_revision(path) if adapter else revision
    try:
        for part, its_revision in {path: revision, base: base_revision}.items():
            check_adapter_weights(part, its_revision, allow_pickle)
        if load_config(base, base_revision, trust_remote_code).is_encoder_decoder:
            raise ValueError("an encoder-decoder, where a causal language model is needed")
        model, info = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=getattr(torch, dtype),
            revision=base_revision,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            **placed,
        )
        if adapter:
            from peft import PeftModel

            if dequantize_base and getattr(model, "is_quantized", False):
                model = model.dequantize(dtype=getattr(torch, dtype))
            model = PeftModel.from_pretrained(model, path, revision=revision)
    except LOADING_ERRORS as error:
        raise OSError(f"cannot load {name}: {explain(error)}") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"{name} has no weights for {missing}: not a whole causal language model")
    if getattr(unwrap(model), "is_quantized", False):
        return as_asked(model).eval()
    return (model if placed else model.to(device)).eval()


def as_asked(model):
    """A model of 4-bit layers that compute in the dtype asked for. On a CPU with AVX512-BF16,
    bitsandbytes would turn them, at the first evaluation and for good, into a form that computes in
    bfloat16, and that no gradient goes through."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def quantize(model, *, device: str, dtype: str, **how: Any):
    """A quantized copy of a model, in evaluation mode on `device`. how: as `placement` takes it."""
    import torch

    quantized = type(model).from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), dtype=getattr(torch, dtype),
        **placement(device, dtype, None, **how),
    )  # fmt: skip
    quantized.generation_config = model.generation_config
    return as_asked(quantized).eval()


def context_length(model) -> int | None:
    """Maximum number of tokens the model's positions allow; None where there is no limit."""
    config = model.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if getattr(config, key, None):
            return int(getattr(config, key))
    return None


def unwrap(model):
    """The transformers model inside a data-parallel wrapper and a PEFT adapter."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model
