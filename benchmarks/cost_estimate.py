"""Time and memory of the paper's tables and runs at full size, computed from token counts.

    python -m benchmarks.cost_estimate --data-dir DATA_DIR --output benchmarks/cost_estimate.json

    scoring   seconds = 2 x parameters x unique tokens / (share x peak rate x GPUs)
    training  three times that (the backward pass costs two forward passes), four times with
              --gradient-checkpointing; the reference is scored once and cached
    memory    float32 weights, gradients and one optimizer state (RMSprop) or two (AdamW), sharded
              over the GPUs; activations 34 x hidden size bytes per token and layer in 16 bits
              (Korthikanti et al. 2023, arXiv 2205.05198, without the attention matrices); with
              --gradient-checkpointing 2 x hidden size, and 34 x for the one layer recomputed

    the paper's runs   GPU-hours of a seed with reproduce/paper_settings.jsonl on A100s beside those
              that the paper gives, and what share of the peak its hours would be of the operations
              needed here: shared prompts computed once, no padding, the reference cached. If its
              hours are not summed over GPUs, the share of runs on two GPUs is half of that

Tokens per example are counted with one tokenizer for all models on a sample of each dataset
(shared prompts once). The share of the peak rate is an assumption: measure it with
benchmarks/scoring_speed.py on your machine.
"""

import argparse
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.command import write_figures
from ranking.data.hub import ALPACA_FARM, DATASETS
from ranking.data.preferences import load_preferences
from ranking.plumbing.command_line import make_parser, run_script
from ranking.scoring.loading import load_tokenizer
from ranking.scoring.packing import count_new_tokens
from ranking.scoring.tokenization import tokenize_examples
from reproduce.settings import PAPER_MODELS, paper_grid, paper_settings

HH = "Anthropic/hh-rlhf"
A100, H100 = 312e12, 989e12  # bfloat16 operations per second, dense, by the data sheets
SHAPES = {  # parameters, layers, hidden size
    "gpt2": (124_439_808, 12, 768),
    "EleutherAI/pythia-2.8b": (2_775_208_960, 32, 2560),
    "meta-llama/Llama-2-7b-hf": (6_738_415_616, 32, 4096),
}
HH_TRAIN_PAIRS = 160_800  # rows of its train split
VALIDATED, FOLLOWED = 1000, 1000  # pairs of validation, and of training (flags' defaults)
TESTED = 1000  # once, at the end; by training runs of DPO (--evaluate_test) at each evaluation, too
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


def sft_tokens(preferred: float, epochs: int, n_evaluations: int) -> tuple[float, float]:
    """Tokens scored and trained on by one run. preferred: of an example's prompt and preferred
    completion."""
    scored = preferred * (VALIDATED * n_evaluations + TESTED)
    return scored, preferred * HH_TRAIN_PAIRS * epochs


def dpo_tokens(
    pair: float, epochs: int, n_evaluations: int, n_runs: int = 1, evaluate_test: bool = True
) -> tuple[float, float]:
    """The same of DPO runs that share the log-likelihoods of their reference. evaluate_test: as
    the runs of a search do not."""
    reference = pair * (HH_TRAIN_PAIRS + VALIDATED + TESTED)  # followed pairs are training pairs
    n_evaluated = VALIDATED + FOLLOWED + TESTED * evaluate_test
    evaluations = pair * (n_evaluated * n_evaluations + TESTED)
    return reference + n_runs * evaluations, n_runs * pair * HH_TRAIN_PAIRS * epochs


def token_table(
    tokens: dict[str, float], preferred: float, epochs: int, n_evaluations: int
) -> pd.DataFrame:
    """Tokens scored and trained on for each table or figure of one model (NaN: none)."""
    rows = {
        "Fig. 1, Tables 2-5: one model": (1000 * sum(tokens.values()), np.nan),
        "Tables 1, 6: one model and its reference": (2000 * tokens[ALPACA_FARM], np.nan),
        f"SFT on HH-RLHF, epochs: {epochs}": sft_tokens(preferred, epochs, n_evaluations),
        f"Fig. 2, 3: DPO on HH-RLHF, epochs: {epochs}": dpo_tokens(
            tokens[HH], epochs, n_evaluations
        ),
        "Fig. 5-7: nine γ, three seeds": 3
        * np.array(
            dpo_tokens(tokens[HH], epochs, n_evaluations, 9)  # a seed has its own reference
        ),
    }
    return pd.DataFrame.from_dict(rows, "index", columns=["scored", "trained"])


