"""Completions per second and peak memory of the scorer against what people use today.

    python -m benchmarks.scoring_speed --output benchmarks/scoring_speed.json

All sides score the same completions with the same weights, each in a process of its own (for its
peak memory), one after the other, in --dtype but for the last:
  ours       shared-prefix rows, start-up check included
  padded     right-padded batches of 8 completions in dataset order, logits of all positions
  lm-eval    lm-evaluation-harness `HFLM.loglikelihood`, batches of 8 (pip install lm-eval)
  lm-eval-auto   the same with its batch size `auto`, at most 8 (64 on a GPU)
  bfloat16   ours in bfloat16
Every side scores a few completions before the clock starts; tokenizing is timed. Reported of the
side `ours` beside its speed: tokens of all completions, each with its prompt, over the tokens
computed; tokens computed over unique tokens; and the share of the device's matrix-multiply rate
that it reaches: unique tokens x 2 x the parameters each touches (the LM head for scored tokens
only), over the seconds, over the rate of 2048 x 2048 products (8192 x 8192 on a GPU) in the same
process just before and after. --random-llama takes random weights of a published size: for speed
alone.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.random_llama import SIZES, make_random_llama
from ranking.data.preferences import load_preferences
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import write_text_atomically
from ranking.scoring.models import DTYPES

SIDES = ("padded", "lm-eval", "lm-eval-auto", "bfloat16", "ours")


def score_padded(model, tokenized, batch_size: int = 8) -> list[float]:
    """Summed log-likelihoods from padded batches and full [batch, length, vocabulary] logits."""
    import torch

    completions = [c for example in tokenized for c in example]
    sums = []
    with torch.inference_mode():
        for first in range(0, len(completions), batch_size):
            batch = completions[first : first + batch_size]
            width = max(len(c.ids) for c in batch)
            padding = [[0] * (width - len(c.ids)) for c in batch]
            ids = torch.tensor([[*c.ids, *pad] for c, pad in zip(batch, padding)])
            mask = torch.tensor([[1] * len(c.ids) + pad for c, pad in zip(batch, padding)])
            ids, mask = ids.to(model.device), mask.to(model.device)
            logps = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
            token_logps = logps[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]
            sums += [
                token_logps[i, c.start - 1 : len(c.ids) - 1].sum().item()
                for i, c in enumerate(batch)
            ]
    return sums


def score_with_lm_eval(model, tokenizer, examples, batch_size) -> list[float]:
    """Summed log-likelihoods from lm-evaluation-harness, through its public interface."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(
        model,
        backend="causal",
        tokenizer=tokenizer,
        batch_size=batch_size,
        # on a CPU, from its default of 64 the search takes longer than the scoring
        max_batch_size=8 if model.device.type == "cpu" else 64,
        device=str(model.device),
    )
    pairs = [
        (prompt, completion) for prompt, completions, *_ in examples for completion in completions
    ]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return [logp for logp, _ in harness.loglikelihood(requests)]


def forget_peak(device: str) -> None:
    """Start measuring the peak of memory anew."""
    import torch

    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats()


def memory_gib(device: str) -> tuple[float, float]:
    """Memory now and its peak: of the GPU's allocator, or resident, of this process (Linux)."""
    import torch

    if device != "cpu":
        now, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return now / 2**30, peak / 2**30
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(lines[name].removesuffix("kB")) / 2**20 for name in ("VmRSS", "VmHWM"))
    return now, peak


def matmul_rate(dtype, device: str, seconds: float = 2.0) -> float:
    """Floating-point operations per second of large square matrix products on this device."""
    import torch

    size, at_once = (2048, 1) if device == "cpu" else (8192, 20)
    matrix = torch.randn(size, size, dtype=dtype, device=device)
    torch.nn.functional.linear(matrix, matrix)[0, 0].item()
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(at_once):
            product = torch.nn.functional.linear(matrix, matrix)
        product[0, 0].item()  # a GPU works on while Python goes ahead: wait for it
        n += at_once
    return n * 2 * size**3 / (time.perf_counter() - start)


def useful_operations(model, tokenized) -> tuple[int, float]:
    """Unique input tokens over all examples, and 2 x parameters touched by each, summed."""
    from ranking.scoring.packing import count_new_tokens

    n_unique = count_new_tokens(sorted(c.ids[:-1] for example in tokenized for c in example))
    n_scored = sum(len(c.ids) - c.start for example in tokenized for c in example)
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    body = sum(p.numel() for p in model.parameters() if p is not head and p is not embedding)
    return n_unique, 2.0 * (n_unique * body + n_scored * head.numel())


