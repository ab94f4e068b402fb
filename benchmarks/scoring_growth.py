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
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.scoring_speed import forget_peak, memory_gib
from ranking.data.preferences import load_preferences
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import write_text_atomically
from ranking.scoring.loading import load_model, load_tokenizer
from ranking.scoring.log_likelihood import PACKED
from ranking.scoring.packing import build_row, pack_rows
from ranking.scoring.score import score_examples
from ranking.scoring.start_up_check import check_fast_path
from ranking.scoring.tokenization import Texts, TokenizedCompletion, tokenize_examples

SIZES = (50, 100, 200, 400, 1000)
PROMPT_LENGTHS = (128, 256, 512, 1024, 2048, 4096)
IMPORTS = (
    "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel"
)


def seconds_to_score(model, tokenized, tokens_per_batch: int = 1024) -> float:
    """Wall-clock seconds of scoring; the log-likelihoods are thrown away."""
    start = time.perf_counter()
    for _ in score_examples(
        model, tokenized, path=PACKED, tokens_per_batch=tokens_per_batch, batch_size=128
    ):
        pass
    return time.perf_counter() - start


def count_computed(tokenized) -> int:
    """Tokens that the rows of these examples hold."""
    rows = pack_rows(tokenized, 1024, 128)
    return sum(len(build_row([c for i in row for c in tokenized[i]]).input_ids) for row in rows)


