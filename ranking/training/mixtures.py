"""Evaluation of each dataset of a mixture by itself, and of all together."""

from collections.abc import Mapping

import torch
from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput

from ranking.training.sft_trainer import PackedSFTTrainer


def by_dataset(dataset: Dataset) -> dict[str, Dataset]:
    """The rows of each dataset of a mixture, by the column `dataset`; none where there is one."""
    if "dataset" not in dataset.column_names:
        return {}
    names = dataset["dataset"]
    rows = {name: [k for k, other in enumerate(names) if other == name] for name in names}
    return {name: dataset.select(rows[name]) for name in dict.fromkeys(names)}


class MixtureTrainer(PackedSFTTrainer):
    """PackedSFTTrainer whose evaluations are of the datasets one after the other: metrics are
    eval_<dataset>/loss, and eval_loss, the mean over the response tokens of all.

    datasets: prefix of the metrics (eval, test) → `by_dataset` of what is evaluated.
    """

    def __init__(self, *args, datasets: dict[str, dict[str, Dataset]], **kwargs):
        self.datasets = datasets
        super().__init__(*args, **kwargs)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        parts = self.datasets.get(metric_key_prefix)
        if not parts:
            return super().evaluation_loop(
                dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        prefix, metrics, n = f"{metric_key_prefix}_", {}, 0
        totals = torch.zeros_like(self.totals)
        for name, part in parts.items():
            self._eval_dataloaders: dict = {}  # Trainer keeps persistent loaders as "eval"
            output = super().evaluation_loop(
                self.get_eval_dataloader(part), *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
            for key, value in output.metrics.items():
                metrics[f"{prefix}{name}/{key.removeprefix(prefix)}"] = value
            totals += self.totals
            n += output.num_samples
        nats, n_tokens = totals.tolist()
        metrics[f"{prefix}loss"] = nats / n_tokens
        return EvalLoopOutput(None, None, metrics, n)


def print_datasets(
    metrics: dict[str, float], counts: Mapping[str, int], what: str = "loss"
) -> None:
    """A line for each dataset of a mixture: its part of the test metrics."""
    for name, n in counts.items():
        value = metrics[f"test_{name}/{what}"]
        print(f"  {name}: {what} {value:.4f}, n = {n}")
