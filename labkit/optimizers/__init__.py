"""Optimizers by name, and the bytes of state each keeps."""

from collections.abc import Iterable

from labkit.case import Case

MINIMUM_8BIT_ELEMENTS = 4096  # bitsandbytes optim/optimizer.py: smaller tensors keep fp32 states
BLOCK_8BIT = 256  # bitsandbytes optim/optimizer.py: one fp32 absmax per block and state
PAGED = ("paged-adamw-32bit", "paged-adamw-8bit")
MINIMUM_PAGED_ELEMENTS = 100_000  # bitsandbytes optim/optimizer.py: smaller tensors' states are never paged
STATES = {"sgd": 0, "lion-8bit": 1}  # state tensors per parameter; Adam keeps two


def make_optimizer(case: Case, parameters: Iterable, learning_rate: float):
    """The optimizer of `case` over `parameters`, betas (0.9, 0.999), eps 1e-8, no weight decay."""
    import torch

    name, parameters = case.optimizer, list(parameters)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate)
    if name in ("adamw-loop", "adamw-foreach", "adamw-fused"):
        foreach, fused = name == "adamw-foreach", name == "adamw-fused"
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, foreach=foreach, fused=fused)
    import bitsandbytes.optim as bnb

    makers = {
        "adamw-32bit": bnb.AdamW32bit,
        "adamw-8bit": bnb.AdamW8bit,
        "paged-adamw-32bit": bnb.PagedAdamW32bit,
        "paged-adamw-8bit": bnb.PagedAdamW8bit,
        "lion-8bit": bnb.Lion8bit,
    }
    return makers[name](parameters, lr=learning_rate, weight_decay=0.0)


def state_bytes(optimizer: str, elements: int, parameter_bytes: int) -> int:
    """Bytes of state for one parameter tensor of `elements` elements of `parameter_bytes` bytes each.

    torch keeps Adam's two moments in the parameter's dtype, plus a 4-byte step count; bitsandbytes in fp32, or as
    8-bit codes with one fp32 absmax per 256 elements when the tensor has at least 4,096.
    """
    states = STATES.get(optimizer, 2)
    if optimizer.startswith("adamw-") and optimizer.removeprefix("adamw-") in ("loop", "foreach", "fused"):
        return states * elements * parameter_bytes + 4
    if optimizer.endswith("8bit") and elements >= MINIMUM_8BIT_ELEMENTS:
        blocks = -(-elements // BLOCK_8BIT)
        return states * (elements + 4 * blocks)
    return states * 4 * elements
