r"""Ranking accuracy of a language model on preference datasets (Fig. 1, Tables 2-5).

    python calculate_calibration_metrics.py --lm-name-or-path gpt2 \
        --output-dir results --output-filename gpt2.jsonl

Writes DIR/NAME.jsonl (one line per dataset, normalization and metric), NAME.examples.jsonl (one
line per example, with the log-likelihood of every completion), NAME.config.json and NAME.png.
A killed run resumes from the examples file when the same command is given again. Many devices:

    torchrun --nproc_per_node 8 calculate_calibration_metrics.py …
"""

import argparse
import json
import logging
import math
import os
import platform
import sys
from datetime import timedelta
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ranking_metrics
from command_line import (
    announce,
    make_parser,
    process_count,
    process_rank,
    run_script,
    until_stopped,
)
from data_utils import (
    DATASETS,
    PreferenceData,
    PreferenceExample,
    describe_joining,
    fingerprint,
    joining,
    load_preferences,
    split_name,
)
from model_loading import (
    DEVICE_MAPS,
    DTYPES,
    PICKLE_FLAG,
    QUANTIZATIONS,
    REMOTE_CODE_FLAG,
    check_model_path,
    check_revision,
    commit_of,
    model_fingerprint,
    resolve_dtype,
)
from result_files import (
    append_json_lines,
    check_inputs,
    hash_config,
    merge_parts,
    output_paths,
    part_file,
    part_files,
    prepare_outputs,
    read_config,
    read_json_lines,
    row_key,
    scoring_label,
    write_json_lines,
)
from wandb_runs import check_wandb, finishing_wandb, start_wandb

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scipy")
NORMALIZATIONS = ("length-normalized", "non-length-normalized")
Record = dict[str, Any]


def dataset_label(name: str, split: str | None) -> str:
    """How lines and tables name a dataset."""
    return f"{name} ({split})" if split else name


# ---------------------------------------------------------------------------- metrics of records
def record_scores(record: Record, normalization: str) -> list[float]:
    """Log-likelihoods (Eq. 13), or divided by the number of tokens (Eq. 15); null becomes NaN."""
    scores = []
    for completion in record["completions"]:
        logp = math.nan if completion["logp"] is None else completion["logp"]
        scores.append(
            logp / completion["n_tokens"] if normalization == "length-normalized" else logp
        )
    return scores


def example_metrics(
    records: list[Record], normalization: str, include_ties: bool
) -> dict[str, dict]:
    """metric → lists over examples: numerators, denominators (defined examples only), p-values, and
    what of the numerators is owed to exact ties."""
    accuracy = (
        ranking_metrics.ranking_accuracy_with_ties
        if include_ties
        else ranking_metrics.ranking_accuracy
    )
    metrics: dict[str, dict] = {}

    def add(
        name: str, record: Record, numerator: float, denominator: float = 1,
        p: float | None = None, by_ties: float = 0,
    ):  # fmt: skip
        entry = metrics.setdefault(
            name, {"top": [], "bottom": [], "clusters": [], "p": [], "by_ties": 0}
        )
        entry["by_ties"] += by_ties
        entry["top"].append(float(numerator))
        entry["bottom"].append(float(denominator))
        entry["clusters"].append(record["prompt_id"])
        if p is not None:
            entry["p"].append(p)

    for record in records:
        scores, ranks = record_scores(record, normalization), record["ranks"]
        n_equal = ranking_metrics.exact_ties(scores, ranks)
        correct = accuracy(scores, ranks)
        add("acc", record, correct, by_ties=correct and n_equal > 0)
        if include_ties:
            literal = ranking_metrics.ranking_accuracy_with_literal_ties(scores, ranks)
            add("acc_literal_ties", record, literal, by_ties=literal and n_equal > 0)
        n_correct, n_pairs = ranking_metrics.pairwise_accuracy(scores, ranks)
        if n_pairs:
            add("pairwise_acc", record, n_correct, n_pairs, by_ties=n_equal)
            add("top1", record, ranking_metrics.top1_accuracy(scores, ranks))
        if len(ranks) > 2:
            for kind in ("spearmanr", "kendalltau"):
                value, p_value = ranking_metrics.rank_correlation(scores, ranks, kind)
                if math.isfinite(value):
                    add(kind, record, value, 1, p_value)
    return metrics


