"""DPO^γ (Eq. 4): TRL's DPOTrainer with `loss_type="alpha_scaling"`, shared-prefix rows and exact
ranking metrics. `alpha` is the paper's γ (the name of the original command line), never the share
of raters. γ = 1 is DPO, γ = 0 is reference-free.

    trainer = DPOGammaTrainer(model, ref_model, DPOGammaConfig("out", loss_type="alpha_scaling",
        alpha=0.5), train_dataset=..., processing_class=tokenizer)
"""

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import Trainer, TrainerState
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, DPOTrainer

from log_likelihood import (
    TokenizedCompletion,
    check_fast_path,
    compute_token_logps,
    own_attention,
    restore_attention,
)
from ranking_dynamics import (
    append_dynamics,
    dynamics_rows,
    finite,
    forget_later_steps,
    initial_weights,
    pair_values,
    squared_distance,
    summarize_pairs,
)

logger = logging.getLogger(__name__)
ALPHA_SCALING = "alpha_scaling"
COLUMNS = ["pair", "chosen_ids", "chosen_start", "rejected_ids", "rejected_start"]
REFERENCE_COLUMNS = ["ref_chosen_logps", "ref_rejected_logps"]
PARTS = {"eval": "validation", "eval_train": "train"}
# TRL's outputs of the LM head that only feed means over tokens of its own metrics
TOKEN_METRICS = ("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy")


def dpo_gamma_loss(
    policy_logratios: torch.Tensor, ref_logratios: torch.Tensor, beta: float, gamma: float
) -> torch.Tensor:
    """DPO^γ loss of each pair (Eq. 4), nats.

    −log σ( β[ log π_θ(y_w|x)/π_θ(y_l|x) − γ log π_ref(y_w|x)/π_ref(y_l|x) ] )
    policy_logratios, ref_logratios: (n_pairs,), chosen − rejected, nats, summed (Eq. 13).
    """
    return -F.logsigmoid(beta * (policy_logratios - gamma * ref_logratios))


@dataclass
class DPOGammaConfig(DPOConfig):
    """TRL's DPOConfig with γ. ValueError for options that would silently change Eq. 4's loss."""

    alpha: float = field(
        default=1.0, metadata={"help": "γ of Eq. 4: 1 is DPO, 0 is reference-free."}
    )

    def __post_init__(self):
        super().__post_init__()
        if ALPHA_SCALING not in self.loss_type:
            if self.alpha != 1.0:
                raise ValueError(f"alpha={self.alpha} needs loss_type={ALPHA_SCALING}")
            if self.ld_alpha is not None:
                raise ValueError("ld_alpha weights tokens, but rankings are of whole completions")
            return
        if self.router_aux_loss_coef is None:
            self.router_aux_loss_coef = 0.0  # a mixture's own default would be added to Eq. 4
        changed = {
            "label_smoothing": self.label_smoothing != 0.0,
            "label_smoothing_factor": self.label_smoothing_factor != 0.0,
            "f_divergence_type": self.f_divergence_type != "reverse_kl",
            "ld_alpha": self.ld_alpha is not None,
            "use_weighting": self.use_weighting,
            "sync_ref_model": self.sync_ref_model,
            "router_aux_loss_coef": self.router_aux_loss_coef != 0.0,
        }
        if wrong := [name for name, is_changed in changed.items() if is_changed]:
            raise ValueError(
                f"{', '.join(wrong)} would change the loss of loss_type={ALPHA_SCALING}: leave out"
            )


def collate_pairs(rows: list[dict], pad_token_id: int) -> dict[str, torch.Tensor]:
    """TRL's batch layout, (2B, T) with chosen above rejected, right-padded; masks by position."""
    sequences = [(r["chosen_ids"], r["chosen_start"]) for r in rows]
    sequences += [(r["rejected_ids"], r["rejected_start"]) for r in rows]
    shape = (len(sequences), max(len(ids) for ids, _ in sequences))
    batch = {
        "input_ids": torch.full(shape, pad_token_id),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "completion_mask": torch.zeros(shape, dtype=torch.long),
        "pair": torch.tensor([r["pair"] for r in rows]),
    }
    for k, (ids, start) in enumerate(sequences):
        batch["input_ids"][k, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][k, : len(ids)] = 1
        batch["completion_mask"][k, start : len(ids)] = 1
    for name in REFERENCE_COLUMNS:
        if name in rows[0]:
            batch[name] = torch.tensor([r[name] for r in rows], dtype=torch.float32)
    return batch


def completions_of(batch: dict[str, torch.Tensor]) -> list[TokenizedCompletion]:
    """The sequences of a batch without their padding."""
    lengths = batch["attention_mask"].sum(1).tolist()
    starts = batch["completion_mask"].argmax(1).tolist()
    sequences = zip(batch["input_ids"].tolist(), lengths, starts)
    return [TokenizedCompletion(tuple(ids[:n]), start, False) for ids, n, start in sequences]


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


