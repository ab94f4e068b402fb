"""Memory and time per example of a large dataset: reading, tokenizing, scoring.

    python -m benchmarks.dataset_growth --data-dir DATA_DIR --dataset Anthropic/hh-rlhf \
        --output benchmarks/dataset_growth.json

The dataset's rows, over and over until there are as many as of --sizes, are written to a file that
the steps of the ranking script then read, tokenize and score, in a process of its own for each
size. The model is a random one of two narrow layers and 512 words, to which token ids are folded:
what is measured is what the examples cost, not the model. Memory is the peak of the process in a
step beyond what it held before it; the sum of the steps is what the examples take at most.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.command import benchmark_parser, measure_apart, print_figures, write_figures
from benchmarks.machine import forget_peak, memory_gib
from ranking.data.preferences import load_preferences
from ranking.data.sources import read_dataset
from ranking.plumbing.command_line import positive_int, run_script

N_WORDS = 512
STEPS = ("reading", "tokenizing", "scoring")


def write_rows(name: str, data_dir: str | None, n: int, path: Path) -> int:
    """The rows of a dataset over and over, n of them, as JSON lines; the bytes of the file."""
    rows = read_dataset(name, data_dir=data_dir).rows
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in islice(cycle(rows), n))
    return path.stat().st_size


def measure(path: Path, name: str) -> dict:
    """Seconds and GiB held after each step, with a tiny model that has `name`'s tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ranking.scoring.examples_file import example_record
    from ranking.scoring.loading import load_tokenizer
    from ranking.scoring.score import score_examples
    from ranking.scoring.start_up_check import check_fast_path
    from ranking.scoring.tokenization import tokenize_examples

    tokenizer = load_tokenizer(name)
    config = LlamaConfig(
        vocab_size=N_WORDS, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    figures: dict = {}

    def measured(step: str, run: Callable[[], Any]) -> Any:
        """What `run` returns; the seconds it took, and the GiB it held at most beyond before."""
        gc.collect()
        forget_peak("cpu")
        before, start = memory_gib("cpu")[0], time.perf_counter()
        result = run()
        seconds, gib = time.perf_counter() - start, memory_gib("cpu")[1] - before
        figures[step] = {"seconds": seconds, "peak_gib": gib}
        print(f"{step:10} {seconds:8.1f} s {gib:6.2f} GiB", flush=True)
        return result

    def records() -> list:
        how = {"path": check_fast_path(model, folded), "tokens_per_batch": 1024, "batch_size": 128}
        return [
            example_record(data, data.examples[kept[i]], folded[i], logps, "", name)
            for batch in score_examples(model, folded, **how)
            for i, logps in batch
        ]

    data = measured("reading", lambda: load_preferences(str(path)))
    kept, tokenized, _ = measured(
        "tokenizing", lambda: tokenize_examples(tokenizer, data.examples, max_length=2048)
    )
    folded = [
        [replace(c, ids=tuple(i % N_WORDS for i in c.ids)) for c in example]
        for example in tokenized
    ]
    scored = measured("scoring", records)
    return {"n_examples": len(scored), **figures}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    parser.add_argument(
        "--sizes", type=positive_int, nargs="+", default=[20_000, 100_000], help="numbers of rows"
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.side:
        print_figures(measure(Path(args.side), args.lm_name_or_path))
        return
    summary: dict = {"dataset": args.dataset, "sizes": []}
    with tempfile.TemporaryDirectory() as folder:
        for n in args.sizes:
            path = Path(folder) / f"{n}.jsonl"
            n_bytes = write_rows(args.dataset, args.data_dir, n, path)
            figures = measure_apart("benchmarks.dataset_growth", str(path), dict(os.environ))
            summary["sizes"].append({"n": n, "text_kib": n_bytes / n / 1024, **figures})
            path.unlink()
    small, *_, large = summary["sizes"]
    print(f"{small['n']} to {large['n']} rows, each of {large['text_kib']:.2f} KiB of JSON")
    for step in STEPS:
        seconds, gib = (large[step][key] - small[step][key] for key in ("seconds", "peak_gib"))
        n = large["n"] - small["n"]
        print(
            f"{step:10} {1000 * seconds / n:6.2f} ms and {2**20 * gib / n:6.2f} KiB for each more"
        )
    write_figures(args.output, summary)


if __name__ == "__main__":
    run_script(main, parse_args())
