"""Sums of last hidden states, taken where a model hands them to its LM head: what CHES needs."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ranking.scoring.loading import unwrap
from ranking.scoring.log_likelihood import FORWARDS
from ranking.scoring.rotary import by_length_class
from ranking.scoring.tokenization import TokenizedCompletion

NO_HEAD = "--ches: the last hidden states of {} cannot be taken, it does not call its LM head once"


@contextmanager
def head_inputs(model) -> Iterator[list[torch.Tensor]]:
    """Inside, what each forward pass hands to the LM head is appended to the list."""
    head = unwrap(model).get_output_embeddings()
    if head is None:
        raise ValueError(NO_HEAD.format(type(unwrap(model)).__name__))
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()


def compute_with_hidden_sums(
    model, completions: Sequence[TokenizedCompletion], kind: str
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Per-token log-likelihoods as the path `kind` computes them, and S(y) = Σ_t h_t.

    h_t: the input of the LM head (so after the final norm) from which the t-th token of y is
    predicted. Returns tensors (n_tokens,), nats, and (n_completions, d), float32 or better. Raises
    ValueError for a model whose head is no module that is called once a pass.
    """
    with head_inputs(model) as seen:
        logps = FORWARDS[kind](model, completions)
    one_by_one = [[k] for k in range(len(completions))]
    groups = one_by_one if kind == "alone" else by_length_class(model, completions)
    if len(seen) != (1 if kind == "segments" else len(groups)):
        raise ValueError(NO_HEAD.format(type(unwrap(model)).__name__))
    states: dict[int, torch.Tensor] = {}
    if kind == "segments":  # (n, d), the completions one after the other
        order = [k for group in groups for k in group]
        n_tokens = [len(completions[k].ids) - completions[k].start for k in order]
        states = dict(zip(order, seen[0].split(n_tokens)))
    else:  # (n_completions, positions, d); some models leave out the first positions
        for group, hidden in zip(groups, seen):
            left_out = max(len(completions[k].ids) for k in group) - hidden.shape[1]
            for line, k in enumerate(group):
                first, end = completions[k].start - 1, len(completions[k].ids) - 1
                states[k] = hidden[line, first - left_out : end - left_out]
    dtype = torch.promote_types(seen[0].dtype, torch.float32)
    return logps, torch.stack([states[k].sum(0, dtype=dtype) for k in range(len(completions))])


def inner_products(sums: torch.Tensor) -> list[list[float]] | None:
    """⟨S(y_i), S(y_j)⟩ of the completions of an example, in float64; None where one is not finite.

    sums: (K, d). Returns (K, K).
    """
    wide = sums.cpu().double()
    products = (wide @ wide.T).tolist()
    return products if all(math.isfinite(x) for line in products for x in line) else None
