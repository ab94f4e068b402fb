"""DPO training speed and peak memory against TRL's own DPOTrainer.

    python -m benchmarks.training_speed --output benchmarks/training_speed.json

Same model, pairs, token ids, batches, optimizer and loss (γ = 1, TRL's `sigmoid`), float32 weights,
each side in a process of its own, one after the other: with the reference computed in every step
(TRL's default), and with the reference's log-likelihoods in the dataset on both sides. The first
step, in which a GPU loads its kernels, is not timed. Prints the speedups and how far the losses of
the steps differ.
"""

import argparse
import os
import tempfile
import time

from benchmarks.command import benchmark_parser, measure_apart, print_figures, write_figures
from benchmarks.machine import device_name, forget_peak, memory_gib
from benchmarks.models import make_or_load
from benchmarks.ours import dpo_trainer, first_pairs, losses_of
from ranking.plumbing.command_line import run_script
from ranking.scoring.loading import load_tokenizer


def measure(trainer, device: str, n_timed: int) -> dict:
    """Seconds of all steps but the first, with `n_timed` pairs, peak memory, and the losses."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            if device != "cpu":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    forget_peak(device)
    before = memory_gib(device)[0]
    trainer.add_callback(Clock())
    trainer.train()
    seconds = ends[-1] - ends[0]
    peak = memory_gib(device)[1]
    return {
        "seconds": seconds,
        "pairs_per_second": n_timed / seconds,
        "peak_gib": peak,
        "peak_gib_above_start": peak - before,
        "losses": losses_of(trainer),
        "threads": torch.get_num_threads(),
    }


def compare(reference: str, ours: dict, trl: dict) -> dict:
    """The figures of both sides, the speedup, and how far the losses of the steps differ."""
    speedup = ours["pairs_per_second"] / trl["pairs_per_second"]
    difference = max(abs(a - b) for a, b in zip(ours["losses"], trl["losses"]))
    for side, result in (("trl", trl), ("ours", ours)):
        print(f"{reference} reference, {side:4}: {result['pairs_per_second']:.3f} pairs/s, "
              f"peak {result['peak_gib']:.1f} GiB")  # fmt: skip
    print(f"{reference}: {speedup:.2f} times as fast, losses equal to {difference:.1g}")
    return {
        f"trl_{reference}": trl,
        f"ours_{reference}": ours,
        f"speedup_{reference}": speedup,
        f"largest_loss_difference_{reference}": difference,
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, sides=True)
    add = parser.add_argument
    add("--bf16", action="store_true", help="autocast both sides to bfloat16")
    add("--n-pairs", type=int, default=24, help="pairs to train on (default: 24)")
    add("--batch-size", type=int, default=8, help="pairs in a step")
    add("--reference", nargs="+", default=["online", "cached"], choices=("online", "cached"),
        help="computed in every step, or before")  # fmt: skip
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.n_pairs <= args.batch_size:
        raise ValueError("--n-pairs: more than one step is needed, of which the first is not timed")
    if args.side:
        side, reference = args.side.split("-")
        tokenizer = load_tokenizer(args.lm_name_or_path)
        model = (args.random_llama, args.lm_name_or_path, tokenizer, "float32", args.device)
        pairs = first_pairs(args.dataset, args.data_dir, args.n_pairs)
        with tempfile.TemporaryDirectory() as folder:
            trainer = dpo_trainer(  # caches the reference now, on both sides by TRL
                [make_or_load(*model) for _ in range(2)], tokenizer, pairs, folder,
                by_trl=side == "trl", learning_rate=1e-6, bf16=args.bf16,
                per_device_train_batch_size=args.batch_size, gradient_checkpointing=False,
                precompute_ref_log_probs=reference == "cached",
            )  # fmt: skip
            print_figures(measure(trainer, args.device, len(pairs) - args.batch_size))
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
            trl, ours = (
                measure_apart("benchmarks.training_speed", f"{side}-{reference}", environment)
                for side in ("trl", "ours")
            )
            summary |= compare(reference, ours, trl)
    write_figures(args.output, summary)


if __name__ == "__main__":
    run_script(main, parse_args())
