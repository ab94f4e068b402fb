"""How the scorer's time and memory grow: with examples, prompt length, dataset size; start-up.

  python -m benchmarks.scoring_growth --output benchmarks/scoring_growth.json

examples   seconds for 50 to 1000 examples of the dataset, cut to 128 tokens; a straight line?
prompts    seconds per token for 8 examples whose prompts have 128 to 4096 tokens
memory     peak above the weights for rows of 2048 tokens and a vocabulary of 152 thousand words
           (random two-layer model), 50 to 1000 examples, each in a process of its own
start-up   seconds until calculate_calibration_metrics.py has its first scored example on disk,
           beyond those of importing torch and transformers' model and tokenizer
"""

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from benchmarks.command import benchmark_parser, write_figures
from benchmarks.machine import forget_peak, memory_gib
from benchmarks.models import make_wide_head
from benchmarks.ours import n_computed
from ranking.data.preferences import load_preferences
from ranking.plumbing.command_line import run_script
from ranking.scoring.loading import load_model, load_tokenizer
from ranking.scoring.log_likelihood import PACKED
from ranking.scoring.score import score_examples
from ranking.scoring.start_up_check import check_fast_path
from ranking.scoring.tokenization import Texts, TokenizedCompletion, tokenize_examples

SIZES = (50, 100, 200, 400, 1000)
PROMPT_LENGTHS = (128, 256, 512, 1024, 2048, 4096)
IMPORTS = (
    "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel"
)
START = (
    "calculate_calibration_metrics.py --dataset sample --sample-size 4 --output-filename s.jsonl"
)


def cost(model, examples: list, tokens_per_batch: int = 1024) -> dict:
    """Tokens that the rows of these examples hold, and wall-clock seconds of scoring them."""
    start = time.perf_counter()
    how = {"path": PACKED, "tokens_per_batch": tokens_per_batch, "batch_size": 128}
    for _ in score_examples(model, examples, **how):
        pass  # the log-likelihoods are thrown away
    seconds, tokens = time.perf_counter() - start, n_computed(examples, tokens_per_batch)
    print(f"{len(examples)} examples, {tokens} tokens: {seconds:.1f} s", flush=True)
    return {"tokens": tokens, "seconds": seconds}


def random_examples(n: int, prompt_length: int, n_words: int) -> list[list[TokenizedCompletion]]:
    """Pairs of random completions of 50 tokens."""
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(n):
        prompt, *endings = (
            tuple(rng.integers(10, n_words, k).tolist()) for k in (prompt_length, 50, 50)
        )
        examples.append([TokenizedCompletion(prompt + e, prompt_length, False) for e in endings])
    return examples


def many_examples(texts: list, tokenizer, n: int) -> list[list[TokenizedCompletion]]:
    """The texts cut to 128 tokens, as often as it takes: with another first token each time, since
    repeated examples would share everything."""
    tokenized = tokenize_examples(tokenizer, texts, max_length=128).completions
    if len(tokenized) < n:
        print(f"only {len(tokenized)} examples fit, repeated with other beginnings")
    return [
        [replace(c, ids=(k // len(tokenized) + 5, *c.ids[1:])) for c in example]
        for k, example in enumerate(islice(cycle(tokenized), n))
    ]


def peak_memory(n: int) -> dict:
    """Peak GiB above the weights of a tiny body with a large head, n examples of 400 tokens."""
    model = make_wide_head()
    examples = random_examples(n, 300, 150_000)
    assert check_fast_path(model, examples[:4]).is_packed
    forget_peak("cpu")
    before = memory_gib("cpu")[0]
    cost(model, examples, tokens_per_batch=2048)
    peak = memory_gib("cpu")[1] - before
    print(f"{n} examples: {peak:.2f} GiB", flush=True)
    return {"n": n, "peak_gib_above_weights": peak}


def seconds_until(command: list[str], file: Path | None = None) -> float:
    """Wall-clock seconds until a Python command has ended, or until it has written to `file`."""
    start, nowhere = time.perf_counter(), subprocess.DEVNULL
    with subprocess.Popen([sys.executable, *command], stdout=nowhere, stderr=nowhere) as process:
        while process.poll() is None and not (file and file.exists() and file.stat().st_size):
            time.sleep(0.01)
        seconds = time.perf_counter() - start
    if process.returncode:
        raise ValueError(f"failed: python {' '.join(command)}")
    return seconds


def start_up(name: str) -> dict:
    """Seconds of the imports alone, and of the script until its first scored example; best of 3."""
    imports, first = [], []
    for _ in range(3):
        imports.append(seconds_until(["-c", IMPORTS]))
        with tempfile.TemporaryDirectory() as folder:
            command = [*START.split(), "--lm-name-or-path", name, "--output-dir", folder]
            first.append(seconds_until(command, Path(folder) / "s.examples.jsonl"))
    beyond = min(first) - min(imports)
    print(f"start-up: {beyond:.1f} s beyond {min(imports):.1f} s of imports", flush=True)
    return {"imports": min(imports), "first_example": min(first)}


def plot_growth(summary: dict, path: Path) -> None:
    """Time against tokens, time per token against prompt length, memory against examples."""
    import matplotlib.pyplot as plt

    examples, prompts, memory = (
        {key: np.array([row[key] for row in summary[part]]) for key in summary[part][0]}
        for part in ("examples", "prompts", "memory")
    )
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    left.plot(examples["tokens"], examples["seconds"], "o", color="#1f77b4")
    rate, longest = examples["seconds"].sum() / examples["tokens"].sum(), examples["tokens"].max()
    left.plot([0, longest], [0, rate * longest], "--", color="#9a9a9a")
    for n, *point in zip(*examples.values()):
        left.annotate(f"{n}", point, xytext=(-4, 6), textcoords="offset points", ha="right",
                      fontsize=8)  # fmt: skip
    left.set(xlabel="tokens computed (labels: examples)", ylabel="seconds", ylim=(0, None))
    per_token = 1000 * prompts["seconds"] / prompts["tokens"]
    middle.plot(prompts["prompt"], per_token, "o-", color="#1f77b4")
    middle.set_xscale("log", base=2)
    middle.set(xlabel="tokens per prompt", ylabel="milliseconds per token", ylim=(0, None))
    right.plot(memory["n"], memory["peak_gib_above_weights"], "o-", color="#1f77b4")
    right.axhline(0.5, color="#9a9a9a", linestyle="--")
    right.set(xlabel="examples", ylabel="peak memory above weights, GiB", ylim=(0, None))
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return benchmark_parser(__doc__).parse_args(argv)


def main(args: argparse.Namespace) -> None:
    name = args.lm_name_or_path
    summary: dict = {"dataset": args.dataset, "start_up": start_up(name)}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        summary["memory"] = pool.map(peak_memory, SIZES, chunksize=1)
    model = load_model(name, dtype="float32", device="cpu")
    n_words = min(10_000, model.config.vocab_size)
    summary["prompts"] = [
        {"prompt": n, **cost(model, random_examples(8, n, n_words))} for n in PROMPT_LENGTHS
    ]
    data = load_preferences(args.dataset, sample_size=None, data_dir=args.data_dir)
    texts = [Texts(e.prompt, e.completions) for e in data.examples]
    examples = many_examples(texts, load_tokenizer(name), max(SIZES))
    summary["examples"] = [{"n": n, **cost(model, examples[:n])} for n in SIZES]
    write_figures(args.output, summary)
    if args.output:
        plot_growth(summary, args.output.with_suffix(".png"))


if __name__ == "__main__":
    run_script(main, parse_args())
