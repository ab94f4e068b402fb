"""DPO training speed and peak memory against TRL's own DPOTrainer.

    python -m benchmarks.training_speed --output benchmarks/training_speed.json

Same model, pairs, token ids, batches, optimizer and loss (γ = 1, TRL's `sigmoid`), float32 weights,
each side in a process of its own, one after the other: with the reference computed in every step
(TRL's default), and with the reference's log-likelihoods in the dataset on both sides. The first
step, in which a GPU loads its kernels, is not timed. Prints the speedups and how far the losses of
the steps differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.random_llama import SIZES, make_random_llama
from benchmarks.scoring_speed import device_name, forget_peak, memory_gib
from ranking.data.conversions import preference_pairs
from ranking.data.splits import load_training_splits
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import write_text_atomically


def measure(args: argparse.Namespace) -> dict:
    """One side, in this process: seconds of train(), peak memory above the models, losses."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from dpo_gamma_trainer import DPOGammaConfig, DPOGammaTrainer
    from ranking.scoring.loading import load_model, load_tokenizer

    parts, _ = load_training_splits(args.dataset, data_dir=args.data_dir)
    pairs = preference_pairs(parts["train"].examples)[: args.n_pairs]
    texts = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
    side, reference = args.side.split("-")
    ours = side == "ours"
    settings = {
        "beta": 0.1, "max_length": 512, "per_device_train_batch_size": args.batch_size,
        "num_train_epochs": 1, "logging_steps": 1, "learning_rate": 1e-6, "optim": "rmsprop",
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": args.device == "cpu", "bf16": args.bf16, "gradient_checkpointing": False,
        "precompute_ref_log_probs": reference == "cached",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config = (
            DPOGammaConfig(folder, loss_type="alpha_scaling", alpha=1.0, **settings)
            if ours
            else DPOConfig(folder, loss_type="sigmoid", **settings)
        )
        tokenizer = load_tokenizer(args.lm_name_or_path)
        if args.random_llama:
            size = args.random_llama
            models = [make_random_llama(size, tokenizer, "float32", args.device) for _ in "12"]
        else:
            name = args.lm_name_or_path
            models = [load_model(name, dtype="float32", device=args.device) for _ in "12"]
        trainer = (DPOGammaTrainer if ours else DPOTrainer)(
            model=models[0],
            ref_model=models[1],
            args=config,
            train_dataset=Dataset.from_list(texts),
            processing_class=tokenizer,
        )
        # with --reference cached it was just computed, on both sides by TRL: only training is timed
        forget_peak(args.device)
        before = memory_gib(args.device)[0]
        ends: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_, **__):
                if args.device != "cpu":
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())

        trainer.add_callback(Clock())
        trainer.train()
        seconds = ends[-1] - ends[0]
        peak = memory_gib(args.device)[1]
    return {
        "seconds": seconds,
        "pairs_per_second": (len(texts) - args.batch_size) / seconds,
        "peak_gib": peak,
        "peak_gib_above_start": peak - before,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "threads": torch.get_num_threads(),
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--lm-name-or-path",
        default="SmolLM2-135M-Instruct",
        help="model (default: SmolLM2-135M-Instruct)",
    )
    parser.add_argument("--random-llama", choices=SIZES, help="that shape, random weights, instead")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--bf16", action="store_true", help="autocast both sides to bfloat16")
    parser.add_argument("--dataset", default="sample", help="as in dpo.py")
    parser.add_argument("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    parser.add_argument("--n-pairs", type=int, default=24, help="pairs to train on (default: 24)")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs in a step")
    parser.add_argument(
        "--reference",
        nargs="+",
        default=["online", "cached"],
        choices=("online", "cached"),
        help="computed in every step, or before",
    )
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.n_pairs <= args.batch_size:
        raise ValueError("--n-pairs: more than one step is needed, of which the first is not timed")
    if args.side:
        print("\n" + json.dumps(measure(args)))
        return
    summary = {
        "model": f"random {args.random_llama}" if args.random_llama else args.lm_name_or_path,
        "device": device_name(args.device), "bf16": args.bf16,
        "dataset": args.dataset, "n_pairs": args.n_pairs, "batch_size": args.batch_size,
    }  # fmt: skip
    # TRL keeps precomputed log-likelihoods in the datasets cache: an empty one for every run
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "HF_DATASETS_CACHE": cache}
        for reference in args.reference:
            for side in ("trl", "ours"):
                command = [sys.executable, __file__, *sys.argv[1:], "--side", f"{side}-{reference}"]
                output = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=environment
                ).stdout
                result = json.loads(output.splitlines()[-1])
                summary[f"{side}_{reference}"] = result
                print(
                    f"{reference} reference, {side:4}: {result['pairs_per_second']:.3f} pairs/s, "
                    f"peak {result['peak_gib']:.1f} GiB"
                )
            ours, trl = summary[f"ours_{reference}"], summary[f"trl_{reference}"]
            speedup = ours["pairs_per_second"] / trl["pairs_per_second"]
            difference = max(abs(a - b) for a, b in zip(ours["losses"], trl["losses"]))
            summary[f"speedup_{reference}"] = speedup
            summary[f"largest_loss_difference_{reference}"] = difference
            print(f"{reference}: {speedup:.2f} times as fast, losses equal to {difference:.1g}")
    if args.output:
        write_text_atomically(args.output, json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main, parse_args())
