"""What one sees while a model is trained: a line per evaluation and per logged step, the time left.

Lines go to stderr; on a terminal a bar stays below them.
"""

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ranking.training.plan import Outlook, announce_plan, n_times, row_name
from ranking.training.splits import by_dataset

PART_NAMES = {"eval": "validation", "eval_train": "train"}  # prefix of metrics → whose they are


# ---------------------------------------------------------------------------- lines
def evaluation_lines(
    metrics: Mapping[str, float], counts: Mapping[str, int], where: str, is_nll: bool = False
) -> list[str]:
    """A line for each dataset of an evaluation: of pairs, rankings, rewards and distance; of texts,
    the loss, and where it `is_nll` the perplexity.

    metrics: by their logged names. counts: prefix (eval, eval_train, eval_A) → number of pairs.
    where: how the lines begin.
    """
    names = {prefix: part_name(prefix) for prefix in prefixes_of(metrics)}
    width = max(map(len, [*names.values(), "validation"]))
    lines = []
    for prefix, between in prefixes_of(metrics).items():
        start = prefix + between
        own = {k.removeprefix(start): v for k, v in metrics.items() if k.startswith(start)}
        of_pairs = "ranking/accuracy" in own
        text = pairs_text(own, counts.get(prefix)) if of_pairs else texts_text(own, is_nll)
        lines.append(f"{where}  {names[prefix]:{width}}  {text}")
    return lines


def prefixes_of(metrics: Iterable[str]) -> dict[str, str]:
    """Prefix of the metrics of each dataset of an evaluation → what stands behind it: `_`, or `/`
    where it is one of several."""
    of_pairs = any(name.endswith("ranking/accuracy") for name in metrics)
    pattern = r"(.+?)([_/])ranking/accuracy" if of_pairs else r"(.+?)(?<!aux)([_/])loss"
    found = (re.fullmatch(pattern, name) for name in metrics)
    return {match[1]: match[2] for match in found if match}


def part_name(prefix: str) -> str:
    """eval_A → A; of the whole validation set, and of training pairs: `validation`, `train`."""
    return PART_NAMES.get(prefix, prefix.removeprefix("eval_"))


def pairs_text(metrics: Mapping[str, float], n: int | None) -> str:
    """The metrics of an evaluation's `n` pairs that say where a run stands."""
    parts = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
    parts += [f"R {share(metrics['ranking/accuracy'])}",
              f"R̃ {share(metrics['ranking/accuracy_normalized'])}"]  # fmt: skip
    flipped = metrics.get("ranking/flipped_to_correct")
    if flipped is not None:
        counted = ""
        if n is not None:
            n_wrong = round(n * (1 - metrics["ranking/ref_accuracy"]))
            counted = f"{round(flipped * n_wrong):,} of {n_wrong:,}, "
        parts.append(f"flipped {counted}{share(flipped)}")
    parts.append(f"rewards right {share(metrics['rewards/accuracies'])}")
    if (distance := metrics.get("distance/squared")) is not None:
        parts.append(f"distance² {distance:.3g}")
    return "  ".join(parts)


def texts_text(metrics: Mapping[str, float], is_nll: bool) -> str:
    """Loss and perplexity of texts."""
    loss = metrics["loss"]
    perplexity = f"  perplexity {math.exp(loss):.4g}" if is_nll and loss < 700 else ""
    return f"loss {loss:.4f}{perplexity}"


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def training_line(logs: Mapping[str, float], where: str, rate: str, left: str) -> str:
    """What was logged of the last training steps."""
    parts = [f"loss {float(logs['loss']):.4f}"]
    if (learning_rate := logs.get("learning_rate")) is not None:
        parts.append(f"learning rate {learning_rate:.3g}")
    if (norm := logs.get("grad_norm")) is not None:
        parts.append(f"gradient {float(norm):.3g}")
    parts += [text for text in (rate, left) if text]
    return f"{where}  {'  '.join(parts)}"


def per_second(rate: float, what: str) -> str:
    """Three digits, or all before the point."""
    return f"{f'{rate:,.0f}' if rate >= 100 else f'{rate:.3g}'} {what}/s"


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 05 min, 2 d 04 h."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02} h"


# ---------------------------------------------------------------------------- time
class Clock:
    """Seconds of a run by what they were spent on: steps, evaluations (and rows of these),
    checkpoints. `lap` books the time since the last one."""

    def __init__(self, now=time.monotonic):
        self.now = now
        self.last = now()
        self.seconds: dict[str, float] = Counter()
        self.n: dict[str, int] = Counter()

    def lap(self, what: str, n: int = 0) -> None:
        now = self.now()
        self.seconds[what] += now - self.last
        self.n[what] += n
        self.last = now

    def mean(self, what: str) -> float | None:
        """Seconds for one, None where nothing was booked."""
        return self.seconds[what] / self.n[what] if self.n[what] else None


def seconds_left(clock: Clock, outlook: Outlook, step: int, final_rows: int) -> float | None:
    """Of the whole run after `step`: its steps, evaluations, checkpoints, and the evaluation of
    `final_rows` after it, each by its mean so far; None before the first step.

    Evaluations that have not been seen yet take what the outlook says, checkpoints nothing.
    """
    per_step = clock.mean("step")
    if per_step is None:
        return None
    per_row = clock.mean("evaluation") or per_step * outlook.row_in_steps
    n_evaluations = n_times(outlook.evaluations, outlook.max_steps, step)
    rows = n_evaluations * outlook.n_rows + final_rows
    saving = n_times(outlook.saves, outlook.max_steps, step) * (clock.mean("checkpoint") or 0.0)
    return (outlook.max_steps - step) * per_step + rows * per_row + saving


