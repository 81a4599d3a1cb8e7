"""Rescale a trained LoRA adapter: what alpha does once A and B are fixed.

The update of a layer is s B A with s = alpha/r or alpha/sqrt(r), so its norm is proportional to alpha.
"""

import datetime
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from labkit import machine

ADAPTER = "default"  # peft's name for the only adapter


@dataclass(frozen=True)
class AlphaCurve:
    """Loss (nats per target token) and norm of the update at each alpha, for one trained adapter; `meter`, `device` and
    `created` say where they come from, as a Record's do."""

    trained_alpha: float
    alphas: tuple[float, ...]
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    device: str
    created: str
    meter: str = "measured"


def lora_layers(model: nn.Module) -> Iterator[nn.Module]:
    from peft.tuners.lora import LoraLayer

    return (module for module in model.modules() if isinstance(module, LoraLayer))


@contextmanager
def rescaled(model: nn.Module, alpha: float) -> Iterator[None]:
    """Inside, every adapter of `model` acts as if it had `alpha`; afterwards as before."""
    layers = list(lora_layers(model))
    before = [layer.scaling[ADAPTER] for layer in layers]
    for layer, scaling in zip(layers, before, strict=True):
        layer.scaling[ADAPTER] = scaling * alpha / layer.lora_alpha[ADAPTER]
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling[ADAPTER] = scaling


@torch.no_grad()
def update_norm(model: nn.Module) -> float:
    """Frobenius norm of all layers' s B A together. |BA|^2 = trace((B^T B)(A A^T)) needs no out x in product."""
    total = 0.0
    for layer in lora_layers(model):
        a, b = layer.lora_A[ADAPTER].weight.double(), layer.lora_B[ADAPTER].weight.double()  # (r, in), (out, r)
        total += layer.scaling[ADAPTER] ** 2 * ((b.T @ b) * (a @ a.T)).sum().item()
    return math.sqrt(total)


def alpha_curve(
    model: nn.Module, alphas: Sequence[float], loss: Callable[[], float], trained_alpha: float
) -> AlphaCurve:
    """Evaluate `loss()` and the update's norm at each alpha; the model is left as it was."""
    losses, norms = [], []
    for alpha in alphas:
        with rescaled(model, alpha):
            losses.append(loss())
            norms.append(update_norm(model))
    device = "cpu" if next(model.parameters()).device.type == "cpu" else machine.device_name()
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return AlphaCurve(trained_alpha, tuple(alphas), tuple(losses), tuple(norms), device, created)
