"""The linear layers of a model, and which of them a Case's `targets` selects: by name, so without torch."""

from labkit.errors import RequestError

QUERY_VALUE = ("q_proj", "v_proj")


def in_attention(name: str) -> bool:
    """Whether the layer of this name, with its path inside the block at least (`self_attn.q_proj`), is attention's."""
    return any("attn" in part or "attention" in part for part in name.split(".")[:-1])


def is_named(name: str, target: str) -> bool:
    """Whether `target` is the layer's name or the end of its path."""
    return name == target or name.endswith(f".{target}")


def selects(targets: str | tuple[str, ...], name: str) -> bool:
    """Whether a Case's `targets` selects the linear layer of this name (see `in_attention`)."""
    if targets == "all-linear":
        return True
    if targets in ("attention", "mlp"):
        return in_attention(name) == (targets == "attention")
    return any(is_named(name, target) for target in (QUERY_VALUE if targets == "qv" else targets))


def linear_layers(model) -> dict:
    """Full name -> layer, for every linear layer inside the blocks of a model (the output head is left out)."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def quantisable_layers(model) -> dict:
    """`linear_layers` not yet quantised. RequestError if one is of a kind that cannot be, such as GPT-2's Conv1D."""
    from torch import nn

    layers = {name: layer for name, layer in linear_layers(model).items() if layer.weight.is_floating_point()}
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear):
            raise RequestError(
                f"This model's {type(layer).__name__} layers ({name}, ...) cannot be quantised; use method='lora'."
            )
    return layers