def growth_with_examples(args: argparse.Namespace, model, tokenizer) -> list[dict]:
    """Seconds and tokens for growing parts of the dataset."""
    data = load_preferences(args.dataset, sample_size=None, data_dir=args.data_dir)
    texts = [Texts(e.prompt, e.completions) for e in data.examples]
    tokenized = tokenize_examples(tokenizer, texts, max_length=128).completions
    if len(tokenized) < max(SIZES):
        print(f"{args.dataset}: only {len(tokenized)} examples fit, repeated with other beginnings")
    chosen = list(islice(cycle(tokenized), max(SIZES)))
    # repeated examples would share everything: another first token makes them differ
    chosen = [
        [
            TokenizedCompletion((k // len(tokenized) + 5, *c.ids[1:]), c.start, c.truncated)
            for c in example
        ]
        for k, example in enumerate(chosen)
    ]
    rows = []
    for n in SIZES:
        seconds = seconds_to_score(model, chosen[:n])
        rows.append({"n": n, "tokens": count_computed(chosen[:n]), "seconds": seconds})
        print(f"{n} examples: {rows[-1]['tokens']} tokens, {seconds:.1f} s", flush=True)
    return rows


def growth_with_prompts(model) -> list[dict]:
    """Seconds and tokens for 8 pairs with long random prompts."""
    rng = np.random.default_rng(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(10, 10_000, n).tolist())

    rows = []
    for length in PROMPT_LENGTHS:
        examples = []
        for _ in range(8):
            prompt = ids(length)
            examples.append(
                [TokenizedCompletion(prompt + ids(50), length, False) for _ in range(2)]
            )
        seconds = seconds_to_score(model, examples)
        rows.append({"prompt": length, "tokens": count_computed(examples), "seconds": seconds})
        print(f"prompts of {length}: {rows[-1]['tokens']} tokens, {seconds:.1f} s", flush=True)
    return rows


def peak_memory(n: int) -> dict:
    """Peak GiB above the weights of a tiny body with a large head, n examples of 400 tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen2", vocab_size=151_936, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).float().eval()
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(n):
        prompt = tuple(rng.integers(0, 150_000, 300).tolist())
        endings = [tuple(rng.integers(0, 150_000, 50).tolist()) for _ in range(2)]
        examples.append([TokenizedCompletion(prompt + e, 300, False) for e in endings])
    assert check_fast_path(model, examples[:4]).is_packed
    forget_peak("cpu")
    before = memory_gib("cpu")[0]
    seconds_to_score(model, examples, tokens_per_batch=2048)
    return {"n": n, "peak_gib_above_weights": memory_gib("cpu")[1] - before}


def growth_of_memory() -> list[dict]:
    """`peak_memory` of every size, each in a fresh process."""
    rows = []
    for n in SIZES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(peak_memory, (n,)))
        print(f"{n} examples: {rows[-1]['peak_gib_above_weights']:.2f} GiB", flush=True)
    return rows


def start_up(name: str) -> dict:
    """Seconds of the imports alone, and of the script until its first scored example; best of 3."""
    script = Path(__file__).parents[1] / "calculate_calibration_metrics.py"
    imports, first = [], []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        imports.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            examples = Path(folder) / "s.examples.jsonl"
            flags = f"--lm-name-or-path {name} --dataset sample --sample-size 4"
            flags += f" --output-dir {folder} --output-filename s.jsonl"
            command = [sys.executable, str(script), *flags.split()]
            start = time.perf_counter()
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while not (examples.exists() and examples.stat().st_size) and process.poll() is None:
                time.sleep(0.01)
            first.append(time.perf_counter() - start)
            if process.wait() != 0:
                raise SystemExit(f"{script.name} failed")
    return {"imports": min(imports), "first_example": min(first)}


def plot_growth(summary: dict, path: Path) -> None:
    """Time against tokens, time per token against prompt length, memory against examples."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    rows = summary["examples"]
    tokens, seconds = ([row[key] for row in rows] for key in ("tokens", "seconds"))
    rate = sum(seconds) / sum(tokens)
    axes[0].plot(tokens, seconds, "o", color="#1f77b4")
    axes[0].plot([0, max(tokens)], [0, rate * max(tokens)], "--", color="#9a9a9a")
    for row in rows:
        axes[0].annotate(f"{row['n']}", (row["tokens"], row["seconds"]), xytext=(-4, 6),
                         textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
    axes[0].set_xlabel("tokens computed (labels: examples)")
    axes[0].set_ylabel("seconds")
    rows = summary["prompts"]
    axes[1].plot(
        [row["prompt"] for row in rows],
        [1000 * row["seconds"] / row["tokens"] for row in rows],
        "o-",
        color="#1f77b4",
    )
    axes[1].set_xscale("log", base=2)
    axes[1].set_xlabel("tokens per prompt")
    axes[1].set_ylabel("milliseconds per token")
    rows = summary["memory"]
    axes[2].plot(
        [row["n"] for row in rows],
        [row["peak_gib_above_weights"] for row in rows],
        "o-",
        color="#1f77b4",
    )
    axes[2].axhline(0.5, color="#9a9a9a", linestyle="--")
    axes[2].set_xlabel("examples")
    axes[2].set_ylabel("peak memory above weights, GiB")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--lm-name-or-path",
        default="SmolLM2-135M-Instruct",
        help="model (default: SmolLM2-135M-Instruct)",
    )
    parser.add_argument("--dataset", default="sample", help="as in the scripts")
    parser.add_argument("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    parser.add_argument(
        "--output", type=Path, help="write the figures to this JSON file, a picture beside it"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    startup = start_up(args.lm_name_or_path)
    beyond = startup["first_example"] - startup["imports"]
    print(f"start-up: {beyond:.1f} s beyond {startup['imports']:.1f} s of imports", flush=True)
    memory = growth_of_memory()
    model = load_model(args.lm_name_or_path, dtype="float32", device="cpu")
    prompts = growth_with_prompts(model)
    examples = growth_with_examples(args, model, load_tokenizer(args.lm_name_or_path))
    if args.output:
        summary = {"dataset": args.dataset, "start_up": startup, "memory": memory,
                   "prompts": prompts, "examples": examples}  # fmt: skip
        write_text_atomically(args.output, json.dumps(summary, indent=1) + "\n")
        plot_growth(summary, args.output.with_suffix(".png"))


if __name__ == "__main__":
    run_script(main, parse_args())
