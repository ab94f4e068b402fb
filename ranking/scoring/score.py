"""Score datasets into an examples file, from which a killed run resumes."""

import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ranking.data.examples import PreferenceData, counts_text, dataset_label
from ranking.plumbing.command_line import progress_bar, until_stopped
from ranking.plumbing.outputs import Output, begin_run, merge_parts, part_file, row_key
from ranking.plumbing.processes import (
    announce,
    process_count,
    process_rank,
    wait_for_all_processes,
)
from ranking.plumbing.result_files import Record, append_json_lines, hash_config
from ranking.scoring.chat import ChatOptions, check_template
from ranking.scoring.chat_notes import describe_rendering
from ranking.scoring.examples_file import example_record, in_order_of_data
from ranking.scoring.hidden_states import compute_with_hidden_sums, inner_products
from ranking.scoring.loading import context_length, load_model, load_tokenizer
from ranking.scoring.log_likelihood import FORWARDS, ScoringPath
from ranking.scoring.models import REMOTE_CODE_FLAG, FoundModel
from ranking.scoring.packing import count_new_tokens, deal_batches, pack_rows, pad_batches
from ranking.scoring.side_by_side import in_order, rows_at_once, side_by_side
from ranking.scoring.start_up_check import check_fast_path
from ranking.scoring.tokenization import TokenizedCompletion, tokenize_examples


# ---------------------------------------------------------------------------- in memory
def token_logps_of_batches(
    model,
    tokenized: Sequence[Sequence[TokenizedCompletion]],
    *,
    path: ScoringPath,
    tokens_per_batch: int,
    batch_size: int,
    done: frozenset[int] = frozenset(),
    rank: int = 0,
    n_processes: int = 1,
    products: dict[int, list[list[float]] | None] | None = None,
) -> Iterator[list[tuple[int, list[np.ndarray]]]]:
    """Score examples; yields, batch by batch, (index, per-token logps of each completion, nats).

    path: as `check_fast_path` says. Rows are formed from the whole list before those in `done`
    are left out and the rest is dealt to the processes, of which this one is `rank`; nothing is
    exchanged between them. A batch that does not fit in memory is halved; an example that does not
    fit alone raises ValueError. On a CPU packed rows are computed side by side. Log-likelihoods
    are float32 arrays (n_tokens,); NaN and infinite values are passed on. products: into it go the
    `inner_products` of what is yielded, for CHES.
    """
    form_batches = pack_rows if path.is_packed else pad_batches
    batches = form_batches(tokenized, tokens_per_batch, batch_size)
    remaining = [[i for i in batch if i not in done] for batch in batches]
    remaining = [batch for batch in remaining if batch]
    if n_processes > 1:
        sizes = [sum(len(c.ids) for c in example) for example in tokenized]
        remaining = deal_batches(remaining, sizes, n_processes)[rank]
    pending = remaining[::-1]
    n = rows_at_once(model, len(pending), tokens_per_batch) if path.is_packed else 1

    def score_batch(model, batch: list[int]):
        """Log-likelihoods and hidden products of a batch; None where it does not fit."""
        completions = [c for i in batch for c in tokenized[i]]
        try:
            with torch.inference_mode():
                if products is None:
                    return [x.cpu().numpy() for x in FORWARDS[path.kind](model, completions)], []
                found, sums = compute_with_hidden_sums(model, completions, path.kind)
                of_examples = sums.cpu().split([len(tokenized[i]) for i in batch])
                return [x.cpu().numpy() for x in found], list(map(inner_products, of_examples))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                longest = max(len(c.ids) for c in completions)
                raise ValueError(
                    f"out of memory on a single example ({len(completions)} completions, "
                    f"the longest {longest} tokens with its prompt): lower --max-length"
                ) from error
        return None  # outside the handler, so that the failed batch's tensors are freed

    with side_by_side(model, n) as submit:
        for batch, scored in in_order(submit, score_batch, pending, n):
            if scored is None:
                torch.cuda.empty_cache()
                half = len(batch) // 2
                pending += [batch[half:], batch[:half]]
                continue
            if products is not None:
                products |= zip(batch, scored[1])
            values = iter(scored[0])
            yield [(i, [next(values) for _ in tokenized[i]]) for i in batch]


