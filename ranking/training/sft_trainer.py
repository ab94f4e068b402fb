"""SFT through packed rows: TRL's SFTTrainer, whose `nll` loss is computed of response tokens only,
with what texts share at their beginning computed once."""

import copy
from contextlib import nullcontext
from itertools import islice

import torch
from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from ranking.plumbing.processes import announce
from ranking.scoring.log_likelihood import ScoringPath, compute_token_logps
from ranking.scoring.rotary import length_class
from ranking.scoring.start_up_check import check_fast_path
from ranking.scoring.tokenization import TokenizedCompletion
from ranking.training.packed_steps import TOKEN_METRICS, PackedSteps, keep_outputs_in_float32
from ranking.training.saved_model import TiedOnce
from ranking.training.splits import by_dataset
from ranking.training.texts import IGNORED, check_packing


def trained_text(ids: list[int], labels: list[int]) -> TokenizedCompletion:
    """A text up to its last trained token, with the positions of those; the first token of a text
    has nothing before it and does not count."""
    scored = tuple(t for t, label in enumerate(labels) if label != IGNORED and t > 0)
    return TokenizedCompletion(tuple(ids[: scored[-1] + 1 if scored else 1]), 1, False, scored)


def texts_of(batch: dict[str, torch.Tensor]) -> list[TokenizedCompletion]:
    """The texts of a padded batch."""
    rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist())
    return [trained_text(ids, labels) for ids, labels in rows]


