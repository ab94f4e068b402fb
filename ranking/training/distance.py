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


def adapter_layers(model) -> Iterator[tuple[str, Any]]:
    """Names and layers that an active adapter changes."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and layer.active_adapters:
            yield name.replace("_checkpoint_wrapped_module.", ""), layer


def adapter_change(layer):
    """What merging its adapter adds to a layer's weight, float64, whatever LoRA variant it is (on
    quantized weights, which would be quantized again: LoRA itself)."""
    if type(layer.get_base_layer().weight).__name__ in ("Params4bit", "Int8Params"):
        return sum(layer.get_delta_weight(name).double() for name in layer.active_adapters)
    merged = copy.deepcopy(layer).double()
    merged.merge()
    return merged.get_base_layer().weight - layer.get_base_layer().weight.double()


def initial_weights(model) -> dict[str, Any]:
    """A CPU copy of the weights that training can change; of adapters that do not start at 0 what
    they add, float64."""
    import torch

    start = {name: weight.detach().to("cpu", copy=True) for name, weight in trained_weights(model)}
    with torch.no_grad():
        for name, layer in adapter_layers(model):
            if any(weight.any() for key, weight in layer.named_parameters() if "lora_B" in key):
                start[name] = adapter_change(layer).cpu()
    return start


def whole(tensor):
    """The tensor, gathered from all processes if they share it out (FSDP2)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def squared_distance(model, initial: dict[str, Any]) -> float:
    """‖θ − θ_0‖² of the effective weights: adapters merged, tied weights once (Fig. 4).

    Differences are taken in float32 (adapters: float64), the sum in float64. Where weights are
    sharded, all processes call this; those with an empty `initial` only help to gather.
    """
    import torch
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
        for name, layer in adapter_layers(model):
            added = whole(adapter_change(layer))
            if name in initial:
                added = added - initial[name].to(added.device)
            total += float(added.square().sum())
    return total
