"""Which linear layers a method adapts, and their shapes, read off the model itself."""

from torch import nn
from transformers.pytorch_utils import Conv1D

from labkit.errors import RequestError

QUERY_VALUE = {"q_proj", "v_proj"}


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Full name -> layer, for every linear layer inside the blocks (the output head is left out)."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def _is_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.split(".")[:-1])


def target_names(model: nn.Module, targets: str | tuple[str, ...]) -> list[str]:
    """Full names of the layers that `targets` selects. RequestError names the model's own modules if there are none."""
    names = list(linear_layers(model))
    leaves = sorted({name.rsplit(".", 1)[-1] for name in names})
    if isinstance(targets, str):
        wanted = {
            "all-linear": lambda name: True,
            "attention": _is_attention,
            "mlp": lambda name: not _is_attention(name),
            "qv": lambda name: name.rsplit(".", 1)[-1] in QUERY_VALUE,
        }[targets]
        chosen, unknown = [name for name in names if wanted(name)], []
    else:
        chosen = [name for name in names if any(name == t or name.endswith(f".{t}") for t in targets)]
        unknown = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
    if unknown or not chosen:
        asked = ", ".join(unknown) or f"targets={targets!r}"
        raise RequestError(f"This model has no linear layer for {asked}; its linear modules are {', '.join(leaves)}.")
    return chosen