# ---------------------------------------------------------------------------- the callback
class Console(TrainerCallback):
    """Writes the lines, and on a terminal the bar.

    sizes: prefix of metrics → rows that are evaluated; counts: the same of the datasets of a
    mixture, too. batch: rows of a step, which are `what`.
    """

    def __init__(
        self, outlook: Outlook, sizes: Mapping[str, int], counts: Mapping[str, int], *,
        batch: int, what: str, final_rows: int, is_nll: bool, has_bar: bool,
    ):  # fmt: skip
        self.outlook, self.sizes, self.counts = outlook, sizes, counts
        self.batch, self.what = batch, what
        self.final_rows, self.is_nll, self.has_bar = final_rows, is_nll, has_bar
        self.clock = Clock()
        self.bar: tqdm | None = None
        self.is_training = False
        self.n_batches = 0  # of the evaluation at hand
        self.logged = {"step": 0, "seconds": 0.0, "tokens": 0.0}  # at the line before

    def write(self, line: str) -> None:
        if self.bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            tqdm.write(line, file=sys.stderr)

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.lap("start")
        self.is_training = True
        self.first_step = self.logged["step"] = state.global_step
        self.logged["tokens"] = float(state.num_input_tokens_seen)  # of what is resumed
        if self.has_bar and state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, file=sys.stderr,
                dynamic_ncols=True,
                bar_format="{desc}{percentage:3.0f} % |{bar}| step {n_fmt} of {total_fmt}{postfix}",
            )  # fmt: skip

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.lap("step", 1)
        if self.bar is not None:
            self.bar.set_postfix_str(self.time_left(state.global_step), refresh=False)
            self.bar.update(state.global_step - self.bar.n)

    def time_left(self, step: int) -> str:
        left = seconds_left(self.clock, self.outlook, step, self.final_rows)
        return "" if left is None else f"{duration(left)} left"

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" not in logs or not state.is_world_process_zero:
            return
        seconds = self.clock.seconds["step"] - self.logged["seconds"]
        done, what = (state.global_step - self.logged["step"]) * self.batch, self.what
        tokens = float(logs.get("num_tokens", 0))
        if what == "texts" and tokens > self.logged["tokens"]:
            done, what = tokens - self.logged["tokens"], "tokens"
        rate = per_second(done / seconds, what) if seconds > 0 else ""
        self.logged = {"step": state.global_step, "seconds": self.clock.seconds["step"],
                       "tokens": tokens}  # fmt: skip
        self.write(training_line(logs, where(state), rate, self.time_left(state.global_step)))

    def on_prediction_step(self, args, state, control, **kwargs):
        self.n_batches += 1
        if self.bar is not None:
            self.bar.set_description_str(f"evaluating, batch {self.n_batches} ")

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.clock.lap("evaluation", sum(self.sizes.get(name, 0) for name in prefixes_of(metrics)))
        self.n_batches = 0
        if self.bar is not None:
            self.bar.set_description_str("")
        if self.is_training and state.is_world_process_zero:
            for line in evaluation_lines(metrics, self.counts, where(state), self.is_nll):
                self.write(line)

    def on_save(self, args, state, control, **kwargs):
        self.clock.lap("checkpoint", 1)

    def on_train_end(self, args, state, control, **kwargs):
        self.is_training = False
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        n_steps = state.global_step - self.first_step
        if n_steps and state.is_world_process_zero:
            seconds = sum(self.clock.seconds.values())
            self.write(f"trained {n_steps:,} step{'s' * (n_steps != 1)} in {duration(seconds)}")


def where(state) -> str:
    """How a line begins: step and epoch."""
    step = f"step {state.global_step:>{len(str(state.max_steps))}}"
    return f"{step}  epoch {state.epoch or 0.0:.2f}"


def row_counts(parts: Mapping[str, Any]) -> dict[str, int]:
    """Prefix of metrics → rows, of datasets, dicts of datasets, or None, by their prefix."""
    counts: dict[str, int] = {}
    for prefix, part in parts.items():
        if isinstance(part, dict):
            counts |= row_counts({f"{prefix}_{name}": own for name, own in part.items()})
        elif part is not None:
            counts[prefix] = len(part)
    return counts


def show_progress(
    trainer,
    lengths: Sequence[int],
    first_step: int,
    final: Mapping[str, Dataset | None],
    merges: bool,
) -> None:
    """Announce the plan of a run, and have it write its lines in place of Trainer's.

    lengths: of Trainer's `set_initial_training_values`. first_step: what is trained already.
    final: what is evaluated after it, by prefix; None: the trainer's evaluation set.
    merges: whether an adapter is saved merged, too.
    """
    outlook = announce_plan(trainer, lengths, first_step, merges)
    args = trainer.args
    sets = {"eval": trainer.eval_dataset}
    sets |= {f"eval_{name}": part for name, part in trainer.eval_sets.items()}
    sizes = row_counts(sets | {"eval_train": getattr(trainer, "dynamics_dataset", None)})
    counts = dict(sizes)
    for prefix, part in sets.items():
        if isinstance(part, Dataset):
            start = "eval_" if prefix == "eval" else f"{prefix}/"
            counts |= {start + name: len(own) for name, own in by_dataset(part).items()}
    n_rows = [outlook.n_rows if part is None else len(part) for part in final.values()]
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(
        Console(
            outlook, sizes, counts, batch=lengths[4], what=row_name(trainer.train_dataset),
            final_rows=sum(n_rows), is_nll=args.loss_type == "nll",
            has_bar=sys.stderr.isatty() and not args.disable_tqdm,
        )
    )  # fmt: skip
