r"""The test part of the data of dpo.py as a file, whose prompts no run has seen (Fig. 11, 12).

    python -m reproduce.write_part --dataset Anthropic/hh-rlhf --data-dir DATA_DIR \
        --output results/hh_test_part.jsonl
    python calculate_win_rate.py --dataset results/hh_test_part.jsonl …

dpo.py halves the test split of HH-RLHF by prompt into validation and test. Writes the rows of one
part as they stand in their dataset; reading the file gives the same examples with the same ids,
which is checked. All of the part, where --max_eval_samples of dpo.py takes 1000 examples of it.
"""

import argparse
from pathlib import Path

from ranking.data.examples import PreferenceData, PreferenceExample
from ranking.data.preferences import load_preferences
from ranking.data.sources import read_dataset
from ranking.data.splits import load_training_splits
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import write_json_lines


def rows_of_part(dataset: str, data: PreferenceData, data_dir: str | None) -> list[dict]:
    """The rows that the examples of a part were read from, as they stand in the dataset."""
    rows = read_dataset(dataset, data.split, data_dir).rows
    return [dict(rows[number]) for number in sorted({example.row for example in data.examples})]


def facts_of(example: PreferenceExample) -> tuple:
    """What an example says, wherever it was read."""
    return (example.id, example.prompt_id, example.prompt, example.separators,
            example.completions, example.ranks, example.votes)  # fmt: skip


def write_part(dataset: str, part: str, data_dir: str | None, file: Path) -> int:
    """Write a part of `load_training_splits`; how many examples. ValueError, and no file, where its
    rows by themselves would not be read as the examples that they are in the dataset."""
    parts, notes = load_training_splits(dataset, data_dir=data_dir)
    for note in notes:
        announce(f"{dataset}: {note}")
    data = parts[part]
    write_json_lines(file, rows_of_part(dataset, data, data_dir))
    read = load_preferences(str(file), sample_size=None)
    if list(map(facts_of, read.examples)) != list(map(facts_of, data.examples)):
        file.unlink()
        raise ValueError(f"--dataset {dataset}: rows of its {part} part are read otherwise outside "
                         "of it, so no file was written")  # fmt: skip
    return len(data.examples)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--dataset", default="Anthropic/hh-rlhf", metavar="NAME",
        help="--dataset_name of dpo.py (default: %(default)s)")  # fmt: skip
    add("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    add(
        "--part",
        choices=("train", "validation", "test"),
        default="test",
        help="which (default: test)",
    )
    add(
        "--output", type=Path, required=True, help="the file, .jsonl; one that is there is replaced"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.output.suffix != ".jsonl" or not args.output.parent.is_dir():
        raise ValueError(f"--output {args.output}: give a .jsonl in a directory that exists")
    n = write_part(args.dataset, args.part, args.data_dir, args.output)
    print(f"{args.output}: {n} examples of {args.part}")


if __name__ == "__main__":
    run_script(main, parse_args())
