"""Which path a model takes: packed rows where they agree with plain scoring on a few examples."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ranking.scoring.loading import unwrap
from ranking.scoring.log_likelihood import (
    PACKED,
    ScoringPath,
    compute_token_logps,
    compute_token_logps_plain,
    input_device,
)
from ranking.scoring.rotary import length_class
from ranking.scoring.tokenization import TokenizedCompletion, check_vocabulary

# model → the longest example with which `check_fast_path` has found it to agree, in tokens
CHECKED: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def disagreement(plain: list[torch.Tensor], other: list[torch.Tensor], rounded: bool) -> float:
    """Largest |difference of the sums| over completions, nats; of `rounded` ones, whose sums
    drift, mean |difference| over all tokens."""
    differences = [torch.where(a.isnan() & b.isnan(), 0, a - b) for a, b in zip(plain, other)]
    if rounded:
        return torch.cat(differences).abs().mean().item()
    return np.max([abs(d.sum().item()) for d in differences])  # NaN stays NaN


@contextmanager
def jittered_embeddings(model, eps: float, device: torch.device) -> Iterator[None]:
    """Inside, every number of an embedding is off by up to half of `eps` of itself, then rounded to
    the model's dtype: how much the log-likelihoods change is how much it makes of rounding."""
    generator = torch.Generator(device).manual_seed(0)

    def jitter(module, inputs, output: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(output.shape, generator=generator, device=device)
        return (output * (1 + eps * (noise - 0.5))).to(output.dtype)  # the product is in float32

    hook = model.get_input_embeddings().register_forward_hook(jitter)
    try:
        yield
    finally:
        hook.remove()


def check_fast_path(model, tokenized: Sequence[Sequence[TokenizedCompletion]]) -> ScoringPath:
    """Try packed rows on a few examples; where they are not exact, another path and why.

    Two completions of each of the shortest examples are compared with plain scoring, one at a time;
    a model with windowed or chunked attention, with rotary frequencies that depend on the length,
    or with code of its own is also tried on the longest. A model that padding
    disturbs has the path "alone". A model that agreed is not tried again, unless its length matters
    and longer examples have come.
    Call it under the autocast that scoring will have, since other precisions have other attention
    kernels: a float32 model is then tried without it first, where mistakes show best.
    Agreement: 0.02 nats per completion in float32. In half precision and TF32, per token, 0.02 nats
    plus twice what embeddings rounded elsewhere change, but no more than 0.1.
    Raises ValueError where a token has no embedding.
    """
    check_vocabulary(model, (c.ids for completions in tokenized for c in completions))
    inner = unwrap(model)
    lengths = [max(len(c.ids) for c in example) for example in tokenized]
    order = sorted(range(len(tokenized)), key=lengths.__getitem__)
    config = inner.config.get_text_config()
    length_matters = (
        any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        or length_class(inner, 1) != ()
        or type(inner).__module__.startswith("transformers_modules")
    )
    if inner in CHECKED and (not length_matters or lengths[order[-1]] <= CHECKED[inner]):
        return PACKED
    groups = [[c for i in order[:3] for c in tokenized[i][:2]]]
    if length_matters:
        groups.append(list(tokenized[order[-1]][:2]))
    device, weights = input_device(inner), next(inner.parameters()).dtype
    autocast = torch.is_autocast_enabled(device.type)
    path = PACKED
    with torch.inference_mode():
        if not autocast or weights == torch.float32:
            with torch.autocast(device.type, enabled=False):
                path = compare_paths(model, groups, weights)
        if autocast and path.is_packed:
            path = compare_paths(model, groups, torch.get_autocast_dtype(device.type))
    if path.is_packed:
        CHECKED[inner] = lengths[order[-1]]
    return path


def compare_paths(
    model, groups: list[list[TokenizedCompletion]], dtype: torch.dtype
) -> ScoringPath:
    """`check_fast_path` in one precision; each group's disagreement is taken by itself."""
    inner = unwrap(model)
    device = input_device(inner)
    half = dtype in (torch.bfloat16, torch.float16)
    tf32 = device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    rounded = half or tf32
    plain = [[compute_token_logps_plain(model, [c])[0] for c in group] for group in groups]
    tolerances = [0.02] * len(groups)
    if rounded:
        with jittered_embeddings(inner, torch.finfo(dtype).eps if half else 2**-10, device):
            jittered = [
                [compute_token_logps_plain(model, [c])[0] for c in group] for group in groups
            ]
        changes = [disagreement(a, b, rounded) for a, b in zip(plain, jittered)]
        tolerances = [np.fmin(0.02 + 2 * change, 0.1) for change in changes]  # 0.1 for NaN
    try:
        if not inner._can_set_attn_implementation():
            raise NotImplementedError("the model's attention cannot be replaced")
        found = iter(compute_token_logps(model, [c for group in groups for c in group]))
        worst = [disagreement(group, [next(found) for _ in group], rounded) for group in plain]
    except (NotImplementedError, TypeError, ValueError, LookupError, AttributeError,
            RuntimeError) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        if all(difference <= most for difference, most in zip(worst, tolerances)):  # not for NaN
            return PACKED
        reason = f"differs from plain scoring by {max(worst):.3g} nats"
    padded = iter(compute_token_logps_plain(model, [c for group in groups for c in group]))
    worst = [disagreement(group, [next(padded) for _ in group], rounded) for group in plain]
    kind = "plain" if all(d <= most for d, most in zip(worst, tolerances)) else "alone"
    return ScoringPath(kind, reason)
