r"""How far log-likelihoods and training losses move when nothing should move them.

    python -m benchmarks.determinism --data-dir DATA_DIR --dataset Anthropic/hh-rlhf \
        --devices cpu --output benchmarks/determinism.json

Scoring: the same completions a second time, one example at a time, in small and large rows, and in
another order, each against the same device and dtype; then every device and dtype against float32
on the CPU. Prints the largest and mean difference in nats per completion, and how many examples
are ranked differently, summed and length-normalized. Training: DPO twice with one seed, float32
and bfloat16 autocast, and the largest difference of the losses of a step.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.scoring_speed import device_name, row_size
from ranking.data.conversions import preference_pairs
from ranking.data.preferences import load_preferences
from ranking.data.splits import load_training_splits
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import write_text_atomically
from ranking.scoring.models import DTYPES

Scores = list[list[np.ndarray]]  # per example and completion: log-likelihoods of its tokens, nats


def score(model, tokenized: list, tokens_per_batch: int, batch_size: int = 128) -> Scores:
    """Per-token log-likelihoods of all completions, by the scorer."""
    from ranking.scoring.score import token_logps_of_batches
    from ranking.scoring.start_up_check import check_fast_path

    path = check_fast_path(model, tokenized)
    if not path.is_packed:
        raise ValueError(f"shared prefixes are off: {path}")
    batches = token_logps_of_batches(
        model, tokenized, path=path, tokens_per_batch=tokens_per_batch, batch_size=batch_size
    )
    scores = dict(item for batch in batches for item in batch)
    return [scores[i] for i in range(len(tokenized))]


def compare(scores: Scores, expected: Scores) -> dict:
    """Differences of the completions' log-likelihoods, and of the rankings by both of them."""
    sums, other = (
        [[float(c.astype(np.float64).sum()) for c in example] for example in side]
        for side in (expected, scores)
    )
    differences = np.concatenate([np.subtract(a, b) for a, b in zip(sums, other)])
    lengths = [[len(c) for c in example] for example in expected]

    def changed(divide: bool) -> int:
        orders = [
            [np.argsort(np.divide(x, n) if divide else x).tolist() for x, n in zip(side, lengths)]
            for side in (sums, other)
        ]
        return sum(a != b for a, b in zip(*orders))

    return {
        "largest_nats": float(np.abs(differences).max()),
        "mean_nats": float(np.abs(differences).mean()),
        "ranked_differently": changed(divide=False),
        "ranked_differently_normalized": changed(divide=True),
        "n_examples": len(sums),
    }


def scoring_variants(model, tokenized: list) -> tuple[Scores, dict[str, dict]]:
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
    return expected, {name: compare(scores, expected) for name, scores in variants.items()}


def train(args: argparse.Namespace, device: str, bf16: bool) -> list[float]:
    """The losses of every step of DPO on the first --training-pairs pairs."""
    from datasets import Dataset
    from transformers import PrinterCallback

    from dpo_gamma_trainer import DPOGammaConfig, DPOGammaTrainer
    from ranking.scoring.loading import load_model, load_tokenizer

    parts, _ = load_training_splits(args.dataset, data_dir=args.data_dir)
    pairs = preference_pairs(parts["train"].examples)[: args.training_pairs]
    texts = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOGammaConfig(
            folder, loss_type="alpha_scaling", alpha=1.0, beta=0.1, max_length=512, seed=0,
            per_device_train_batch_size=8, num_train_epochs=1, logging_steps=1, learning_rate=1e-5,
            optim="rmsprop", report_to="none", save_strategy="no", disable_tqdm=True,
            use_cpu=device == "cpu", bf16=bf16,
        )  # fmt: skip
        trainer = DPOGammaTrainer(
            model=load_model(args.lm_name_or_path, dtype="float32", device=device),
            ref_model=load_model(args.lm_name_or_path, dtype="float32", device=device),
            args=config,
            train_dataset=Dataset.from_list(texts),
            processing_class=load_tokenizer(args.lm_name_or_path),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def print_row(kind: str, name: str, result: dict) -> None:
    print(
        f"| {kind} | {name} | {result['largest_nats']:.2g} | {result['mean_nats']:.2g} | "
        f"{result['ranked_differently']}, {result['ranked_differently_normalized']} of "
        f"{result['n_examples']} |",
        flush=True,
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--lm-name-or-path",
        default="SmolLM2-135M-Instruct",
        help="model (default: SmolLM2-135M-Instruct)",
    )
    parser.add_argument("--dataset", default="sample", help="as in the scripts")
    parser.add_argument("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    parser.add_argument("--sample-size", type=int, default=200, help="examples; -1: all")
    parser.add_argument("--training-pairs", type=int, default=64, help="in batches of 8; 0: none")
    parser.add_argument("--devices", nargs="+", default=["cpu"], help="cpu, cuda (default: cpu)")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES[1:], default=["float32", "bfloat16"],
        help="of the weights that score (default: float32 bfloat16)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from ranking.scoring.loading import load_model, load_tokenizer
    from ranking.scoring.tokenization import Texts, tokenize_examples

    name, sample_size = args.lm_name_or_path, None if args.sample_size == -1 else args.sample_size
    data = load_preferences(args.dataset, sample_size=sample_size, data_dir=args.data_dir)
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
            kind = f"{device_name(device)}, {dtype}"
            for variant, result in variants.items():
                print_row(kind, variant, result)
            variants["float32 on the CPU"] = compare(scores, truth)
            print_row(kind, "against float32 on the CPU", variants["float32 on the CPU"])
            summary["scoring"][kind] = variants
        for bf16 in (False, True) if args.training_pairs else ():
            kind = f"{device_name(device)}, {'bfloat16 autocast' if bf16 else 'float32'}"
            first, second = train(args, device, bf16), train(args, device, bf16)
            difference = max(abs(a - b) for a, b in zip(first, second, strict=True))
            print(f"DPO twice, {kind}: {len(first)} losses differ by at most {difference:.2g}")
            summary["training"][kind] = {"largest_loss_difference": difference, "losses": first}
    if args.output:
        write_text_atomically(args.output, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main, parse_args())
