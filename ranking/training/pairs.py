"""Every form of a preference pair on its way to the dynamics file, in order.

1. texts: {id, prompt, chosen, rejected, separators, dialogue, dataset, reference}
   (`preference_pairs`)
2. token ids: two TokenizedCompletions (`tokenize_pairs`)
3. a row of a dataset: COLUMNS and REFERENCE_COLUMNS (`pairs_dataset`); of the token ids that TRL
   makes of its text columns, by `cut_pair` and `pair_columns`
4. TRL's padded batch, chosen above rejected (`collate_pairs`)
5. TokenizedCompletions again, which share their prompt's computation (`completions_of`)
6. log-likelihoods of tokens, padded as the batch (`pad_logps`)
7. sums over each completion: SUMS (`pair_sums`), of which `pair_values` and `dynamics_rows` make
   the rows of ranking_dynamics.jsonl

From 3 to 5 padding is put on and taken off again, and put on in 6: so TRL's other losses and its
metrics, which read a padded batch, work on these log-likelihoods too.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset

from ranking.data.conversions import preference_pairs
from ranking.data.examples import PreferenceData, counts_text
from ranking.data.given_scores import REFERENCE_COLUMNS
from ranking.plumbing.processes import announce
from ranking.scoring.chat import ChatOptions, Texts
from ranking.scoring.loading import context_length
from ranking.scoring.tokenization import TokenizedCompletion, tokenize_examples
from ranking.training.given_reference import is_used, logps_of_pairs
from ranking.training.reference_cache import reference_logps
from ranking.training.templates import describe_template, ends_turn

# number, token ids, and where in these the completion starts
COLUMNS = ["pair", "chosen_ids", "chosen_start", "rejected_ids", "rejected_start"]
SUMS = ["chosen", "rejected", "ref_chosen", "ref_rejected", "n_chosen", "n_rejected"]


def tokenize_pairs(
    tokenizer,
    data: PreferenceData,
    *,
    chat: ChatOptions,
    add_eos: bool | None = False,
    max_length: int | None = None,
) -> tuple[list[dict], list, dict[str, int]]:
    """Pairs that fit, their two TokenizedCompletions each, and how many were dropped by reason.

    add_eos None: as `ends_turn` says, pair by pair.
    """
    pairs = preference_pairs(data.examples)
    texts = [
        Texts(p["prompt"], (p["chosen"], p["rejected"]), p["separators"], dialogue=p["dialogue"])
        for p in pairs
    ]
    ended = [ends_turn(tokenizer, text, chat, add_eos) for text in texts]
    found: dict[int, list] = {}
    dropped: Counter[str] = Counter()
    for with_eos in sorted(set(ended)):
        chosen = [k for k, ends in enumerate(ended) if ends == with_eos]
        kept, tokenized, reasons = tokenize_examples(
            tokenizer, [texts[k] for k in chosen], chat=chat, add_eos=with_eos,
            max_length=max_length,
        )  # fmt: skip
        found |= {chosen[i]: completions for i, completions in zip(kept, tokenized)}
        dropped.update(reasons)
    kept = sorted(found)
    return [pairs[k] for k in kept], [found[k] for k in kept], dict(dropped)


def pairs_dataset(pairs: list[dict], tokenized: list, logps: np.ndarray) -> Dataset:
    """The columns `DPOGammaTrainer` trains on, of a mixture `dataset` too, and `reference_dtype`
    where the data say it of log-likelihoods that are taken; logps (n_pairs, 2) of the reference,
    nats."""
    several = len({pair["dataset"] for pair in pairs}) > 1
    dtypes = [
        pair["reference"].dtype if is_used(pair, completions) else None
        for pair, completions in zip(pairs, tokenized)
    ]
    rows = [
        {
            "id": pair["id"],
            **({"dataset": pair["dataset"]} if several else {}),
            **({"reference_dtype": dtypes[k]} if any(dtypes) else {}),
            "length": len(chosen.ids) + len(rejected.ids),  # for --train_sampling_strategy
            **pair_columns(k, (chosen.ids, chosen.start), (rejected.ids, rejected.start)),
            **dict(zip(REFERENCE_COLUMNS, map(float, logps[k]))),
        }
        for k, (pair, (chosen, rejected)) in enumerate(zip(pairs, tokenized))
    ]
    return Dataset.from_list(rows)


def pair_columns(
    number: int, chosen: tuple[Sequence[int], int], rejected: tuple[Sequence[int], int]
) -> dict:
    """COLUMNS of a pair; chosen, rejected: token ids, and where those that are scored begin."""
    return dict(zip(COLUMNS, (number, *chosen, *rejected)))


def prepare_pairs(
    examples: dict[str, PreferenceData],
    reference,
    tokenizer,
    *,
    chat: ChatOptions,
    add_eos: bool | None,
    max_length: int | None,
    n_followed: int,
    mixed_precision: str,
) -> tuple[dict[str, Dataset], dict[str, dict]]:
    """Tokenized parts with reference log-likelihoods, `n_followed` training pairs among them as
    "dynamics"; texts by id. mixed_precision: no, bf16 or fp16, of the reference's forward pass, for
    pairs without log-likelihoods in the data, and a few with them."""
    limits = [x for x in (max_length, context_length(reference)) if x is not None]
    describe_template(tokenizer, examples, chat, add_eos)
    parts: dict[str, tuple[list, list]] = {}
    texts: dict[str, dict] = {}
    for part, data in examples.items():
        pairs, tokenized, dropped = tokenize_pairs(
            tokenizer, data, chat=chat, add_eos=add_eos, max_length=min(limits)
        )
        n_truncated = sum(chosen.truncated for chosen, _ in tokenized)
        announce(f"{part}: {len(pairs)} pairs, {n_truncated} with a cut prompt, dropped: "
                 f"{counts_text(dropped)}")  # fmt: skip
        if not pairs:
            raise ValueError(f"{part}: no pair fits --max_length {min(limits)}")
        parts[part] = (pairs, tokenized)
        texts |= {pair["id"]: pair for pair in pairs}
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision)
    logps = logps_of_pairs(
        [pair for pairs, _ in parts.values() for pair in pairs],
        [completions for _, tokenized in parts.values() for completions in tokenized],
        partial(
            reference_logps, reference, autocast=autocast,
            tokens_per_batch=1024 if reference.device.type == "cpu" else 16384,
        ),
        reference_name=reference.config.name_or_path,
        in_float32=autocast is None and reference.dtype == torch.float32,
    )  # fmt: skip
    datasets, first = {}, 0
    for part, (pairs, tokenized) in parts.items():
        datasets[part] = pairs_dataset(pairs, tokenized, logps[first : first + len(pairs)])
        first += len(pairs)
    followed = min(n_followed, len(datasets["train"]))
    if followed:
        chosen = np.random.default_rng(0).choice(len(datasets["train"]), followed, replace=False)
        dynamics = datasets["train"].select(sorted(chosen))
        renumbered = dynamics.remove_columns("pair").add_column("pair", list(range(followed)))
        datasets["dynamics"] = renumbered
    return datasets, texts


def cut_to_length(
    prompt: list[int], completion: list[int], max_length: int | None, mode: str
) -> tuple[list[int], int]:
    """The token ids that TRL keeps of a sequence, and where those that are scored begin.

    `keep_start` cuts the end off, `keep_end` the beginning, of each sequence by itself. The first
    token of what is left has nothing before it and is not scored.
    """
    ids, lost = prompt + completion, 0
    if max_length is not None and mode == "keep_end":
        lost = max(0, len(ids) - max_length)
    return ids[lost:][:max_length], max(1, len(prompt) - lost)


def cut_pair(row: dict, max_length: int | None, mode: str) -> list[tuple[list[int], int]]:
    """`cut_to_length` of both sides of a pair that TRL has tokenized: chosen, rejected."""
    sides = (row["chosen_ids"], row["rejected_ids"])
    return [cut_to_length(row["prompt_ids"], ids, max_length, mode) for ids in sides]


def collate_pairs(rows: list[dict], pad_token_id: int = 0) -> dict[str, torch.Tensor]:
    """TRL's batch layout, (2B, T) with chosen above rejected, right-padded; masks by position."""
    sequences = [(r["chosen_ids"], r["chosen_start"]) for r in rows]
    sequences += [(r["rejected_ids"], r["rejected_start"]) for r in rows]
    shape = (len(sequences), max(len(ids) for ids, _ in sequences))
    batch = {
        "input_ids": torch.full(shape, pad_token_id),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "completion_mask": torch.zeros(shape, dtype=torch.long),
        "pair": torch.tensor([r["pair"] for r in rows]),
    }
    for k, (ids, start) in enumerate(sequences):
        batch["input_ids"][k, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][k, : len(ids)] = 1
        batch["completion_mask"][k, start : len(ids)] = 1
    for name in REFERENCE_COLUMNS:
        if name in rows[0]:
            batch[name] = torch.tensor([r[name] for r in rows], dtype=torch.float32)
    return batch


