r"""How far log-likelihoods and training losses move when nothing should move them.

    python -m benchmarks.determinism --data-dir DATA_DIR --dataset Anthropic/hh-rlhf \
        --devices cpu --output benchmarks/determinism.json

Scoring: the same completions a second time, one example at a time, in small and large rows, and in
another order, each against the same device and dtype; then every device and dtype against float32
on the CPU. Prints the largest and mean difference in nats per completion, and how many examples
are ranked differently, summed and length-normalized. Training: DPO twice with one seed, float32
and bfloat16 autocast, and the largest difference of the losses of a step. Figures are written as
they come.
"""

import argparse
import random
import tempfile

import numpy as np

from benchmarks.command import benchmark_parser, write_figures
from benchmarks.machine import device_name
from benchmarks.ours import differences, dpo_trainer, first_pairs, n_reordered, row_size, score
from benchmarks.steps import losses_of
from ranking.data.preferences import load_preferences
from ranking.plumbing.command_line import run_script
from ranking.scoring.loading import load_model, load_tokenizer
from ranking.scoring.models import DTYPES
from ranking.scoring.tokenization import Texts, tokenize_examples


def compare(scores: list, expected: list, tokenized: list) -> dict:
    """Differences of the completions' log-likelihoods, and of the rankings by both of them."""
    nats = differences(scores, expected)
    per_token = [
        [[x / (len(c.ids) - c.start) for x, c in zip(*example)] for example in zip(side, tokenized)]
        for side in (scores, expected)
    ]
    return {
        "largest_nats": float(nats.max()),
        "mean_nats": float(nats.mean()),
        "ranked_differently": n_reordered(scores, expected),
        "ranked_differently_normalized": n_reordered(*per_token),
        "n_examples": len(scores),
    }


def scoring_variants(model, tokenized: list) -> tuple[list, dict[str, dict]]:
    """Scores as the scripts compute them, and how far each variant is from them."""
    size = row_size(model.device.type)
    expected = score(model, tokenized, size)
    order = list(range(len(tokenized)))
    random.Random(0).shuffle(order)
    shuffled = score(model, [tokenized[i] for i in order], size)
    variants = {
        "again": score(model, tokenized, size),
        "one example at a time": score(model, tokenized, size, batch_size=1),
        f"rows of {size // 4} tokens": score(model, tokenized, size // 4),
        f"rows of {2 * size} tokens": score(model, tokenized, 2 * size),
        "another order": [shuffled[place] for place in np.argsort(order)],
    }
    return expected, {name: compare(x, expected, tokenized) for name, x in variants.items()}


def losses(name: str, pairs, device: str, bf16: bool) -> list[float]:
    """Of every step of DPO, from the model to itself."""
    from transformers import PrinterCallback

    models = [load_model(name, dtype="float32", device=device) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = dpo_trainer(
            models, load_tokenizer(name), pairs, folder, learning_rate=1e-5,
            per_device_train_batch_size=8, seed=0, bf16=bf16,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return losses_of(trainer)


def print_row(kind: str, name: str, result: dict) -> None:
    print(
        f"| {kind} | {name} | {result['largest_nats']:.2g} | {result['mean_nats']:.2g} | "
        f"{result['ranked_differently']}, {result['ranked_differently_normalized']} of "
        f"{result['n_examples']} |",
        flush=True,
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, n_examples=200)
    add = parser.add_argument
    add("--training-pairs", type=int, default=64, help="in batches of 8; 0: none")
    add("--devices", nargs="+", default=["cpu"], help="cpu, cuda (default: cpu)")
    add("--dtypes", nargs="+", choices=DTYPES[1:], default=["float32", "bfloat16"],
        help="of the weights that score (default: float32 bfloat16)")  # fmt: skip
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    name = args.lm_name_or_path
    data = load_preferences(args.dataset, sample_size=args.sample_size, data_dir=args.data_dir)
    texts = [Texts(e.prompt, e.completions) for e in data.examples]
    tokenized = tokenize_examples(load_tokenizer(name), texts).completions

    print("| | compared | largest, nats | mean, nats | ranked differently: summed, normalized |")
    print("|---|---|---|---|---|")
    truth = score(load_model(name, dtype="float32", device="cpu"), tokenized, row_size("cpu"))
    summary: dict = {"model": name, "dataset": args.dataset, "scoring": {}, "training": {}}
    for device in args.devices:
        for dtype in args.dtypes:
            model = load_model(name, dtype=dtype, device=device)
            scores, variants = scoring_variants(model, tokenized)
            variants["float32 on the CPU"] = compare(scores, truth, tokenized)
            kind = f"{device_name(device)}, {dtype}"
            for variant, result in variants.items():
                print_row(kind, variant, result)
            summary["scoring"][kind] = variants
            write_figures(args.output, summary)
        if args.training_pairs:
            pairs = first_pairs(args.dataset, args.data_dir, args.training_pairs)
            for bf16 in (False, True):
                kind = f"{device_name(device)}, {'bfloat16 autocast' if bf16 else 'float32'}"
                first, second = (losses(name, pairs, device, bf16) for _ in range(2))
                difference = max(abs(a - b) for a, b in zip(first, second, strict=True))
                print(f"DPO twice, {kind}: {len(first)} losses differ by at most {difference:.2g}")
                summary["training"][kind] = {"largest_loss_difference": difference, "losses": first}
                write_figures(args.output, summary)


if __name__ == "__main__":
    run_script(main, parse_args())