def is_cut(record: Record) -> bool:
    """Whether the prompt lost its beginning."""
    return any(completion.get("truncated") for completion in record["completions"])


def summarize_dataset(
    records: list[Record], common: Record, include_ties: bool, seed: int
) -> list[Record]:
    """Summary rows of one dataset: normalization × metric, with chance and 95 % intervals."""
    n_non_finite = sum(any(c["logp"] is None for c in record["completions"]) for record in records)
    n_ties = sum(len(set(record["ranks"])) < len(record["ranks"]) for record in records)
    n_truncated = sum(is_cut(record) for record in records)
    sizes = [len(record["ranks"]) for record in records]
    chance = float(np.mean([ranking_metrics.chance_level(record["ranks"]) for record in records]))
    rows = []
    for normalization in NORMALIZATIONS:
        n_equal = sum(
            ranking_metrics.exact_ties(record_scores(record, normalization), record["ranks"])
            for record in records
        )
        for metric, entry in example_metrics(records, normalization, include_ties).items():
            top, bottom = np.array(entry["top"]), np.array(entry["bottom"])
            values = (top / bottom).tolist()
            bootstrap = ranking_metrics.clustered_bootstrap_interval(
                entry["top"], entry["bottom"], entry["clusters"], seed
            )
            proportion = metric in ("acc", "acc_literal_ties", "top1")
            wilson = (
                ranking_metrics.wilson_interval(int(top.sum()), len(top))
                if proportion
                else (None, None)
            )
            rows.append(
                {
                    **common,
                    "calib_property": f"ranking_{normalization}",
                    "distance_metric": metric,
                    "distance_metric_value_mean": float(top.sum() / bottom.sum()),
                    "n_exact_ties": n_equal,
                    "mean_if_exact_ties_are_wrong": float(
                        (top.sum() - entry["by_ties"]) / bottom.sum()
                    ),
                    "n": len(values),
                    "chance": chance if metric == "acc" and not include_ties else None,
                    "wilson_95": wilson,
                    "bootstrap_95": [None if math.isnan(x) else x for x in bootstrap],
                    "n_clusters": len(set(entry["clusters"])),
                    "k_min": min(sizes),
                    "k_max": max(sizes),
                    "n_examples_with_ties": n_ties,
                    "n_non_finite": n_non_finite,
                    "n_truncated_prompts": n_truncated,
                    "example_distance_metric_values": values,
                    "example_p_values": entry["p"] or None,
                    "share_p_below_0.05": float(np.mean(np.array(entry["p"]) < 0.05))
                    if entry["p"]
                    else None,
                }
            )
    return rows


def compare_runs(records: list[Record], other: list[Record]) -> list[Record]:
    """Exact McNemar test per dataset, split and normalization on the examples both runs scored;
    `if_exact_ties_are_wrong` holds the counts and p-value without those of Def. 2.3."""
    by_key = {row_key(record): record for record in other}
    groups: dict[tuple, list[tuple[Record, Record]]] = {}
    for record in records:
        if row_key(record) in by_key and len(set(record["ranks"])) > 1:
            pair = (record, by_key[row_key(record)])
            groups.setdefault((record["dataset"], record["split"]), []).append(pair)
    rows = []
    for (dataset, split), pairs in groups.items():
        for normalization in NORMALIZATIONS:
            correct: tuple[list[bool], list[bool]] = ([], [])
            equal: tuple[list[bool], list[bool]] = ([], [])
            for pair in pairs:
                for side, record in enumerate(pair):
                    scores = record_scores(record, normalization), record["ranks"]
                    correct[side].append(ranking_metrics.ranking_accuracy(*scores))
                    equal[side].append(ranking_metrics.exact_ties(*scores) > 0)
            strict = [np.array(c) & ~np.array(e) for c, e in zip(correct, equal)]
            names = ("only_this_correct", "only_other_correct", "p_value")
            rows.append(
                {
                    "dataset": dataset,
                    "split": split,
                    "calib_property": f"ranking_{normalization}",
                    "n": len(pairs),
                    **dict(zip(names, ranking_metrics.exact_mcnemar(*correct))),
                    "n_exact_ties": [sum(side) for side in equal],
                    "if_exact_ties_are_wrong": dict(
                        zip(names, ranking_metrics.exact_mcnemar(*strict))
                    ),
                }
            )
    return rows


# ---------------------------------------------------------------------------- several processes


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