def needed_operations(parameters: float, scored: Any, trained: Any, passes: int = 3) -> Any:
    """2 per parameter and token of a forward pass. scored, trained: numbers of tokens, or columns
    of them. passes: forward passes that training costs."""
    return 2 * parameters * (scored + passes * trained)


def paper_runs(pair: float, preferred: float, share: float) -> pd.DataFrame:
    """GPU-hours of a seed of each model on A100s at that share of their peak, the paper's, the
    share that these imply, and the GPU-hours of its search."""
    rows = []
    for model, script in product(PAPER_MODELS, ("sft", "dpo")):
        settings = paper_settings(model, script)
        epochs, n_evaluations = settings["num_train_epochs"]["value"], evaluations_of(settings)
        counts = search_counts = sft_tokens(preferred, epochs, n_evaluations)
        if script == "dpo":
            counts = dpo_tokens(pair, epochs, n_evaluations)
            search_counts = dpo_tokens(pair, epochs, n_evaluations, evaluate_test=False)
        hours, of_search = (
            needed_operations(SHAPES[model][0], *tokens) / (share * A100 * 3600)
            for tokens in (counts, search_counts)
        )
        published = settings["gpu_hours"]["value"]
        n_points = math.prod(map(len, paper_grid(model, script).values()))
        rows.append({
            "model": model, "run": script.upper(), "epochs": epochs, "GPU-hours": hours,
            "the paper's": published, "its share of the peak": share * hours / published,
            "grid": n_points, "its GPU-hours": n_points * of_search,
            "at the paper's rate": n_points * published,
        })  # fmt: skip
    return pd.DataFrame(rows)


def evaluations_of(settings: dict[str, Any]) -> int:
    """Of a run that is evaluated after each --eval_steps, a share of its steps."""
    return round(1 / settings["eval_steps"]["value"])


def hour_table(tokens: pd.DataFrame, parameters: float, rate: float, passes: int) -> pd.DataFrame:
    """Hours of each item by number of GPUs, perfectly parallel. rate: operations per second of one.
    passes: forward passes that a training step costs."""
    known = tokens.fillna(0)
    operations = needed_operations(parameters, known["scored"], known["trained"], passes)
    hours = operations.to_numpy()[:, None] / (rate * GPUS) / 3600
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
    add("--model", choices=SHAPES, default="meta-llama/Llama-2-7b-hf",
        help="of the tables of hours and memory (default: meta-llama/Llama-2-7b-hf)")  # fmt: skip
    add("--tokens-per-batch", type=int, default=4096, help="of one GPU")
    add("--gradient-checkpointing", action="store_true", help="with its recomputation")
    add("--share", type=float, default=0.3, help="of the peak of an H100 or A100, assumed")
    add("--output", type=Path, help="JSON file")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(args.tokenizer)
    data = {"sample_size": args.sample_size, "data_dir": args.data_dir}
    counts = {name: count_tokens(name, tokenizer, args.max_length, **data) for name in DATASETS}
    tokens = {name: whole for name, (whole, _) in counts.items()}
    settings = paper_settings(args.model, "dpo")
    epochs, n_evaluations = settings["num_train_epochs"]["value"], evaluations_of(settings)
    table = token_table(tokens, counts[HH][1], epochs, n_evaluations)
    checkpointing, shape = args.gradient_checkpointing, SHAPES[args.model]
    hours = hour_table(table, shape[0], args.share * H100, 4 if checkpointing else 3)
    runs = paper_runs(tokens[HH], counts[HH][1], args.share)
    memory = memory_table(*shape, args.tokens_per_batch, checkpointing)

    print("unique tokens per example: " + ", ".join(f"{k} {v:.0f}" for k, v in tokens.items()))
    shown = (table.fillna(0) / 1e6).add_suffix(", M tokens").join(hours.add_suffix(" GPUs, h"))
    print(f"\n{args.model}\n{shown.to_markdown(floatfmt=',.3g')}")
    print(f"\nGiB per GPU\n{memory.add_suffix(' GPUs').to_markdown(floatfmt='.0f')}")
    print(f"\na seed on A100s\n{runs.to_markdown(index=False, floatfmt=',.2g')}")
    items = [
        {"item": item, **row.dropna(), "hours": hours.loc[item].to_dict()}
        for item, row in table.iterrows()
    ]
    given = {k: v for k, v in vars(args).items() if k not in ("data_dir", "output")}
    figures = {"settings": given, "tokens_per_example": tokens, "items": items,
               "preferred_tokens_per_example": counts[HH][1],
               "runs": runs.to_dict("records")}  # fmt: skip
    write_figures(args.output, {**figures, "memory_gib_per_gpu": memory.to_dict("index")})


if __name__ == "__main__":
    run_script(main, parse_args())
