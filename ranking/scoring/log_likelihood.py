"""log π(y|x) of completions y of prompts x under a causal language model (Eq. 13).

Completions of one prompt, and examples that share a dialogue prefix, form a trie of token
segments: a shared prefix is computed once, each segment attends to its ancestors and causally to
itself. The LM head is applied to completion positions only, in chunks. The same
`compute_token_logps` serves evaluation, reference log-likelihoods and training.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.graph import queue_callback

from ranking.scoring.attention import restore_attention, switch_attention
from ranking.scoring.lm_head import head_logps, replaced_forward
from ranking.scoring.loading import unwrap
from ranking.scoring.packing import build_row
from ranking.scoring.rotary import by_length_class, forget_lengths, length_class
from ranking.scoring.tokenization import TokenizedCompletion


class ScoringPath(NamedTuple):
    """How a model is scored: in packed rows ("segments"), in padded batches ("plain") or one
    completion at a time ("alone"); and why not in packed rows."""

    kind: str
    why: str = ""

    @property
    def is_packed(self) -> bool:
        """Whether shared prefixes are computed once."""
        return self.kind == "segments"

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}" if self.why else self.kind


PACKED = ScoringPath("segments")


def input_device(model) -> torch.device:
    """Where a model takes its inputs; the CPU, if its embeddings are kept there or on disk."""
    device = unwrap(model).get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def compute_token_logps(model, completions: Sequence[TokenizedCompletion]) -> list[torch.Tensor]:
    """Per-token log-likelihoods log π(y_t | x, y_<t) of completions, in one packed row.

    model: causal LM, possibly wrapped. The wrapper is called and only the innermost forward is
    replaced, so that gradients are synchronised, sharded weights are gathered and adapters work.
    Differentiable when grad is enabled. The model has its own attention back afterwards; a backward
    pass switches it again, since gradient checkpointing runs the layers there once more.
    Completions whose rotary frequencies differ (`length_class`) have rows of their own.
    Returns one float32 tensor (n_tokens,) per completion, nats.
    """
    inner = unwrap(model)
    groups = by_length_class(inner, completions)
    by_length = length_class(inner, 1) != ()
    rows = [build_row([completions[k] for k in group], whole=by_length) for group in groups]
    n_inputs = [len(row.input_ids) for row in rows]
    targets = torch.from_numpy(np.concatenate([t for row in rows for t in row.targets]))

    def forward(input_ids, position_ids, **_) -> torch.Tensor:
        predicting = []
        for row, ids, positions in zip(
            rows, input_ids.split(n_inputs, dim=1), position_ids.split(n_inputs, dim=1)
        ):
            if by_length:
                forget_lengths(inner)
            hidden = inner.get_decoder()(
                input_ids=ids, position_ids=positions, packed_row=row, use_cache=False
            )[0][0]
            predictors = torch.from_numpy(np.concatenate(row.predictors))
            predicting.append(hidden[predictors.to(hidden.device)])
        hidden = torch.cat(predicting)
        return head_logps(inner, hidden, targets.to(hidden.device))

    device = input_device(inner)
    own = switch_attention(inner)
    try:
        with replaced_forward(inner, forward):
            ids, positions = (
                torch.from_numpy(np.concatenate([getattr(row, name) for row in rows]))[None]
                for name in ("input_ids", "position_ids")
            )
            logps = model(input_ids=ids.to(device), position_ids=positions.to(device))
    finally:
        restore_attention(own)
    if logps.requires_grad:
        logps.register_hook(
            lambda _: queue_callback(partial(restore_attention, switch_attention(inner)))
        )
    parts = iter(logps.split([len(t) for row in rows for t in row.targets]))
    by_index = {k: next(parts) for group in groups for k in group}
    return [by_index[k] for k in range(len(completions))]


def compute_token_logps_plain(
    model, completions: Sequence[TokenizedCompletion]
) -> list[torch.Tensor]:
    """The same by a right-padded batch through the model's own head: slower, for any causal LM.

    Completions whose rotary frequencies differ (`length_class`) have batches of their own.
    """
    groups = by_length_class(model, completions)
    if len(groups) > 1:
        by_index: dict[int, torch.Tensor] = {}
        for group in groups:
            logps = compute_token_logps_plain(model, [completions[k] for k in group])
            by_index |= dict(zip(group, logps))
        return [by_index[k] for k in range(len(completions))]
    if length_class(model, 1):
        forget_lengths(model)
    device = input_device(model)
    width = max(len(c.ids) for c in completions)
    input_ids = torch.zeros((len(completions), width), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for i, c in enumerate(completions):
        input_ids[i, : len(c.ids)] = torch.tensor(c.ids)
        attention_mask[i, : len(c.ids)] = 1
    first = min(c.start for c in completions) - 1
    logits = model(
        input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False,
        logits_to_keep=width - first,
    ).logits  # fmt: skip
    offset = width - logits.shape[1]  # 0 for models that ignore logits_to_keep
    logps = []
    for i, c in enumerate(completions):
        if c.scored is None:  # without a copy
            scores = logits[i, c.start - 1 - offset : len(c.ids) - 1 - offset].float()
        else:
            rows = torch.tensor([t - 1 - offset for t in c.scored], dtype=torch.long)
            scores = logits[i, rows.to(logits.device)].float()
        targets = torch.tensor([c.ids[t] for t in c.positions], dtype=torch.long).to(scores.device)
        logps.append(scores.gather(1, targets[:, None])[:, 0] - torch.logsumexp(scores, dim=1))
    return logps


def compute_token_logps_alone(
    model, completions: Sequence[TokenizedCompletion]
) -> list[torch.Tensor]:
    """One completion at a time: for models whose log-likelihoods change with padding."""
    return [compute_token_logps_plain(model, [completion])[0] for completion in completions]


FORWARDS = {  # by the kind of a `ScoringPath`
    "segments": compute_token_logps,
    "plain": compute_token_logps_plain,
    "alone": compute_token_logps_alone,
}
