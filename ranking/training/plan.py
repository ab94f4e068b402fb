"""What a run is going to do, how much of its time evaluations take, what it writes: said first."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from ranking.plumbing.processes import announce
from ranking.training.run_directory import BASE

DYNAMICS_ROW = 500  # bytes of a line of ranking_dynamics.jsonl, about
WANTED_SHARE, LARGE_SHARE = 0.10, 0.25  # of the time, for evaluations
OPTIMIZER_STATES = {"sgd": 0, "adafactor": 0, "rmsprop": 1, "lion": 1, "adagrad": 1}  # others: 2


class Schedule(NamedTuple):
    """When a run evaluates, or saves."""

    strategy: str  # no; steps: every so many; epoch: at the end of each
    steps: int = 0  # between two times; with epoch, those of an epoch
    first: float = 0.0  # no time before this step
    at_start: bool = False  # also before the first step


def n_times(schedule: Schedule, max_steps: int, after: int = 0) -> int:
    """How often a run does it after step `after`: when it is due, and at the last step; with
    `at_start`, once more where nothing is trained yet."""
    at_start = schedule.at_start and after == 0
    if schedule.strategy == "no" or schedule.steps < 1:
        return int(at_start)
    due = max_steps // schedule.steps - max(after, math.ceil(schedule.first) - 1) // schedule.steps
    at_end = max_steps % schedule.steps > 0 and after < max_steps >= schedule.first
    return max(due, 0) + at_end + at_start


def evaluation_share(
    n_evaluations: int, eval_tokens: float, max_steps: int, step_tokens: float, backward: float
) -> float:
    """About which share of a run's time its evaluations take: N·E / (N·E + S·T·(1 + b)).

    eval_tokens, step_tokens: of one evaluation (E), of one optimizer step (T); their forward passes
    take the same time per token. backward: time of a backward pass, in forward passes (b).
    """
    evaluating = n_evaluations * eval_tokens
    training = max_steps * step_tokens * (1 + backward)
    return evaluating / (evaluating + training) if evaluating else 0.0


def sparser_eval_steps(
    eval_tokens: float, max_steps: int, step_tokens: float, backward: float, at_start: bool
) -> int | None:
    """Steps between evaluations, two digits of them, with which evaluations take at most
    WANTED_SHARE of the time; None where even one takes more."""
    training = max_steps * step_tokens * (1 + backward)
    affordable = WANTED_SHARE / (1 - WANTED_SHARE) * training / eval_tokens - at_start
    if affordable < 1:
        return None
    steps = math.ceil(max_steps / math.floor(affordable))
    unit = 10 ** max(0, len(str(steps)) - 2)
    return min(max_steps, unit * math.ceil(steps / unit))


def backward_passes(adapter: bool, gradient_checkpointing: bool) -> float:
    """Time of a backward pass in forward passes: gradients of activations and of weights, of an
    adapter the first only; checkpointing computes the activations once more."""
    return 1.0 + (not adapter) + gradient_checkpointing


def row_tokens(row: Mapping[str, Any]) -> int:
    """Tokens that a pair or a text takes through the model: a pair's prompt once."""
    if "chosen_ids" not in row:
        return len(row.get("input_ids", "1"))
    prompt = min(row["chosen_start"], row["rejected_start"])
    return len(row["chosen_ids"]) + len(row["rejected_ids"]) - prompt


def mean_tokens(dataset: Dataset, n: int = 256) -> float:
    """Of up to `n` rows, evenly spread."""
    places = np.unique(np.linspace(0, len(dataset) - 1, min(n, len(dataset))).astype(int))
    return float(np.mean([row_tokens(row) for row in dataset.select(places)]))


def checkpoint_bytes(n_saved: int, n_trained: int, width: int, optim: str, only_model: bool) -> int:
    """Size of one checkpoint: weights, and the optimizer's states of those that are trained.

    n_saved, n_trained: numbers of weights. width: bytes of a weight, and of an optimizer's state
    but for 8-bit ones. optim: as --optim names it.
    """
    n_states = next((n for name, n in OPTIMIZER_STATES.items() if name in optim), 2)
    state_width = 1 if "8bit" in optim else width
    return n_saved * width + (not only_model) * n_states * n_trained * state_width