def row_size(device: str) -> int:
    """Tokens of a row, as the scripts choose them."""
    return 1024 if device == "cpu" else 16384


def score_ours(model, tokenized) -> list[float]:
    """Summed log-likelihoods from `score_examples`, start-up check included."""
    from ranking.scoring.score import score_examples
    from ranking.scoring.start_up_check import check_fast_path

    path = check_fast_path(model, tokenized)
    if not path.is_packed:
        raise ValueError(f"shared prefixes are off: {path}")
    batches = score_examples(
        model, tokenized, path=path, tokens_per_batch=row_size(model.device.type), batch_size=128
    )
    scores = dict(item for batch in batches for item in batch)
    return [x for i in range(len(tokenized)) for x in scores[i]]


def select_examples(args: argparse.Namespace) -> list:
    """The examples to score: with --pairs-per-prompt N, N of each prompt that has so many."""
    sample_size = None if args.sample_size == -1 else args.sample_size
    examples = load_preferences(args.dataset, sample_size=sample_size, data_dir=args.data_dir)
    if args.pairs_per_prompt is None:
        return examples.examples
    available = Counter(example.prompt_id for example in examples.examples)
    taken: Counter = Counter()
    chosen = []
    for example in examples.examples:
        if available[example.prompt_id] >= args.pairs_per_prompt > taken[example.prompt_id]:
            taken[example.prompt_id] += 1
            chosen.append(example)
    return chosen


def measure(args: argparse.Namespace) -> dict:
    """One side, in this process: seconds, peak memory above the loaded model, and the sums."""
    from ranking.scoring.loading import load_model, load_tokenizer
    from ranking.scoring.packing import build_row, pack_rows
    from ranking.scoring.start_up_check import CHECKED
    from ranking.scoring.tokenization import Texts, tokenize_examples

    dtype = "bfloat16" if args.side == "bfloat16" else args.dtype
    tokenizer = load_tokenizer(args.lm_name_or_path)
    if args.random_llama:
        model = make_random_llama(args.random_llama, tokenizer, dtype, args.device)
    else:
        model = load_model(args.lm_name_or_path, dtype=dtype, device=args.device)
    device = model.device.type
    before = memory_gib(device)[0]  # on a CPU what the warm-up took is not given back
    examples = [Texts(e.prompt, e.completions) for e in select_examples(args)]
    kept, tokenized, _ = tokenize_examples(tokenizer, examples)
    examples = [examples[i] for i in kept]
    ours = args.side in ("ours", "bfloat16")
    rates = [matmul_rate(model.dtype, device)] if ours else []

    def score(n_examples: int | None) -> list[float]:
        if ours or args.side == "padded":  # lm-evaluation-harness tokenizes by itself
            inputs = tokenize_examples(tokenizer, examples[:n_examples]).completions
            return (score_ours if ours else score_padded)(model, inputs)
        batch_size = "auto" if "auto" in args.side else 8
        return score_with_lm_eval(model, tokenizer, examples[:n_examples], batch_size)

    score(4)  # a GPU loads its kernels at their first use
    CHECKED.pop(model, None)  # the start-up check runs again
    forget_peak(device)
    start = time.perf_counter()
    sums = score(None)
    seconds = time.perf_counter() - start
    peak = memory_gib(device)[1]
    values = iter(sums)
    result = {
        "seconds": seconds,
        "completions_per_second": len(sums) / seconds,
        "peak_gib_above_model": peak - before,
        "logps": [[next(values) for _ in example] for example in tokenized],
    }
    if ours:
        rates.append(matmul_rate(model.dtype, device))
        n_unique, operations = useful_operations(model, tokenized)
        packed = pack_rows(tokenized, row_size(device), 128)
        rows = [[c for i in row for c in tokenized[i]] for row in packed]
        n_computed = sum(len(build_row(row).input_ids) for row in rows)
        n_alone = sum(len(c.ids) - 1 for example in tokenized for c in example)
        result |= {
            "tokens_without_sharing_over_computed": n_alone / n_computed,
            "computed_over_unique_tokens": n_computed / n_unique,
            "share_of_matmul_rate": operations / seconds / (sum(rates) / 2),
            "matmul_gflops": [rate / 1e9 for rate in rates],
        }
    return result