# ---------------------------------------------------------------------------- scoring to a file
def load_examples(path: str) -> list[Record]:
    """Rows of an examples file in the order of the data; ValueError if they are not that."""
    records = read_json_lines(Path(path))
    own = path.removesuffix(".examples.jsonl")
    stems = (own, own.removesuffix(".policy"))  # scored by the idealized script, one summary of two
    summaries = [stem + suffix for stem in stems for suffix in ("", ".jsonl", ".json")]
    unfinished = Path(f"{own}.config.json").exists() and not any(map(os.path.isfile, summaries))
    if part_files(Path(path)) or unfinished:
        raise ValueError(f"{path} is of an unfinished run: give the command that began it again")
    needed = {
        "id",
        "prompt_id",
        "dataset",
        "split",
        "row",
        "ranks",
        "votes",
        "completions",
        "prompt",
        "model",
    }
    for number, record in enumerate(records, start=1):
        if not needed <= record.keys():
            raise ValueError(f"{path}: row {number}: not an examples file of the ranking script")
    if not records:
        raise ValueError(f"{path}: no rows")
    return sorted(records, key=lambda record: (record["dataset"], record["row"], record["id"]))


def config_beside(path: str, records: list[Record]) -> Record | None:
    """How an examples file was scored, by the config beside it; None, and a line that says so,
    where there is none, or that of other rows."""
    file = Path(path.removesuffix(".examples.jsonl") + ".config.json")
    config = read_config(file)
    if {record.get("config_hash") for record in records} == {hash_config(config)}:
        return config
    announce(
        f"{path}: no {file.name} beside it that belongs to it: how it was scored (template, EOS, "
        "separator, length, ties) could not be checked"
    )
    return None


def scoring_settings(config: Record | None, name: str, split: str | None) -> Record:
    """What a summary row says of how its texts were made; null where nobody knows."""
    settings: Record = {
        key: (config or {}).get(key)
        for key in ("chat_template", "add_eos", "max_length", "sample_size")
    }
    return {**settings, "separator": separator_of(config, name, split)}


def separator_of(config: Record | None, name: str, split: str | None) -> Any:
    """What joined prompt and completion of a dataset; null under a chat template."""
    entries = [] if config is None or config.get("chat_template") else config["datasets"]
    found = [e["separator"] for e in entries if (e["name"], e["split"]) == (name, split)]
    return found[0] if found else None


def separators_of(record: Record, config: Record) -> list:
    """What joined each completion of a record to the prompt; older rows: what the config says."""
    whole = separator_of(config, record["dataset"], record["split"])
    return [completion.get("separator", whole) for completion in record["completions"]]


def planned_records(datasets: list[PreferenceData]) -> list[Record]:
    """The examples of a run that is yet to score them, with what of a record is known by then."""
    return [
        {
            "dataset": data.name,
            "split": data.split,
            "id": example.id,
            "row": example.row,
            "prompt": example.prompt,
            "ranks": list(example.ranks),
            "votes": recorded_votes(example),
            "completions": [
                {"text": text, "separator": separator}
                for text, separator in zip(example.completions, example.separators)
            ],
        }
        for data in datasets
        for example in data.examples
    ]


class Run(NamedTuple):
    """Rows of a run (planned, or read from a file) and how they are scored (None: not known)."""

    name: str
    records: list[Record]
    config: Record | None
    planned: bool


