"""The models: by their names, or of published sizes with random weights, as speed allows."""

SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 32},
}  # fmt: skip


def make_random_llama(size: str, tokenizer, dtype: str, device: str):
    """A model of `size` for this tokenizer's vocabulary: Llama-3.2-1B's or Llama-2-7B's shape, or
    one to try scripts with."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=4096, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        dtype=getattr(torch, dtype), **SIZES[size],
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype)).eval()


def make_or_load(size: str | None, name: str, tokenizer, dtype: str, device: str):
    """A random Llama of `size`, or else the named model."""
    from ranking.scoring.loading import load_model

    if size:
        return make_random_llama(size, tokenizer, dtype, device)
    return load_model(name, dtype=dtype, device=device)


def make_wide_head():
    """A tiny body under a vocabulary of 152 thousand words, where the head's logits take most."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen2", vocab_size=151_936, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).float().eval()


def use_flash_attention(model) -> str:
    """Have a model on a GPU call flash attention if it is there; the attention that it calls."""
    from importlib.util import find_spec

    if model.device.type == "cuda" and find_spec("flash_attn"):
        model.set_attn_implementation("flash_attention_2")
    return model.config._attn_implementation
