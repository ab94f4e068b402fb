"""SFT speed and peak memory against TRL's own SFTTrainer, as it comes and at its best.

    python -m benchmarks.sft_speed --output benchmarks/sft_speed.json

Same model, texts, token ids, labels, order, batches, optimizer and learning rate, float32 weights;
each side in a process of its own, one after the other:
  trl               padded batches, TRL's default
  trl-padding-free  TRL's `padding_free`: the batch as one row, where no text sees another
  trl-packed        TRL's packing (`bfd`): rows of --max-length tokens, two in a step
  ours              this repository's trainer, as sft.py starts it
TRL's best sides take flash attention and Liger's kernels on a GPU that has them (`flash_attn`,
`liger_kernel`). Both training (all steps but the first, in which a GPU loads its kernels) and one
evaluation of further texts are timed. TRL's evaluation loss is a mean over batches, ours over all
response tokens. Seconds are those of the clock and, for a machine that others use too, of the
processor. `memory`: one text of 2048 tokens in a step, all trained, a vocabulary of 152
thousand words and a tiny body: the peak above weights, gradients and the optimizer's state.
"""

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.command import benchmark_parser, measure_apart, print_figures, write_figures
from benchmarks.machine import device_name, memory_gib
from benchmarks.models import make_or_load, make_wide_head, use_flash_attention
from benchmarks.ours import first_texts, sft_trainer
from benchmarks.steps import draw_sides, time_evaluation, time_steps, trained_state_gib
from ranking.plumbing.command_line import run_script
from ranking.scoring.loading import load_tokenizer

SIDES = ("trl", "trl-padding-free", "trl-packed", "ours")
SPEEDS = ("samples_per_second", "samples_per_cpu_second", "evaluated_per_second",
          "evaluated_per_cpu_second")  # fmt: skip
MEMORY_TOKENS = 2048


def best_of_trl(side: str, max_length: int, device: str) -> dict[str, Any]:
    """What TRL's SFTConfig is given beside the settings of all sides."""
    settings: dict[str, Any] = {}
    if side == "trl-padding-free":
        settings = {"padding_free": True}
    elif side == "trl-packed":
        settings = {
            "packing": True, "packing_strategy": "bfd", "max_length": max_length,
            "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2,
        }  # fmt: skip
    if settings and device != "cpu" and find_spec("liger_kernel"):
        settings["use_liger_kernel"] = True
    return settings


def n_texts(dataset, batch_size: int) -> tuple[int, int]:
    """Texts of a dataset, and of its first step: packed rows hold several."""
    counts = [len(row.get("seq_lengths", [0])) for row in dataset]
    return sum(counts), sum(counts[:batch_size])


def measure_speed(side: str, model, tokenizer, texts: list, max_length: int, how: dict) -> dict:
    """Samples/s of training and evaluation, peak memory and losses of one side."""
    import torch

    device = model.device.type
    settings = {**how, **best_of_trl(side, max_length, device)}
    attention = use_flash_attention(model) if side.startswith("trl-") else None
    with tempfile.TemporaryDirectory() as folder:
        trainer = sft_trainer(model, tokenizer, texts, folder, by_trl=side != "ours", **settings)
        steps = time_steps(trainer, device)
        evaluation = time_evaluation(trainer, device)
    in_step = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    n, n_first = n_texts(trainer.train_dataset, in_step)
    n_evaluated = n_texts(trainer.eval_dataset, 0)[0]
    return {
        **steps._asdict(),
        "samples_per_second": (n - n_first) / steps.seconds,
        "samples_per_cpu_second": (n - n_first) / steps.cpu_seconds,
        "evaluation": evaluation,
        "evaluated_per_second": n_evaluated / evaluation["seconds"],
        "evaluated_per_cpu_second": n_evaluated / evaluation["cpu_seconds"],
        "attention": attention,
        "settings": settings,
        "threads": torch.get_num_threads(),
    }


def measure_memory(by_trl: bool, tokenizer) -> dict[str, float]:
    """Peak of three steps on the CPU above weights, gradients and AdamW's state."""
    import torch
    from datasets import Dataset

    model = make_wide_head()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 150_000, (3, MEMORY_TOKENS), generator=generator).tolist()
    texts = Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])
    with tempfile.TemporaryDirectory() as folder:
        trainer = sft_trainer(
            model, tokenizer, [texts, texts], folder, by_trl=by_trl, bf16=False,
            per_device_train_batch_size=1,
        )  # fmt: skip
        weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
        before = memory_gib("cpu")[0] - weights
        steps = time_steps(trainer, "cpu")
    state = trained_state_gib(trainer)
    return {
        "weights_gradients_optimizer_gib": state,
        "peak_gib_above": steps.peak_gib - before - state,
        "losses": steps.losses,
    }