def check_comparable(first: Run, second: Run) -> None:
    """Raise ValueError where two runs scored an example, but not as the same text, or not with the
    same ranks and votes. A line says what else differs."""
    rows = {row_key(record): record for record in second.records}
    pairs = [(r, rows[row_key(r)]) for r in first.records if row_key(r) in rows]
    for a, b in pairs:
        for key in ("prompt", "completions", "ranks", "votes"):
            values = [[c["text"] for c in r[key]] if key == "completions" else r[key]
                      for r in (a, b)]  # fmt: skip
            if values[0] != values[1]:
                raise ValueError(
                    f"{dataset_label(a['dataset'], a['split'])}, row {a['row']}: its {key} differ "
                    f"between {first.name} and {second.name}: score the same data"
                )
    one, two = first.config, second.config
    if one is None or two is None or not pairs:
        return

    def refuse(setting: str, values: tuple) -> None:
        said = " and ".join(
            f"{run.name} with {setting} {json.dumps(value)}"
            for run, value in zip((first, second), values)
        )
        raise ValueError(f"not the same text: {said}: score both alike")

    for key in ("chat_template", "add_eos"):
        if one.get(key) != two.get(key):
            refuse(key, (one.get(key), two.get(key)))
    if not one.get("chat_template"):
        for a, b in pairs:
            ours, theirs = separators_of(a, one), separators_of(b, two)
            if ours != theirs:
                refuse(f"{dataset_label(a['dataset'], a['split'])}: separators", (ours, theirs))
    limits = [config.get("max_length") or math.inf for config in (one, two)]
    cut = any(map(is_cut, (record for pair in pairs for record in pair)))
    tighter = first if limits[0] < limits[1] else second
    if limits[0] != limits[1] and (cut or tighter.planned):
        refuse("max_length", (one.get("max_length"), two.get("max_length")))
    harmless = [
        f"{key} {one.get(key)} and {two.get(key)}"
        for key in ("dtype", "quantization", "sample_size", "seed", "include_ties")
        if one.get(key) != two.get(key)
    ]
    if harmless:
        announce(f"{first.name} and {second.name} differ in {', '.join(harmless)}; the same "
                 f"{len(pairs)} examples are in both")  # fmt: skip


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

    from log_likelihood import (
        check_fast_path,
        count_new_tokens,
        score_examples,
        tokenize_examples,
    )
    from model_loading import choose_device, context_length, load_model, load_tokenizer

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


def recorded_votes(example: PreferenceExample) -> dict[str, list[float]] | None:
    """Votes as the examples file has them: "i,j" → the two counts."""
    votes = example.votes or {}
    return {f"{i},{j}": list(counts) for (i, j), counts in votes.items()} or None


def example_record(
    data: PreferenceData, example, completions, logps, config_hash: str, config: Record
) -> Record:
    """One line of the examples file; logp is the float64 sum over tokens (nats) or null."""
    sums = [float(values.astype(np.float64).sum()) for values in logps]
    return {
        "id": example.id,
        "prompt_id": example.prompt_id,
        "dataset": data.name,
        "dataset_config": data.config,
        "split": data.split,
        "row": example.row,
        "model": config["model"],
        "config_hash": config_hash,
        "prompt": example.prompt,
        "ranks": list(example.ranks),
        "votes": recorded_votes(example),
        "completions": [
            {
                "text": text,
                "separator": separator,
                "logp": logp if math.isfinite(logp) else None,
                "n_tokens": len(completion.ids) - completion.start,
                "n_chars": len(text),
                "n_bytes": len(text.encode("utf-8", "surrogatepass")),
                "truncated": completion.truncated,
            }
            for text, separator, completion, logp in zip(
                example.completions, example.separators, completions, sums
            )
        ],
    }


# ---------------------------------------------------------------------------- reporting
def print_table(rows: list[Record]) -> None:
    """dataset, K, n, R̃ and R with their 95 % Wilson intervals, chance, dropped, ties."""
    from rich.console import Console
    from rich.table import Table

    how = scoring_label(rows[0])
    table = Table(title="Ranking accuracy, % [95 % interval]" + (f"; {how}" if how else ""))
    for column in ("dataset", "K", "n", "R̃ (per token)", "R (summed)", "chance", "dropped", "ties"):
        table.add_column(column, justify="left" if column == "dataset" else "right")
    accuracies = [row for row in rows if row["distance_metric"] == "acc"]
    for _, pair in groupby(accuracies, key=lambda r: (r["dataset_name"], r["dataset_split"])):
        normalized, summed = pair
        low, high = summed["k_min"], summed["k_max"]
        table.add_row(
            dataset_label(summed["dataset_name"], summed["dataset_split"]),
            str(low) if low == high else f"{low}–{high}",
            str(summed["n"]),
            *(
                f"{100 * r['distance_metric_value_mean']:.1f} "
                f"[{100 * r['wilson_95'][0]:.1f}, {100 * r['wilson_95'][1]:.1f}]"
                for r in (normalized, summed)
            ),
            "–" if summed["chance"] is None else f"{100 * summed['chance']:.1f}",
            str(sum(summed["dropped"].values())),
            str(summed["n_examples_with_ties"]),
        )
    console = Console(width=None if sys.stdout.isatty() else 132, markup=False)
    console.print(table)
    for row in accuracies[::2]:
        where, n = dataset_label(row["dataset_name"], row["dataset_split"]), row["n_non_finite"]
        if n:
            console.print(
                f"{where}: {n} examples with a non-finite log-likelihood, counted as wrong"
            )
    report_exact_ties(rows)


