"""DPO training speed and peak memory against TRL's DPOTrainer, as it comes and at its best, and
against flash-pref's.

    python -m benchmarks.training_speed --output benchmarks/training_speed.json

Same model, pairs, order, steps of --batch-size pairs, optimizer and loss (γ = 1, TRL's `sigmoid`),
float32 weights; each side in a process of its own, one after the other, with the reference computed
in every step (online) and before training (cached):
  trl         TRL's defaults
  trl-best    TRL with flash attention and Liger's kernels on a GPU that has them (`flash_attn`,
              `liger_kernel`)
  flash-pref  shared prompts by the package flash-pref, in an environment of its own that has it
              (--flash-pref-python), since it needs transformers before 4.52
  ours        this repository's trainer
--splits measures each side's steps cut into device batches x accumulation (8x1, 2x4, ...): the
fastest of TRL's best is what it is compared by. The first step, in which a GPU loads its kernels,
is not timed. Seconds are those of the clock and, for a machine that others use too, of the
processor. Of ours: the share of the device's matrix-multiply rate, which is unique tokens of
each step x 2 x the parameters each touches (the LM head's for scored tokens only) x 3, for forward
and backward, and once more for an online reference, over the seconds, over the rate of 2048 x 2048
products (8192 x 8192 on a GPU) before and after.
"""

import argparse
import json
import os
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.command import benchmark_parser, measure_apart, print_figures, write_figures
from benchmarks.machine import device_name, matmul_rate
from benchmarks.models import make_or_load, use_flash_attention
from benchmarks.ours import dpo_trainer, first_pairs
from benchmarks.steps import draw_sides, forward_operations, time_steps
from ranking.plumbing.command_line import run_script
from ranking.scoring.loading import load_tokenizer
from ranking.scoring.models import resolve_model

SIDES = ("trl", "trl-best", "flash-pref", "ours")


def splits_of(text: str) -> tuple[int, int]:
    """An argparse type: device batch x accumulation, as 2x4."""
    first, _, second = text.partition("x")
    if not (first.isdigit() and second.isdigit() and int(first) and int(second)):
        raise argparse.ArgumentTypeError(f"{text}: give device batch x accumulation, as 2x4")
    return int(first), int(second)


def step_operations(trainer, batch_size: int) -> tuple[int, float]:
    """`forward_operations` of all steps but the first, each computed by itself."""
    from ranking.training.pairs import completions_of

    pairs = [completions_of(trainer.data_collator([row])) for row in trainer.train_dataset]
    steps = [pairs[k : k + batch_size] for k in range(batch_size, len(pairs), batch_size)]
    found = [forward_operations(trainer.model, step) for step in steps]
    return sum(n for n, _ in found), sum(operations for _, operations in found)


def measure(side: str, models: list, tokenizer, pairs, reference: str, **settings) -> dict:
    """Pairs/s, peak memory and losses of one side, by all steps but the first; of ours the share of
    the rate of matrix products."""
    import torch

    device, attention = models[0].device.type, None
    if side == "trl-best":
        attention = [use_flash_attention(model) for model in models][0]
        settings["use_liger_kernel"] = device != "cpu" and find_spec("liger_kernel") is not None
    precision = torch.bfloat16 if settings["bf16"] else torch.float32
    rates = [matmul_rate(precision, device)] if side == "ours" else []
    in_step = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = dpo_trainer(  # caches the reference now, on all sides by TRL
            models, tokenizer, pairs, folder, by_trl=side != "ours", learning_rate=1e-6,
            gradient_checkpointing=False, precompute_ref_log_probs=reference == "cached",
            train_sampling_strategy="sequential", **settings,
        )  # fmt: skip
        n_tokens, operations = step_operations(trainer, in_step) if rates else (0, 0.0)
        steps = time_steps(trainer, device)
    figures: dict[str, Any] = {
        **steps._asdict(),
        "pairs_per_second": (len(pairs) - in_step) / steps.seconds,
        "pairs_per_cpu_second": (len(pairs) - in_step) / steps.cpu_seconds,
        "threads": torch.get_num_threads(),
    }
    if rates:
        rates.append(matmul_rate(precision, device))
        passes = 4 if reference == "online" else 3
        share = passes * operations / steps.seconds / (sum(rates) / 2)
        figures |= {
            "unique_tokens": n_tokens,
            "share_of_matmul_rate": share,
            "matmul_gflops": [rate / 1e9 for rate in rates],
        }
    else:
        figures |= {"attention": attention, "liger": settings.get("use_liger_kernel", False)}
    return figures


def measure_flash_pref(python: str | None, model: str, pairs, settings: dict) -> dict:
    """The same by flash-pref, under an interpreter that has it; else why not."""
    if python is None:
        return {"skipped": "give --flash-pref-python an interpreter that has flash-pref"}
    with tempfile.TemporaryDirectory() as folder:
        pairs.to_json(f"{folder}/pairs.jsonl")
        command = [python, "-m", "benchmarks.flash_pref", resolve_model(model), folder,
                   json.dumps(settings)]  # fmt: skip
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        return {"skipped": f"exit code {run.returncode} under {python}"}
    return json.loads(run.stdout.splitlines()[-1])


def name_of(side: str, reference: str, split: tuple[int, int]) -> str:
    return f"{side}_{reference}_{split[0]}x{split[1]}"


