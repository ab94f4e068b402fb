"""What ends a run."""

import logging
from types import SimpleNamespace

from transformers import TrainerControl, TrainerState

from ranking.training.stopping import StopEarly


def test_evaluations_of_other_data_do_not_count(caplog, monkeypatch):
    """And say nothing: transformers would call early stopping disabled after the test split."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    args = SimpleNamespace(metric_for_best_model="loss", greater_is_better=False)
    state, control, stop = TrainerState(best_metric=1.0), TrainerControl(), StopEarly(1)
    stop.on_evaluate(args, state, control, {"test_loss": 2.0})
    assert not caplog.records and not control.should_training_stop
    stop.on_evaluate(args, state, control, {"eval_loss": 2.0})
    assert control.should_training_stop
