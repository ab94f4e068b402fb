"""Flags of every script that scores a model on preference data."""

import argparse
from pathlib import Path

from ranking.data.hub import DATASETS, split_name
from ranking.plumbing.command_line import announce
from ranking.plumbing.wandb_runs import check_wandb
from ranking.scoring.models import DEVICE_MAPS, DTYPES, PICKLE_FLAG, QUANTIZATIONS, REMOTE_CODE_FLAG


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
