"""The estimating meter: closed formulas a reader can check by hand, one function per kind of memory.

Activations have a module of their own (`activations`). Not covered: autocast, dropout, most temporaries, rounding by
the allocator. Every formula is held against the measured step by a test.
"""

from collections import Counter
from dataclasses import replace

from labkit.case import AVAILABLE_METHODS, NESTED_BLOCK_SIZE, Case
from labkit.errors import RequestError
from labkit.memory.activations import (
    ADAPTER_BYTES,
    ELEMENT_BYTES,
    RECOMPUTING,
    attention_half_bytes,
    kept_bytes,
    mlp_half_bytes,
    scores_bytes,
    stream_bytes,
    tokens_of,
)
from labkit.memory.shape import Linear, Shape, adapted, shape_of
from labkit.models.architectures import ARCHITECTURES
from labkit.models.layers import is_named
from labkit.models.sources import find
from labkit.optimizers import MINIMUM_PAGED_ELEMENTS, PAGED, state_bytes

CODE_TABLE_BYTES = 16 * 4  # bitsandbytes keeps the 16 levels as fp32 in every layer
NESTED_TABLE_BYTES = 256 * 4 + 4  # and, with double quantisation, 256 levels and one fp32 offset
LOSS_COPIES_FORWARD_BYTES = {4: 4 + 4, 2: 2 + 4 + 4}  # logits, their fp32 copy if 16-bit, log-softmax
LOSS_COPIES_BACKWARD_BYTES = 4 + 4 + 4  # log-softmax, its gradient, the logits' gradient, all fp32