def compare(results: dict[str, dict]) -> dict[str, float]:
    """Print every side; how many times as fast as each the fastest of ours is, by reference, and
    how far the losses of the steps differ."""
    summary: dict[str, float] = {}
    for reference in ("online", "cached"):
        of_reference = {k: r for k, r in results.items() if f"_{reference}_" in k}
        measured = {k: r for k, r in of_reference.items() if "skipped" not in r}
        for key in of_reference.keys() - measured.keys():
            print(f"{key}: left out, {of_reference[key]['skipped']}")
        ours = {k: r for k, r in measured.items() if k.startswith("ours")}
        for key, result in measured.items():
            share = result.get("share_of_matmul_rate")
            print(
                f"{key:22} {result['pairs_per_second']:7.3f} pairs/s, "
                f"peak {result['peak_gib']:.1f} GiB"
                + (f", {share:.0%} of the rate of matrix products" if share else "")
            )
        for side in SIDES[:-1]:
            name = f"{side}_{reference}"
            others = [r for k, r in measured.items() if k.startswith(name)]
            if not (ours and others):
                continue
            for unit in ("second", "cpu_second"):
                fastest = [
                    max(r[f"pairs_per_{unit}"] for r in rs) for rs in (ours.values(), others)
                ]
                summary[f"speedup_{name}_by_{unit}"] = fastest[0] / fastest[1]
            print(
                f"ours is {summary[f'speedup_{name}_by_second']:.2f} times as fast as {name}, by "
                f"processor seconds {summary[f'speedup_{name}_by_cpu_second']:.2f}"
            )
        losses = [r["losses"] for k, r in measured.items() if not k.startswith("flash-pref")]
        if losses:
            differences = [abs(a - b) for other in losses for a, b in zip(other, losses[-1])]
            summary[f"largest_loss_difference_{reference}"] = max(differences)
            print(f"{reference}: losses of the steps equal to {max(differences):.1g}")
    return summary


def plot_speed(results: dict[str, dict], title: str, path: Path) -> None:
    """Bars: pairs/s and peak memory of every side."""
    measured = {k.replace("_", ", "): r for k, r in results.items() if "skipped" not in r}
    keys = {"pairs / s": "pairs_per_second", "peak memory, GiB": "peak_gib"}
    panels = {label: [r[key] for r in measured.values()] for label, key in keys.items()}
    draw_sides(panels, list(measured), title, path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = benchmark_parser(__doc__, sides=True)
    add = parser.add_argument
    add("--bf16", action="store_true", help="autocast all sides to bfloat16")
    add("--n-pairs", type=int, default=24, help="pairs to train on (default: 24)")
    add("--batch-size", type=int, default=8, help="pairs in a step (default: 8)")
    add("--splits", nargs="+", type=splits_of,
        help="device batch x accumulation of a step, as 8x1 2x4 (default: all in one)")  # fmt: skip
    add("--reference", nargs="+", default=["online", "cached"], choices=("online", "cached"),
        help="computed in every step, or before (default: online cached)")  # fmt: skip
    add("--against", nargs="*", default=["trl"], choices=SIDES[:-1],
        help="the other sides (default: trl)")  # fmt: skip
    add("--flash-pref-python", help="an interpreter whose environment has flash-pref and trl")
    return parser.parse_args(argv)


def measure_side(name: str, pairs, model: tuple, bf16: bool, flash_pref_python: str | None) -> dict:
    """The figures of the side that `name_of` names. model: random size or None, name, device."""
    side, reference, split = name.split("_")
    device_batch, accumulation = splits_of(split)
    settings = {
        "bf16": bf16, "per_device_train_batch_size": device_batch,
        "gradient_accumulation_steps": accumulation,
    }  # fmt: skip
    random_llama, model_name, device = model
    if side == "flash-pref":
        if random_llama:
            return {"skipped": "a model with random weights has no directory to load it from"}
        settings["precompute_ref_log_probs"] = reference == "cached"
        return measure_flash_pref(flash_pref_python, model_name, pairs, settings)
    tokenizer = load_tokenizer(model_name)
    models = [make_or_load(random_llama, model_name, tokenizer, "float32", device)
              for _ in range(2)]  # fmt: skip
    return measure(side, models, tokenizer, pairs, reference, **settings)


def main(args: argparse.Namespace) -> None:
    splits = args.splits or [(args.batch_size, 1)]
    if args.n_pairs <= args.batch_size:
        raise ValueError("--n-pairs: more than one step is needed, of which the first is not timed")
    if any(device * accumulation != args.batch_size for device, accumulation in splits):
        raise ValueError(f"--splits: each is to multiply to --batch-size {args.batch_size}")
    if args.side:
        pairs = first_pairs(args.dataset, args.data_dir, args.n_pairs)
        model = (args.random_llama, args.lm_name_or_path, args.device)
        print_figures(measure_side(args.side, pairs, model, args.bf16, args.flash_pref_python))
        return
    summary = {
        "model": f"random {args.random_llama}" if args.random_llama else args.lm_name_or_path,
        "device": device_name(args.device), "bf16": args.bf16,
        "dataset": args.dataset, "n_pairs": args.n_pairs, "batch_size": args.batch_size,
    }  # fmt: skip
    results: dict[str, dict] = {}
    # TRL keeps precomputed log-likelihoods in the datasets cache: an empty one for every run
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "HF_DATASETS_CACHE": cache}
        for reference in args.reference:
            for split in splits:
                for side in (*args.against, "ours"):
                    name = name_of(side, reference, split)
                    results[name] = measure_apart("benchmarks.training_speed", name, environment)
    summary |= results | compare(results)
    write_figures(args.output, summary)
    if args.output:
        title = f"DPO: {summary['model']}, {summary['device']}, {args.dataset}"
        title += f", {'bfloat16 autocast' if args.bf16 else 'float32'}, {args.batch_size} pairs"
        plot_speed(results, title, args.output.with_suffix(".png"))


if __name__ == "__main__":
    run_script(main, parse_args())
