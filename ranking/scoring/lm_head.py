"""The LM head on a few positions: log softmax at the tokens to be scored, a slice at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.autograd.function import once_differentiable
from torch.nn import Linear
from torch.utils.checkpoint import checkpoint

VOCABULARY_CHUNK = 2048  # words per LM-head call: 1000 positions x 2048 x 4 bytes = 8 MB
POSITION_CHUNK = 64  # positions per call of a head that is no plain linear layer


def final_logits(config, logits: torch.Tensor) -> torch.Tensor:
    """The LM head's output as the model's own forward would return it, in float32."""
    if config.model_type.startswith("cohere"):
        logits = logits * config.logit_scale
    if config.model_type.startswith("granite"):
        logits = logits / config.logits_scaling
    logits = logits.float()
    softcap = getattr(config, "final_logit_softcapping", None)
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def product_dtype(hidden: torch.Tensor) -> torch.dtype:
    """What the head's matrix products are computed in: autocast's, where that is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def vocabulary_slices(weight: torch.Tensor, bias, dtype: torch.dtype) -> Iterator[tuple]:
    """(first word, weight, bias) of each slice of the vocabulary, in `dtype`."""
    for first in range(0, len(weight), VOCABULARY_CHUNK):
        part = slice(first, first + VOCABULARY_CHUNK)
        yield first, weight[part].to(dtype), None if bias is None else bias[part].to(dtype)


def products(hidden: torch.Tensor, words: torch.Tensor, offsets, space: torch.Tensor):
    """hidden @ words.T + offsets, in a part of `space`: memory that each slice would get anew is
    given back in pieces."""
    raw = torch.mm(hidden, words.T, out=space[:, : len(words)])
    return raw if offsets is None else raw.add_(offsets)


def sliced_statistics(
    config, hidden: torch.Tensor, weight: torch.Tensor, bias, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log Σ exp(logits) and the targets' logits, both (n,), nats, without gradients.

    hidden (n, d), weight (V, d), bias (V,) or None, targets (n,).
    """
    dtype, n = product_dtype(hidden), len(hidden)
    hidden, normalizers = hidden.to(dtype), []
    scores = torch.zeros(n, device=hidden.device)
    space = hidden.new_empty(n, min(VOCABULARY_CHUNK, len(weight)))
    for first, words, offsets in vocabulary_slices(weight, bias, dtype):
        logits = final_logits(config, products(hidden, words, offsets, space))
        local = targets - first
        inside = (local >= 0) & (local < len(words))
        found = logits.gather(1, local.clamp(0, len(words) - 1)[:, None])[:, 0]
        scores += torch.where(inside, found, 0.0)
        largest = logits.amax(1, keepdim=True)
        largest.masked_fill_(largest.isinf(), 0.0)
        normalizers.append(logits.sub_(largest).exp_().sum(1).log_() + largest[:, 0])
    return torch.logsumexp(torch.stack(normalizers), dim=0), scores


class SlicedLogSoftmax(torch.autograd.Function):
    """log softmax at the targets; the backward pass computes each slice of the logits once more,
    from which, with the normalizer it keeps, come the gradients: g(1[word = target] − p)."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, config):
        normalizer, scores = sliced_statistics(config, hidden, weight, bias, targets)
        ctx.save_for_backward(hidden, weight, bias, targets, normalizer)
        ctx.config, ctx.dtype = config, product_dtype(hidden)
        return scores - normalizer

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, weight, bias, targets, normalizer = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        inputs = hidden.to(ctx.dtype)
        of_hidden = torch.zeros(hidden.shape, device=hidden.device) if wants_hidden else None
        of_weight = torch.empty_like(weight) if wants_weight else None
        of_bias = torch.empty_like(bias) if wants_bias else None
        space = inputs.new_empty(len(inputs), min(VOCABULARY_CHUNK, len(weight)))
        for first, words, offsets in vocabulary_slices(weight, bias, ctx.dtype):
            raw = products(inputs, words, offsets, space)
            with torch.enable_grad():
                leaf = raw.detach().requires_grad_()
                logits = final_logits(ctx.config, leaf)
            is_plain = logits is leaf
            of_logits = logits.detach().sub_(normalizer[:, None]) if is_plain else (
                logits.detach() - normalizer[:, None]
            )  # fmt: skip
            of_logits.exp_().mul_(-gradient[:, None])
            local = targets - first
            inside = (local >= 0) & (local < len(words))
            local = local.clamp(0, len(words) - 1)[:, None]
            of_logits.scatter_add_(1, local, torch.where(inside, gradient, 0.0)[:, None])
            if not is_plain:
                (of_logits,) = torch.autograd.grad(logits, leaf, of_logits)
            part = slice(first, first + len(words))
            if of_hidden is not None:
                of_hidden += of_logits @ words
            if of_weight is not None:
                of_weight[part] = of_logits.T @ inputs
            if of_bias is not None:
                of_bias[part] = of_logits.sum(0)
        of_hidden = of_hidden if of_hidden is None else of_hidden.to(hidden.dtype)
        return of_hidden, of_weight, of_bias, None, None


def module_logps(
    config, head_forward: Callable, hidden: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """`head_logps` through the head's own forward, for a few positions."""
    logits = final_logits(config, head_forward(hidden))
    return logits.gather(1, targets[:, None])[:, 0] - torch.logsumexp(logits, dim=1)


def head_logps(model, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log softmax of the LM head at `targets`, in float32. hidden (n, d), targets (n,) -> (n,).

    The vocabulary is cut into slices: each part of the weight is read once, its logits stay in the
    cache, and (n, vocabulary) logits never exist, in the backward pass neither. A head that is not
    a plain linear layer (quantized, adapted) sees a few positions at a time. Either way the head is
    called once, as a module, so that whoever shards or offloads its weight brings it here.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    head_forward = getattr(head, "_old_forward", head.forward)

    def sliced_by_position(hidden):
        parts = zip(hidden.split(POSITION_CHUNK), targets.to(hidden.device).split(POSITION_CHUNK))
        if not torch.is_grad_enabled():
            return torch.cat([module_logps(config, head_forward, h, t) for h, t in parts])
        return torch.cat([
            checkpoint(module_logps, config, head_forward, h, t, use_reentrant=False)
            for h, t in parts
        ])  # fmt: skip

    def sliced_by_vocabulary(hidden):
        inputs = (hidden, head.weight, head.bias, targets.to(hidden.device))
        if torch.is_grad_enabled():
            return SlicedLogSoftmax.apply(*inputs, config)
        normalizer, scores = sliced_statistics(config, *inputs)
        return scores - normalizer

    # FSDP2 makes a subclass of Linear with the same forward
    is_plain = isinstance(head, Linear) and type(head).forward is Linear.forward
    with replaced_forward(head, sliced_by_vocabulary if is_plain else sliced_by_position):
        return head(hidden)


@contextmanager
def replaced_forward(module, forward: Callable) -> Iterator[None]:
    """Inside, calling `module`, or a wrapper around it, runs `forward` between all their hooks:
    PyTorch's, and accelerate's, which wraps the forward it keeps as `_old_forward`."""
    name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
    own = vars(module).get(name)
    setattr(module, name, forward)
    try:
        yield
    finally:
        delattr(module, name)
        if own is not None:
            setattr(module, name, own)