def report_exact_ties(rows: list[Record]) -> None:
    """A line where untied pairs have exactly equal scores, and a warning where they decide."""
    for row in rows:
        metric, kind = row["distance_metric"], row["calib_property"].removeprefix("ranking_")
        where = f"{dataset_label(row['dataset_name'], row['dataset_split'])}, {kind}"
        value, strict = row["distance_metric_value_mean"], row["mean_if_exact_ties_are_wrong"]
        if metric == "acc" and row["n_exact_ties"]:
            print(f"{where}: {row['n_exact_ties']} untied pairs have exactly equal scores")
        if strict < value and (metric == "acc" or (metric == "pairwise_acc" and row["k_max"] > 2)):
            logging.warning(
                "%s: exact ties decide %s: %.1f %% as Def. 2.3 counts them (right), %.1f %% if "
                "they were wrong", where, metric, 100 * value, 100 * strict,
            )  # fmt: skip


def announce_uneven_cuts(records: list[Record], other: list[Record]) -> None:
    """A line where a prompt lost its beginning in one of two runs only."""
    by_key = {row_key(record): is_cut(record) for record in other}
    n = sum(is_cut(r) != by_key[row_key(r)] for r in records if row_key(r) in by_key)
    if n:
        announce(f"{n} prompts were cut from the left in one of the two runs only")


def print_comparison(records: list[Record], other: list[Record], name: str) -> None:
    """McNemar's test against another run, and without exact ties where there are any."""
    announce_uneven_cuts(records, other)
    comparisons = compare_runs(records, other)
    if not comparisons:
        print(f"McNemar: no example of this run is in {name}")
    for row in comparisons:
        where = f"{dataset_label(row['dataset'], row['split'])}, {row['calib_property']}"
        kinds = [("", row)]
        if any(row["n_exact_ties"]):
            kinds.append((", exact ties counted as wrong", row["if_exact_ties_are_wrong"]))
        for kind, found in kinds:
            counts = [found[f"only_{side}_correct"] for side in ("this", "other")]
            print(
                f"McNemar, {where}{kind}: {counts[0]} only here, {counts[1]} only there, of "
                f"{row['n']}; exact p = {found['p_value']:.3g}"
            )


def log_to_wandb(run, rows: list[Record], records: list[Record], picture: Path) -> None:
    """Accuracies as summary values, the table, the picture and a per-example table."""
    import wandb

    columns = [
        "dataset_name",
        "dataset_split",
        "calib_property",
        "distance_metric",
        "distance_metric_value_mean",
        "n",
        "chance",
    ]
    splits = {(row["dataset_name"], row["dataset_split"]) for row in rows}
    names = [name for name, _ in splits]
    for row in rows:
        name = row["dataset_name"]
        if names.count(name) > 1:
            name = dataset_label(name, row["dataset_split"])
        key = f"{name}/{row['calib_property']}/{row['distance_metric']}"
        run.summary[key] = row["distance_metric_value_mean"]
    examples = [
        [r["dataset"], r["id"], r["prompt"], json.dumps(r["ranks"]),
         json.dumps([c["text"] for c in r["completions"]]),
         json.dumps([c["logp"] for c in r["completions"]]),
         json.dumps([c["n_tokens"] for c in r["completions"]])]
        for r in records
    ]  # fmt: skip
    titles = [
        "dataset",
        "id",
        "prompt",
        "ranks",
        "completions",
        "log-likelihoods (nats)",
        "n_tokens",
    ]
    run.log(
        {
            "ranking_accuracy": wandb.Table(
                columns=columns, data=[[row[c] for c in columns] for row in rows]
            ),
            "examples": wandb.Table(columns=titles, data=examples),
            "figure": wandb.Image(str(picture)),
        }
    )