def score_examples(
    model, tokenized: Sequence[Sequence[TokenizedCompletion]], **how
) -> Iterator[list[tuple[int, list[float]]]]:
    """log π(y|x) of every completion (Eq. 13), nats, summed over tokens in float64.

    Yields (index, sums) batch by batch; `how`: as `token_logps_of_batches` takes it.
    """
    for batch in token_logps_of_batches(model, tokenized, **how):
        yield [(i, [float(x.astype(np.float64).sum()) for x in logps]) for i, logps in batch]


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA's out-of-memory error, or the CPU allocator's plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


# ---------------------------------------------------------------------------- into a file
class Scorer(NamedTuple):
    """A model that is loaded, and how it is given its texts."""

    name: str
    model: Any
    tokenizer: Any
    facts: dict[str, Any]  # what summaries say of the model, and of where it is run
    chat: ChatOptions
    add_eos: bool
    max_length: int | None  # tokens of prompt + completion: what is asked for or the model takes
    tokens_per_batch: int
    batch_size: int  # examples
    attn_implementation: str | None
    ches: bool  # whether inner products of hidden states are recorded
    paths: list[ScoringPath]  # taken so far


def load_scorer(
    found: FoundModel,
    *,
    chat: ChatOptions,
    add_eos: bool,
    max_length: int | None,
    tokens_per_batch: int | None,
    batch_size: int,
    device_map: str | None,
    quantization: str | None,
    attn_implementation: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    ches: bool = False,
) -> Scorer:
    """Load a model to score with; lines say what of it does nothing. Raises as `load_model`."""
    if trust_remote_code:
        announce(f"{REMOTE_CODE_FLAG}: Python files that come with {found.name} are run")
    tokenizer = load_tokenizer(found.name, found.commit, trust_remote_code=trust_remote_code)
    check_template(tokenizer, chat, found.name)
    model = load_model(
        found.name, dtype=found.dtype, device=found.device, device_map=device_map,
        quantization=quantization, attn_implementation=attn_implementation,
        revision=found.commit,  # of a hub model: what is recorded is loaded
        trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
    )  # fmt: skip
    limits = [limit for limit in (max_length, context_length(model)) if limit is not None]
    if max_length is not None and min(limits) < max_length:
        announce(f"--max-length {max_length} does nothing: the model takes {min(limits)} tokens")
    facts = {
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(found.device)
        if found.device.startswith("cuda")
        else platform.machine(),
        "device_map": device_map,
        "quantization": quantization,
        "trust_remote_code": trust_remote_code,
        "n_processes": process_count(),
        "model_commit": found.commit,
    }
    return Scorer(
        found.name, model, tokenizer, facts, chat, add_eos, min(limits, default=None),
        tokens_per_batch or (1024 if found.device == "cpu" else 16384), batch_size,
        attn_implementation, ches, [],
    )  # fmt: skip


class Scored(NamedTuple):
    """The records of one dataset in the order of its rows, and what summaries say of them."""

    records: list[Any]  # ExampleRecord
    facts: dict[str, Any]


def score_datasets(
    found: FoundModel,
    datasets: Sequence[PreferenceData],
    output: Output,
    config: Mapping[str, Any],
    overwrite: bool,
    **how,
) -> list[Scored]:
    """Begin or resume a run, load the model and score each dataset; `how`: as `load_scorer`.

    Whether packed rows are exact is tried on each dataset, whose facts have the path it took.
    Raises ValueError where nothing is left of any dataset."""
    earlier = begin_run(output, config, overwrite)
    scorer = load_scorer(found, **how)
    scored = [
        score_dataset(scorer, data, output, earlier, hash_config(config)) for data in datasets
    ]
    if not any("path" in result.facts for result in scored):
        raise ValueError(
            f"no example left to score: {[result.facts['dropped'] for result in scored]}"
        )
    return scored