def plain_reason(model, settings: dict) -> str:
    """What of a run's settings only TRL's own forward pass computes; "" where nothing does."""
    config = model.config.get_text_config()
    coefficient = settings["router_aux_loss_coef"]
    if coefficient is None:
        coefficient = getattr(config, "router_aux_loss_coef", 0.0)
    reasons = {
        f"--loss_type {settings['loss_type']}": settings["loss_type"] != "nll",
        "--label_smoothing_factor": settings["label_smoothing_factor"] > 0,
        "--neftune_noise_alpha": settings["neftune_noise_alpha"] is not None,
        "--use_liger_kernel": settings["use_liger_kernel"],
        "the mixture's auxiliary loss": hasattr(config, "output_router_logits") and coefficient,
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


def choose_sft_path(model, settings: dict, dataset: Dataset, autocast) -> ScoringPath:
    """Packed rows where they are exact for this model and its loss, else TRL's path and why.

    autocast: the dtype that training computes in beside that of the weights, or None.
    """
    if reason := plain_reason(model, settings):
        return ScoringPath("plain", reason)
    texts = (trained_text(row["input_ids"], row["labels"]) for row in dataset)
    sample = [[text] for text in islice((text for text in texts if text.positions), 64)]
    if not sample:
        raise ValueError("the train dataset: no text has a response token to train on")
    kind, was_training = model.device.type, model.training
    model.eval()
    with torch.autocast(kind, autocast) if autocast else nullcontext():
        path = check_fast_path(model, sample)
    model.train(was_training)
    return path


class PackedSFTTrainer(TiedOnce, PackedSteps, SFTTrainer):
    """SFTTrainer whose steps go through packed rows, and whose evaluation loss is the mean over all
    response tokens of a dataset.

    The datasets have the columns input_ids and labels; one with a column `dataset` is evaluated by
    these names too: eval_<name>/loss, beside that of all. So are eval_sets, with the validation
    set. A model or loss that cannot take packed rows is trained as by TRL; a line says why.
    """

    def __init__(
        self,
        model,
        args,
        *more,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        eval_sets: dict[str, Dataset] | None = None,
        **kwargs,
    ):
        autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self.path = choose_sft_path(model, vars(args), train_dataset, autocast)
        if self.path.is_packed and args.packing:
            announce("--packing does nothing: texts share rows anyway")
            args = copy.copy(args)
            args.packing = args.eval_packing = False
        elif not self.path.is_packed:
            announce(f"SFT by TRL's own forward pass ({self.path})")
            self.check_plain(model, train_dataset, args.packing)
        self.lines = []
        self.validation, self.eval_sets = eval_dataset, eval_sets or {}
        self.evaluated: Dataset | None = None  # while an evaluation runs
        self.totals = torch.zeros(2, dtype=torch.float64)  # of an evaluation: nats, tokens
        super().__init__(
            model, args, *more, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs
        )
        keep_outputs_in_float32(self.accelerator)
        if self.is_fsdp_enabled and length_class(model, 1):
            self.path = ScoringPath("plain", "rotary frequencies that depend on the length")

    @staticmethod
    def check_plain(model, dataset: Dataset, packing: bool) -> None:
        """Lines on what padded batches do; ValueError where packed texts see each other."""
        if len({length_class(model, len(ids)) for ids in dataset["input_ids"]}) > 1:
            announce(
                "this model's rotary frequencies depend on the length of a forward pass (LongRoPE, "
                "dynamic): in training and evaluation, all texts of a batch get those of its "
                "longest; batches of 1 give each its own"
            )
        if packing:
            check_packing(model, dataset)

    def sequences_of(self, batch) -> list[list[TokenizedCompletion]]:
        """The text of each row of a batch."""
        return [[text] for text in texts_of(batch)]

    def weight_of(self, example: list[TokenizedCompletion]) -> float:
        """Trained tokens, over which the loss is a mean."""
        return len(example[0].positions)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """−Σ log π(y_t | y_<t) over response tokens, divided by their number in the step."""
        is_packed = self.path.is_packed and not return_outputs
        texts = texts_of(inputs)
        counts = torch.tensor([float(len(text.positions)) for text in texts])
        counts = counts.to(self.accelerator.device)
        if is_packed and counts.any():
            with self.accelerator.autocast():  # accelerate's own wraps the replaced forward
                token_logps = compute_token_logps(model, texts)
            nats = -torch.stack([logps.sum() for logps in token_logps])
            n = counts.sum() if num_items_in_batch is None else num_items_in_batch
            result = loss = nats.sum() / n
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                n_means = self.accelerator.num_processes // self.get_tp_size()
                loss = result = loss * n_means  # DDP takes their mean
            if self.model.training:
                n_tokens = self.accelerator.gather_for_metrics(inputs["attention_mask"].sum())
                self._total_train_tokens += int(n_tokens.sum())
            self._metrics["train" if self.model.training else "eval"]["num_tokens"] = [
                self._total_train_tokens
            ]
        else:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = result[0] if return_outputs else result
            nats = loss.detach() * counts  # its sum is what counts
            if is_packed:  # what other rows do not have either
                for name in TOKEN_METRICS:
                    self._metrics["train" if self.model.training else "eval"].pop(name, None)
        if not self.model.training:
            self.lines.append(torch.stack([nats.double(), counts.double()], 1))
        return result

    def keep_lines(self, lines: torch.Tensor) -> None:
        """Add a batch's texts, of all processes and each once, to the totals."""
        self.totals += self.accelerator.gather_for_metrics(lines).sum(0).cpu()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Trainer's; another dataset than the validation set is evaluated without eval_sets."""
        is_own = eval_dataset is None or eval_dataset is self.eval_dataset
        self.evaluated = self.validation if is_own else eval_dataset
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self.evaluated = None

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        """Trainer's loop, of each dataset by itself, with the mean over response tokens in place of
        that over batches."""
        kwargs["metric_key_prefix"], prefix = metric_key_prefix, f"{metric_key_prefix}_"
        is_own = metric_key_prefix == "eval" and self.evaluated is self.validation
        parts = by_dataset(self.evaluated)
        outputs, totals = {}, torch.zeros_like(self.totals)
        for name, part in parts.items():
            outputs[name] = self.loop_over(self.get_eval_dataloader(part), *args, **kwargs)
            totals += self.totals
        if parts:
            nats, n_tokens = totals.tolist()
            output = EvalLoopOutput(None, None, {f"{prefix}loss": nats / n_tokens}, 0)
        else:
            output = self.loop_over(dataloader, *args, **kwargs)
        of_trl = dict(self._metrics["eval"])  # means of batch means, which `log` adds
        for name, dataset in self.eval_sets.items() if is_own else ():
            outputs[name] = self.loop_over(self.get_eval_dataloader(dataset), *args, **kwargs)
        self._metrics["eval"].clear()
        if metric_key_prefix == "eval":  # the log would call them those of the validation set
            self._metrics["eval"].update(of_trl)
        for name, other in outputs.items():
            for key, value in other.metrics.items():
                output.metrics[f"{prefix}{name}/{key.removeprefix(prefix)}"] = value
        n = output.num_samples + sum(other.num_samples for other in outputs.values())
        return output._replace(num_samples=n)

    def loop_over(self, dataloader, *args, metric_key_prefix, **kwargs) -> EvalLoopOutput:
        """Trainer's loop over a set, with the mean over its response tokens."""
        self.totals = torch.zeros_like(self.totals)
        output = super().evaluation_loop(
            dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        nats, n = self.totals.tolist()
        if not n:
            raise ValueError(f"{metric_key_prefix}: no text has a response token to evaluate")
        output.metrics[f"{metric_key_prefix}_loss"] = nats / n
        return output
