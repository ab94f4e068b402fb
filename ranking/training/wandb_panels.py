"""The metrics of evaluations in sections of their own on wandb's page."""

from transformers import TrainerCallback

from ranking.reports.dynamics import grouped_metrics


class GroupedPanels(TrainerCallback):
    """Logs the metrics of an evaluation once more, as `grouped_metrics` names them."""

    def __init__(self, run):
        self.run = run

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.run.log({**grouped_metrics(metrics), "train/global_step": state.global_step})