def compare(results: dict[str, dict]) -> None:
    """Put into every side's result how much faster ours is, and how far the losses differ."""
    ours = results["ours"]
    for side, result in results.items():
        if side != "trl-packed":  # whose steps are of other texts
            pairs = zip(result["losses"], ours["losses"], strict=True)
            result["largest_loss_difference"] = max(abs(a - b) for a, b in pairs)
        for name in SPEEDS:
            result[f"speedup_of_ours_in_{name}"] = ours[name] / result[name]
        trained, trained_cpu, evaluated, evaluated_cpu = (
            result[f"speedup_of_ours_in_{name}"] for name in SPEEDS
        )
        print(
            f"{side:16} {result['samples_per_second']:6.2f} samples/s trained, "
            f"{result['evaluated_per_second']:6.2f} evaluated, peak {result['peak_gib']:.1f} and "
            f"{result['evaluation']['peak_gib']:.1f} GiB; ours is {trained:.2f} and "
            f"{evaluated:.2f} times as fast, by processor seconds {trained_cpu:.2f} and "
            f"{evaluated_cpu:.2f}; losses differ by "
            f"{result.get('largest_loss_difference', float('nan')):.1g}"
        )


def plot_speed(summary: dict, path: Path) -> None:
    """Bars of every side: training, evaluation, memory."""
    sides = [side for side in SIDES if side in summary]
    panels = {
        "samples / s, training": [summary[s]["samples_per_second"] for s in sides],
        "samples / s, evaluation": [summary[s]["evaluated_per_second"] for s in sides],
        "peak memory, GiB": [summary[s]["peak_gib"] for s in sides],
    }
    precision = "bfloat16 autocast" if summary["bf16"] else "float32"
    about = [summary[key] for key in ("model", "device", "dataset")]
    about += [precision, f"{summary['n_train']} texts in batches of {summary['batch_size']}"]
    draw_sides(panels, sides, "SFT: " + ", ".join(about), path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, sides=True)
    add = parser.add_argument
    add("--bf16", action="store_true", help="autocast all sides to bfloat16")
    add("--n-train", type=int, default=24, help="texts to train on (default: 24)")
    add("--n-eval", type=int, default=16, help="further texts to evaluate on (default: 16)")
    add("--batch-size", type=int, default=8, help="texts in a step (default: 8)")
    add("--max-length", type=int, default=512, help="tokens of a text (default: 512)")
    add("--against", nargs="*", default=["trl", "trl-padding-free"], choices=SIDES[:-1],
        help="sides of TRL (default: trl trl-padding-free)")  # fmt: skip
    add("--parts", nargs="+", default=["speed", "memory"], choices=("speed", "memory"),
        help="what is measured (default: both)")  # fmt: skip
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.n_train <= args.batch_size:
        raise ValueError("--n-train: more than one step is needed, of which the first is not timed")
    if args.side:
        tokenizer = load_tokenizer(args.lm_name_or_path)
        if args.side.startswith("memory-"):
            print_figures(measure_memory(args.side == "memory-trl", tokenizer))
            return
        counts = [args.n_train, args.n_eval]
        texts = first_texts(args.dataset, args.data_dir, tokenizer, args.max_length, counts)
        model = make_or_load(
            args.random_llama, args.lm_name_or_path, tokenizer, "float32", args.device
        )
        how = {
            "bf16": args.bf16, "per_device_train_batch_size": args.batch_size,
            "per_device_eval_batch_size": args.batch_size,
        }  # fmt: skip
        print_figures(measure_speed(args.side, model, tokenizer, texts, args.max_length, how))
        return
    summary = {
        "model": f"random {args.random_llama}" if args.random_llama else args.lm_name_or_path,
        "device": device_name(args.device), "bf16": args.bf16, "dataset": args.dataset,
        "n_train": args.n_train, "n_eval": args.n_eval, "batch_size": args.batch_size,
    }  # fmt: skip
    if "speed" in args.parts:
        sides = (*args.against, "ours")
        results = {side: measure_apart("benchmarks.sft_speed", side) for side in sides}
        compare(results)
        summary |= results
        write_figures(args.output, summary)
        if args.output:
            plot_speed(summary, args.output.with_suffix(".png"))
    if "memory" in args.parts:
        memory = {
            side: measure_apart("benchmarks.sft_speed", f"memory-{side}")
            for side in ("trl", "ours")
        }
        for side, found in memory.items():
            print(f"{side}: {found['peak_gib_above']:.2f} GiB above "
                  f"{found['weights_gradients_optimizer_gib']:.2f} GiB of weights, gradients and "
                  "optimizer")  # fmt: skip
        summary["memory"] = memory
        write_figures(args.output, summary)


if __name__ == "__main__":
    run_script(main, parse_args())
