"""Optimizer steps of TRL's trainers through packed rows.

The examples of a step, whatever batches they are divided into, fill as few rows as a budget of
tokens allows; the loss and its gradients are those of the whole step. What Trainer does around a
step (batches, schedules, checkpoints, callbacks) is its own.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Trainer, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from ranking.plumbing.processes import announce
from ranking.scoring.attention import own_attention, restore_attention
from ranking.scoring.log_likelihood import ScoringPath
from ranking.scoring.packing import count_new_tokens, pack_rows
from ranking.scoring.score import is_out_of_memory
from ranking.scoring.tokenization import TokenizedCompletion
from ranking.training.checkpoints import checkpoint_state

# tokens of a row in training and evaluation, where no others are asked for
CPU_ROWS = {"train": 1024, "eval": 1024}
GPU_ROWS = {"train": 4096, "eval": 16384}  # the first step shows what a token takes
LONGEST_GPU_ROW = 65536
KEPT_FREE = 0.15  # of a GPU's memory, for what the measured step did not need
EVALUATED_AT_ONCE = 128  # examples of a process that rows are packed from
IGNORED_LABEL = -100
# TRL's outputs of the LM head that only feed means over tokens of its own metrics
TOKEN_METRICS = ("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy")


def take_examples(
    batches: Sequence[dict[str, torch.Tensor]], members: Sequence[tuple[int, int]], sides: int
) -> dict[str, torch.Tensor]:
    """The batch of the examples `members` (number of the batch, number in it), cut to its longest.

    A batch holds `sides` sequences an example, one side above the other, or one value an example.
    """
    masks = [batch["attention_mask"] for batch in batches]
    counts = [len(mask) // sides for mask in masks]
    lengths = [mask.sum(1).view(sides, -1).amax(0).tolist() for mask in masks]
    width = max(lengths[b][k] for b, k in members)
    taken = {}
    for name in batches[0]:
        parts = [batches[b][name].unflatten(0, (-1, counts[b]))[:, k] for b, k in members]
        if parts[0].dim() == 2:
            padding = IGNORED_LABEL if name == "labels" else 0
            parts = [F.pad(x[:, :width], (0, max(0, width - x.shape[1])), value=padding)
                     for x in parts]  # fmt: skip
        taken[name] = torch.stack(parts, 1).flatten(0, 1)
    return taken


def divide_further(rows: list[list[int]], n_rows: int) -> list[list[int]]:
    """The rows, the fullest halved until there are `n_rows`, or each holds one example."""
    rows = [list(row) for row in rows]
    while len(rows) < n_rows and len(fullest := max(rows, key=len)) > 1:
        half = len(fullest) // 2
        rows.append(fullest[half:])
        del fullest[half:]
    return rows


def fitting_tokens(
    rows: Sequence[tuple[int, int]], free: float, kept: float, gradients: int
) -> int:
    """Tokens of the longest row that a GPU with `free` bytes takes, `kept` of which stay free.

    rows: tokens of each row of a step and the bytes that it took at most. Those of the first
    include the `gradients` it allocates, which the later ones find there: of these, where there are
    any, the most bytes a token count, beside room for gradients.
    """
    later = rows[1:]
    room = free - kept - (gradients if later else 0)
    return int(room / max(taken / n_tokens for n_tokens, taken in later or rows))


@contextmanager
def without_gathering(accelerator) -> Iterator[None]:
    """Inside, what TRL gathers for its metrics are the process's own values: the rows of two
    processes have nothing to do with each other."""
    names = ("gather", "gather_for_metrics")
    for name in names:
        setattr(accelerator, name, lambda values, *_, **__: values)
    try:
        yield
    finally:
        for name in names:
            delattr(accelerator, name)


def keep_outputs_in_float32(accelerator) -> None:
    """accelerate has FSDP2 cast what a model returns to half precision, in which a sum of hundreds
    of nats is rounded to whole ones. ValueError for FSDP1, which cannot be told."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise ValueError("FSDP1 is not supported: set fsdp_version: 2 in the launch file")
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


