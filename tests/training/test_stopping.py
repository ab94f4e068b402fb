"""What ends a run, and what DDP is told of a model."""

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainerControl, TrainerState

from ranking.training.stopping import StopEarly, may_leave_unused


def test_evaluations_of_other_data_do_not_count(caplog, monkeypatch):
    """And say nothing: transformers would call early stopping disabled after the test split."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    args = SimpleNamespace(metric_for_best_model="loss", greater_is_better=False)
    state, control, stop = TrainerState(best_metric=1.0), TrainerControl(), StopEarly(1)
    stop.on_evaluate(args, state, control, {"test_loss": 2.0})
    assert not caplog.records and not control.should_training_stop
    stop.on_evaluate(args, state, control, {"eval_loss": 2.0})
    assert control.should_training_stop


@pytest.mark.parametrize(
    ("kind", "may"),
    [("llama", False), ("gemma3_text", False), ("mixtral", True), ("granitemoe", True),
     ("gemma3", True)],
)  # fmt: skip
def test_whose_weights_a_backward_pass_can_miss(kind, may):
    """Experts, and a tower for images: not by their being frozen."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind))
    assert may_leave_unused(model) == may
    for name, weight in model.named_parameters():
        weight.requires_grad = "self_attn.q_proj" in name
    assert may_leave_unused(model) == (kind == "gemma3")
