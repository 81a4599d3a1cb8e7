"""Which linear layers a method adapts, read off the model itself."""

from torch import nn

from labkit.errors import RequestError
from labkit.models.layers import is_named, linear_layers, selects


def target_names(model: nn.Module, targets: str | tuple[str, ...]) -> list[str]:
    """Full names of the layers that `targets` selects. RequestError names the model's own modules if there are none."""
    names = list(linear_layers(model))
    chosen = [name for name in names if selects(targets, name)]
    asked = () if isinstance(targets, str) else targets
    unknown = [target for target in asked if not any(is_named(name, target) for name in names)]
    if unknown or not chosen:
        leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
        wanted = ", ".join(unknown) or f"targets={targets!r}"
        raise RequestError(f"This model has no linear layer for {wanted}; its linear modules are {', '.join(leaves)}.")
    return chosen