class PackedSteps(Trainer):
    """What DPOGammaTrainer and PackedSFTTrainer have in front of TRL's trainer among their bases.

    They set `path`, and `sides`, the sequences of an example; `sequences_of` gives an example's
    TokenizedCompletions, `weight_of` its part in the mean that the loss is. In an evaluation,
    compute_loss puts values of its examples into `lines`, one a line, which `keep_lines` is given.
    """

    sides = 1
    path: ScoringPath
    splits_batches = True  # no loss looks at a whole batch
    step_batches: Sequence[dict] = ()
    lines: list[torch.Tensor]
    _metrics: dict[str, dict[str, list[float]]]  # TRL's, "train" and "eval"
    _total_train_tokens: int  # TRL's
    row_bytes: Sequence[tuple[int, int]] = ()  # tokens and bytes of a GPU, rows of the first step
    rows_are_fitted = False  # to the memory that they took
    rows: Sequence[list[int]] = ()  # of the step or batch at hand

    def sequences_of(self, batch) -> list[list[TokenizedCompletion]]:
        """The sequences of each example of a batch."""
        raise NotImplementedError

    def weight_of(self, example: list[TokenizedCompletion]) -> float:
        """1: the loss is a mean over examples."""
        return 1.0

    def keep_lines(self, lines: torch.Tensor) -> None:
        """Values of an evaluated batch's examples, (n_examples, n_values), in its order."""

    # ------------------------------------------------------------------------ rows
    @property
    def divides_steps(self) -> bool:
        """Whether steps go through rows of their own; DeepSpeed counts batches itself."""
        return self.path.is_packed and self.splits_batches and not self.is_deepspeed_enabled

    @cached_property
    def budgets(self) -> dict[str, int]:
        """Tokens of a row in training ("train") and evaluation ("eval")."""
        asked = getattr(self.args, "tokens_per_batch", None)
        if asked is not None:
            return {"train": asked, "eval": asked}
        return dict(CPU_ROWS if self.accelerator.device.type == "cpu" else GPU_ROWS)

    def rows_of(self, examples, mode: str) -> list[list[int]]:
        """Examples, by number, row by row. Where weights are sharded all processes have as many
        rows, since each gathers them for the others too; who lacks one repeats its shortest."""
        rows = pack_rows(examples, self.budgets[mode], len(examples), family_rows=1)
        if not self.is_fsdp_enabled:
            return rows
        n_rows = torch.tensor(len(rows), device=self.accelerator.device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(n_rows, torch.distributed.ReduceOp.MAX)
        rows = divide_further(rows, int(n_rows))
        shortest = min(range(len(examples)), key=lambda k: len(examples[k][0].ids))
        return rows + [[shortest]] * (int(n_rows) - len(rows))

    def run_rows(
        self, batches: Sequence[dict], mode: str, compute: Callable[[dict, float, bool], Any]
    ):
        """Sum of `compute(inputs, share, is_last)` over the rows that the batches' examples make.

        share: a row's part of the weight of all; 0 for one that only keeps other processes
        company. TRL's metrics of each row become one value each, the mean by weight over all
        processes. In an evaluation, examples that only fill up the last batch are left out.
        """
        examples, places = [], []
        for number, batch in enumerate(batches):
            found = self.sequences_of(batch)
            examples += found
            places += [(number, k) for k in range(len(found))]
        n_examples = len(examples)
        n_counted = n_examples if mode == "train" else self.count_once(n_examples)
        del examples[max(n_counted, 1) :]
        weights = [self.weight_of(example) if n_counted else 0.0 for example in examples]
        rows, total, done = self.rows_of(examples, mode), sum(weights), 0
        self.rows = rows
        own, n_before = self._metrics[mode], self._total_train_tokens
        means: dict[str, float] = defaultdict(float)
        self.lines, result, n_tokens = [], 0.0, 0
        try:
            with without_gathering(self.accelerator):
                for number, row in enumerate(rows):
                    self._metrics[mode], self._total_train_tokens = defaultdict(list), 0
                    is_extra = done == len(examples)
                    share = 0.0 if is_extra else sum(weights[k] for k in row) / max(total, 1)
                    inputs = take_examples(batches, [places[k] for k in row], self.sides)
                    result = result + compute(inputs, share, number == len(rows) - 1)
                    if is_extra:
                        self.lines = self.lines[:number]
                        continue
                    done += len(row)
                    n_tokens += self._total_train_tokens
                    for name, values in self._metrics[mode].items():
                        means[name] += share * float(values[-1])
        finally:
            self._metrics[mode], self._total_train_tokens = own, n_before
        means.pop("num_tokens", None)
        self.keep_means(mode, means, total, n_tokens)
        if self.lines:
            order = torch.tensor([k for row in rows for k in row][: len(examples)])
            lines = torch.cat(self.lines)
            lines = lines[order.argsort().to(lines.device)]
            repeated = lines[:1].expand(n_examples - len(lines), -1)  # as many in all processes
            self.keep_lines(torch.cat([lines, repeated]))
        return result

    def count_once(self, n: int) -> int:
        """How many of an evaluated batch's `n` examples are no repetitions, by which accelerate
        gives all processes batches of one size."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return n
        return min(n, max(0, state.remainder - n * self.accelerator.process_index))

    def keep_means(self, mode: str, means: dict[str, float], weight: float, n_tokens: int) -> None:
        """TRL's metrics of a step over all processes, and the tokens it has seen."""
        values = [weight, n_tokens, *(weight * means[name] for name in sorted(means))]
        sums = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(sums)
        weight, n_tokens, *values = sums.tolist()
        for name, value in zip(sorted(means), values):
            self._metrics[mode][name].append(value / max(weight, 1))
        self._total_train_tokens += int(n_tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def within_memory(self, mode: str, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `run` returns, again with rows half as long where they do not fit on a GPU.
        ValueError where nothing shorter is left, or other processes would have to follow."""
        while True:
            try:
                return run()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                tokens, flag = self.budgets[mode], "--tokens_per_batch"
                if self.args.world_size > 1 and (mode == "train" or self.is_fsdp_enabled):
                    raise ValueError(f"out of memory with rows of {tokens} tokens: give a lower "
                                     f"{flag}") from error  # fmt: skip
                if tokens == 1 or max(map(len, self.rows)) == 1:
                    raise ValueError("out of memory with one example in a row: lower --max_length, "
                                     "or --gradient_checkpointing") from error  # fmt: skip
            self.budgets[mode] = tokens // 2  # behind the handler, which keeps the row's tensors
            self.model.zero_grad()
            torch.cuda.empty_cache()
            announce(f"out of memory with rows of {tokens} tokens: going on with {tokens // 2} "
                     f"({flag})")  # fmt: skip

    # ------------------------------------------------------------------------ Trainer's steps
    def resumed_state(self, checkpoint: str | bool | None) -> TrainerState | None:
        """The state that Trainer goes on from, None where it starts anew. ValueError where it is to
        find the `checkpoint` (True) and there is none."""
        folder = get_last_checkpoint(self.args.output_dir) if checkpoint is True else checkpoint
        if checkpoint is True and folder is None:
            raise ValueError(f"{self.args.output_dir} holds no checkpoint to resume from")
        return checkpoint_state(folder) if folder else None

    def train(self, resume_from_checkpoint=None, **kwargs):
        """Trainer's; a resumed run goes on counting tokens, where TRL starts at 0 again."""
        if (state := self.resumed_state(resume_from_checkpoint)) is not None:
            self._total_train_tokens = state.num_input_tokens_seen
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Trainer's, which also says what a step is made of."""
        self.step_batches, n_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self.step_batches, n_items

    def training_step(self, model, inputs, num_items_in_batch=None):
        """With the last batch of a step, forward and backward passes of all of it; else nothing.
        A backward pass that is interrupted leaves the model its own attention too."""
        own = own_attention(model) if self.path.is_packed else []
        try:
            if not self.divides_steps:
                return super().training_step(model, inputs, num_items_in_batch)
            batches = self.step_batches
            if not any(inputs is batch for batch in batches):
                batches = [inputs]  # called from elsewhere
            if inputs is not batches[-1]:
                return torch.zeros((), device=self.args.device)
            run = partial(self.train_rows, model, batches, num_items_in_batch)
            if self.row_bytes:
                self.lengthen_rows()
            return self.within_memory("train", run)
        finally:
            restore_attention(own)
            self.state.num_input_tokens_seen = int(self._total_train_tokens)  # for checkpoints

    def train_rows(self, model, batches, n_items) -> torch.Tensor:
        """Forward and backward passes of a step. Gradients are synchronised with the last row;
        under FSDP with each, which keeps them sharded."""
        step = super().training_step
        self.row_bytes = []

        def compute(inputs, share, is_last):
            together = is_last or self.is_fsdp_enabled
            # Trainer divides a loss by the first, which is a mean, or SFT's sum by the second
            self.current_gradient_accumulation_steps = 1 / share if share else math.inf
            n = n_items if share or n_items is None else math.inf
            with nullcontext() if together else self.accelerator.no_sync(model=model):
                before = self.note_memory()
                loss = step(model, inputs, n)
            self.note_memory(before, inputs)
            return loss

        return self.run_rows(batches, "train", compute)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """A batch of an evaluation, row by row where only its loss is asked for."""
        if not (self.divides_steps and prediction_loss_only):
            self.lines = []
            result = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            if self.lines:
                self.keep_lines(torch.cat(self.lines))
            return result
        step = super().prediction_step

        def compute(row, share, is_last):
            return share * step(model, row, True, ignore_keys)[0]

        inputs = self._prepare_inputs(inputs)
        run = partial(self.run_rows, [inputs], "eval", compute)
        return self.within_memory("eval", run), None, None

    def log(self, logs, start_time=None):
        """Without Trainer's steps of an evaluation per second, which are not the batches it had."""
        for name in list(logs):
            if name.endswith("_steps_per_second") and not name.startswith("train_"):
                del logs[name]
        super().log(logs, start_time)

    def get_eval_dataloader(self, eval_dataset=None):
        """Trainer's, with more examples at a time where rows are what memory is needed for."""
        self._eval_dataloaders: dict = {}  # of persistent workers, kept whatever the next set is
        args = self.args
        own, drops = args.per_device_eval_batch_size, args.dataloader_drop_last
        args.dataloader_drop_last = False  # which is for training: all rows are evaluated
        if self.divides_steps and self.compute_metrics is None:
            dataset = self.eval_dataset if eval_dataset is None else eval_dataset
            dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
            has_length = hasattr(dataset, "__len__")
            share = math.ceil(len(dataset) / args.world_size) if has_length else own
            args.per_device_eval_batch_size = max(1, min(share, max(own, EVALUATED_AT_ONCE)))
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            args.per_device_eval_batch_size, args.dataloader_drop_last = own, drops

    # ------------------------------------------------------------------------ a GPU's memory
    def note_memory(self, before: int | None = None, inputs=None) -> int | None:
        """Keep what a row takes, in this process's first step on a GPU whose rows are not asked
        for."""
        wanted = self.accelerator.device.type == "cuda" and not self.rows_are_fitted
        if not wanted or getattr(self.args, "tokens_per_batch", None) is not None:
            return None
        if before is None:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        taken = torch.cuda.max_memory_allocated() - before
        sequences = [c.ids[:-1] for example in self.sequences_of(inputs) for c in example]
        n_tokens = max(1, count_new_tokens(sorted(sequences)))  # as rows are filled
        self.row_bytes = [*self.row_bytes, (n_tokens, taken)]
        return None

    def lengthen_rows(self) -> None:
        """In the second step, when the optimizer has its state: rows as long as a GPU takes."""
        free, whole = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        gradients = sum(p.numel() * p.element_size() for p in trained)
        fitting = fitting_tokens(self.row_bytes, free, KEPT_FREE * whole, gradients)
        self.budgets["train"] = min(max(fitting, self.budgets["train"]), LONGEST_GPU_ROW)
        self.rows_are_fitted = True
