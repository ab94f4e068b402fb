"""Log-likelihoods under the reference model, computed once and kept on disk by content.

A line of the file is the JSON array [key, log π_ref(y|x)]: 32 hex digits, nats, summed (Eq. 13).
Empty and torn lines count for nothing, and of lines with one key the last. The key hashes the token
ids (which say everything about the text, the tokenizer, the separator or template, EOS and
truncation) and where the completion starts; the file's name hashes the reference's weights and
configuration, the precision, the kind of device and the versions that compute. So a sweep over γ, β
and seeds pays once, and a changed input never finds a stale entry.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ranking.plumbing.command_line import progress_bar
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import append_json_lines, read_cached
from ranking.scoring.models import cache_directory
from ranking.scoring.packing import count_new_tokens
from ranking.scoring.score import score_examples
from ranking.scoring.start_up_check import check_fast_path
from ranking.scoring.tokenization import TokenizedCompletion

SCORING_VERSION = 4  # raise it whenever ranking/scoring changes a log-likelihood


def hash_model(model) -> str:
    """Hex digest of a model's weights and of the settings its forward pass depends on."""
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "use_cache", "dtype", "pad_token_id"):
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_file(model, autocast: torch.dtype | None) -> Path:
    """The cache of this reference model, precision, kind of device, and library versions."""
    device = model.device.type
    facts = [
        SCORING_VERSION,
        hash_model(model),
        type(model).__module__,  # names the version of code that came with the model
        str(autocast),
        device,
        device == "cuda" and torch.backends.cuda.matmul.fp32_precision,  # TF32 or not
        version("torch"),
        version("transformers"),
    ]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    return cache_directory() / "reference" / f"{name}.jsonl"


def completion_key(completion: TokenizedCompletion) -> str:
    """16 bytes in hex over token ids and the start of the completion."""
    content = np.array([completion.start, *completion.ids], dtype=np.int64).tobytes()
    return hashlib.sha256(content).hexdigest()[:32]


def read_cache(path: Path) -> dict[str, float]:
    """Entries of a cache file; what is not finite is left out and computed again."""
    found = read_cached(path).items()
    return {key: x for key, x in found if isinstance(x, float | int) and math.isfinite(x)}


def reference_logps(
    model,
    tokenized: Sequence[Sequence[TokenizedCompletion]],
    *,
    autocast: torch.dtype | None = None,
    tokens_per_batch: int = 1024,
) -> np.ndarray:
    """log π_ref(y|x) of every completion, (n_examples, 2) float64, nats, summed (Eq. 13).

    Taken from the cache where it is there, else scored by `score_examples` under `autocast` and
    added to it, example by example, so that a killed run keeps what it has. Under torchrun each
    process scores its share. Raises ValueError if a log-likelihood is not finite.
    """
    path, state = cache_file(model, autocast), PartialState()
    entries = read_cache(path)
    state.wait_for_everyone()  # all processes see the same entries before one adds to them
    keys = [[completion_key(c) for c in example] for example in tokenized]
    missing = [i for i, pair in enumerate(keys) if not all(key in entries for key in pair)]
    n_there = len(tokenized) - len(missing)
    announce(f"reference log-likelihoods: {n_there} of {len(tokenized)} pairs from {path}")
    if missing:
        mine = missing[state.process_index :: state.num_processes]
        scored = score_missing(
            model, [tokenized[i] for i in mine], path, autocast, tokens_per_batch
        )
        state.wait_for_everyone()
        for key, logp in gather_object(list(scored.items())):
            entries[key] = logp
    logps = np.array([[entries[key] for key in pair] for pair in keys])
    if not np.isfinite(logps).all():
        n_bad = int((~np.isfinite(logps)).any(axis=1).sum())
        raise ValueError(f"the reference gives {n_bad} pairs a non-finite log-likelihood")
    return logps


def score_missing(model, tokenized, path: Path, autocast, tokens_per_batch: int) -> dict:
    """Score examples, appending {key: log-likelihood} to `path` batch by batch."""
    scored: dict[str, float] = {}
    if not tokenized:
        return scored
    path.parent.mkdir(parents=True, exist_ok=True)
    context = torch.autocast(model.device.type, autocast) if autocast else nullcontext()
    n_tokens = [count_new_tokens(sorted(c.ids for c in example)) for example in tokenized]
    progress = progress_bar("reference", sum(n_tokens), tokens=True)
    with path.open("ab") as file, context, progress:
        scoring = check_fast_path(model, tokenized)
        file.write(b"\n")  # a torn last line stays alone
        for batch in score_examples(
            model, tokenized, path=scoring, tokens_per_batch=tokens_per_batch, batch_size=128
        ):
            entries = {
                completion_key(c): logp
                for i, logps in batch
                for c, logp in zip(tokenized[i], logps)
            }
            finite = {key: logp for key, logp in entries.items() if np.isfinite(logp)}
            append_json_lines(file, ([key, logp] for key, logp in finite.items()))
            scored |= entries
            progress.update(sum(n_tokens[i] for i, _ in batch))
    return scored
