"""Time and memory of the paper's tables at full size, computed from token counts.

    python -m benchmarks.cost_estimate --data-dir DATA_DIR --output benchmarks/cost_estimate.json

    scoring   seconds = 2 x parameters x unique tokens / (share x peak rate x GPUs)
    training  three times that (the backward pass costs two forward passes), four times with
              --gradient-checkpointing; the reference is scored once and cached
    memory    float32 weights, gradients and one optimizer state (RMSprop) or two (AdamW), sharded
              over the GPUs; activations 34 x hidden size bytes per token and layer in 16 bits
              (Korthikanti et al. 2023, arXiv 2205.05198, without the attention matrices); with
              --gradient-checkpointing 2 x hidden size, and 34 x for the one layer recomputed

Tokens per example are counted with the model's tokenizer on the first examples of each dataset
(shared prompts once). The share of the peak rate is an assumption: measure it with
benchmarks/scoring_speed.py on your machine.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranking.data.hub import ALPACA_FARM, DATASETS
from ranking.data.preferences import load_preferences
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import write_text_atomically
from ranking.scoring.loading import load_tokenizer
from ranking.scoring.packing import count_new_tokens
from ranking.scoring.tokenization import tokenize_examples

HH_TRAIN_PAIRS = 160_800  # rows of Anthropic/hh-rlhf's train split
EVALUATED = 1000 + 1000  # validation pairs, and training pairs followed (flags' defaults)
TESTED = 1000  # once, at the end
GPUS = (1, 8, 32)


def tokens_per_example(
    name: str, tokenizer, args: argparse.Namespace, n_completions: int | None = None
) -> float:
    """Mean number of unique tokens of an example, or of its first completions only."""
    data = load_preferences(name, sample_size=args.sample_size, data_dir=args.data_dir)
    tokenized = tokenize_examples(tokenizer, data.examples, max_length=args.max_length)
    counts = [
        count_new_tokens(sorted(c.ids for c in completions[:n_completions]))
        for completions in tokenized.completions
    ]
    return sum(counts) / len(counts)


def experiments(tokens: dict[str, float], preferred: float, args: argparse.Namespace) -> list[dict]:
    """What each table or figure computes: tokens scored, and tokens trained on. preferred: tokens
    of an HH-RLHF example without its rejected completion."""
    hh = tokens["Anthropic/hh-rlhf"]
    train = hh * HH_TRAIN_PAIRS
    reference = train + hh * (EVALUATED / 2 + TESTED)  # followed pairs are training pairs
    evaluations = hh * (EVALUATED * args.evaluations + TESTED)
    return [
        {"item": "Fig. 1, Tables 2-5: one model", "scored": 1000 * sum(tokens.values())},
        {"item": "Tables 1, 6: one model and its reference", "scored": 2000 * tokens[ALPACA_FARM]},
        {"item": "SFT on HH-RLHF, 1 epoch", "trained": preferred * HH_TRAIN_PAIRS},
        {
            "item": f"Fig. 2, 3: DPO on HH-RLHF, {args.epochs} epochs",
            "scored": reference + evaluations,
            "trained": train * args.epochs,
        },
        {
            "item": "Fig. 5-7: nine γ, three seeds",
            "scored": reference + 27 * evaluations,
            "trained": 27 * train * args.epochs,
        },
    ]


def hours(experiment: dict, n_gpus: int, args: argparse.Namespace) -> float:
    """Hours on `n_gpus`, perfectly parallel."""
    passes = experiment.get("scored", 0) + experiment.get("trained", 0) * (
        4 if args.gradient_checkpointing else 3
    )
    rate = args.share * args.peak_tflops * 1e12 * n_gpus
    return 2 * args.parameters * passes / rate / 3600


def memory_gib(n_gpus: int, n_states: int, args: argparse.Namespace) -> float:
    """GiB per GPU in training: sharded weights, gradients, states, and a batch's activations."""
    sharded = 4 * (2 + n_states) * args.parameters / n_gpus
    largest_unit = 4 * args.parameters / args.layers if n_gpus > 1 else 0  # gathered to compute
    per_token = 34 * args.hidden_size * args.layers
    if args.gradient_checkpointing:  # the inputs of all layers, and all of the one recomputed
        per_token = 2 * args.hidden_size * args.layers + 34 * args.hidden_size
    return (sharded + 2 * largest_unit + per_token * args.tokens_per_batch) / 2**30


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--data-dir", required=True, help="DATA_DIR with the datasets")
    parser.add_argument("--sample-size", type=int, default=150, help="examples counted per dataset")
    parser.add_argument(
        "--tokenizer",
        default="SmolLM2-135M-Instruct",
        help="that counts (default: SmolLM2-135M-Instruct)",
    )
    parser.add_argument("--max-length", type=int, default=512, help="tokens, as in training")
    parser.add_argument("--parameters", type=float, default=6.74e9, help="of the model: Llama-2-7B")
    parser.add_argument("--layers", type=int, default=32, help="of the model (default: 32)")
    parser.add_argument(
        "--hidden-size", type=int, default=4096, help="of the model (default: 4096)"
    )
    parser.add_argument("--epochs", type=int, default=5, help="of DPO (default: 5)")
    parser.add_argument("--evaluations", type=int, default=50, help="during a DPO run")
    parser.add_argument("--tokens-per-batch", type=int, default=4096, help="of one GPU")
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="with its recomputation"
    )
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="H100, bfloat16, dense")
    parser.add_argument("--share", type=float, default=0.3, help="of the peak, assumed")
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(args.tokenizer)
    tokens = {name: tokens_per_example(name, tokenizer, args) for name in DATASETS}
    preferred = tokens_per_example("Anthropic/hh-rlhf", tokenizer, args, n_completions=1)
    rows = experiments(tokens, preferred, args)
    print("unique tokens per example: " + ", ".join(f"{k} {v:.0f}" for k, v in tokens.items()))
    first = rows[0]
    print(
        f"e.g. {first['item']}: 2 x {args.parameters:.3g} parameters x "
        f"{first['scored']:.3g} tokens / ({args.share} x {args.peak_tflops:.0f}e12 /s) = "
        f"{3600 * hours(first, 1, args):.0f} s"
    )
    print("\n| item | tokens scored | tokens trained | 1 GPU | 8 GPUs | 32 GPUs |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        row["hours"] = {str(n): hours(row, n, args) for n in GPUS}
        cells = [f"{row['hours'][str(n)]:.2g} h" for n in GPUS]
        counts = [f"{row.get(key, 0) / 1e6:,.1f} M" for key in ("scored", "trained")]
        print(f"| {row['item']} | {' | '.join([*counts, *cells])} |")
    memory = {}
    for name, n_states in (("DPO (RMSprop)", 1), ("SFT (AdamW)", 2)):
        memory[name] = {str(n): memory_gib(n, n_states, args) for n in GPUS}
        cells = [f"{memory[name][str(n)]:.0f} GiB" for n in GPUS]
        print(f"| {name}, memory per GPU | | | {' | '.join(cells)} |")
    if args.output:
        settings = {k: v for k, v in vars(args).items() if k not in ("data_dir", "output")}
        summary = {"settings": settings, "tokens_per_example": tokens, "items": rows,
                   "memory_gib_per_gpu": memory}  # fmt: skip
        write_text_atomically(args.output, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main, parse_args())