class DPOGammaTrainer(DPOTrainer):
    """DPOTrainer with DPO^γ's loss, rows that share prompts, and ranking metrics at each eval.

    Datasets hold either TRL's text columns, or COLUMNS and, when the reference is precomputed,
    REFERENCE_COLUMNS. dynamics_dataset: training pairs that are followed beside the validation
    set. dynamics_file: where the values of every pair go at each evaluation.
    """

    loss_types: list[str]  # TRL's, without ours
    loss_weights: list[float]

    def __init__(
        self,
        *args,
        dynamics_dataset: Dataset | None = None,
        dynamics_file: str | Path | None = None,
        **kwargs,
    ):
        tokenizer = kwargs["processing_class"]
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        kwargs["data_collator"] = kwargs.get("data_collator") or partial(
            collate_pairs, pad_token_id=pad
        )
        super().__init__(*args, **kwargs)
        keep_outputs_in_float32(self.accelerator)
        self.gamma = getattr(self.args, "alpha", 1.0)
        self.gamma_weight = 0.0
        terms = list(zip(self.loss_types, self.loss_weights, strict=True))
        for name, weight in terms:
            self.gamma_weight += weight * (name == ALPHA_SCALING)
        # what is left is computed by TRL
        self.loss_types = [name for name, _ in terms if name != ALPHA_SCALING]
        self.loss_weights = [weight for name, weight in terms if name != ALPHA_SCALING]

        self.dynamics_dataset = dynamics_dataset
        self.dynamics_file = Path(dynamics_file) if dynamics_file else None
        self.recorded: set[tuple[int, str]] = set()
        self.pairs: dict[int, torch.Tensor] = {}
        self.initial = initial_weights(self.model) if self.is_world_process_zero() else {}
        self.precompute_ref_logps = True  # compute_loss puts the reference into the inputs
        self.path = self.choose_path()

    def choose_path(self) -> str:
        """Whether shared-prefix rows are exact here ("segments"), or why TRL's path runs."""
        if self.args.use_weighting or self.aux_loss_enabled:
            return "plain: the loss needs outputs of TRL's own forward pass"
        sample = self.train_dataset.select(range(min(64, len(self.train_dataset))))
        pairs = [completions_of(self.data_collator([row])) for row in sample]
        for model in [model for model in (self.model, self.ref_model) if model is not None]:
            was_training = model.training
            model.eval()
            with self.accelerator.autocast():
                path = check_fast_path(model, pairs)
            model.train(was_training)
            if path != "segments":
                logger.warning(f"shared-prefix rows are off for this model ({path})")
                return path
        return "segments"

    # ------------------------------------------------------------------------ data
    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if "chosen_start" in dataset.column_names:
            return dataset
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)

        def join(row: dict, index: int) -> dict:
            start, limit = len(row["prompt_ids"]), args.max_length
            chosen = (row["prompt_ids"] + row["chosen_ids"])[:limit]
            rejected = (row["prompt_ids"] + row["rejected_ids"])[:limit]
            values = (index, chosen, start, rejected, start)
            return dict(zip(COLUMNS, values))

        return dataset.map(join, with_indices=True, remove_columns=dataset.column_names)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if REFERENCE_COLUMNS[0] in dataset.column_names:
            return dataset
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [*COLUMNS, *REFERENCE_COLUMNS, "length"]

    # ------------------------------------------------------------------------ loss
    def token_outputs(self, model, inputs):
        """Per-token log-likelihoods (2B, T − 1), nats, as TRL's: zero outside completions."""
        if self.path != "segments":
            mask = inputs["completion_mask"]
            extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
            return model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                labels=inputs["input_ids"].masked_fill(mask == 0, -100),
                use_cache=False,
                fused_lm_head=True,
                **extra,
            )
        completions = completions_of(inputs)
        width = inputs["input_ids"].shape[1]
        with self.accelerator.autocast():  # accelerate's own wraps the forward that is replaced
            token_logps = compute_token_logps(model, completions)
        log_probs = torch.stack(
            [
                F.pad(logps, (c.start - 1, width - len(c.ids)))
                for c, logps in zip(completions, token_logps)
            ]
        )
        unused = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs, entropy=unused, mean_logits=unused, is_top1=unused.bool()
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean over the batch of Eq. 4 and of whatever other TRL losses were asked for."""
        if REFERENCE_COLUMNS[0] not in inputs:
            reference = self.compute_ref_log_probs(
                lambda **_: self.token_outputs(self.ref_model or model, inputs), inputs
            )
            inputs = {**inputs, **dict(zip(REFERENCE_COLUMNS, reference))}
        outputs = self.token_outputs(model, inputs)
        loss = super().compute_loss(lambda **_: outputs, inputs)
        mode = "train" if self.model.training else "eval"
        if self.path == "segments":
            for name in TOKEN_METRICS:
                self._metrics[mode].pop(name, None)
        ref_chosen, ref_rejected = (inputs[name] for name in REFERENCE_COLUMNS)
        if self.gamma_weight:
            chosen, rejected = outputs.log_probs.sum(1).chunk(2)
            losses = dpo_gamma_loss(
                chosen - rejected, ref_chosen - ref_rejected, self.beta, self.gamma
            )
            loss = loss + self.gamma_weight * losses.mean()
        if mode == "eval":
            self.keep_pairs(inputs, outputs.log_probs)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, *args, **kwargs):
        """TRL's; a backward pass that is interrupted leaves the model its own attention too."""
        own = own_attention(model) if self.path == "segments" else []
        try:
            return super().training_step(model, *args, **kwargs)
        finally:
            restore_attention(own)

    # ------------------------------------------------------------------------ ranking metrics
    def keep_pairs(self, inputs, log_probs: torch.Tensor) -> None:
        """Keep the log-likelihoods of a batch, from all processes; repeated pairs count once."""
        sums = log_probs.double().sum(1).chunk(2)
        lengths = inputs["completion_mask"].sum(1).chunk(2)
        reference = [inputs[name] for name in REFERENCE_COLUMNS]
        columns = torch.stack(
            [t.double() for t in (inputs["pair"], *sums, *reference, *lengths)], 1
        )
        for row in self.accelerator.gather(columns).cpu():
            self.pairs[int(row[0])] = row[1:]

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        """Trainer's loop, with means over pairs that depend on neither batch nor process count."""
        self.pairs = {}
        output = super().evaluation_loop(
            dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        order = sorted(self.pairs)
        table = torch.stack([self.pairs[k] for k in order]).numpy().T
        names = ("chosen", "rejected", "ref_chosen", "ref_rejected", "n_chosen", "n_rejected")
        values = pair_values(dict(zip(names, table)), self.beta, self.gamma)
        metrics = summarize_pairs(values, self.beta)
        for name in metrics:
            self._metrics["eval"].pop(name, None)  # TRL's means of batch means
        if metric_key_prefix != "eval":
            self._metrics["eval"].clear()
        elif not is_deepspeed_zero3_enabled():  # which shows every process empty weights
            metrics["distance/squared"] = finite(squared_distance(self.model, self.initial))
        if self.gamma_weight == 1.0 and not self.loss_types:
            metrics["loss"] = float(values["loss"].mean())
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in metrics.items()})
        self.record(metric_key_prefix, values, order, metrics)
        return output

    def record(self, prefix: str, values, order, metrics) -> None:
        """Append the values of every pair to the dynamics file, once per step and part."""
        key = (self.state.global_step, PARTS.get(prefix, ""))
        if self.dynamics_file is None or prefix not in PARTS or key in self.recorded:
            return
        self.recorded.add(key)
        if not self.is_world_process_zero():
            return
        dataset = self.eval_dataset if prefix == "eval" else self.dynamics_dataset
        ids = dataset["id"] if "id" in dataset.column_names else list(map(str, range(len(dataset))))
        ids = [ids[k] for k in order]
        facts = {"step": key[0], "epoch": self.state.epoch or 0.0, "part": key[1],
                 "beta": self.beta, "gamma": self.gamma,
                 "squared_distance": metrics.get("distance/squared")}  # fmt: skip
        append_dynamics(self.dynamics_file, dynamics_rows(values, ids, facts))

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Evaluate the validation set and, with it, the training pairs that are followed."""
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(given, Dataset) or "chosen_start" not in given.column_names:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        # Trainer's own: DPOTrainer's would tokenize again. It keeps persistent loaders as "eval".
        self._eval_dataloaders = {}
        metrics = Trainer.evaluate(self, eval_dataset, ignore_keys, metric_key_prefix)
        if eval_dataset is None and self.dynamics_dataset is not None:
            self._eval_dataloaders = {}
            metrics |= Trainer.evaluate(self, self.dynamics_dataset, ignore_keys, "eval_train")
        return metrics

    def train(self, resume_from_checkpoint=None, **kwargs):
        """Train; the dynamics file keeps the rows up to the checkpoint, none without one."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
        step = -1
        if resume_from_checkpoint:
            path = Path(resume_from_checkpoint) / TRAINER_STATE_NAME
            state = TrainerState.load_from_json(str(path))
            step = state.global_step
            counts = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
            self._total_train_tokens = int(counts[-1]) if counts else 0  # TRL starts at 0 again
        if self.dynamics_file is not None and self.is_world_process_zero():
            self.recorded = forget_later_steps(self.dynamics_file, step)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