# ---------------------------------------------------------------------------- command line
def add_scoring_arguments(parser: argparse.ArgumentParser, default_datasets: list[str]) -> None:
    """Flags of every script that scores a model on preference data."""
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", required=True, help="directory for all result files")
    output.add_argument(
        "--output-filename", required=True, help="name of the summary, e.g. gpt2.jsonl"
    )
    output.add_argument(
        "--overwrite",
        action="store_true",
        help="discard a finished run of that name, or an unfinished one with other settings",
    )
    output.add_argument(
        "--wandb-project", help="also log to this wandb project (default: no wandb)"
    )
    output.add_argument(
        "--loglevel", default="WARNING", choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        help="DEBUG shows where an error came from",
    )  # fmt: skip
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", action="append", metavar="NAME[:[CONFIG:]SPLIT]",
        help="sample, a hub name, or a local file or directory; repeatable "
        f"(default: {', '.join(default_datasets)})",
    )  # fmt: skip
    data.add_argument(
        "--split", help="split for datasets that name none (default: as in the paper)"
    )
    data.add_argument("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    data.add_argument("--sample-size", type=int, default=1000, help="examples per dataset, -1: all")
    data.add_argument("--seed", type=int, default=0, help="seed of the sample and the bootstrap")
    data.add_argument(
        "--include-ties", action="store_true", help="count tied examples, by Def. C.1"
    )
    data.add_argument(
        "--stream-shuffle-buffer", type=int, default=0, metavar="ROWS",
        help="shuffle streamed hub data through a buffer (0: the first rows, as the paper)",
    )  # fmt: skip
    text = parser.add_argument_group("text")
    text.add_argument(
        "--max-length", type=int, help="tokens of prompt + completion (default: the model's)"
    )
    text.add_argument(
        "--chat-template", action="store_true", help="format prompts with the chat template"
    )
    text.add_argument("--separator", help="between prompt and completion (default: per dataset)")
    text.add_argument("--add-eos", action="store_true", help="score the end-of-text token as well")
    compute = parser.add_argument_group("compute")
    compute.add_argument("--revision", help="hub revision of the model")
    add_trust_arguments(compute)
    compute.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="auto: float32 on CPU, bfloat16 on GPU"
    )
    compute.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    compute.add_argument(
        "--device-map", choices=DEVICE_MAPS,
        help="spread a model larger than one device over all, and over main memory",
    )  # fmt: skip
    compute.add_argument(
        "--quantization", choices=QUANTIZATIONS, help="of the weights, by bitsandbytes"
    )
    compute.add_argument(
        "--attn-implementation", help="attention of the plain path (sdpa, eager, …)"
    )
    compute.add_argument(
        "--batch-size", type=int, default=128, help="most examples in one forward pass"
    )
    compute.add_argument(
        "--tokens-per-batch", type=int,
        help="tokens of one forward pass, for the pairs of one prompt up to four times as many "
        "(default: 1024 on CPU, 16384 on GPU)",
    )  # fmt: skip


def add_trust_arguments(group) -> None:
    """Flags for models that could run code of theirs; both are off unless given."""
    group.add_argument(
        REMOTE_CODE_FLAG, action="store_true", help="run Python files that come with the model"
    )
    group.add_argument(
        PICKLE_FLAG, action="store_true", help="read weights saved by pickle, which can run code"
    )


