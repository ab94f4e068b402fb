"""Flags of every script that scores a model on preference data."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from ranking.data.columns import GROUP_COLUMNS, TARGETS, parse_columns
from ranking.plumbing.command_line import count, positive_int, sample_size
from ranking.plumbing.wandb_runs import check_wandb
from ranking.scoring.chat import TEMPLATE_MODES, ChatOptions, read_kwargs, read_template
from ranking.scoring.models import DEVICE_MAPS, DTYPES, PICKLE_FLAG, QUANTIZATIONS, REMOTE_CODE_FLAG

DATA_FLAGS = (  # of `load_datasets`
    "sample_size", "seed", "split", "data_dir", "include_ties", "stream_shuffle_buffer",
    "separator", "chat_template", "columns", "group_by",
)  # fmt: skip
CONFIG_FLAGS = (  # of `make_run_config`
    "sample_size", "seed", "include_ties", "max_length", "chat", "add_eos",
    "quantization", "trust_remote_code", "ches",
)  # fmt: skip
MODEL_FLAGS = (  # of `load_scorer`
    "chat", "add_eos", "max_length", "tokens_per_batch", "batch_size", "device_map",
    "quantization", "attn_implementation", "trust_remote_code", "allow_pickle",
    "ches",
)  # fmt: skip


OF_RESULTS = {  # flags that do something where no model is scored
    "output_dir", "output_filename", "overwrite", "wandb_project", "loglevel", "seed",
    "include_ties",
}  # fmt: skip


def add_scoring_arguments(
    parser: argparse.ArgumentParser, default_datasets: list[str]
) -> list[str]:
    """Flags of every script that scores a model on preference data. Returns their names."""
    before = len(parser._actions)
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
        "--ches",
        action="store_true",
        help="also record how alike the hidden states of completions are, for CHES (2410.08847)",
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
        "--dataset", action="append", metavar="NAME[:CONFIG][:SPLIT]",
        help="sample, any hub name, or a local file or directory; SPLIT *: all files of a "
        "directory together; repeatable "
        f"(default: {', '.join(default_datasets)})",
    )  # fmt: skip
    data.add_argument(
        "--split",
        help="split for datasets that name none (default: the paper's, else test, validation, …)",
    )
    data.add_argument("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    data.add_argument(
        "--sample-size",
        type=sample_size,
        default=1000,
        help="examples per dataset, -1: all; of a hub split over 1 GiB, its first rows",
    )
    data.add_argument("--seed", type=count, default=0, help="seed of the sample and the bootstrap")
    data.add_argument(
        "--include-ties", action="store_true", help="count tied examples, by Def. C.1"
    )
    data.add_argument(
        "--stream-shuffle-buffer", type=count, default=0, metavar="ROWS",
        help="shuffle streamed hub data through a buffer (0: the first rows, as the paper)",
    )  # fmt: skip
    add_columns_argument(data)
    data.add_argument(
        "--group-by", nargs="+", metavar="COLUMN",
        help="also give results by the values of these columns (default: "
        f"{', '.join(GROUP_COLUMNS)}, where the data have them)",
    )  # fmt: skip
    text = parser.add_argument_group("text")
    text.add_argument(
        "--max-length",
        type=positive_int,
        help="tokens of prompt + completion (default: the model's)",
    )
    add_chat_arguments(text)
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
        "--batch-size", type=positive_int, default=128, help="most examples in one forward pass"
    )
    compute.add_argument(
        "--tokens-per-batch", type=positive_int,
        help="tokens of one forward pass, for the pairs of one prompt up to four times as many "
        "(default: 1024 on CPU, 16384 on GPU)",
    )  # fmt: skip
    return [action.dest for action in parser._actions[before:]]


def refuse_idle_flags(
    parser: argparse.ArgumentParser, flags: dict[str, Any], names: Iterable[str], source: str
) -> None:
    """An error of the command line for a flag of scoring, where nothing is scored and the data are
    those of the flag `source`. names: as `add_scoring_arguments` returns them."""
    for name in names:
        if name not in OF_RESULTS and flags[name] != parser.get_default(name):
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag}: the data are those of {source}, nothing is scored")


def add_chat_arguments(group) -> None:
    """Flags that say how dialogues are rendered, which `chat_options` takes together."""
    group.add_argument(
        "--chat-template", nargs="?", const="always", default="auto", choices=TEMPLATE_MODES,
        help="auto: dialogues go through the model's chat template if it has one, plain text stays "
        "text; always (or no word): all; never",
    )  # fmt: skip
    group.add_argument(
        "--chat-template-kwargs", metavar="JSON",
        help="""what else the template is given, e.g. '{"enable_thinking": false}'""",
    )  # fmt: skip
    group.add_argument(
        "--chat-template-file", metavar="FILE", help="a Jinja file instead of the model's template"
    )
    group.add_argument("--system", metavar="TEXT", help="system message of dialogues without one")


def chat_options(flags: dict[str, Any]) -> ChatOptions:
    """The flags of `add_chat_arguments`; ValueError for those that no template can be given."""
    mode, kwargs, file = (
        flags[name] for name in ("chat_template", "chat_template_kwargs", "chat_template_file")
    )
    if mode == "never" and (kwargs or file):
        flag = "--chat-template-kwargs" if kwargs else "--chat-template-file"
        raise ValueError(f"{flag} does nothing with --chat-template never")
    return ChatOptions(
        mode, flags["system"], read_kwargs(kwargs) if kwargs else {},
        read_template(file) if file else None,
    )  # fmt: skip


def add_columns_argument(group) -> None:
    """The flag for data whose columns have names of their own."""
    group.add_argument(
        "--columns", nargs="+", metavar="TARGET=COLUMN",
        help=f"what columns are called in the data ({', '.join(TARGETS)}), as in "
        "prompt=question chosen=answer_a rejected=answer_b; a dot leads into an object",
    )  # fmt: skip


def add_trust_arguments(group) -> None:
    """Flags for models that could run code of theirs; both are off unless given."""
    group.add_argument(
        REMOTE_CODE_FLAG, action="store_true", help="run Python files that come with the model"
    )
    group.add_argument(
        PICKLE_FLAG, action="store_true", help="read weights saved by pickle, which can run code"
    )


def parse_text_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """The flags, with those of `add_columns_argument` and `add_chat_arguments` read; what they and
    wandb would refuse is an error."""
    args = parser.parse_args(argv)
    try:
        args.columns = parse_columns(args.columns)
        args.chat = chat_options(vars(args))
        if args.wandb_project:
            check_wandb(args.wandb_project)
    except ValueError as error:
        parser.error(str(error))
    return args


def parse_scoring_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """The flags of `add_scoring_arguments`; those that no run can honour together are an error."""
    args = parse_text_args(parser, argv)
    if args.device_map is not None and args.device != "auto":
        parser.error("--device-map spreads the model over all devices: leave out --device")
    if args.separator is not None and args.chat_template == "always":
        parser.error("--separator: --chat-template joins prompt and completion, give one")
    return args


def take(flags: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Some of the flags by name, as arguments of a function that calls them the same."""
    return {name: flags[name] for name in names}
