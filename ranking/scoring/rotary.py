"""Rotary frequencies that depend on the length of a forward pass (LongRoPE, dynamic)."""

from collections.abc import Sequence

from ranking.scoring.loading import unwrap
from ranking.scoring.tokenization import TokenizedCompletion


def rope_parameters(model) -> list[dict]:
    """The rotary settings of a model, one for each kind of layer; none where it has no such."""
    found = getattr(unwrap(model).config.get_text_config(), "rope_parameters", None) or {}
    return [found] if "rope_type" in found else [x for x in found.values() if isinstance(x, dict)]


def length_class(model, length: int) -> tuple[int, ...]:
    """What the rotary frequencies of a sequence depend on beside positions; () for most models.

    Dynamic frequencies follow the length of the forward pass beyond the trained one, LongRoPE's
    (Phi-3) are two sets. Sequences may share a forward pass only within a class.
    """
    config, found = unwrap(model).config.get_text_config(), []
    for parameters in rope_parameters(model):
        kind = parameters.get("rope_type", "")
        if "dynamic" in kind:
            found.append(max(length, config.max_position_embeddings))
        elif kind in ("longrope", "su"):
            found.append(int(length > parameters["original_max_position_embeddings"]))
    return tuple(found)


def by_length_class(model, completions: Sequence[TokenizedCompletion]) -> list[list[int]]:
    """Indices of the completions that may share a forward pass."""
    groups: dict[tuple, list[int]] = {}
    for k, completion in enumerate(completions):
        groups.setdefault(length_class(model, len(completion.ids)), []).append(k)
    return list(groups.values())


def forget_lengths(model) -> None:
    """Have dynamic frequencies computed for the next forward pass alone: transformers keeps those
    of the longest sequence it has seen."""
    for module in unwrap(model).modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                setattr(module, name, module.original_max_seq_len)
            for name, buffer in list(module.named_buffers(recurse=False)):
                if name.endswith("original_inv_freq"):
                    getattr(module, name.replace("original_", "")).data = buffer.clone()
