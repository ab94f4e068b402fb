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
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.command import write_figures
from ranking.data.hub import ALPACA_FARM, DATASETS
from ranking.data.preferences import load_preferences
from ranking.plumbing.command_line import make_parser, run_script
from ranking.scoring.loading import load_tokenizer
from ranking.scoring.packing import count_new_tokens
from ranking.scoring.tokenization import tokenize_examples

HH = "Anthropic/hh-rlhf"
HH_TRAIN_PAIRS = 160_800  # rows of its train split
EVALUATED = 1000 + 1000  # validation pairs, and training pairs followed (flags' defaults)
TESTED = 1000  # once, at the end
GPUS = np.array([1, 8, 32])
STATES = {"DPO (RMSprop)": 1, "SFT (AdamW)": 2}  # of the optimizer, per parameter


def count_tokens(name: str, tokenizer, max_length: int, **data) -> tuple[float, float]:
    """Mean numbers of unique tokens: of an example, and of its prompt and first completion."""
    examples = load_preferences(name, **data).examples
    tokenized = tokenize_examples(tokenizer, examples, max_length=max_length).completions
    whole, first = (
        [count_new_tokens(sorted(c.ids for c in completions[:n])) for completions in tokenized]
        for n in (None, 1)
    )
    return sum(whole) / len(whole), sum(first) / len(first)


def token_table(tokens: dict[str, float], preferred: float, epochs: int, n_evaluations: int):
    """Tokens scored and tokens trained on for each table or figure (NaN: none). preferred: tokens
    of an HH-RLHF example without its rejected completion."""
    hh = tokens[HH]
    train = hh * HH_TRAIN_PAIRS
    reference = train + hh * (EVALUATED / 2 + TESTED)  # followed pairs are training pairs
    evaluations = hh * (EVALUATED * n_evaluations + TESTED)
    rows = {
        "Fig. 1, Tables 2-5: one model": (1000 * sum(tokens.values()), np.nan),
        "Tables 1, 6: one model and its reference": (2000 * tokens[ALPACA_FARM], np.nan),
        "SFT on HH-RLHF, 1 epoch": (np.nan, preferred * HH_TRAIN_PAIRS),
        f"Fig. 2, 3: DPO on HH-RLHF, {epochs} epochs": (reference + evaluations, train * epochs),
        "Fig. 5-7: nine γ, three seeds": (reference + 27 * evaluations, 27 * train * epochs),
    }
    return pd.DataFrame.from_dict(rows, "index", columns=["scored", "trained"])


def hour_table(tokens: pd.DataFrame, parameters: float, rate: float, passes: int) -> pd.DataFrame:
    """Hours of each item by number of GPUs, perfectly parallel. rate: operations per second of one.
    passes: forward passes that a training step costs."""
    computed = (tokens.fillna(0) @ [1, passes]).to_numpy()
    hours = 2 * parameters * computed[:, None] / (rate * GPUS) / 3600
    return pd.DataFrame(hours, tokens.index, GPUS.astype(str))


def memory_table(
    parameters: float, layers: int, hidden_size: int, tokens_per_batch: int, checkpointing: bool
) -> pd.DataFrame:
    """GiB per GPU in training by number of GPUs: sharded weights, gradients and states, two layers
    that are gathered to compute, and a batch's activations."""
    sharded = 4 * (2 + np.array([*STATES.values()])[:, None]) * parameters / GPUS
    gathered = 2 * np.where(GPUS > 1, 4 * parameters / layers, 0)
    per_token = 34 * hidden_size * layers
    if checkpointing:  # the inputs of all layers, and all of the one recomputed
        per_token = 2 * hidden_size * layers + 34 * hidden_size
    gib = (sharded + gathered + per_token * tokens_per_batch) / 2**30
    return pd.DataFrame(gib, STATES, GPUS.astype(str))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--data-dir", required=True, help="DATA_DIR with the datasets")
    add("--sample-size", type=int, default=150, help="examples counted per dataset")
    add("--tokenizer", default="SmolLM2-135M-Instruct",
        help="that counts (default: SmolLM2-135M-Instruct)")  # fmt: skip
    add("--max-length", type=int, default=512, help="tokens, as in training")
    add("--parameters", type=float, default=6.74e9, help="of the model: Llama-2-7B")
    add("--layers", type=int, default=32, help="of the model (default: 32)")
    add("--hidden-size", type=int, default=4096, help="of the model (default: 4096)")
    add("--epochs", type=int, default=5, help="of DPO (default: 5)")
    add("--evaluations", type=int, default=50, help="during a DPO run")
    add("--tokens-per-batch", type=int, default=4096, help="of one GPU")
    add("--gradient-checkpointing", action="store_true", help="with its recomputation")
    add("--peak-tflops", type=float, default=989.0, help="H100, bfloat16, dense")
    add("--share", type=float, default=0.3, help="of the peak, assumed")
    add("--output", type=Path, help="JSON file")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(args.tokenizer)
    data = {"sample_size": args.sample_size, "data_dir": args.data_dir}
    counts = {name: count_tokens(name, tokenizer, args.max_length, **data) for name in DATASETS}
    tokens = {name: whole for name, (whole, _) in counts.items()}
    table = token_table(tokens, counts[HH][1], args.epochs, args.evaluations)
    checkpointing, rate = args.gradient_checkpointing, args.share * args.peak_tflops * 1e12
    hours = hour_table(table, args.parameters, rate, 4 if checkpointing else 3)
    shape = (args.parameters, args.layers, args.hidden_size)
    memory = memory_table(*shape, args.tokens_per_batch, checkpointing)

    print("unique tokens per example: " + ", ".join(f"{k} {v:.0f}" for k, v in tokens.items()))
    shown = (table.fillna(0) / 1e6).add_suffix(", M tokens").join(hours.add_suffix(" GPUs, h"))
    print(f"\n{shown.to_markdown(floatfmt=',.3g')}")
    print(f"\nGiB per GPU\n{memory.add_suffix(' GPUs').to_markdown(floatfmt='.0f')}")
    items = [
        {"item": item, **row.dropna(), "hours": hours.loc[item].to_dict()}
        for item, row in table.iterrows()
    ]
    settings = {k: v for k, v in vars(args).items() if k not in ("data_dir", "output")}
    figures = {"settings": settings, "tokens_per_example": tokens, "items": items}
    write_figures(args.output, {**figures, "memory_gib_per_gpu": memory.to_dict("index")})


if __name__ == "__main__":
    run_script(main, parse_args())
