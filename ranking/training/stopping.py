"""How training ends: by a signal, at the best evaluation, or because it diverged; what is saved."""

import math
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import SaveStrategy

from ranking.plumbing.command_line import Stopped, finishing_first, stop_requested
from ranking.plumbing.processes import announce
from ranking.training.best_metric import unknown_metric
from ranking.training.checkpoints import (
    SavedStep,
    best_metric_name,
    checkpoint_state,
    checkpoints,
    saved_step,
    step_of,
)
from ranking.training.console import show_progress
from ranking.training.run_directory import mark_diverged


class StopAfterStep(TrainerCallback):
    """After Ctrl-C, SIGTERM or SIGHUP: finish the step, save a checkpoint to resume from, end.

    `stopped` is set in all processes at the same step, or in none.
    """

    stopped = False

    def on_step_end(self, args, state, control, **kwargs):
        stop = torch.tensor(float(stop_requested() is not None), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
        if stop.item() and state.global_step < state.max_steps:  # else it is done anyway
            self.stopped = control.should_save = control.should_training_stop = True
            args.load_best_model_at_end = args.save_only_model = False
            args.save_strategy = SaveStrategy.STEPS  # "best" would take should_save back
            args.save_total_limit = None  # nothing is deleted for it

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped and state.epoch % 1 > 1e-6:  # Trainer comes here after a broken-off epoch
            control.should_evaluate = control.should_save = False


class SaveBest(TrainerCallback):
    """With --load_best_model_at_end, each evaluation that is the best so far gets a checkpoint:
    Trainer saves at --save_steps only, and would end with the last model. The checkpoint of the
    best one before goes again, unless it was due anyway."""

    former: str | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if not args.load_best_model_at_end or state.best_global_step is None:
            return
        path = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        state.best_model_checkpoint = str(path)  # the directory may have been moved
        if not path.is_dir():
            announce(f"{path}, of the best evaluation so far, is not there: the best of the later "
                     "evaluations counts")  # fmt: skip
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        elif args.save_strategy == "steps" and state.is_world_process_zero:
            for old in checkpoints(Path(args.output_dir)):  # left by a kill before `on_save`
                step = step_of(old)
                kept = step % state.save_steps == 0 or step >= state.global_step or old == path
                if args.save_total_limit is None and not kept:
                    shutil.rmtree(old, ignore_errors=True)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        value = metrics.get(best_metric_name(args.metric_for_best_model))
        if not args.load_best_model_at_end or value is None or state.global_step == 0:
            return
        best = state.best_metric
        better = best is None or (value > best if args.greater_is_better else value < best)
        if better and math.isfinite(value):
            control.should_save = True
            self.former = state.best_model_checkpoint

    def on_save(self, args, state, control, **kwargs):
        former, self.former = self.former, None
        if former is None or args.save_strategy != "steps" or not state.is_world_process_zero:
            return
        if args.save_total_limit is not None:
            return  # Trainer deletes the oldest itself
        due = step_of(former) % state.save_steps == 0
        if not due and former != state.best_model_checkpoint:
            shutil.rmtree(former, ignore_errors=True)


class StopEarly(EarlyStoppingCallback):
    """transformers' callback. Checkpoints keep its count of evaluations without a better metric,
    from which a resumed run goes on; of a run without early stopping, the count begins at 0."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.early_stopping_patience = args.early_stopping_patience
        self.early_stopping_threshold = args.early_stopping_threshold or 0.0
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if best_metric_name(args.metric_for_best_model) in metrics:  # not of the test split
            super().on_evaluate(args, state, control, metrics, **kwargs)


def is_exhausted(state: TrainerState, patience: int | None) -> bool:
    """Whether early stopping ends a run at the checkpoint of this state; patience None: never."""
    kept = state.stateful_callbacks.get(StopEarly.__name__)
    if kept is None or patience is None:
        return False
    return kept["attributes"]["early_stopping_patience_counter"] >= patience


class SaveAfterEvaluation(TrainerCallback):
    """A checkpoint of an epoch's last step is saved after the evaluation that ends the epoch: saved
    before it, a run killed while it evaluates would go on without."""

    deferred = False

    def on_step_end(self, args, state, control, **kwargs):
        ends = abs(state.epoch - round(state.epoch)) < 1e-6 or state.global_step >= state.max_steps
        if args.eval_strategy == "epoch" and control.should_save and ends:
            self.deferred, control.should_save = True, False

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save |= self.deferred
        self.deferred = False


class CheckMetrics(TrainerCallback):
    """A run that has diverged, or a --metric_for_best_model that is none, ends with one line."""

    def on_log(self, args, state, control, logs, **kwargs):
        loss = logs.get("loss", logs.get("train_loss", 0.0))
        if not math.isfinite(float(loss)):
            if state.is_world_process_zero:
                mark_diverged(Path(args.output_dir), state.global_step)
            raise ValueError(
                f"the training loss is {loss} at step {state.global_step}: try a lower "
                "--learning_rate, --max_grad_norm, or --dtype=float32"
            )

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if args.metric_for_best_model is None or "eval_loss" not in metrics:
            return  # or of other pairs than validation's
        wanted = best_metric_name(args.metric_for_best_model)
        if wanted not in metrics:
            given = [name for name in metrics if name.startswith("eval_")]
            raise unknown_metric(args.metric_for_best_model, given)


@contextmanager
def explaining_files(folder: str) -> Iterator[None]:
    """Errors of torch's and safetensors' readers and writers as an OSError that names `folder`."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        writer = isinstance(error, SafetensorError) or "inline_container" in str(error)
        if not writer and "PytorchStream" not in str(error):
            raise
        line = str(error).splitlines()[0]
        raise OSError(f"cannot write or read a checkpoint in {folder} ({line}): full?") from error


def may_leave_unused(model) -> bool:
    """Whether a backward pass can miss trained weights: of experts that no token goes to, or of
    towers for images and sound. Elsewhere DDP need not look for them, in every step."""
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    towers = set(getattr(model.config, "sub_configs", {})) - {"text_config"}
    return bool(towers) or any("expert" in name or "moe" in name for name in trained)


def train_until_stopped(
    trainer, checkpoint: str | None, final: dict[str, Dataset | None], merges: bool
) -> SavedStep:
    """Train to the end, save the model and return which step it is (`saved_step`); after a
    signal, raise `Stopped` when the step's checkpoint is saved. final: what is evaluated then.
    merges: whether an adapter is saved merged, too.

    A signal during the last step lets the run end: what is left takes less time than doing it
    again.
    """
    args = trainer.args
    stopping = StopAfterStep()
    for callback in (stopping, SaveAfterEvaluation(), SaveBest(), CheckMetrics()):
        trainer.add_callback(callback)
    if (patience := args.early_stopping_patience) is not None:
        trainer.add_callback(StopEarly(patience))
        args.restore_callback_states_from_checkpoint = True
    # TRL's says "fine-tuned version of None" of local models, peft's nothing: write_card has ours
    trainer.create_model_card = lambda *_, **__: None
    trainer.model.create_or_update_model_card = lambda *_, **__: None
    args.eval_on_start = args.eval_on_start and checkpoint is None
    if args.ddp_find_unused_parameters is None and not may_leave_unused(trainer.model):
        trainer.accelerator.ddp_handler.find_unused_parameters = False  # in every step, with a line
    wants_fsdp = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if wants_fsdp and not trainer.is_fsdp_enabled:
        announce("FSDP shards over GPUs only: on the CPU each process holds the whole model (DDP)")
    lengths = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    n_epochs, max_steps = lengths[0], lengths[-1]
    note_batch(lengths[4], n_rows=lengths[2])
    note_warmup(args.get_warmup_steps(max_steps), max_steps, args.learning_rate)
    is_done = False
    if checkpoint is not None:
        state = checkpoint_state(checkpoint)
        if state.global_step > max_steps:
            raise ValueError(
                f"{checkpoint} is step {state.global_step} of a longer run than this one, of "
                f"{max_steps} steps: give another checkpoint, or --max_steps beyond it"
            )
        stopped_early = is_exhausted(state, patience)
        is_done = state.global_step == max_steps or stopped_early
        if is_done:  # Trainer would begin the epoch at hand once more
            what = "where the run stopped early" if stopped_early else "after the last step"
            announce(f"{checkpoint} is {what}, {state.global_step}: nothing is left to train")
            trainer.set_initial_training_values = lambda *_: (0, *lengths[1:])  # epochs
    first_step = state.global_step if checkpoint is not None else 0
    show_progress(trainer, lengths, first_step, final, merges)
    with explaining_files(args.output_dir):
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.state.num_train_epochs = n_epochs
        if is_done:
            history = trainer.state.log_history
            history[:] = [entry for entry in history if "train_loss" not in entry]  # of no step
        if stopping.stopped:
            step = trainer.state.global_step
            raise Stopped(
                stop_requested() or signal.SIGTERM,
                f"checkpoint-{step} is saved in {args.output_dir}",
            )
        trainer.save_model()  # before an evaluation: --bf16_full_eval would cast the weights
    metric = best_metric_name(args.metric_for_best_model)
    best_by = metric if args.load_best_model_at_end else None
    saved = saved_step(trainer.state, best_by, args.greater_is_better)
    if patience is not None and trainer.state.global_step < max_steps:
        saved["stopped_early"] = {
            "step": trainer.state.global_step, "metric": metric, "patience": patience,
            "threshold": args.early_stopping_threshold or 0.0,
        }  # fmt: skip
    return saved


def train_and_evaluate(
    trainer, checkpoint: str | None, parts: dict[str, Dataset | None], merges: bool
) -> tuple[SavedStep, dict[str, dict[str, float]]]:
    """Train as `train_until_stopped`; which step is saved, and the metrics of each part, by the
    prefix of their names (None: the trainer's evaluation set).

    A signal during the evaluations lets them end: they take less time than doing them again.
    """
    with finishing_first():
        saved = train_until_stopped(trainer, checkpoint, parts, merges)
        metrics = {
            name: trainer.evaluate(part, metric_key_prefix=name) for name, part in parts.items()
        }
        trainer.save_state()
    return saved, metrics


def note_batch(batch: int, n_rows: int) -> None:
    """A line where a step's batch has more rows than there are."""
    if batch > n_rows:
        announce(
            f"a step's batch is {batch} (processes × --per_device_train_batch_size × "
            f"--gradient_accumulation_steps), and there are {n_rows} rows: each step takes them all"
        )


def note_warmup(warmup: int, max_steps: int, learning_rate: float) -> None:
    """A line where the warm-up does not end before the run."""
    if warmup >= max_steps:
        reached = learning_rate * (max_steps - 1) / warmup
        announce(
            f"--warmup_steps is {warmup} and the run has {max_steps} steps: the learning rate only "
            f"rises, to {reached:.3g} of {learning_rate:.3g}"
        )
