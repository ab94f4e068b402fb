"""Completions per second and peak memory of the scorer against padded batches with full logits.

    python benchmarks/scoring_speed.py --output benchmarks/scoring_speed.json

Both sides score the same completions with the same float32 weights, each in a process of its own
(for its peak memory), one after the other: ours by shared-prefix rows; the baseline as scoring
scripts usually do, right-padded batches of 8 completions in dataset order, logits of all positions.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_utils import load_preferences
from result_files import write_text_atomically


def score_baseline(model, tokenized, batch_size: int = 8) -> list[float]:
    """Summed log-likelihoods from padded batches and full [batch, length, vocabulary] logits."""
    import torch

    completions = [c for example in tokenized for c in example]
    sums = []
    with torch.inference_mode():
        for first in range(0, len(completions), batch_size):
            batch = completions[first : first + batch_size]
            width = max(len(c.ids) for c in batch)
            ids = torch.tensor([c.ids + (0,) * (width - len(c.ids)) for c in batch])
            mask = torch.tensor([[1] * len(c.ids) + [0] * (width - len(c.ids)) for c in batch])
            logps = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
            token_logps = logps[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]
            sums += [
                token_logps[i, c.start - 1 : len(c.ids) - 1].sum().item()
                for i, c in enumerate(batch)
            ]
    return sums


def score_ours(model, tokenized) -> list[float]:
    """Summed log-likelihoods from `score_examples`, start-up check included."""
    from log_likelihood import check_fast_path, score_examples

    path = check_fast_path(model, tokenized)
    batches = score_examples(model, tokenized, path=path, tokens_per_batch=1024, batch_size=128)
    scores = dict(item for batch in batches for item in batch)
    return [float(x.sum()) for i in range(len(tokenized)) for x in scores[i]]


def measure(args: argparse.Namespace) -> dict:
    """One side, in this process: seconds, peak memory above the loaded model, and the sums."""
    from log_likelihood import tokenize_examples
    from model_loading import load_model, load_tokenizer

    data = load_preferences(args.dataset, sample_size=args.sample_size, data_dir=args.data_dir)
    model = load_model(args.lm_name_or_path, dtype="float32", device="cpu")
    examples = [(e.prompt, e.completions) for e in data.examples]
    outcomes = tokenize_examples(load_tokenizer(args.lm_name_or_path), examples)
    tokenized = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    sums = (score_ours if args.side == "ours" else score_baseline)(model, tokenized)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_gib_above_model": (peak - before) / 2**20, "logps": sums,
            "n_examples": len(tokenized)}  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--lm-name-or-path", default="SmolLM2-135M-Instruct")
    parser.add_argument("--dataset", default="sample", help="as in the scripts")
    parser.add_argument("--data-dir")
    parser.add_argument("--sample-size", type=int, default=48, help="examples")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--side", choices=("ours", "baseline"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.side:
        print(json.dumps(measure(args)))
        return
    results = {}
    for side in ("baseline", "ours"):
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[side] = json.loads(output.splitlines()[-1])
    logps = {side: result.pop("logps") for side, result in results.items()}
    difference = max(abs(a - b) for a, b in zip(logps["ours"], logps["baseline"]))
    summary = {
        "dataset": args.dataset,
        "n_completions": len(logps["ours"]),
        **results,
        "speedup": results["baseline"]["seconds"] / results["ours"]["seconds"],
        "largest_difference_nats": difference,
    }
    for side, result in results.items():
        rate = len(logps[side]) / result["seconds"]
        memory = result["peak_gib_above_model"]
        print(f"{side:9} {rate:6.2f} completions/s, {memory:.2f} GiB above the model")
    print(f"{summary['speedup']:.1f} times faster, equal to {difference:.1g} nats")
    if args.output:
        write_text_atomically(args.output, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main(parse_args())
