"""Evaluation of each dataset of a mixture by itself, of all together, and of named sets."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput

from ranking.training.sft_trainer import PackedSFTTrainer


def by_dataset(dataset: Dataset) -> dict[str, Dataset]:
    """The rows of each dataset of a mixture, by the column `dataset`; none where there is one."""
    if "dataset" not in dataset.column_names:
        return {}
    rows = defaultdict(list)
    for k, name in enumerate(dataset["dataset"][:]):  # a list: row by row takes seconds
        rows[name].append(k)
    return {name: dataset.select(own) for name, own in rows.items()}


class MixtureTrainer(PackedSFTTrainer):
    """PackedSFTTrainer whose evaluations are of the datasets of a mixture one after the other, and
    of eval_sets: metrics are eval_<dataset>/loss, and eval_loss, the mean over the response tokens
    of the mixture.

    datasets: prefix of the metrics (eval, test) → `by_dataset` of what is evaluated. eval_sets:
    named sets that are evaluated with the validation set, but are no part of eval_loss.
    """

    def __init__(
        self,
        *args,
        datasets: dict[str, dict[str, Dataset]],
        eval_sets: dict[str, Dataset] | None = None,
        **kwargs,
    ):
        self.datasets, self.eval_sets = datasets, eval_sets or {}
        self.is_other = False  # whether another dataset than the validation set is evaluated
        super().__init__(*args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Trainer's; another dataset than the validation set is evaluated alone."""
        is_own = eval_dataset is None or eval_dataset is self.eval_dataset
        self.is_other = metric_key_prefix == "eval" and not is_own
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self.is_other = False

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        kwargs["metric_key_prefix"], prefix = metric_key_prefix, f"{metric_key_prefix}_"
        parts = {} if self.is_other else self.datasets.get(metric_key_prefix, {})
        more = self.eval_sets if metric_key_prefix == "eval" and not self.is_other else {}
        outputs, totals = {}, torch.zeros_like(self.totals)
        for name, part in parts.items():
            outputs[name] = self.loop_over(part, *args, **kwargs)
            totals += self.totals
        if parts:
            nats, n_tokens = totals.tolist()
            output = EvalLoopOutput(None, None, {f"{prefix}loss": nats / n_tokens}, 0)
        else:
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        of_trl = dict(self._metrics["eval"])  # means of batch means, which `log` adds
        for name, dataset in more.items():
            outputs[name] = self.loop_over(dataset, *args, **kwargs)
        self._metrics["eval"].clear()
        self._metrics["eval"].update(of_trl)
        for name, other in outputs.items():
            for key, value in other.metrics.items():
                output.metrics[f"{prefix}{name}/{key.removeprefix(prefix)}"] = value
        n = output.num_samples + sum(other.num_samples for other in outputs.values())
        return output._replace(num_samples=n)

    def loop_over(self, dataset: Dataset, *args, **kwargs) -> EvalLoopOutput:
        """Trainer's loop over one of the sets."""
        self._eval_dataloaders: dict = {}  # Trainer keeps persistent loaders as "eval"
        loader = self.get_eval_dataloader(dataset)
        return super().evaluation_loop(loader, *args, **kwargs)


def print_datasets(
    metrics: dict[str, float], counts: Mapping[str, int], what: str = "loss", prefix: str = "test"
) -> None:
    """A line for each dataset of a mixture, or named set: its part of the metrics."""
    for name, n in counts.items():
        value = metrics[f"{prefix}_{name}/{what}"]
        print(f"  {name}: {what} {value:.4f}, n = {n}")
