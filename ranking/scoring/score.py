"""Score the examples of datasets into an examples file, from which a killed run resumes."""

import argparse
import logging
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from ranking.data.examples import PreferenceData, dataset_label, describe_joining, fingerprint
from ranking.data.preferences import load_preferences
from ranking.plumbing.command_line import announce, process_count, process_rank, until_stopped
from ranking.plumbing.result_files import (
    Record,
    append_json_lines,
    hash_config,
    merge_parts,
    part_file,
    prepare_outputs,
    read_json_lines,
    row_key,
)
from ranking.scoring.examples_file import example_record
from ranking.scoring.log_likelihood import (
    compute_token_logps,
    compute_token_logps_alone,
    compute_token_logps_plain,
)
from ranking.scoring.models import REMOTE_CODE_FLAG, commit_of, model_fingerprint, resolve_dtype
from ranking.scoring.packing import deal_batches, pack_rows, pad_batches
from ranking.scoring.tokenization import TokenizedCompletion


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA's out-of-memory error, or the CPU allocator's plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def score_examples(
    model,
    tokenized: Sequence[Sequence[TokenizedCompletion]],
    *,
    path: str,
    tokens_per_batch: int,
    batch_size: int,
    done: frozenset[int] = frozenset(),
    rank: int = 0,
    n_processes: int = 1,
) -> Iterator[list[tuple[int, list[np.ndarray]]]]:
    """Score examples; yields, batch by batch, (index, per-token logps of each completion, nats).

    path: as `check_fast_path` says. Rows are formed from the whole list before those in `done`
    are left out and the rest is dealt to the processes, of which this one is `rank`; nothing is
    exchanged between them. A batch that does not fit in memory is halved; an example that does not
    fit alone raises ValueError. Log-likelihoods are float32 arrays (n_tokens,); NaN and infinite
    values are passed on.
    """
    if path == "segments":
        batches = pack_rows(tokenized, tokens_per_batch, batch_size)
    else:
        batches = pad_batches(tokenized, tokens_per_batch, batch_size)
    forward = {
        "segments": compute_token_logps,
        "plain": compute_token_logps_plain,
        "alone": compute_token_logps_alone,
    }[path.split(":")[0]]
    remaining = [[i for i in batch if i not in done] for batch in batches]
    remaining = [batch for batch in remaining if batch]
    if n_processes > 1:
        sizes = [sum(len(c.ids) for c in example) for example in tokenized]
        remaining = deal_batches(remaining, sizes, n_processes)[rank]
    pending = remaining[::-1]
    while pending:
        batch = pending.pop()
        completions = [c for i in batch for c in tokenized[i]]
        logps = None
        try:
            with torch.inference_mode():
                logps = [values.cpu().numpy() for values in forward(model, completions)]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                longest = max(len(c.ids) for c in completions)
                raise ValueError(
                    f"out of memory on a single example ({len(completions)} completions, "
                    f"the longest {longest} tokens with its prompt): lower --max-length"
                ) from error
        if logps is None:  # outside the handler, so that the failed batch's tensors are freed
            torch.cuda.empty_cache()
            half = len(batch) // 2
            pending += [batch[half:], batch[:half]]
            continue
        values = iter(logps)
        yield [(i, [next(values) for _ in tokenized[i]]) for i in batch]


def wait_for_all_processes() -> None:
    """Return when every process is here; the only thing processes ever say to each other."""
    import torch.distributed

    if process_count() > 1:
        if not torch.distributed.is_initialized():
            # scoring may take days: a slower process is not an error
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
        torch.distributed.barrier()


def prepare_outputs_once(paths: dict[str, Path], config: Record, overwrite: bool) -> list[Record]:
    """`prepare_outputs` by the first process, whose rows the others then read."""
    if process_count() == 1:
        return prepare_outputs(paths, config, overwrite)
    earlier = prepare_outputs(paths, config, overwrite) if process_rank() == 0 else []
    wait_for_all_processes()
    if process_rank() > 0 and paths["examples"].exists():
        earlier = read_json_lines(paths["examples"])
    wait_for_all_processes()
    return earlier


