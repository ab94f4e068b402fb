r"""The pairs of HH-RLHF whose dialogues are short, for training that a CPU can do.

    python -m reproduce.short_pairs --lm-name-or-path SmolLM2-135M-Instruct --max-tokens 160 \
        --data-dir DATA_DIR --output-dir results/short

Writes DIR/Anthropic/hh-rlhf/train.jsonl and test.jsonl, the rows of either split both of whose
dialogues have at most so many tokens, as they stand: --data_dir=DIR of sft.py and dpo.py. Other
datasets of whole dialogues (columns chosen, rejected) by --dataset.
"""

import argparse
from pathlib import Path

from ranking.data.sources import read_dataset
from ranking.plumbing.command_line import make_parser, positive_int, run_script
from ranking.plumbing.result_files import write_json_lines
from ranking.scoring.loading import load_tokenizer


def short_rows(rows, tokenizer, max_tokens: int) -> list[dict]:
    """Rows whose texts `chosen` and `rejected` have at most `max_tokens` tokens each."""
    found = list(rows)
    counts = {
        side: [len(ids) for ids in tokenizer([row[side] for row in found])["input_ids"]]
        for side in ("chosen", "rejected")
    }
    longest = map(max, counts["chosen"], counts["rejected"])
    return [row for row, n in zip(found, longest) if n <= max_tokens]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--lm-name-or-path", required=True, metavar="NAME", help="whose tokenizer counts")
    add("--max-tokens", type=positive_int, required=True, metavar="N",
        help="most tokens of prompt and completion, of either completion")  # fmt: skip
    add("--dataset", default="Anthropic/hh-rlhf", metavar="NAME", help="(default: %(default)s)")
    add("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    add("--output-dir", type=Path, required=True, help="directory of directories by hub name")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(args.lm_name_or_path)
    folder = args.output_dir / args.dataset
    if folder.exists():
        raise ValueError(f"--output-dir {args.output_dir}: {args.dataset} is there already")
    kept, counts = {}, {}
    for split in ("train", "test"):
        rows = read_dataset(args.dataset, split, args.data_dir).rows
        if not len(rows) or not {"chosen", "rejected"} <= rows[0].keys():
            raise ValueError(f"--dataset {args.dataset}: {split} has no rows of chosen, rejected")
        short = short_rows(rows, tokenizer, args.max_tokens)
        if not short:
            raise ValueError(f"--max-tokens {args.max_tokens}: no pair of {split} is so short")
        kept[split], counts[split] = short, f"{len(short)} of {len(rows)} pairs"
    folder.mkdir(parents=True)
    for split, short in kept.items():
        write_json_lines(folder / f"{split}.jsonl", short)
        print(f"{folder / split}.jsonl: {counts[split]}")


if __name__ == "__main__":
    run_script(main, parse_args())