def compare(logps: list[list[float]], ours: list[list[float]]) -> dict:
    """Differences of one side's log-likelihoods to ours, nats, and examples ranked differently."""
    pairs = zip(ours, logps, strict=True)
    differences = [abs(a - b) for x, y in pairs for a, b in zip(x, y, strict=True)]
    orders = [[sorted(range(len(x)), key=lambda i: x[i]) for x in side] for side in (ours, logps)]
    return {
        "largest_difference_nats": max(differences),
        "mean_difference_nats": sum(differences) / len(differences),
        "n_examples_ranked_differently": sum(a != b for a, b in zip(*orders)),
    }


def plot_speed(summary: dict, path: Path) -> None:
    """Bars: completions per second and peak memory of every side."""
    import matplotlib.pyplot as plt

    sides = [side for side in SIDES if side in summary]
    labels = ["ours, bfloat16" if side == "bfloat16" else side for side in sides]
    figure, axes = plt.subplots(1, 2, figsize=(8, 1 + 0.45 * len(sides)), layout="constrained")
    for axis, key, label in (
        (axes[0], "completions_per_second", "completions / s"),
        (axes[1], "peak_gib_above_model", "peak memory above the model, GiB"),
    ):
        colors = ["#1f77b4" if side in ("ours", "bfloat16") else "#9a9a9a" for side in sides]
        bars = axis.barh(labels, [summary[side][key] for side in sides], color=colors)
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.margins(x=0.18)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{summary['dataset']}, {summary['n_completions']} completions, {summary['model']}, "
        f"{summary['dtype']}, {summary['device']}"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def device_name(device: str) -> str:
    """The GPU's name, or the processor's architecture."""
    import torch

    return platform.machine() if device == "cpu" else torch.cuda.get_device_name()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--lm-name-or-path",
        default="SmolLM2-135M-Instruct",
        help="model (default: SmolLM2-135M-Instruct)",
    )
    parser.add_argument("--random-llama", choices=SIZES, help="that shape, random weights, instead")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES[1:], default="float32", help="of all sides")
    parser.add_argument("--dataset", default="sample", help="as in the scripts")
    parser.add_argument("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    parser.add_argument("--sample-size", type=int, default=48, help="examples; -1: all")
    parser.add_argument("--pairs-per-prompt", type=int, help="so many pairs of each prompt")
    parser.add_argument(
        "--against", nargs="*", default=["padded"], choices=SIDES[:-1], help="empty: ours alone"
    )
    parser.add_argument(
        "--output", type=Path, help="write the figures to this JSON file, a picture beside it"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if not select_examples(args):  # also: is the dataset there, before minutes are spent
        raise ValueError(f"no prompt of {args.dataset} has {args.pairs_per_prompt} pairs")
    if args.side:
        print(json.dumps(measure(args)))
        return
    results = {}
    for side in (*args.against, "ours"):
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[side] = json.loads(output.splitlines()[-1])
    logps = {side: result.pop("logps") for side, result in results.items()}
    ours = results["ours"]
    for side, result in results.items():
        result["speedup_of_ours"] = result["seconds"] / ours["seconds"]
        result |= compare(logps[side], logps["ours"])
        print(
            f"{side:12} {result['completions_per_second']:6.2f} completions/s, "
            f"{result['peak_gib_above_model']:.2f} GiB above the model; ours is "
            f"{result['speedup_of_ours']:.2f} times as fast; differs by at most "
            f"{result['largest_difference_nats']:.1g} and on average by "
            f"{result['mean_difference_nats']:.1g} nats, in "
            f"{result['n_examples_ranked_differently']} of {len(logps[side])} rankings"
        )
    print(
        f"ours: {ours['tokens_without_sharing_over_computed']:.2f} times fewer tokens than without "
        f"sharing, {ours['computed_over_unique_tokens']:.3f} tokens computed per unique token, "
        f"{ours['share_of_matmul_rate']:.0%} of the matrix-multiply rate"
    )
    if args.output:
        shape = {
            "model": f"random {args.random_llama}" if args.random_llama else args.lm_name_or_path,
            "device": device_name(args.device),
            "dtype": args.dtype,
            "dataset": args.dataset,
            "pairs_per_prompt": args.pairs_per_prompt,
            "n_examples": len(logps["ours"]),
            "n_completions": sum(map(len, logps["ours"])),
        }
        summary = {**shape, **results}
        write_text_atomically(args.output, json.dumps(summary, indent=1) + "\n")
        plot_speed(summary, args.output.with_suffix(".png"))


if __name__ == "__main__":
    run_script(main, parse_args())