def scoring_bar(where: str, n_tokens: Sequence[int], done: frozenset[int]):
    """Progress in tokens. The shares of several processes are equal but for a row: the first shows
    its own."""
    n_before, n = sum(n_tokens[i] for i in done), process_count()
    text = f"scoring {where}" + (f", process 1 of {n}" if n > 1 else "")
    return progress_bar(text, n_before + (sum(n_tokens) - n_before) // n, n_before, tokens=True)


def score_dataset(
    scorer: Scorer,
    data: PreferenceData,
    output: Output,
    earlier: Sequence[Record],
    config_hash: str,
) -> Scored:
    """Score what `earlier` does not hold yet, appending to the examples file as results come.

    One of several processes scores its share into a part file; the first merges the parts and has
    all records. Raises ValueError if an example is missing after the merge, or was scored twice.
    """
    where = dataset_label(*data.key)
    for line in describe_rendering(scorer.tokenizer, data.examples, scorer.chat):
        announce(f"{where}: {line}")
    kept, tokenized, dropped = tokenize_examples(
        scorer.tokenizer, data.examples, scorer.chat,
        add_eos=scorer.add_eos, max_length=scorer.max_length,
    )  # fmt: skip
    counts = {r: data.dropped.get(r, 0) + dropped.get(r, 0) for r in {**data.dropped, **dropped}}
    if dropped:
        reasons = counts_text(dropped)
        announce(f"{where}: of these, dropped: {reasons}")
    if not kept:
        announce(f"{where}: no example left to score ({counts})")
        return Scored([], {**scorer.facts, "dropped": counts})
    n_truncated = sum(any(c.truncated for c in completions) for completions in tokenized)
    if n_truncated:
        announce(
            f"{where}: {n_truncated} prompts cut from the left to fit {scorer.max_length} tokens"
        )
    examples = [data.examples[k] for k in kept]
    keys = [(*data.key, example.id) for example in examples]
    records = {row_key(record): record for record in earlier}
    done = frozenset(i for i, key in enumerate(keys) if key in records)
    if done:
        announce(f"{where}: resuming: {len(done)} of {len(keys)} examples were scored before")
    path = check_fast_path(scorer.model, tokenized)
    if path not in scorer.paths:  # said once
        scorer.paths.append(path)
        if not path.is_packed:
            logging.warning("shared-prefix scoring is off for this model (%s)", path)
        elif scorer.attn_implementation is not None:
            announce("--attn-implementation does nothing: this model takes the segments path")

    rank, n_processes = process_rank(), process_count()
    own_file = output.examples if n_processes == 1 else part_file(output.examples, rank)
    n_tokens = [count_new_tokens(sorted(c.ids for c in example)) for example in tokenized]
    n_scored = len(done)
    products: dict[int, list[list[float]] | None] | None = {} if scorer.ches else None

    def saved() -> str:
        return f"{n_scored} of {len(keys)} examples of {where} are saved in {own_file}"

    with own_file.open("ab") as file, scoring_bar(where, n_tokens, done) as progress:
        batches = score_examples(
            scorer.model, tokenized, path=path, tokens_per_batch=scorer.tokens_per_batch,
            batch_size=scorer.batch_size, done=done, rank=rank, n_processes=n_processes,
            products=products,
        )  # fmt: skip
        for batch in until_stopped(batches, saved):
            rows: list[Any] = [
                example_record(data, examples[i], tokenized[i], logps, config_hash, scorer.name)
                for i, logps in batch
            ]
            if products is not None:
                for (i, _), row in zip(batch, rows):
                    row["hidden_products"] = products.pop(i)
            append_json_lines(file, rows)
            records.update({row_key(row): row for row in rows})
            n_scored += len(batch)
            rate = n_processes * (n_scored - len(done)) / max(progress.format_dict["elapsed"], 1e-9)
            status = f"{n_scored}/{len(keys)} examples, {rate:.2f} examples/s"
            if n_processes > 1:
                status = f"{n_scored} examples here, about {rate:.2f} examples/s in all"
            progress.set_postfix_str(status, refresh=False)
            progress.update(sum(n_tokens[i] for i, _ in batch))
    wait_for_all_processes()
    if n_processes > 1 and rank == 0:
        records = {row_key(record): record for record in merge_parts(output.examples)}
    wait_for_all_processes()  # before a part file is begun again
    missing = [key for key in keys if key not in records]
    if missing and rank == 0:
        raise ValueError(
            f"{len(missing)} of {len(keys)} examples are missing after the merge (first: "
            f"{missing[0]}): give the same command again, it scores what is missing"
        )
    facts = {**scorer.facts, "path": str(path), "dropped": counts}
    return Scored(in_order_of_data(records[key] for key in keys if key in records), facts)
