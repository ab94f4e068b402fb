"""SFT, DPO and scoring on one GPU against what people use today, in six minutes.

    python -m benchmarks.gpu --data-dir DATA_DIR --dataset Anthropic/hh-rlhf --output FILE.json

Training: float32 weights (of 7B bfloat16) under bfloat16 autocast, steps of 64 examples, the
reference cached unless said otherwise. Scoring: bfloat16 weights, 400 examples. 1B and 7B are
shapes with random weights. The parts come in order of worth, each in a process of its own with a
time limit. A part holds several runs: each is written as it comes, and the same command measures
those that the file does not have. A part that ends early twice is closed, with that as the reason.
  dpo-1b      ours in one device batch and in eight, TRL's best by device batch (flash attention
              and Liger's kernels where they are installed, the largest batch that fits)
  sft-1b      the same of SFT; TRL padded, and padding-free
  online-1b   DPO with the reference computed in every step, against TRL's defaults
  rows-1b     ours with rows of 4096, 16384 and 65536 tokens
  options-1b  ours with torch.compile, and with AdamW, fused and not
  dpo-135m, sft-135m  SmolLM2-135M, which launching kernels limits
  dpo-7b      ours and TRL's best in eight device batches
  score-7b, score-1b, score-135m  log-likelihoods: ours, padded batches of 8 with full logits, and
              lm-evaluation-harness where it is installed
  flash-pref  that package's trainer on SmolLM2-135M (--flash-pref-python)
--dry-run: a tiny model on the CPU, to try the script.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.command import benchmark_parser, write_figures
from benchmarks.machine import device_name
from benchmarks.models import make_or_load
from benchmarks.ours import differences, first_pairs, first_texts
from benchmarks.scoring_speed import measure as measure_scoring
from benchmarks.scoring_speed import select_examples
from benchmarks.sft_speed import measure_speed as measure_sft
from benchmarks.training_speed import measure as measure_dpo
from benchmarks.training_speed import measure_flash_pref
from ranking.plumbing.command_line import run_script
from ranking.scoring.loading import load_tokenizer

STEPS = 3
# of training: in float32, 7B's weights, gradients, optimizer state and reference take 100 GiB
WEIGHTS = {"7b": "bfloat16"}


class Run(NamedTuple):
    """One side of a part. split: device batch, as a share of the step's examples."""

    name: str
    task: str  # dpo, sft or score
    side: str
    device_batches: int = 1  # into which a step is cut
    reference: str = "cached"
    settings: dict[str, Any] = {}


def dpo_and_trl(device_batches: tuple[int, ...]) -> list[Run]:
    return [
        Run("ours", "dpo", "ours", 1),
        Run("ours in 8", "dpo", "ours", 8),
        *(Run(f"trl-best in {n}", "dpo", "trl-best", n) for n in device_batches),
    ]


SFT = [
    Run("ours", "sft", "ours", 1),
    Run("trl-padding-free in 4", "sft", "trl-padding-free", 4),
    Run("trl-padding-free", "sft", "trl-padding-free", 1),
    Run("trl in 4", "sft", "trl", 4),
]
SCORE = [Run(side, "score", side) for side in ("ours", "padded", "lm-eval")]
# name -> (size of the model, None: the named one; seconds; runs)
PARTS: dict[str, tuple[str | None, int, list[Run]]] = {
    "dpo-1b": ("1b", 90, dpo_and_trl((4, 2, 1, 8))),
    "sft-1b": ("1b", 60, SFT),
    "online-1b": ("1b", 50, [
        Run("ours", "dpo", "ours", 1, "online"), Run("trl in 8", "dpo", "trl", 8, "online"),
    ]),
    "rows-1b": ("1b", 45, [
        Run(f"rows of {n}", "dpo", "ours", 1, settings={"tokens_per_batch": n})
        for n in (16384, 65536, 4096)
    ]),
    "dpo-135m": (None, 45, dpo_and_trl((1, 4))),
    "options-1b": ("1b", 60, [
        Run("fused AdamW", "dpo", "ours", 1, settings={"optim": "adamw_torch_fused"}),
        Run("AdamW", "dpo", "ours", 1, settings={"optim": "adamw_torch"}),
        Run("torch.compile", "dpo", "ours", 1, settings={"torch_compile": True}),
    ]),
    "sft-135m": (None, 40, SFT),
    "dpo-7b": ("7b", 90, [
        Run("ours in 8", "dpo", "ours", 8), Run("trl-best in 8", "dpo", "trl-best", 8),
    ]),
    "score-7b": ("7b", 75, SCORE),
    "score-1b": ("1b", 40, SCORE),
    "score-135m": (None, 40, SCORE),
    "flash-pref": (None, 60, [Run("flash-pref in 4", "dpo", "flash-pref", 4)]),
}  # fmt: skip