def load_datasets(args: argparse.Namespace) -> list[PreferenceData]:
    """The datasets asked for, with what was dropped announced on stderr."""
    loaded: list[PreferenceData] = []
    for spec in args.dataset:
        data = load_preferences(
            spec,
            sample_size=args.sample_size,
            seed=args.seed,
            split=args.split,
            data_dir=args.data_dir,
            include_ties=args.include_ties,
            stream_shuffle_buffer=args.stream_shuffle_buffer,
            separator=args.separator,
        )
        dropped = ", ".join(f"{reason}: {n}" for reason, n in data.dropped.items()) or "none"
        messages = [f"{len(data.examples)} examples, dropped: {dropped}", *data.notes]
        if not args.chat_template:
            messages.append(describe_joining(data.examples))
        for message in messages:
            announce(f"{dataset_label(data.name, data.split)}: {message}")
        if any((data.name, data.split) == (other.name, other.split) for other in loaded):
            raise ValueError(
                f"--dataset {spec}: {data.name} with this split is given twice (configurations: "
                "score each in a run of its own)"
            )
        loaded.append(data)
    return loaded


def run_config(
    args: argparse.Namespace,
    datasets: list[PreferenceData],
    model_name: str,
    revision: str | None,
) -> Record:
    """Everything the log-likelihoods depend on; a resumed run must have the same."""
    return {
        "model": model_name,
        "revision": revision,
        "model_fingerprint": model_fingerprint(model_name, revision),
        "datasets": [
            {
                "name": data.name,
                "config": data.config,
                "split": data.split,
                "separator": data.separator,
                "examples": fingerprint(data.examples),
                "dropped": data.dropped,
            }
            for data in datasets
        ],
        "sample_size": args.sample_size,
        "seed": args.seed,
        "include_ties": args.include_ties,
        "dtype": resolve_dtype(args.dtype, args.device),
        **({"quantization": args.quantization} if args.quantization else {}),
        **({"trust_remote_code": True} if args.trust_remote_code else {}),
        "max_length": args.max_length,
        "chat_template": args.chat_template,
        "add_eos": args.add_eos,
    }


