"""Training of a few steps: how long they take, in how much memory, and what rate of matrix
products they reach."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import forget_peak, memory_gib


class Timed(NamedTuple):
    """Of all steps but the first, in which a GPU loads its kernels."""

    seconds: float
    cpu_seconds: float  # of all threads of the process; other work does not change it
    peak_gib: float
    peak_gib_above_start: float
    losses: list[float]  # of every step, the first too


def losses_of(trainer) -> list[float]:
    """What was logged of each step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def time_steps(trainer, device: str) -> Timed:
    """Train to the end; the clock runs from the end of the first step on."""
    import torch
    from transformers import TrainerCallback

    ends: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            if device != "cpu":
                torch.cuda.synchronize()
            ends.append((time.perf_counter(), time.process_time()))

    forget_peak(device)
    before = memory_gib(device)[0]
    trainer.add_callback(Clock())
    trainer.train()
    if len(ends) < 2:
        raise ValueError("more than one step is needed, of which the first is not timed")
    seconds, cpu_seconds = (last - first for first, last in zip(ends[0], ends[-1]))
    peak = memory_gib(device)[1]
    return Timed(seconds, cpu_seconds, peak, peak - before, losses_of(trainer))


def time_evaluation(trainer, device: str) -> dict[str, float]:
    """Seconds (of the clock and of the processor), peak memory and loss of one evaluation."""
    import torch

    forget_peak(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    metrics = trainer.evaluate()
    if device != "cpu":
        torch.cuda.synchronize()
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak_gib": memory_gib(device)[1],
        "loss": metrics["eval_loss"],
    }


def trained_state_gib(trainer) -> float:
    """Weights, their gradients and the optimizer's state."""
    import torch

    weights = list(trainer.model.parameters())
    state = [x for values in trainer.optimizer.state.values() for x in values.values()]
    trained = [p for p in weights if p.requires_grad]
    tensors = [*weights, *trained, *(x for x in state if torch.is_tensor(x))]
    return sum(x.numel() * x.element_size() for x in tensors) / 2**30


def forward_operations(model, batch: Sequence[Sequence[Any]]) -> tuple[int, float]:
    """Unique input tokens of completions (TokenizedCompletion) that are computed together, example
    by example, and 2 x the parameters that each touches, summed: the LM head's for scored ones."""
    from ranking.scoring.packing import count_new_tokens

    n_unique = count_new_tokens(sorted(c.ids[:-1] for example in batch for c in example))
    n_scored = sum(len(c.positions) for example in batch for c in example)
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    body = sum(p.numel() for p in model.parameters() if p is not head and p is not embedding)
    return n_unique, 2.0 * (n_unique * body + n_scored * head.numel())


def draw_sides(panels: Mapping[str, Sequence[float]], sides: Sequence[str], title: str, path: Path):
    """A panel of bars for each quantity, one bar a side; ours stand out."""
    import matplotlib.pyplot as plt

    size = (1 + 3 * len(panels), 1 + 0.45 * len(sides))
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True)
    colors = ["#1f77b4" if side.startswith("ours") else "#9a9a9a" for side in sides]
    for axis, (label, values) in zip(axes, panels.items()):
        axis.bar_label(axis.barh(sides, values, color=colors), fmt="%.2f", padding=3)
        axis.margins(x=0.2)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)
