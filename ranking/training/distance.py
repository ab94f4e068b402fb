"""How far training went in weight space: ‖θ_t − θ_0‖² (Fig. 4)."""

import copy
from collections.abc import Iterator
from typing import Any


def trained_weights(model) -> Iterator[tuple[str, Any]]:
    """Names and parameters that training can change (tied ones once), but for adapters.

    Names are those of the bare model, whatever checkpointing wraps around its layers.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            yield name.replace("_checkpoint_wrapped_module.", ""), parameter


def initial_weights(model) -> dict[str, Any]:
    """A CPU copy of the weights that training can change; adapters start at 0."""
    return {name: weight.detach().to("cpu", copy=True) for name, weight in trained_weights(model)}


def whole(tensor):
    """The tensor, gathered from all processes if they share it out (FSDP2)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def squared_distance(model, initial: dict[str, Any]) -> float:
    """‖θ − θ_0‖² of the effective weights: adapters merged, tied weights once (Fig. 4).

    Differences are taken in float32 (adapters: float64), the sum in float64. Where weights are
    sharded, all processes call this; those with an empty `initial` only help to gather.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what a forward pass leaves gathered may be in half precision
    total = 0.0
    with torch.no_grad():
        for name, parameter in trained_weights(model):
            current = whole(parameter)
            if initial:
                difference = current.float() - initial[name].to(current.device).float()
                total += float(difference.double().square().sum())
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer) and layer.active_adapters:
                total += float(whole(added_weight(layer)).square().sum())
    return total


def added_weight(layer):
    """What the adapters of a layer add to its weight, float64."""
    weight = layer.get_base_layer().weight
    if type(weight).__name__ in ("Params4bit", "Int8Params"):  # merged, it would be quantized again
        return sum(layer.get_delta_weight(name).double() for name in layer.active_adapters)
    merged = copy.deepcopy(layer).double()  # whatever LoRA variant
    merged.merge()
    return merged.get_base_layer().weight - weight.double()
