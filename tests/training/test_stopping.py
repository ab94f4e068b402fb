"""What DDP is told of a model."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ranking.training.stopping import may_leave_unused


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
