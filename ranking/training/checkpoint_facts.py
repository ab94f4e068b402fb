"""Ranking accuracy of every checkpoint of a run, and how far it went (Fig. 4, 9-12)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ranking.data.examples import PreferenceData
from ranking.metrics.accuracy import exact_ties, ranking_accuracy
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record
from ranking.scoring.chat import ChatOptions
from ranking.scoring.loading import context_length, load_model, load_tokenizer
from ranking.scoring.score import score_examples
from ranking.scoring.start_up_check import check_fast_path
from ranking.scoring.tokenization import tokenize_examples
from ranking.training.checkpoints import step_of
from ranking.training.distance import initial_weights, squared_distance, trained_weights
from ranking.training.run_directory import gamma_of


def checkpoint_facts(
    checkpoints: Sequence[str],
    reference: str,
    data: PreferenceData,
    *,
    chat: ChatOptions,
    dtype: str,
    device: str,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> Iterator[Record]:
    """Of each checkpoint: how far training was, R on the examples (Def. 2.3), ‖θ_t − θ_ref‖².

    Raises ValueError where a checkpoint has other weights than the reference.
    """
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    initial = initial_weights(whole_model(reference, trust))
    for checkpoint in checkpoints:
        distance = distance_from(initial, reference, checkpoint, trust)
        model = load_model(checkpoint, dtype=dtype, device=device, **trust)
        tokenizer = load_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
        scored = list(score(model, tokenizer, data, chat))
        del model  # before the next one is loaded
        n_equal = sum(exact_ties(logps, ranks) for logps, ranks in scored)
        if n_equal:
            announce(f"{checkpoint}: {n_equal} untied pairs have exactly equal scores, right by "
                     "Def. 2.3")  # fmt: skip
        yield {
            "step": step_of(checkpoint),
            "gamma": gamma_of(Path(checkpoint)),
            "ranking_accuracy": float(np.mean([ranking_accuracy(*pair) for pair in scored])),
            "n_ranked": len(scored),
            "n_exact_ties": n_equal,
            "squared_distance": distance,
        }


def whole_model(name: str, trust: dict[str, Any]):
    """A model in float32, for half precision would round differences away; adapters merged."""
    model = load_model(name, dtype="float32", device="cpu", **trust)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    return model.requires_grad_(True)


def distance_from(
    initial: dict[str, Any], reference: str, checkpoint: str, trust: dict[str, Any]
) -> float:
    """‖θ − θ_ref‖² of a checkpoint; `initial`: the reference's weights."""
    tuned = whole_model(checkpoint, trust)
    shapes = [{name: tuple(weight.shape) for name, weight in weights.items()}
              for weights in (initial, dict(trained_weights(tuned)))]  # fmt: skip
    if shapes[0] != shapes[1]:
        raise ValueError(f"{checkpoint} and {reference} have different weights: no distance")
    return squared_distance(tuned, initial)


def score(
    model, tokenizer, data: PreferenceData, chat: ChatOptions
) -> Iterator[tuple[list[float], Sequence[int]]]:
    """log π(y|x) of the completions (Eq. 13, nats), and the ranks, of each example that fits."""
    kept, tokenized, _ = tokenize_examples(
        tokenizer, data.examples, chat, max_length=context_length(model)
    )
    for batch in score_examples(
        model, tokenized, path=check_fast_path(model, tokenized), batch_size=128,
        tokens_per_batch=16384 if torch.cuda.is_available() else 1024,
    ):  # fmt: skip
        for i, logps in batch:
            yield logps, data.examples[kept[i]].ranks
