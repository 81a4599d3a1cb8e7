"""Exact parameter counts. A 4-bit parameter is one parameter, not half a packed byte."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Counts:
    """Parameters: of the base model, of the adapters, and those that are trained."""

    base: int
    adapter: int
    trainable: int


def is_adapter(name: str) -> bool:
    return "lora_" in name


def parameter_count(parameter: nn.Parameter) -> int:
    """Number of weights, unpacked: bitsandbytes' quantisation state knows the true shape."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def count_parameters(model: nn.Module) -> Counts:
    base = adapter = trainable = 0
    for name, parameter in model.named_parameters():
        count = parameter_count(parameter)
        adapter += count if is_adapter(name) else 0
        base += 0 if is_adapter(name) else count
        trainable += count if parameter.requires_grad else 0
    return Counts(base, adapter, trainable)