def trl_row(row: dict) -> dict:
    """A row of COLUMNS as TRL's collators take it: prompt_ids, and chosen_ids and rejected_ids
    without the prompt. ValueError where the two sides have different prompts."""
    sides = {side: (row[f"{side}_ids"], row[f"{side}_start"]) for side in ("chosen", "rejected")}
    prompts = [ids[:start] for ids, start in sides.values()]
    if prompts[0] != prompts[1]:
        raise ValueError(
            f"pair {row['pair']}: the tokens of its two prompts differ, which a data_collator of "
            "TRL's rows cannot take: leave data_collator out"
        )
    completions = {f"{side}_ids": ids[start:] for side, (ids, start) in sides.items()}
    return {**row, "prompt_ids": prompts[0], **completions}


def collate_by(collator: Callable[[list[dict]], dict], rows: list[dict]) -> dict:
    """The batch that somebody's collator of TRL's rows makes of rows of COLUMNS, and their `pair`.
    ValueError where it pads on the left, or leaves a side no token to score."""
    batch = collator([trl_row(row) for row in rows])
    if not batch["attention_mask"][:, 0].all():
        raise ValueError("data_collator pads on the left: let it pad on the right, as TRL's does")
    batch["completion_mask"][:, 0] = 0  # the first token is predicted by nothing
    if not batch["completion_mask"].any(1).all():
        raise ValueError("data_collator leaves a completion no token: drop such pairs, or cut less")
    return {**batch, "pair": torch.tensor([row["pair"] for row in rows])}


