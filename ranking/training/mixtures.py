"""Evaluation of each dataset of a mixture by itself, and of all together."""

from collections.abc import Mapping

from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer


def by_dataset(dataset: Dataset) -> dict[str, Dataset]:
    """The rows of each dataset of a mixture, by the column `dataset`; none where there is one."""
    if "dataset" not in dataset.column_names:
        return {}
    names = dataset["dataset"]
    rows = {name: [k for k, other in enumerate(names) if other == name] for name in names}
    return {name: dataset.select(rows[name]) for name in dict.fromkeys(names)}


class MixtureTrainer(SFTTrainer):
    """SFTTrainer whose evaluations are of the datasets one after the other: metrics are
    eval_<dataset>/loss, and eval_loss, their mean over all texts.

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
        prefix, metrics, total, n = f"{metric_key_prefix}_", {}, 0.0, 0
        for name, part in parts.items():
            self._eval_dataloaders: dict = {}  # Trainer keeps persistent loaders as "eval"
            output = super().evaluation_loop(
                self.get_eval_dataloader(part), *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
            for key, value in output.metrics.items():
                metrics[f"{prefix}{name}/{key.removeprefix(prefix)}"] = value
            total += output.num_samples * output.metrics[f"{prefix}loss"]
            n += output.num_samples
        metrics[f"{prefix}loss"] = total / n
        return EvalLoopOutput(None, None, metrics, n)


def print_datasets(
    metrics: dict[str, float], counts: Mapping[str, int], what: str = "loss"
) -> None:
    """A line for each dataset of a mixture: its part of the test metrics."""
    for name, n in counts.items():
        value = metrics[f"test_{name}/{what}"]
        print(f"  {name}: {what} {value:.4f}, n = {n}")