def score_to_file(
    args: argparse.Namespace,
    datasets: list[PreferenceData],
    config: Record,
    examples_file: Path,
    earlier: list[Record],
) -> tuple[list[Record], Record]:
    """Score what `earlier` does not hold yet, appending to `examples_file` as results come.

    Returns all records in the order of the datasets' examples, and facts for the summary: dtype,
    device, path and, per dataset, examples that could not be scored by reason. One of several
    processes scores its share into a part file; the first merges the parts and has all records.
    Raises ValueError if an example is missing after the merge, or was scored twice.
    """
    import torch
    from tqdm import tqdm

    from ranking.scoring.models import choose_device, context_length, load_model, load_tokenizer
    from ranking.scoring.packing import count_new_tokens
    from ranking.scoring.start_up_check import check_fast_path
    from ranking.scoring.tokenization import tokenize_examples

    device = choose_device(args.device)
    if args.trust_remote_code:
        announce(f"{REMOTE_CODE_FLAG}: Python files that come with {config['model']} are run")
    commit = commit_of(config["model_fingerprint"])  # of a hub model: what is recorded is loaded
    tokenizer = load_tokenizer(config["model"], commit, trust_remote_code=args.trust_remote_code)
    model = load_model(
        config["model"], dtype=config["dtype"], device=device,
        device_map=args.device_map, quantization=args.quantization,
        attn_implementation=args.attn_implementation, revision=commit,
        trust_remote_code=args.trust_remote_code, allow_pickle=args.allow_pickle,
    )  # fmt: skip
    limits = [limit for limit in (args.max_length, context_length(model)) if limit is not None]
    if args.max_length is not None and min(limits) < args.max_length:
        announce(
            f"--max-length {args.max_length} does nothing: the model takes {min(limits)} tokens"
        )
    examples = [
        (number, example) for number, data in enumerate(datasets) for example in data.examples
    ]
    outcomes = tokenize_examples(
        tokenizer,
        [(example.prompt, example.completions) for _, example in examples],
        separators=[example.separators for _, example in examples],
        ranks=[example.ranks for _, example in examples],
        chat_template=args.chat_template,
        add_eos=args.add_eos,
        max_length=min(limits, default=None),
    )
    dropped: list[dict[str, int]] = [dict(data.dropped) for data in datasets]
    for (number, _), outcome in zip(examples, outcomes):
        if isinstance(outcome, str):
            dropped[number][outcome] = dropped[number].get(outcome, 0) + 1
    fitting = [(e, o) for e, o in zip(examples, outcomes) if not isinstance(o, str)]
    examples, tokenized = [e for e, _ in fitting], [o for _, o in fitting]
    if not examples:
        raise ValueError(f"no example left to score: {dropped}")
    n_truncated = sum(any(c.truncated for c in completions) for completions in tokenized)
    if n_truncated:
        announce(f"{n_truncated} prompts cut from the left to fit {min(limits)} tokens")

    keys = [
        (datasets[number].name, datasets[number].split, example.id) for number, example in examples
    ]
    records = {row_key(record): record for record in earlier}
    done = frozenset(i for i, key in enumerate(keys) if key in records)
    if done:
        announce(f"resuming: {len(done)} of {len(examples)} examples were scored before")
    path = check_fast_path(model, tokenized)
    if args.attn_implementation is not None and path == "segments":
        announce("--attn-implementation does nothing: this model takes the segments path")
    if path != "segments":
        logging.warning(
            "shared-prefix scoring is off for this model (%s); plain batches instead", path
        )
    config_hash = hash_config(config)
    cpu = device == "cpu"
    rank, n_processes = process_rank(), process_count()
    n_tokens = [count_new_tokens(sorted(c.ids for c in completions)) for completions in tokenized]
    n_before = sum(n_tokens[i] for i in done)
    # the shares of several processes are equal but for a row: the first shows its own progress
    progress = tqdm(total=n_before + (sum(n_tokens) - n_before) // n_processes, initial=n_before,
                    desc="scoring" if n_processes == 1 else f"scoring, process 1 of {n_processes}",
                    disable=rank > 0 or (None if sys.stderr.isatty() else False), unit="tok",
                    unit_scale=True, mininterval=1 if sys.stderr.isatty() else 10)  # fmt: skip
    n_scored = 0
    own_file = examples_file if n_processes == 1 else part_file(examples_file, rank)
    with own_file.open("ab") as file, progress:
        batches = score_examples(
            model,
            tokenized,
            path=path,
            tokens_per_batch=args.tokens_per_batch or (1024 if cpu else 16384),
            batch_size=args.batch_size,
            done=done,
            rank=rank,
            n_processes=n_processes,
        )

        def saved() -> str:
            n_done = len(done) + n_scored
            return f"{n_done} of {len(examples)} examples are saved in {own_file}"

        for batch in until_stopped(batches, saved):
            rows = [
                example_record(
                    datasets[examples[i][0]],
                    examples[i][1],
                    tokenized[i],
                    logps,
                    config_hash,
                    config,
                )
                for i, logps in batch
            ]
            append_json_lines(file, rows)
            records.update({keys[i]: row for (i, _), row in zip(batch, rows)})
            n_scored += len(batch)
            rate = n_processes * n_scored / max(progress.format_dict.get("elapsed", 0), 1e-9)
            status = f"{len(done) + n_scored}/{len(examples)} examples, {rate:.2f} examples/s"
            if n_processes > 1:
                status = f"{n_scored} examples here, about {rate:.2f} examples/s in all"
            progress.set_postfix_str(status, refresh=False)
            progress.update(sum(n_tokens[i] for i, _ in batch))
    wait_for_all_processes()
    if n_processes > 1 and rank == 0:
        records = {row_key(record): record for record in merge_parts(examples_file)}
    missing = [key for key in keys if key not in records]
    if missing and rank == 0:
        raise ValueError(
            f"{len(missing)} of {len(keys)} examples are missing after the merge (first: "
            f"{missing[0]}): give the same command again, it scores what is missing"
        )
    facts = {
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine(),
        "device_map": args.device_map,
        "quantization": args.quantization,
        "trust_remote_code": args.trust_remote_code,
        "path": path,
        "n_processes": n_processes,
        "model_commit": commit,
        "dropped": dropped,
    }
    return [records[key] for key in keys if key in records], facts
