"""Scoring and training on a CPU, quiet and beside one other busy process.

    python -m benchmarks.neighbour --output benchmarks/neighbour.json

Tokens per second of packed rows of 1024 tokens, sixteen of them, float32, each way in a process of
its own (OpenMP reads its environment once), the ways one after the other, first on the machine as
it is and then beside a process that never waits:
  default       OpenMP's threads spin while they wait
  sleeping      they sleep (OMP_WAIT_POLICY=PASSIVE), as the scripts have them
  side-by-side  sleeping, and rows computed at once, each by threads of its own: scoring as it is
  one-thread    OMP_NUM_THREADS=1
The machine must be quiet.
"""

import argparse
import os
import subprocess
import sys
import time

from benchmarks.command import benchmark_parser, measure_apart, print_figures, write_figures
from benchmarks.machine import device_name
from benchmarks.scoring_growth import random_examples
from ranking.plumbing.command_line import run_script
from ranking.scoring.loading import load_model
from ranking.scoring.log_likelihood import PACKED, compute_token_logps
from ranking.scoring.score import score_examples

WAYS: dict[str, dict[str, str]] = {
    "default": {"GOMP_SPINCOUNT": "300000"},  # what libgomp takes by itself
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
    "side-by-side": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one-thread": {"OMP_NUM_THREADS": "1"},
}
OPENMP = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
NEVER_WAITS = "while True: pass"


def measure(way: str, name: str) -> dict[str, float]:
    """Tokens per second of scoring 16 rows (one at a time but for side-by-side), and of one
    forward and backward pass each of three."""
    model = load_model(name, dtype="float32", device="cpu")
    rows = random_examples(16 * 5, 100, 10_000)  # five pairs of 200 tokens make one
    seconds = {}
    calls = [rows] if way == "side-by-side" else [rows[k : k + 5] for k in range(0, len(rows), 5)]
    how = {"path": PACKED, "tokens_per_batch": 1024, "batch_size": 5}
    list(score_examples(model, rows[:5], **how))
    start = time.perf_counter()
    for examples in calls:
        list(score_examples(model, examples, **how))
    seconds["scored"] = time.perf_counter() - start
    start = time.perf_counter()
    for k in range(3):
        completions = [c for example in rows[5 * k : 5 * k + 5] for c in example]
        sum(-logps.sum() for logps in compute_token_logps(model, completions)).backward()
        model.zero_grad()
    seconds["trained"] = time.perf_counter() - start
    return {"scored": 16 * 1000 / seconds["scored"], "trained": 3 * 1000 / seconds["trained"]}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.side:
        print_figures(measure(args.side, args.lm_name_or_path))
        return
    summary: dict = {"model": args.lm_name_or_path, "device": device_name("cpu")}
    clean = {k: v for k, v in os.environ.items() if k not in OPENMP}
    for beside in ("nothing", "one busy process"):
        command = NEVER_WAITS if beside != "nothing" else "pass"
        busy = subprocess.Popen([sys.executable, "-c", command])
        try:
            for way, environment in WAYS.items():
                found = measure_apart("benchmarks.neighbour", way, {**clean, **environment})
                summary[f"{way} beside {beside}"] = found
                print(f"{way:13} beside {beside}: {found['scored']:.0f} tokens/s scored, "
                      f"{found['trained']:.0f} trained", flush=True)  # fmt: skip
        finally:
            busy.kill()
            busy.wait()
    write_figures(args.output, summary)


if __name__ == "__main__":
    run_script(main, parse_args())