def size_text(n_bytes: float) -> str:
    """1.5 GB, 12 MB, 3 kB."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} kB"


def describe_schedule(
    what: str,
    *,
    n_rows: int,
    batch: int,
    first_step: int,
    max_steps: int,
    epochs: float,
    n_evaluations: int,
    evaluated: Sequence[int],
    share: float,
) -> str:
    """What is trained and how often it is evaluated, in a line. what: pairs, texts. batch: rows of
    an optimizer step. evaluated: how many rows each part of an evaluation has."""
    steps = f"{max_steps:,} step" + "s" * (max_steps != 1)
    if first_step:
        steps = f"steps {first_step + 1:,} to {max_steps:,}"
    passes = f"{epochs:.3g}"
    passes += " epoch" + "s" * (passes != "1")
    line = f"plan: {steps} of {batch:,} {what} ({passes} of {n_rows:,})"
    if n_evaluations:
        rows = " + ".join(f"{n:,}" for n in evaluated)
        times = f"{n_evaluations:,} evaluation" + "s" * (n_evaluations != 1)
        line += f", {times} of {rows} {what}: about {100 * share:.0f} % of the time"
    return line


def describe_sparser(eval_steps: int | None, dynamics: tuple[float, float], save_too: bool) -> str:
    """What to give for evaluations that take little of the time. eval_steps: None: none would do.
    dynamics: bytes of the dynamics file now, and then. save_too: --save_steps has to change too."""
    if eval_steps is None:
        of_pairs = " or --dynamics_sample_size" * (dynamics[0] > 0)
        return f"      one alone takes over 10 %: --max_eval_samples{of_pairs} would shorten it"
    flags = f"--eval_steps {eval_steps}" + f" --save_steps {eval_steps}" * save_too
    line = f"      {flags}: about {100 * WANTED_SHARE:.0f} % of the time"
    if dynamics[0]:
        line += f", {size_text(dynamics[1])} of dynamics in place of {size_text(dynamics[0])}"
    return line


def describe_disk(
    one: int, n_kept: int, others: Mapping[str, float], free: int, folder: Path
) -> list[str]:
    """What a run writes, and a warning where it does not fit. Bytes: of `one` checkpoint of
    `n_kept`, of what else there is, by its name; what is free there."""
    total = one * n_kept + sum(others.values())
    parts = [f"{size_text(one * n_kept)} of checkpoints ({n_kept:,} of {size_text(one)})"]
    parts = parts * (n_kept > 0)
    parts += [f"{size_text(size)} of {name}" for name, size in others.items() if size > 0]
    lines = [f"disk: {', '.join(parts)}; {size_text(free)} are free"]
    if total > free:
        lines.append(
            f"warning: {folder} may need {size_text(total)} and has {size_text(free)}: give "
            "--save_total_limit, --save_only_model or another --output_dir"
        )
    return lines


# ---------------------------------------------------------------------------- of a trainer
class Outlook(NamedTuple):
    """What is known before a run of the time it will take."""

    max_steps: int
    evaluations: Schedule
    saves: Schedule
    n_rows: int  # of an evaluation
    row_in_steps: float  # about what share of an optimizer step's time an evaluated row takes


def announce_plan(trainer, lengths: Sequence[int], first_step: int, merges: bool) -> Outlook:
    """Lines about a run before it starts.

    lengths: of Trainer's `set_initial_training_values`. first_step: what is trained already.
    merges: whether an adapter is saved merged, too.
    """
    n_per_epoch, max_steps = lengths[1], lengths[-1]
    evaluations = schedule_of(trainer, "eval", max_steps, n_per_epoch)
    saves = schedule_of(trainer, "save", max_steps, n_per_epoch)
    parts = evaluated_parts(trainer)
    n_evaluations = n_times(evaluations, max_steps, first_step)
    dynamics = dynamics_bytes(trainer, parts)
    work = (
        sum(len(part) * mean_tokens(part) for part in parts),
        max_steps - first_step,
        lengths[4] * mean_tokens(trainer.train_dataset),
        backward_passes(has_adapter(trainer.model), bool(trainer.args.gradient_checkpointing)),
    )
    share = evaluation_share(n_evaluations, *work)
    n_rows, (eval_tokens, _, step_tokens, backward) = sum(map(len, parts)), work
    in_steps = eval_tokens / max(n_rows, 1) / (step_tokens * (1 + backward))
    outlook = Outlook(max_steps, evaluations, saves, n_rows, in_steps)
    if first_step >= max_steps:
        return outlook
    announce(
        describe_schedule(
            row_name(trainer.train_dataset), n_rows=len(trainer.train_dataset), batch=lengths[4],
            first_step=first_step, max_steps=max_steps, epochs=max_steps / n_per_epoch,
            n_evaluations=n_evaluations, evaluated=[len(part) for part in parts], share=share,
        )
    )  # fmt: skip
    if share > LARGE_SHARE and first_step == 0:
        steps = sparser_eval_steps(*work, evaluations.at_start)
        then = n_times(evaluations._replace(strategy="steps", steps=steps or 0), max_steps)
        announce(
            describe_sparser(
                steps, (dynamics * n_evaluations, dynamics * then), must_save_then(trainer, steps)
            )
        )
    n_saves = n_times(saves, max_steps)
    announce_disk(trainer, n_saves, dynamics * n_evaluations, merges, resumed=first_step > 0)
    return outlook


def announce_disk(trainer, n_saves: int, dynamics: int, merges: bool, resumed: bool) -> None:
    """What the run writes; the base of an adapter, and what an earlier part of the run has written,
    are there already."""
    args, folder, adapter = trainer.args, Path(trainer.args.output_dir), has_adapter(trainer.model)
    saved = [p for p in trainer.model.parameters() if p.requires_grad or not adapter]
    n_trained = sum(p.numel() for p in saved if p.requires_grad)
    weights = sum(p.numel() for p in saved), n_trained, saved[0].element_size(), args.optim
    if args.save_total_limit is not None:  # and the newest, until an older one is deleted
        n_saves = min(n_saves, args.save_total_limit + 1)
    base = directory_bytes(folder / BASE) if adapter else 0
    others = {
        "the model": checkpoint_bytes(*weights, True), "its base": base,
        "it merged into its base": merged_bytes(trainer.model) if merges else 0,
        "ranking dynamics": dynamics,
    }  # fmt: skip
    there = directory_bytes(folder) if resumed else base
    one, free = checkpoint_bytes(*weights, args.save_only_model), shutil.disk_usage(folder).free
    for line in describe_disk(one, n_saves, others, free + there, folder):
        announce(line)


def directory_bytes(folder: Path) -> int:
    """Size of the files in a directory; 0 where there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def merged_bytes(model) -> int:
    """Size of the weights of an adapter's base, none of them quantized."""
    base = model.get_base_model()
    n_added = sum(p.numel() for p in base.parameters() if p.requires_grad)
    return (base.num_parameters() - n_added) * base.dtype.itemsize