def check_scoring_arguments(args: argparse.Namespace, default_datasets: list[str]) -> None:
    """Fill in defaults and raise ValueError for values no run can honour."""
    if args.sample_size == 0 or args.sample_size < -1:
        raise ValueError(f"--sample-size {args.sample_size}: give a positive number, or -1 for all")
    args.sample_size = None if args.sample_size == -1 else args.sample_size
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: give 0 or more")
    if args.wandb_project:
        check_wandb(args.wandb_project)
    if args.device_map is not None and args.device != "auto":
        raise ValueError("--device-map spreads the model over all devices: leave out --device")
    for flag in ("max_length", "batch_size", "tokens_per_batch"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')} {value}: give a positive number")
    if args.separator is not None and args.chat_template:
        raise ValueError("--separator: --chat-template joins prompt and completion, give one")
    if args.stream_shuffle_buffer < 0:
        raise ValueError(f"--stream-shuffle-buffer {args.stream_shuffle_buffer}: give 0 or more")
    args.dataset = args.dataset or default_datasets
    check_data_flags(args)


def check_data_flags(args: argparse.Namespace) -> None:
    """Raise ValueError for a flag that does nothing on any dataset of the run; a line where it does
    nothing on some. --data-dir and --seed only get the line: the one says where to look, the other
    seeds the bootstrap as well."""
    whole = args.sample_size is None
    idle: dict[str, list[str]] = {}
    for spec in args.dataset:
        name, _, split = split_name(spec)
        source = DATASETS.get(name)
        own = name == "sample" or (source is None and Path(name).exists())
        streamed = source is not None and source.streamed and args.data_dir is None and not whole
        first_rows = source is not None and source.streamed and not (
            streamed and args.stream_shuffle_buffer
        )  # fmt: skip
        for flag, does_nothing in (
            ("--split (it names one)", args.split is not None and split is not None),
            ("--data-dir (a file of its own)", args.data_dir is not None and own),
            ("--stream-shuffle-buffer (not streamed)", args.stream_shuffle_buffer and not streamed),
            ("--seed (all, or the first rows, are taken)", args.seed and (whole or first_rows)),
        ):
            if does_nothing:
                idle.setdefault(flag, []).append(spec)
    for flag, specs in idle.items():
        message = f"{flag} does nothing for {', '.join(specs)}"
        if len(specs) == len(args.dataset) and not flag.startswith(("--data-dir", "--seed")):
            raise ValueError(message)
        announce(message + ("; it seeds the bootstrap" if flag.startswith("--seed") else ""))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--lm-name-or-path", required=True,
        help="hub name, local directory, GGUF file, adapter directory, or SmolLM2-135M-Instruct",
    )  # fmt: skip
    add_scoring_arguments(parser, list(DATASETS))
    parser.add_argument(
        "--compare", metavar="EXAMPLES", help="examples file of another run: McNemar's test"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    check_scoring_arguments(args, list(DATASETS))
    other = load_examples(args.compare) if args.compare else None
    other_config = config_beside(args.compare, other) if other is not None else None
    check_model_path(args.lm_name_or_path)
    paths = output_paths(args.output_dir, args.output_filename)
    check_inputs(paths, [*args.dataset, args.compare])
    if paths["summary"].exists() and not args.overwrite:
        raise ValueError(
            f"{paths['summary']} exists: choose another --output-filename or pass --overwrite"
        )
    check_revision("--revision", args.revision, args.lm_name_or_path)
    datasets = load_datasets(args)
    config = run_config(args, datasets, args.lm_name_or_path, args.revision)
    if other is not None:
        ours = Run("this run", planned_records(datasets), config, planned=True)
        check_comparable(ours, Run(args.compare, other, other_config, planned=False))
        if not {*map(row_key, ours.records)} & {*map(row_key, other)}:
            raise ValueError(f"--compare {args.compare}: it has no example of this run")
    earlier = prepare_outputs_once(paths, config, args.overwrite)
    records, facts = score_to_file(args, datasets, config, paths["examples"], earlier)
    if process_rank() > 0:
        return  # the first process has all records and reports

    rows = []
    for data, dropped in zip(datasets, facts.pop("dropped")):
        common = {
            "model": args.lm_name_or_path,
            "dataset_name": data.name,
            "dataset_config": data.config,
            "dataset_split": data.split,
            "dataset_commit": data.commit,
            "dropped": dropped,
            "joined_by": None if args.chat_template else joining(data.examples),
            "include_ties": args.include_ties,
            "seed": args.seed,
            "revision": args.revision,
            "config_hash": hash_config(config),
            **scoring_settings(config, data.name, data.split),
            **facts,
            "versions": {name: version(name) for name in LIBRARIES},
        }
        chosen = [r for r in records if (r["dataset"], r["split"]) == (data.name, data.split)]
        if not chosen:
            where = dataset_label(data.name, data.split)
            print(f"{where}: no example left to score ({dropped})", file=sys.stderr)
            continue
        rows += summarize_dataset(chosen, common, args.include_ties, args.seed)

    from plot_results import draw, plot_ranking_accuracy

    draw(plot_ranking_accuracy, rows, paths["picture"])
    write_json_lines(paths["summary"], rows)  # last: it marks the run as finished
    print_table(rows)
    if other is not None:
        print_comparison(records, other, args.compare)
    print(
        f"summary   {paths['summary']}\nexamples  {paths['examples']}\npicture   {paths['picture']}"
    )
    if args.wandb_project:
        run = start_wandb(project=args.wandb_project, config=config)
        with finishing_wandb(run):
            log_to_wandb(run, rows, records, paths["picture"])


if __name__ == "__main__":
    run_script(main, parse_args())
