"""The models: by their names, or of published sizes with random weights, as speed allows."""

SIZES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 32},
}  # fmt: skip


def make_random_llama(size: str, tokenizer, dtype: str, device: str):
    """A model of `size` (Llama-3.2-1B's or Llama-2-7B's shape) for this tokenizer's vocabulary."""
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
