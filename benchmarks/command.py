"""How a benchmark is called, measures its sides apart, and writes its figures."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.models import SIZES
from ranking.plumbing.command_line import make_parser, sample_size
from ranking.plumbing.result_files import write_json


def benchmark_parser(
    description: str | None, n_examples: int | None = None, sides: bool = False
) -> argparse.ArgumentParser:
    """A parser with the flags of model, data and output. sides: those of speed, too."""
    parser = make_parser(description)
    add = parser.add_argument
    add("--lm-name-or-path", default="SmolLM2-135M-Instruct",
        help="model (default: SmolLM2-135M-Instruct)")  # fmt: skip
    add("--dataset", default="sample", help="as in the scripts (default: sample)")
    add("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    if n_examples is not None:
        add("--sample-size", type=sample_size, default=n_examples, help="examples; -1: all")
    if sides:
        add("--random-llama", choices=SIZES, help="that shape, random weights, instead")
        add("--device", default="cpu", help="cpu or cuda (default: cpu)")
        add("--side", help=argparse.SUPPRESS)
    add("--output", type=Path, help="JSON file of the figures, a picture beside it if there is one")
    return parser


def measure_apart(module: str, side: str, environment: dict[str, str] | None = None) -> dict:
    """The figures of one side, by `module` in a process with this command's flags and --side.
    ValueError where it fails, after what it says of that itself."""
    command = [sys.executable, "-m", module, *sys.argv[1:], "--side", side]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if run.returncode:
        raise ValueError(f"{side}: exit code {run.returncode}")
    return json.loads(run.stdout.splitlines()[-1])


def print_figures(figures: dict) -> None:
    """For `measure_apart`, on a line of its own."""
    print("\n" + json.dumps(figures))


def write_figures(path: Path | None, figures: dict) -> None:
    if path is not None:
        write_json(path, figures)
