"""DPO^γ (Eq. 4): TRL's DPOTrainer with `loss_type="alpha_scaling"` and its kin (OWN_LOSSES),
shared-prefix rows and exact ranking metrics. `alpha` is the paper's γ (the name of the original
command line), never the share of raters. γ = 1 is DPO, γ = 0 is reference-free.

    trainer = DPOGammaTrainer(model, ref_model, DPOGammaConfig("out", loss_type="alpha_scaling",
        alpha=0.5), train_dataset=..., processing_class=tokenizer)
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import DPOConfig, DPOTrainer

from ranking.data.given_scores import REFERENCE_COLUMNS
from ranking.metrics.dynamics import finite, pair_values, rewards_moved, summarize_pairs
from ranking.metrics.loss_names import OWN_LOSSES
from ranking.metrics.losses import BATCH_LOSSES, PER_TOKEN, SUFFICIENT, THRESHOLDS
from ranking.scoring.loading import context_length, unwrap
from ranking.scoring.log_likelihood import PACKED, ScoringPath, compute_token_logps
from ranking.scoring.rotary import by_length_class, length_class
from ranking.scoring.start_up_check import check_fast_path
from ranking.scoring.tokenization import TokenizedCompletion
from ranking.training.distance import initial_weights, squared_distance
from ranking.training.dpo_flags import GammaFlags
from ranking.training.dynamics_file import (
    Evaluation,
    append_dynamics,
    dynamics_rows,
    forget_later_steps,
)
from ranking.training.given_reference import reference_in_row
from ranking.training.packed_steps import TOKEN_METRICS, PackedSteps, keep_outputs_in_float32
from ranking.training.pairs import (
    COLUMNS,
    SUMS,
    collate_by,
    collate_pairs,
    completions_of,
    cut_pair,
    pad_logps,
    pair_columns,
    pair_sums,
)
from ranking.training.saved_model import TiedOnce
from ranking.training.trainer_inputs import (
    EvaluatedSet,
    coarsest_rounding,
    evaluated_sets,
    initial_reference,
    members_of_datasets,
    refuse_images,
    whole_dataset,
)

logger = logging.getLogger(__name__)


def dpo_gamma_loss(
    policy_logratios: torch.Tensor, ref_logratios: torch.Tensor, beta: float, gamma: float
) -> torch.Tensor:
    """DPO^γ loss of each pair (Eq. 4), nats.

    −log σ( β[ log π_θ(y_w|x)/π_θ(y_l|x) − γ log π_ref(y_w|x)/π_ref(y_l|x) ] )
    policy_logratios, ref_logratios: (n_pairs,), chosen − rejected, nats, summed (Eq. 13).
    """
    return -F.logsigmoid(beta * (policy_logratios - gamma * ref_logratios))


def dpo_gamma_norm_loss(
    policy_logratios: torch.Tensor,
    ref_logratios: torch.Tensor,
    beta: float,
    gamma: float,
    target_margin: float = 0.0,
) -> torch.Tensor:
    """Length-normalized DPO^γ loss of each pair, nats.

    −log σ( β[ policy_logratio − γ ref_logratio ] − target_margin )
    policy_logratios, ref_logratios: (n_pairs,), log π(y_w|x)/|y_w| − log π(y_l|x)/|y_l|, nats per
    token (Eq. 15). γ = 1 without a margin is TRL's sigmoid_norm. γ = 0 is SimPO (arXiv 2405.14734),
    whose β is this β, and whose γ is target_margin.
    """
    return -F.logsigmoid(beta * (policy_logratios - gamma * ref_logratios) - target_margin)


def dpo_gamma_dpop_loss(
    policy_logratios: torch.Tensor,
    ref_logratios: torch.Tensor,
    chosen_changes: torch.Tensor,
    beta: float,
    gamma: float,
    dpop_lambda: float,
) -> torch.Tensor:
    """DPO^γ loss of each pair with the penalty of DPO-Positive (arXiv 2402.13228), nats.

    −log σ( β[ policy_logratio − γ ref_logratio − λ max(0, log π_ref(y_w|x) − log π_θ(y_w|x)) ] )
    policy_logratios, ref_logratios: (n_pairs,), chosen − rejected, nats, summed (Eq. 13);
    chosen_changes: (n_pairs,), log π_θ(y_w|x) − log π_ref(y_w|x). γ = 1 is DPO-Positive.
    """
    penalties = dpop_lambda * F.relu(-chosen_changes)
    return -F.logsigmoid(beta * (policy_logratios - gamma * ref_logratios - penalties))


def dpo_gamma_ipo_loss(
    policy_logratios: torch.Tensor, ref_logratios: torch.Tensor, beta: float, gamma: float
) -> torch.Tensor:
    """IPO's loss of each pair with γ (App. A.5; arXiv 2310.12036, whose τ is β).

    ( policy_logratio − γ ref_logratio − 1/(2β) )²
    policy_logratios, ref_logratios: (n_pairs,), log π(y_w|x)/|y_w| − log π(y_l|x)/|y_l|, nats per
    token (Eq. 15). γ = 1 is TRL's ipo.
    """
    return (policy_logratios - gamma * ref_logratios - 1 / (2 * beta)) ** 2


@dataclass
class DPOGammaConfig(GammaFlags, DPOConfig):
    """TRL's DPOConfig with OWN_LOSSES and what they take beside β.

    ValueError for options that would silently change the loss of one of OWN_LOSSES, and for those
    that the loss_type does not use.
    """

    tokens_per_batch: int | None = None  # tokens of a forward pass; None: by device

    def __post_init__(self):
        if self.bf16 is None and not torch.accelerator.is_available():
            self.bf16 = False  # TRL's default stops a machine without GPU
        super().__post_init__()
        self.check_loss()
        if set(OWN_LOSSES) & set(self.loss_type) and self.router_aux_loss_coef is None:
            self.router_aux_loss_coef = 0.0  # a mixture's own default would be added to Eq. 4


class DPOGammaTrainer(TiedOnce, PackedSteps, DPOTrainer):
    """DPOTrainer with DPO^γ's loss, rows that share prompts, and ranking metrics at each eval.

    Datasets hold either TRL's text columns, or COLUMNS (rows as they are to be trained on, which
    max_length does not cut) and, when the reference is precomputed, REFERENCE_COLUMNS, which text
    may bring along too; a column `id` names the pairs, and of a mixture `dataset` where they are
    from: the metrics of each are eval_<dataset>/…, beside those of all. `reference_dtype` says what
    REFERENCE_COLUMNS were computed in, where that is coarser than what trains. They may be
    streamed, as TRL's.
    ref_model: a model, its name or directory; None: the model as it is when it is given. args:
    None is DPO (γ = 1) with TRL's defaults. A data_collator is given TRL's rows (prompt_ids,
    chosen_ids, rejected_ids) and cuts them itself.
    eval_dataset: one, or several by name, whose metrics are then eval_<name>_…, as Trainer's.
    eval_sets: further ones beside one eval_dataset, in the same evaluation: eval_<name>/….
    dynamics_dataset: the training pairs that are followed beside these. dynamics_file: where the
    values of every pair go at each evaluation, with `part` validation, train or the set's name.
    """

    sides = 2  # chosen, rejected
    loss_types: list[str]  # TRL's, without ours
    loss_weights: list[float]

    def __init__(
        self,
        model,
        ref_model=None,
        args: DPOConfig | None = None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        *more,
        eval_sets: dict[str, Dataset] | None = None,
        dynamics_dataset: Dataset | IterableDataset | None = None,
        dynamics_file: str | Path | None = None,
        **kwargs,
    ):
        refuse_images(train_dataset)
        self.cuts_pairs = data_collator is None  # one that is given does it
        collator = partial(collate_by, data_collator) if data_collator else collate_pairs
        eval_dataset = whole_dataset(eval_dataset)
        if args is None:
            name = model if isinstance(model, str) else model.config.name_or_path
            args = DPOGammaConfig(f"{name.split('/')[-1]}-DPO")
        ref_model = initial_reference(
            model, ref_model, loading=args.model_init_kwargs or {},
            needed=kwargs.get("peft_config") is None and not args.precompute_ref_log_probs,
        )  # fmt: skip
        super().__init__(
            model, ref_model, args, collator, train_dataset, eval_dataset, *more, **kwargs
        )
        if data_collator is None:
            self.data_collator = partial(collate_pairs, pad_token_id=self._tokenizer.pad_token_id)
        keep_outputs_in_float32(self.accelerator)
        own = self.args if isinstance(self.args, GammaFlags) else GammaFlags()
        self.gamma = own.alpha
        self.target_margin, self.dpop_lambda = own.target_margin, own.dpop_lambda
        terms = list(zip(self.loss_types, self.loss_weights, strict=True))
        self.own_terms = [(name, weight) for name, weight in terms if name in OWN_LOSSES]
        # what is left is computed by TRL
        self.loss_types = [name for name, _ in terms if name not in OWN_LOSSES]
        self.loss_weights = [weight for name, weight in terms if name not in OWN_LOSSES]
        self.splits_batches = not set(self.loss_types) & set(BATCH_LOSSES)

        self.eval_sets = self.prepared(eval_sets or {})
        self.dynamics_dataset = self.prepared(dynamics_dataset)
        self.check_names()
        self.dynamics_file = Path(dynamics_file) if dynamics_file else None
        self.evaluated: list[EvaluatedSet] = []  # while an evaluation runs
        self.recorded: set[tuple[int, str]] = set()
        self.pairs: dict[int, torch.Tensor] = {}
        self.lines = []
        self.initial = initial_weights(self.model) if self.is_world_process_zero() else {}
        self.precompute_ref_logps = True  # compute_loss puts the reference into the inputs
        of_all = (self.train_dataset, self.eval_dataset, self.eval_sets, self.dynamics_dataset)
        self.reference_rounding = coarsest_rounding(of_all)
        self.path = self.choose_path()

    def check_names(self) -> None:
        """ValueError where two evaluation sets would have the same metrics or rows."""
        several = isinstance(self.eval_dataset, dict)
        if several and self.eval_sets:
            raise ValueError("eval_dataset has several sets already: put those of eval_sets there")
        taken = {"train"} if self.dynamics_dataset is not None else set()
        taken |= {"train", "validation"} if self.eval_sets else set()
        for name in self.eval_dataset if several else self.eval_sets:
            if name in taken:
                what = "dynamics_dataset" if name == "train" else "eval_dataset"
                raise ValueError(f"an evaluation set named {name!r} has the metrics of {what}")

    def choose_path(self) -> ScoringPath:
        """Packed rows where they are exact here, else TRL's path and why it runs."""
        if self.args.use_weighting or self.aux_loss_enabled:
            return ScoringPath("plain", "the loss needs outputs of TRL's own forward pass")
        sharded = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        if length_class(self.model, 1) and sharded:  # processes would gather layers out of step
            raise ValueError(
                "this model's rotary frequencies depend on the length of a text (LongRoPE, "
                "dynamic), which sharded weights do not allow: use accelerate_configs/ddp.yaml"
            )
        sample = islice(self.train_dataset, 64)
        pairs = [completions_of(self.data_collator([row])) for row in sample]
        self.check_width(max(len(c.ids) for pair in pairs for c in pair))
        for model in [model for model in (self.model, self.ref_model) if model is not None]:
            was_training = model.training
            model.eval()
            with self.accelerator.autocast():
                path = check_fast_path(model, pairs)
            model.train(was_training)
            if not path.is_packed:
                logger.warning(f"shared-prefix rows are off for this model ({path})")
                return path
        return PACKED

    def check_width(self, width: int) -> None:
        """ValueError if so many tokens are more than the model has positions for."""
        config = self.model.config.get_text_config()
        limit = context_length(self.model)
        any_length = getattr(config, "rope_parameters", None) or getattr(config, "alibi", False)
        if limit is not None and width > limit and not any_length:
            raise ValueError(f"a pair has {width} tokens, the model {limit}: lower max_length")

    # ------------------------------------------------------------------------ data
    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        """COLUMNS (and `id` and `dataset`, if they are there) of TRL's text columns, cut as its
        collator does."""
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError(f"the {dataset_name} dataset is empty")
        if "chosen_start" in first:
            return dataset
        limit = args.max_length if self.cuts_pairs else None
        sides_of = partial(cut_pair, max_length=limit, mode=args.truncation_mode)
        tokenized = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        tokenized = tokenized.filter(
            lambda row: all(len(ids) > start for ids, start in sides_of(row))
        )
        first = next(iter(tokenized), None)
        if first is None:
            raise ValueError(
                f"the {dataset_name} dataset: max_length={limit} leaves no pair a token to score"
            )
        if isinstance(dataset, Dataset) and len(tokenized) < len(dataset):
            logger.warning(
                f"the {dataset_name} dataset: dropped {len(dataset) - len(tokenized)} of "
                f"{len(dataset)} pairs, of which max_length={limit} leaves nothing to score"
            )
        kept = ["id"] + ["dataset"] * isinstance(first.get("dataset"), str)
        others = [name for name in first if name not in kept]

        def columns(row: dict, number: int) -> dict:
            sides = sides_of(row)
            reference = reference_in_row(row, *sides) if args.precompute_ref_log_probs else {}
            return pair_columns(number, *sides) | reference

        return tokenized.map(columns, with_indices=True, remove_columns=others)

    def prepared(self, dataset):
        """A dataset for `evaluate` or `predict` as the constructor would have made it."""
        if dataset is None or isinstance(dataset, str):  # a name: one the constructor was given
            return dataset
        if isinstance(dataset, dict):
            return {name: self.prepared(part) for name, part in dataset.items()}
        dataset = whole_dataset(dataset)
        dataset = self._prepare_dataset(dataset, self.processing_class, self.args, "eval")
        if not self.args.precompute_ref_log_probs or REFERENCE_COLUMNS[0] in dataset.column_names:
            return dataset
        trained = self.state.global_step > 0 and not isinstance(self.model, PeftModel)
        if self.ref_model is None and trained:
            raise ValueError(
                "the reference of this dataset can no longer be computed: without ref_model and "
                "with precompute_ref_log_probs it was the model before training. Give the dataset "
                "to the constructor, or a ref_model"
            )
        batch_size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
        return self._precompute_ref_logps(dataset, "eval", batch_size)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if REFERENCE_COLUMNS[0] in next(iter(dataset)):
            return dataset
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def compute_ref_log_probs(self, model, inputs):
        """TRL's, which gives the model all of `inputs`."""
        inputs = {name: value for name, value in inputs.items() if name != "pair"}
        return super().compute_ref_log_probs(model, inputs)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [*COLUMNS, *REFERENCE_COLUMNS, "length"]

    # ------------------------------------------------------------------------ loss
    def sequences_of(self, batch) -> list[list[TokenizedCompletion]]:
        """Chosen and rejected of each pair of a batch."""
        completions = completions_of(batch)
        n = len(completions) // 2
        return [[*pair] for pair in zip(completions[:n], completions[n:])]

    def token_outputs(self, model, inputs):
        """Per-token log-likelihoods (2B, T − 1), nats, as TRL's: zero outside completions."""
        width = inputs["input_ids"].shape[1]
        self.check_width(width)
        if not self.path.is_packed:
            if len(by_length_class(self.model, completions_of(inputs))) > 1:
                raise ValueError(
                    "this model's rotary frequencies depend on the length of a text (LongRoPE, "
                    f"dynamic), which TRL's padded batches mix (path {self.path}): lower max_length"
                )
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
        with self.accelerator.autocast():  # accelerate's own wraps the forward that is replaced
            token_logps = compute_token_logps(model, completions)
        log_probs = pad_logps(token_logps, completions, width)
        unused = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs, entropy=unused, mean_logits=unused, is_top1=unused.bool()
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean over the batch of OWN_LOSSES and of whatever other TRL losses were asked for."""
        if REFERENCE_COLUMNS[0] not in inputs:
            reference = self.compute_ref_log_probs(
                lambda **_: self.token_outputs(self.ref_model or model, inputs), inputs
            )
            inputs = {**inputs, **dict(zip(REFERENCE_COLUMNS, reference))}
        outputs = self.token_outputs(model, inputs)

        def forward(fused_lm_head=False, labels=None, pair=None, **batch):
            return outputs if fused_lm_head else model(**batch)  # logits for compute_metrics

        result = super().compute_loss(forward, inputs, return_outputs)
        loss, logits = result if return_outputs else (result, None)
        mode = "train" if self.model.training else "eval"
        if self.path.is_packed:
            for name in TOKEN_METRICS:
                self._metrics[mode].pop(name, None)
        chosen, rejected = outputs.log_probs.sum(1).chunk(2)
        ref_chosen, ref_rejected = (inputs[name] for name in REFERENCE_COLUMNS)
        self.log_reward_accuracy(mode, chosen, rejected, ref_chosen, ref_rejected)
        logps = (chosen, rejected, ref_chosen, ref_rejected)
        lengths = inputs["completion_mask"].sum(1).chunk(2)
        for name, weight in self.own_terms:
            loss = loss + weight * self.own_losses(name, logps, lengths).mean()
        if mode == "eval":
            sums = pair_sums(inputs, outputs.log_probs)
            of_row = loss.detach().double().expand(len(sums), 1)
            self.lines.append(torch.cat([sums, of_row], 1))
        return (loss, logits) if return_outputs else loss

    def own_losses(
        self, name: str, logps: Sequence[torch.Tensor], lengths: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """One of OWN_LOSSES of each pair, (n_pairs,), nats. logps: chosen, rejected, ref_chosen,
        ref_rejected, (n_pairs,), nats, summed (Eq. 13); lengths: tokens of chosen and rejected."""
        chosen, rejected, ref_chosen, ref_rejected = logps
        if name in PER_TOKEN:
            n_chosen, n_rejected = lengths
            policy_logratios = chosen / n_chosen - rejected / n_rejected
            ref_logratios = ref_chosen / n_chosen - ref_rejected / n_rejected
        else:
            policy_logratios, ref_logratios = chosen - rejected, ref_chosen - ref_rejected
        ratios, strengths = (policy_logratios, ref_logratios), (self.beta, self.gamma)
        if name == "alpha_scaling_norm":
            return dpo_gamma_norm_loss(*ratios, *strengths, self.target_margin)
        if name == "alpha_scaling_dpop":
            return dpo_gamma_dpop_loss(*ratios, chosen - ref_chosen, *strengths, self.dpop_lambda)
        if name == "alpha_scaling_ipo":
            return dpo_gamma_ipo_loss(*ratios, *strengths)
        return dpo_gamma_loss(*ratios, *strengths)

    def rounding(self) -> float:
        """Relative rounding error of the forward pass: of its matrix products' precision, or of the
        reference's where that is coarser."""
        kind, dtype = self.accelerator.device.type, self.model.dtype
        with self.accelerator.autocast():
            if torch.is_autocast_enabled(kind):
                dtype = torch.get_autocast_dtype(kind)
        tf32 = kind == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
        own = 2.0**-10 if dtype == torch.float32 and tf32 else torch.finfo(dtype).eps
        in_8_bits = getattr(unwrap(self.model), "is_loaded_in_8bit", False)
        of_weights = torch.finfo(torch.float16).eps if in_8_bits else 0.0  # their products' dtype
        return max(own, of_weights, self.reference_rounding)

    def log_reward_accuracy(self, mode: str, *logps: torch.Tensor) -> None:
        """In place of TRL's, which counts what rounding does to equal log-likelihoods."""
        shares = rewards_moved(*(x.detach() for x in logps), rounding=self.rounding())
        better, same = (self.accelerator.gather(x.float()).mean().item() for x in shares)
        self._metrics[mode]["rewards/accuracies"][-1] = better
        self._metrics[mode]["rewards/ties"].append(same)

    # ------------------------------------------------------------------------ ranking metrics
    def keep_lines(self, lines: torch.Tensor) -> None:
        """Keep a batch's `pair_sums`, from all processes, with the mean loss of each pair's row;
        repeated pairs count once."""
        for row in self.accelerator.gather(lines).cpu():
            self.pairs.setdefault(int(row[0]), row[1:])

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        """Trainer's loop over each set of the evaluation at hand; the metrics of all in one."""
        alone = EvaluatedSet(f"{metric_key_prefix}_", None, None)  # of `predict`
        first, *others = self.evaluated or [alone]
        kwargs["metric_key_prefix"] = metric_key_prefix
        output = self.loop_over_pairs(first, dataloader, *args, **kwargs)
        of_first = dict(self._metrics["eval"])
        for one in others:
            more = self.loop_over_pairs(one, self.get_eval_dataloader(one.dataset), *args, **kwargs)
            n = output.num_samples + more.num_samples
            output = output._replace(metrics=output.metrics | more.metrics, num_samples=n)
        self._metrics["eval"].update(of_first)  # TRL's means of batch means, which `log` adds
        return output

    def loop_over_pairs(self, one: EvaluatedSet, dataloader, *args, metric_key_prefix, **kwargs):
        """Trainer's loop over a set, with means over pairs that depend on neither batch nor process
        count."""
        self.pairs = {}
        output = super().evaluation_loop(
            dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        of_trainer = {
            one.start + name.removeprefix(f"{metric_key_prefix}_"): value
            for name, value in output.metrics.items()
            if one.leads or "preparation_time" not in name
        }
        order = sorted(self.pairs)
        table = torch.stack([self.pairs[k] for k in order]).numpy().T
        values = pair_values(
            dict(zip(SUMS, table)), self.beta, self.gamma, self.threshold_loss,
            label_smoothing=self.label_smoothing, discopop_tau=self.args.discopop_tau,
            target_margin=self.target_margin, dpop_lambda=self.dpop_lambda,
        )  # fmt: skip
        metrics = summarize_pairs(values, self.beta, self.rounding())
        for name in metrics:
            self._metrics["eval"].pop(name, None)  # TRL's means of batch means
        if one.start != "eval_":
            self._metrics["eval"].clear()
        if one.leads and not is_deepspeed_zero3_enabled():  # which shows processes empty weights
            distance = [finite(squared_distance(self.model, self.initial))]
            broadcast_object_list(distance)  # the first process has the initial weights
            metrics["distance/squared"] = distance[0]
        metrics |= {"loss": float(table[-1].mean())} | self.mean_loss(values)
        named = of_trainer | {one.start + name: value for name, value in metrics.items()}
        for name, members in members_of_datasets(one, order).items():
            of_name = {k: v[members] for k, v in values.items()}
            means = summarize_pairs(of_name, self.beta, self.rounding()) | self.mean_loss(of_name)
            named |= {f"{one.start}{name}/{k}": value for k, value in means.items()}
        if one.part is not None and self.dynamics_file is not None:
            self.record(one.part, one.dataset, values, order, metrics)
        return output._replace(metrics=named)

    @property
    def terms(self) -> list[tuple[str, float]]:
        """The losses that train, with their weights; those of OWN_LOSSES first."""
        return [*self.own_terms, *zip(self.loss_types, self.loss_weights)]

    @property
    def trained(self) -> str:
        """What trains: `ipo`, `alpha_scaling+sft`, `sigmoid (js_divergence)`, …"""
        changes = [self.f_divergence_type] * (self.f_divergence_type != "reverse_kl")
        changes += ["use_weighting"] * bool(self.args.use_weighting)
        names = "+".join(name for name, _ in self.terms)
        return names + f" ({', '.join(changes)})" * bool(changes)

    @property
    def threshold_loss(self) -> str | None:
        """What trains, where that is one loss of a pair's margin (Remark 4.2)."""
        falls = self.trained != "robust" or 0 <= self.label_smoothing < 0.5
        return self.trained if self.trained in (*THRESHOLDS, *SUFFICIENT) and falls else None

    def mean_loss(self, values: dict[str, np.ndarray]) -> dict[str, float]:
        """{"loss": mean over these pairs}, of `pair_values`, of the loss that trains; empty where
        that is not one loss of a pair."""
        if self.threshold_loss is None or self.aux_loss_enabled:
            return {}
        ((_, weight),) = self.terms
        return {"loss": weight * float(values.get("trained_loss", values["loss"]).mean())}

    def record(self, part: str, dataset: Dataset, values, order, metrics) -> None:
        """Append the values of every pair to the dynamics file, once per step and part."""
        key = (self.state.global_step, part)
        if key in self.recorded:
            return
        self.recorded.add(key)
        if not self.is_world_process_zero():
            return
        names = dataset["id"][:] if "id" in dataset.column_names else map(str, range(len(dataset)))
        id_of = dict(zip(dataset["pair"][:], names))
        ids = [id_of[pair] for pair in order]
        evaluation: Evaluation = {
            "step": self.state.global_step, "epoch": self.state.epoch or 0.0, "part": part,
            "beta": self.beta, "gamma": self.gamma,
            "squared_distance": metrics.get("distance/squared"),
            "loss_type": self.trained, "rounding": self.rounding(),
        }  # fmt: skip
        types = [name for name, _ in self.own_terms]
        if "alpha_scaling_norm" in types:
            evaluation["target_margin"] = self.target_margin
        if "alpha_scaling_dpop" in types:
            evaluation["dpop_lambda"] = self.dpop_lambda
        append_dynamics(self.dynamics_file, dynamics_rows(values, ids, evaluation))

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Evaluate the validation set and, with it, eval_sets and the training pairs that are
        followed; or another dataset, as the constructor takes them, or by name one of several that
        it took."""
        given = self.prepared(eval_dataset)
        self.evaluated = evaluated_sets(
            given, metric_key_prefix, self.eval_dataset, self.eval_sets, self.dynamics_dataset
        )
        try:  # DPOTrainer's would tokenize again
            metrics = Trainer.evaluate(self, given, ignore_keys, metric_key_prefix)
        finally:
            self.evaluated = []
        one_by_one = given is None and isinstance(self.eval_dataset, dict)
        if one_by_one and metric_key_prefix == "eval" and self.dynamics_dataset is not None:
            metrics |= self.evaluate(self.dynamics_dataset, ignore_keys, "eval_train")
        return metrics

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
        """Trainer's: metrics and, if there is room for them, logits of (chosen, rejected)."""
        return super().predict(self.prepared(test_dataset), ignore_keys, metric_key_prefix)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """Train; the dynamics file keeps the rows up to the checkpoint, none without one."""
        state = self.resumed_state(resume_from_checkpoint)
        step = -1 if state is None else state.global_step
        if self.dynamics_file is not None and self.is_world_process_zero():
            self.recorded = forget_later_steps(self.dynamics_file, step)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