def quantised_linear_bytes(linear: Linear, case: Case) -> tuple[int, int]:
    """(codes, statistics) of one quantised layer: n/2 bytes of codes; 4 bytes per block of 64, or with double
    quantisation 1 byte per block and 4 per 256 blocks (QLoRA section 3); int8: n bytes and 4 per output row."""
    if case.quant_type == "int8":
        return linear.elements, 4 * linear.features_out
    blocks = -(-linear.elements // case.block_size)
    if not case.double_quant:
        return linear.elements // 2, 4 * blocks + CODE_TABLE_BYTES
    statistics = blocks + 4 * -(-blocks // NESTED_BLOCK_SIZE) + CODE_TABLE_BYTES + NESTED_TABLE_BYTES
    return linear.elements // 2, statistics


def weight_bytes(shape: Shape, case: Case) -> Counter:
    """Base weights by kind. Unquantised: parameters x element size."""
    if not case.quantised:
        return Counter(weights=shape.parameters * ELEMENT_BYTES[case.precision])
    pairs = [quantised_linear_bytes(linear, case) for linear in shape.linears]
    rest = shape.parameters - shape.linear_elements
    upcast = case.upcast and case.precision != "fp32"
    return Counter(
        packed_weights=shape.layers * sum(codes for codes, _ in pairs),
        quantisation_statistics=shape.layers * sum(statistics for _, statistics in pairs),
        **{"upcast_weights" if upcast else "weights": rest * stream_bytes(case)},
    )


def load_bytes(shape: Shape, case: Case, head_last: bool) -> int:
    """The peak while the model is made: what is finished and, for QLoRA, on the way there the largest linear layer that
    is not quantised yet (int8: and its fp16 copy), or the largest 16-bit tensor that is being upcast.

    `head_last`: an output head of its own is made after the blocks (random weights), not before (a folder's).
    """
    weights, size = weight_bytes(shape, case), ELEMENT_BYTES[case.precision]
    finished = sum(weights.values()) + trained_bytes(shape, case)["adapters"]
    if not case.quantised:
        return finished
    largest, table = max(linear.elements for linear in shape.linears), shape.vocabulary * shape.hidden
    quantised = weights["packed_weights"] + weights["quantisation_statistics"]
    drawn = quantised + (shape.parameters - shape.linear_elements) * size
    quantising = drawn + largest * (size + (2 if case.quant_type == "int8" and case.precision != "fp16" else 0))
    quantising -= table * size if head_last and not shape.tied else 0
    upcasting = sum(weights.values()) + table * size if weights["upcast_weights"] else 0
    return max(finished, drawn, quantising, upcasting)


def trainable_tensors(shape: Shape, case: Case) -> list[int]:
    """Elements of every trained tensor: all of them, or A (rank x in) and B (out x rank) per adapted layer."""
    if case.method == "full":
        return shape.tensors
    pairs = [(case.rank * x.features_in, case.rank * x.features_out) for x in adapted(shape, case.targets)]
    return [elements for pair in pairs for elements in pair] * shape.layers


def trained_bytes(shape: Shape, case: Case) -> Counter:
    """Adapters, gradients and optimizer states: each counted over the trained tensors alone."""
    tensors = trainable_tensors(shape, case)
    size = ELEMENT_BYTES[case.precision] if case.method == "full" else ADAPTER_BYTES
    return Counter(
        adapters=0 if case.method == "full" else sum(tensors) * size,
        gradients=sum(tensors) * size,
        optimizer_states=sum(state_bytes(case.optimizer, elements, size) for elements in tensors),
    )


def moments(shape: Shape, case: Case) -> dict[str, tuple[str, Counter]]:
    """The moments at which a step can peak -> (phase, bytes by kind).

    Backward begins with everything kept and the loss's copies. In the last block's attention the loss is gone, but the
    gradients of softmax and scores are two more matrices of scores. With checkpointing, a block's activations come back
    on top of what is kept. At the end all gradients are there.
    """
    tokens, size = tokens_of(case), stream_bytes(case)
    logits, kept = tokens * shape.vocabulary, kept_bytes(shape, case)
    inputs = 2 * 8 * tokens * case.accumulation  # input_ids and labels, int64
    trained = trained_bytes(shape, case)
    gradients = trained.pop("gradients")
    static = weight_bytes(shape, case) + trained + Counter(activations=inputs)
    held = static + Counter(activations=kept, gradients=gradients if case.accumulation > 1 else 0)
    head_input = 0 if case.method == "full" else tokens * size * shape.hidden  # alive, not kept, while the head runs
    mlp = mlp_half_bytes(shape, case)
    block = attention_half_bytes(shape, case) + mlp if case.checkpointing != "none" else 0
    scores = 0 if case.attention in RECOMPUTING else 2 * scores_bytes(shape, case)
    states_copy = trained["optimizer_states"] // 2 if case.optimizer == "adamw-foreach" else 0
    return {
        "end of forward": (
            "forward",
            held + Counter(activations=head_input, logits_and_loss=LOSS_COPIES_FORWARD_BYTES[size] * logits),
        ),
        "loss backward": ("backward", held + Counter(logits_and_loss=LOSS_COPIES_BACKWARD_BYTES * logits)),
        "last attention backward": ("backward", held + Counter(activations=block - mlp, temporaries=scores)),
        "checkpointed block backward": ("backward", held + Counter(activations=block)),
        "end of backward": (
            "backward",
            static + Counter(gradients=gradients, activations=block, temporaries=_tied_gradients(shape, case)),
        ),
        "optimizer": ("optimizer", static + Counter(gradients=gradients, temporaries=states_copy)),
    }


def _tied_gradients(shape: Shape, case: Case) -> int:
    """A tied embedding gets a gradient as the head and one as the embedding; both live until their sum is made."""
    tied = case.method == "full" and shape.tied
    return 2 * shape.vocabulary * shape.hidden * ELEMENT_BYTES[case.precision] if tied else 0


def breakdown_and_phases(case: Case) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by kind at the estimated peak, and the estimated peak of every phase."""
    refuse_uncovered(case)
    shape = shape_of(case.model)
    found = moments(shape, case).values()
    phases = {
        name: max(sum(kinds.values()) for phase, kinds in found if phase == name)
        for name in ("forward", "backward", "optimizer")
    }
    phases = {"load": load_bytes(shape, case, head_last=not find(case.model, weights=False).trained), **phases}
    peak = max((kinds for _, kinds in found), key=lambda kinds: sum(kinds.values()))
    return {kind: size for kind, size in peak.items() if size}, phases


def refuse_uncovered(case: Case) -> None:
    """RequestError, in one sentence, for what the formulas would get wrong."""
    paths = [linear.path for linear in shape_of(case.model).linears]
    uncovered = {
        "method": case.method not in AVAILABLE_METHODS,
        "autocast": case.autocast is not None,
        "dropout": case.dropout > 0 and case.method != "full",
        "world_size": case.world_size > 1,
        "targets": not isinstance(case.targets, str)
        and not all(any(is_named(path, target) for path in paths) for target in case.targets),
    }
    for name in (name for name, holds in uncovered.items() if holds):
        raise RequestError(
            f"The closed formulas do not cover {name}={getattr(case, name)!r}; measure the case instead."
        )


def paged_bytes(shape: Shape, case: Case) -> int:
    """Optimizer states in CUDA managed memory, outside the allocator: those of tensors of at least 100,000 elements."""
    tensors = [elements for elements in trainable_tensors(shape, case) if elements >= MINIMUM_PAGED_ELEMENTS]
    return sum(state_bytes(case.optimizer, elements, 4) for elements in tensors) if case.optimizer in PAGED else 0


def estimate(case: Case, device_type: str = "cuda"):
    """Estimate `case` on a device type ('cpu' or 'cuda') and return a Record, without torch or a model."""
    from labkit.record import new_record

    case = case.on(device_type)
    breakdown, phases = breakdown_and_phases(case)
    managed_bytes = paged_bytes(shape_of(case.model), case) if device_type == "cuda" else 0
    if managed_bytes:
        breakdown["optimizer_states"] -= managed_bytes
        phases = {phase: size - managed_bytes * (phase != "load") for phase, size in phases.items()}
    peak = sum(breakdown.values())
    return new_record(
        case,
        "estimated",
        "memory",
        outcome="ok",
        peak_allocated_bytes=peak,
        device=device_type,
        managed_bytes=managed_bytes,
        phases=phases,
        breakdown=breakdown,
    )


def largest_architecture(case: Case, limit_bytes: int, device_type: str = "cuda") -> str | None:
    """The largest named architecture whose estimated peak with `case`'s settings is within `limit_bytes`."""
    peaks = {name: estimate(replace(case, model=name), device_type).peak_allocated_bytes for name in ARCHITECTURES}
    fitting = [name for name, peak in peaks.items() if peak <= limit_bytes]
    return max(fitting, key=lambda name: shape_of(name).parameters, default=None)