def completions_of(batch: dict[str, torch.Tensor]) -> list[TokenizedCompletion]:
    """The sequences of a batch without their padding."""
    lengths = batch["attention_mask"].sum(1).tolist()
    starts = batch["completion_mask"].argmax(1).tolist()
    sequences = zip(batch["input_ids"].tolist(), lengths, starts)
    return [TokenizedCompletion(tuple(ids[:n]), start, False) for ids, n, start in sequences]


def pad_logps(
    logps: Sequence[torch.Tensor], completions: Sequence[TokenizedCompletion], width: int
) -> torch.Tensor:
    """Log-likelihoods of the completions' tokens as TRL's, (2B, width − 1): zero elsewhere."""
    rows = [
        F.pad(values, (c.start - 1, width - len(c.ids))) for values, c in zip(logps, completions)
    ]
    return torch.stack(rows)


def pair_sums(batch: dict[str, torch.Tensor], log_probs: torch.Tensor) -> torch.Tensor:
    """(B, 7) float64: each pair's number, and SUMS; log_probs (2B, T − 1), nats."""
    sums = log_probs.double().sum(1).chunk(2)
    lengths = batch["completion_mask"].sum(1).chunk(2)
    reference = [batch[name] for name in REFERENCE_COLUMNS]
    return torch.stack([t.double() for t in (batch["pair"], *sums, *reference, *lengths)], 1)