class Size(NamedTuple):
    """What is run: `model` None where a part says it."""

    model: str | None
    batch_size: int
    device: str
    bf16: bool
    n_scored: int  # examples


def measure(run: Run, size: str | None, how: Size, data: tuple, flash_pref: str | None) -> dict:
    """The figures of one run. data: dataset, its directory, the model's name."""
    dataset, data_dir, name = data
    n, device_batch = STEPS * how.batch_size, max(1, how.batch_size // run.device_batches)
    settings = {
        "bf16": how.bf16, "per_device_train_batch_size": device_batch,
        "gradient_accumulation_steps": how.batch_size // device_batch, **run.settings,
    }  # fmt: skip
    tokenizer, weights = load_tokenizer(name), WEIGHTS.get(how.model or size, "float32")

    def model(dtype: str = "float32"):
        return make_or_load(how.model or size, name, tokenizer, dtype, how.device)

    if run.task == "score":
        examples = select_examples(dataset, data_dir, how.n_scored, None)
        return measure_scoring(run.side, model("bfloat16"), tokenizer, examples)
    if run.side == "flash-pref":
        cached = {"precompute_ref_log_probs": run.reference == "cached"}
        return measure_flash_pref(
            flash_pref, name, first_pairs(dataset, data_dir, n), settings | cached
        )
    if run.task == "dpo":
        pairs = first_pairs(dataset, data_dir, n)
        return measure_dpo(
            run.side, [model(weights), model(weights)], tokenizer, pairs, run.reference, **settings
        )
    texts = first_texts(dataset, data_dir, tokenizer, 512, [n, how.batch_size])
    settings["per_device_eval_batch_size"] = device_batch
    return measure_sft(run.side, model(weights), tokenizer, texts, 512, settings)


def read_figures(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def missing_runs(name: str, found: dict) -> list[Run]:
    """Those of a part that have neither figures nor a reason why not."""
    return [run for run in PARTS[name][2] if run.name not in found]


def write_part(file: Path, name: str, found: dict) -> None:
    """Into the file, `unfinished` for as long as runs are missing."""
    if missing := [run.name for run in missing_runs(name, found)]:
        found.setdefault("unfinished", {})["missing"] = missing
    else:
        found.pop("unfinished", None)
    write_figures(file, read_figures(file) | {name: found})


def measure_part(name: str, how: Size, data: tuple, flash_pref: str | None, file: Path) -> None:
    """Measure and write, one by one, the missing runs of a part; of one that fails, why."""
    import torch

    found = read_figures(file).get(name, {})
    unfinished = found.setdefault("unfinished", {})
    for run in missing_runs(name, found):
        # others' code may raise anything; ours where memory is short or a kernel not installed
        expected = (RuntimeError, ValueError, ImportError) if run.side == "ours" else Exception
        try:
            figures = measure(run, PARTS[name][0], how, data, flash_pref)
        except expected as error:
            figures = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        if logps := figures.pop("logps", None):  # of scoring
            if run.side == "ours":
                unfinished["logps_of_ours"] = logps
            if ours := unfinished.get("logps_of_ours"):
                figures["mean_difference_nats"] = float(differences(logps, ours).mean())
        found[run.name] = figures
        write_part(file, name, found)
        gc.collect()
        if how.device != "cpu":
            torch.cuda.empty_cache()


def run_part(name: str, seconds: float, file: Path, environment: dict[str, str]) -> str:
    """Have this command, with --part, do `measure_part`: why it ended early, or nothing."""
    command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--part", name,
               "--output", str(file)]  # fmt: skip
    try:
        run = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    return f"exit code {run.returncode}" if run.returncode else ""


def end_early(name: str, found: dict, reason: str) -> None:
    """Keep why a part ended before its last run; the second time, as why its runs are missing."""
    before = found.get("unfinished", {}).get("ended")
    if before is None:
        found.setdefault("unfinished", {})["ended"] = reason
        return
    for run in missing_runs(name, found):
        found[run.name] = {"failed": f"the part ended twice before it: {before}; {reason}"}


def speed(figures: dict) -> float | None:
    """Pairs, texts or completions a second."""
    kinds = ("pairs", "samples", "completions")
    return next((figures[key] for kind in kinds if (key := f"{kind}_per_second") in figures), None)


def show(name: str, found: dict) -> None:
    """A line for each run: its speed, memory and share of the rate of matrix products."""
    unfinished = found.get("unfinished")
    found = {run: figures for run, figures in found.items() if run != "unfinished"}
    for run, figures in found.items():
        if (rate := speed(figures)) is None:
            print(f"{name}, {run}: {figures.get('failed', figures.get('skipped'))}")
        else:
            share = figures.get("share_of_matmul_rate")
            of_rate = f", {share:.0%} of the rate of matrix products" if share else ""
            memory = (
                f"peak {figures['peak_gib']:.1f} GiB" if "peak_gib" in figures
                else f"{figures['peak_gib_above_model']:.1f} GiB above the model"
            )  # fmt: skip
            print(f"{name}, {run}: {rate:.2f} /s, {memory}{of_rate}")
    ours = [speed(f) for r, f in found.items() if r.startswith("ours") and speed(f)]
    peers = ("trl", "padded", "lm-eval")
    theirs = [speed(f) for r, f in found.items() if r.startswith(peers) and speed(f)]
    if ours and theirs:
        print(f"{name}: ours is {max(ours) / max(theirs):.2f} times as fast as the best of others")
    if unfinished:
        ended = unfinished.get("ended", "the time was over")
        print(f"{name}: {ended}; missing: {', '.join(unfinished['missing'])}")
    sys.stdout.flush()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=6.0, help="when to stop (default: 6)")
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="(default: all)")
    add("--flash-pref-python", help="an interpreter whose environment has flash-pref and trl")
    add("--dry-run", action="store_true",
        help="a tiny model on the CPU, 6 examples, no limit of a part's time")  # fmt: skip
    add("--part", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    tiny, full = Size("tiny", 2, "cpu", False, 6), Size(None, 64, "cuda", True, 400)
    how = tiny if args.dry_run else full
    if args.part:
        data = (args.dataset, args.data_dir, args.lm_name_or_path)
        measure_part(args.part, how, data, args.flash_pref_python, args.output)
        return
    end = time.monotonic() + 60 * args.minutes
    settings = {"device": device_name(how.device), "dataset": args.dataset,
                "batch_size": how.batch_size, "bf16": how.bf16}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file: Path = args.output or Path(folder) / "figures.json"
        write_figures(file, read_figures(file) | settings)
        # TRL keeps precomputed log-likelihoods in the datasets cache: an empty one for every run
        environment = {**os.environ, "HF_DATASETS_CACHE": f"{folder}/datasets"}
        for name in args.parts:
            if not missing_runs(name, read_figures(file).get(name, {})):
                print(f"{name}: in {file} already")
                continue
            left = end - time.monotonic()
            if left < 10:
                print(f"{name}: left out, {args.minutes:g} minutes are over")
                continue
            limit = left if args.dry_run else min(left, PARTS[name][1])  # of a GPU's seconds
            reason = run_part(name, limit, file, environment)
            found = read_figures(file).get(name, {})
            if reason and missing_runs(name, found) and time.monotonic() < end:
                end_early(name, found, reason)
            write_part(file, name, found)
            show(name, found)


if __name__ == "__main__":
    run_script(main, parse_args())