def must_save_then(trainer, eval_steps: int | None) -> bool:
    """Whether evaluations every so many steps need other --save_steps."""
    args = trainer.args
    bound = args.load_best_model_at_end and args.save_strategy == "steps"
    return bound and eval_steps is not None and args.save_steps % eval_steps != 0


def has_adapter(model) -> bool:
    return hasattr(model, "peft_config")


def evaluated_parts(trainer) -> list[Dataset]:
    """What each evaluation is of: the validation set, or several, named sets, followed pairs."""
    validation = trainer.eval_dataset
    parts = [*validation.values()] if isinstance(validation, dict) else [validation]
    parts += [*trainer.eval_sets.values(), getattr(trainer, "dynamics_dataset", None)]
    return [part for part in parts if part is not None]


def dynamics_bytes(trainer, parts: Sequence[Dataset]) -> int:
    """What an evaluation of these parts adds to the dynamics file."""
    if getattr(trainer, "dynamics_file", None) is None:
        return 0
    return DYNAMICS_ROW * sum(map(len, parts))


def row_name(dataset: Dataset) -> str:
    """What the rows of a dataset are: pairs, or texts."""
    return "pairs" if "chosen_ids" in dataset.column_names else "texts"


def schedule_of(trainer, what: str, max_steps: int, n_per_epoch: int) -> Schedule:
    """When a run evaluates (`what` eval) or saves (save); with --save_strategy=best, it may save
    after each evaluation. n_per_epoch: optimizer steps."""
    args = trainer.args
    if what == "save" and args.save_strategy == "best":
        what = "eval"
    strategy = str(getattr(args, f"{what}_strategy").value)
    evaluates = what == "eval"
    delay = args.eval_delay * evaluates
    if strategy == "epoch":
        return Schedule(strategy, n_per_epoch, delay * n_per_epoch, args.eval_on_start * evaluates)
    steps = getattr(args, f"{what}_steps") or args.logging_steps
    steps = math.ceil(steps * max_steps) if steps < 1 else int(steps)
    return Schedule(strategy, steps, delay, args.eval_on_start * evaluates)
