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
import time
from collections import Counter
from pathlib import Path

from benchmarks.command import benchmark_parser, measure_apart, print_figures, write_figures
from benchmarks.machine import device_name, forget_peak, matmul_rate, memory_gib
from benchmarks.models import make_or_load
from benchmarks.ours import differences, n_computed, n_reordered, row_size, score
from benchmarks.steps import draw_sides, forward_operations
from ranking.data.preferences import load_preferences
from ranking.plumbing.command_line import run_script
from ranking.scoring.loading import load_tokenizer
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


def select_examples(
    dataset: str, data_dir: str | None, sample_size: int | None, pairs_per_prompt: int | None
) -> list:
    """The examples to score: with N pairs_per_prompt, N of each prompt that has so many."""
    examples = load_preferences(dataset, sample_size=sample_size, data_dir=data_dir).examples
    if pairs_per_prompt is None:
        return examples
    available = Counter(example.prompt_id for example in examples)
    taken: Counter = Counter()
    chosen = []
    for example in examples:
        if available[example.prompt_id] >= pairs_per_prompt > taken[example.prompt_id]:
            taken[example.prompt_id] += 1
            chosen.append(example)
    if not chosen:
        raise ValueError(f"no prompt of {dataset} has {pairs_per_prompt} pairs")
    return chosen


def measure(side: str, model, tokenizer, examples: list) -> dict:
    """One side, in this process: seconds, peak memory above the loaded model, and the sums."""
    from ranking.scoring.start_up_check import CHECKED
    from ranking.scoring.tokenization import Texts, tokenize_examples

    device = model.device.type
    before = memory_gib(device)[0]  # on a CPU what the warm-up took is not given back
    texts = [Texts(e.prompt, e.completions) for e in examples]
    kept, tokenized, _ = tokenize_examples(tokenizer, texts)
    texts = [texts[i] for i in kept]
    ours = side in ("ours", "bfloat16")
    rates = [matmul_rate(model.dtype, device)] if ours else []

    def sums(texts: list[Texts]) -> list[list[float]]:
        if "lm-eval" in side:  # which tokenizes by itself
            batch_size = "auto" if "auto" in side else 8
            found = score_with_lm_eval(model, tokenizer, texts, batch_size)
        else:
            inputs = tokenize_examples(tokenizer, texts).completions
            if ours:
                return score(model, inputs, row_size(device))
            found = score_padded(model, inputs)
        values = iter(found)
        return [[next(values) for _ in text.completions] for text in texts]

    sums(texts[:4])  # a GPU loads its kernels at their first use
    CHECKED.pop(model, None)  # the start-up check runs again
    forget_peak(device)
    start = time.perf_counter()
    logps = sums(texts)
    seconds = time.perf_counter() - start
    result = {
        "seconds": seconds,
        "completions_per_second": sum(map(len, logps)) / seconds,
        "peak_gib_above_model": memory_gib(device)[1] - before,
        "logps": logps,
    }
    if ours:
        rates.append(matmul_rate(model.dtype, device))
        n_unique, operations = forward_operations(model, tokenized)
        computed = n_computed(tokenized, row_size(device))
        n_alone = sum(len(c.ids) - 1 for example in tokenized for c in example)
        result |= {
            "tokens_without_sharing_over_computed": n_alone / computed,
            "computed_over_unique_tokens": computed / n_unique,
            "share_of_matmul_rate": operations / seconds / (sum(rates) / 2),
            "matmul_gflops": [rate / 1e9 for rate in rates],
        }
    return result


def compare(results: dict[str, dict]) -> None:
    """Put into every side's result how it differs from `ours`, in place of its log-likelihoods."""
    ours = results["ours"]
    expected = ours["logps"]
    for side, result in results.items():
        logps = result.pop("logps")
        nats = differences(logps, expected)
        result["speedup_of_ours"] = result["seconds"] / ours["seconds"]
        result["largest_difference_nats"] = float(nats.max())
        result["mean_difference_nats"] = float(nats.mean())
        result["n_examples_ranked_differently"] = n_reordered(logps, expected)
        print(
            f"{side:12} {result['completions_per_second']:6.2f} completions/s, "
            f"{result['peak_gib_above_model']:.2f} GiB above the model; ours is "
            f"{result['speedup_of_ours']:.2f} times as fast; differs by at most "
            f"{result['largest_difference_nats']:.1g} and on average by "
            f"{result['mean_difference_nats']:.1g} nats, in "
            f"{result['n_examples_ranked_differently']} of {len(expected)} rankings"
        )
    print(
        f"ours: {ours['tokens_without_sharing_over_computed']:.2f} times fewer tokens than without "
        f"sharing, {ours['computed_over_unique_tokens']:.3f} tokens computed per unique token, "
        f"{ours['share_of_matmul_rate']:.0%} of the matrix-multiply rate"
    )


def plot_speed(summary: dict, path: Path) -> None:
    """Bars: completions per second and peak memory of every side."""
    results = {side: summary[side] for side in SIDES if side in summary}
    labels = ["ours, bfloat16" if side == "bfloat16" else side for side in results]
    keys = {"completions / s": "completions_per_second",
            "peak memory above the model, GiB": "peak_gib_above_model"}  # fmt: skip
    panels = {label: [result[key] for result in results.values()] for label, key in keys.items()}
    about = [summary.get(key) for key in ("model", "dtype", "device")]  # older files lack them
    about = [summary["dataset"], f"{summary['n_completions']} completions", *about]
    draw_sides(panels, labels, ", ".join(filter(None, about)), path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, n_examples=48, sides=True)
    add = parser.add_argument
    add("--dtype", choices=DTYPES[1:], default="float32", help="of all sides")
    add("--pairs-per-prompt", type=int, help="so many pairs of each prompt")
    add("--against", nargs="*", default=["padded"], choices=SIDES[:-1], help="empty: ours alone")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    source = (args.dataset, args.data_dir, args.sample_size, args.pairs_per_prompt)
    examples = select_examples(*source)  # also: is the dataset there, before minutes are spent
    if args.side:
        tokenizer = load_tokenizer(args.lm_name_or_path)
        dtype = "bfloat16" if args.side == "bfloat16" else args.dtype
        name, size = args.lm_name_or_path, args.random_llama
        model = make_or_load(size, name, tokenizer, dtype, args.device)
        print_figures(measure(args.side, model, tokenizer, examples))
        return
    device = device_name(args.device)
    sides = (*args.against, "ours")
    results = {side: measure_apart("benchmarks.scoring_speed", side) for side in sides}
    logps = results["ours"]["logps"]
    compare(results)
    summary = {
        "model": f"random {args.random_llama}" if args.random_llama else args.lm_name_or_path,
        "device": device,
        "dtype": args.dtype,
        "dataset": args.dataset,
        "pairs_per_prompt": args.pairs_per_prompt,
        "n_examples": len(logps),
        "n_completions": sum(map(len, logps)),
        **results,
    }
    write_figures(args.output, summary)
    if args.output:
        plot_speed(summary, args.output.with_suffix(".png"))


if __name__ == "__main__":
    run_script(main, parse_args())
