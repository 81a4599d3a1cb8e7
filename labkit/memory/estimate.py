"""The estimating meter: closed formulas a reader can check by hand, one function per kind of memory.

Notation: T = batch x sequence tokens; bytes of an element are 4 (fp32) or 2 (fp16, bf16). What autograd keeps was read
off transformers' `modeling_llama.py`, peft's `LoraLayer`, and torch's `derivatives.yaml`; every formula is held against
the measured step by a test. Not covered: autocast, dropout, temporaries inside operations, rounding by the allocator.
"""

from collections import Counter
from dataclasses import replace

from labkit.case import Case
from labkit.errors import RequestError
from labkit.memory.shape import Linear, Shape, adapted, shape_of
from labkit.models.architectures import ARCHITECTURES
from labkit.optimizers import state_bytes

ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
ADAPTER_BYTES = 4  # peft keeps adapters in fp32 whatever the base model's dtype (autocast_adapter_dtype)
CODE_TABLE_BYTES = 16 * 4  # bitsandbytes keeps the 16 levels as fp32 in every layer
NESTED_TABLE_BYTES = 256 * 4 + 4  # and, with double quantisation, 256 levels and one fp32 offset
NESTED_BLOCK = 256  # QLoRA paper (arXiv:2305.14314), section 3: second-level block size
LOSS_COPIES_FORWARD_BYTES = {4: 4 + 4, 2: 2 + 4 + 4}  # logits, their fp32 copy if 16-bit, log-softmax
LOSS_COPIES_BACKWARD_BYTES = 4 + 4 + 4  # log-softmax, its gradient, the logits' gradient, all fp32


def stream_bytes(case: Case) -> int:
    """Bytes per element of the residual stream: fp32 embeddings (after the upcast) make all that follows fp32."""
    return 4 if case.quantised and case.upcast else ELEMENT_BYTES[case.precision]


def quantised_linear_bytes(linear: Linear, case: Case) -> tuple[int, int]:
    """(codes, statistics) of one quantised layer: n/2 bytes of codes; 4 bytes per block of 64, or with double
    quantisation 1 byte per block and 4 per 256 blocks (QLoRA section 3); int8: n bytes and 4 per output row."""
    if case.quant_type == "int8":
        return linear.elements, 4 * linear.features_out
    blocks = -(-linear.elements // case.block_size)
    if not case.double_quant:
        return linear.elements // 2, 4 * blocks + CODE_TABLE_BYTES
    statistics = blocks + 4 * -(-blocks // NESTED_BLOCK) + CODE_TABLE_BYTES + NESTED_TABLE_BYTES
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


def attention_bytes_per_block(shape: Shape, case: Case) -> int:
    """What attention keeps for backward: queries, keys, values (repeated to all heads) and, unless the kernel
    recomputes them, the scores: heads x sequence^2 per row."""
    tokens, size = case.batch_size * case.sequence_length, stream_bytes(case)
    wide = tokens * shape.attention_width
    scores = case.batch_size * shape.heads * case.sequence_length**2
    if case.attention == "math":  # torch's math kernel works in fp32
        return 3 * wide * 4 + scores * 4
    if case.attention == "eager":  # fp32 softmax and, if the stream is 16-bit, a 16-bit copy
        return 3 * wide * size + scores * (4 if size == 4 else 6)
    return 4 * wide * size + 4 * tokens * shape.heads  # q, k, v, output, log-sum-exp


def linear_input_bytes_per_token(shape: Shape, case: Case) -> int:
    """Inputs of linear layers kept for a weight gradient. A frozen layer keeps none; layers with a common input share
    it in fp32; in 16 bits every adapter keeps an fp32 copy of its own (peft casts its input)."""
    size = stream_bytes(case)
    if case.method == "full":
        return size * (2 * shape.hidden + shape.attention_width + shape.mlp)
    layers = adapted(shape, case.targets)
    if size == 2:
        return 4 * sum(linear.features_in for linear in layers)
    inputs = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "mlp", "up_proj": "mlp"}
    shared = {inputs.get(linear.name, linear.name): linear.features_in for linear in layers}
    return 4 * sum(shared.values())


def block_activation_bytes(shape: Shape, case: Case) -> int:
    """What one block keeps for backward: two norms' fp32 inputs and scales, attention, linear inputs, the MLP's gate,
    silu(gate) and up, and each adapter's A x (rank wide)."""
    tokens, size = case.batch_size * case.sequence_length, stream_bytes(case)
    norms = 2 * (4 * shape.hidden + 4)
    if case.method == "full":
        norms += 2 * size * shape.hidden  # the normalised input, for the norm's own weight
    ranks = 0 if case.method == "full" else ADAPTER_BYTES * case.rank * len(adapted(shape, case.targets))
    mlp = 3 * size * shape.mlp
    per_token = norms + linear_input_bytes_per_token(shape, case) + mlp + ranks
    if size == 4 or case.method == "full":
        per_token -= _shared_output_bytes(shape, case)
    return tokens * per_token + attention_bytes_per_block(shape, case)


def _shared_output_bytes(shape: Shape, case: Case) -> int:
    """Bytes per token counted twice: a kernel that keeps its output shares it with o_proj's input."""
    keeps_output = case.attention not in ("math", "eager")
    o_proj_keeps = case.method == "full" or any(x.name == "o_proj" for x in adapted(shape, case.targets))
    return stream_bytes(case) * shape.attention_width if keeps_output and o_proj_keeps else 0


def frozen_start_bytes(shape: Shape, case: Case) -> int:
    """What the first block does not keep because nothing before its first adapter needs a gradient: the first norm;
    of q, k, v each one whose partner is frozen; all of attention, and the second norm, if only the MLP is adapted."""
    tokens = case.batch_size * case.sequence_length
    query, key, value, output = (
        any(linear.name == name for linear in adapted(shape, case.targets))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    )
    norm = tokens * (4 * shape.hidden + 4)
    if not (query or key or value):
        shared = tokens * _shared_output_bytes(shape, case)
        return norm * (1 if output else 2) + attention_bytes_per_block(shape, case) - shared
    if case.attention not in ("math", "eager"):  # one kernel keeps all its inputs
        return norm
    frozen = (not query) + (not key) + (not (query or key))
    return norm + frozen * tokens * shape.attention_width * (4 if case.attention == "math" else stream_bytes(case))


def activation_bytes(shape: Shape, case: Case) -> tuple[int, int]:
    """(kept by the whole forward, kept by one recomputed block). With checkpointing a block keeps its input alone."""
    tokens, size = case.batch_size * case.sequence_length, stream_bytes(case)
    block = block_activation_bytes(shape, case)
    ends = tokens * (4 * shape.hidden + 4) + 2 * 8 * tokens  # the last norm; input_ids and labels
    if case.method == "full":
        ends += tokens * 2 * size * shape.hidden  # the last norm's product and the head's input
    elif case.checkpointing == "none":
        ends -= frozen_start_bytes(shape, case)
    ends += 2 * case.sequence_length * shape.head_dim * size  # cos and sin
    if case.checkpointing == "none":
        return shape.layers * block + ends, 0
    return shape.layers * tokens * size * shape.hidden + ends, block


def moments(shape: Shape, case: Case) -> dict[str, tuple[str, Counter]]:
    """The moments at which a step can peak -> (phase, bytes by kind)."""
    tokens = case.batch_size * case.sequence_length
    logits = tokens * shape.vocabulary
    kept, block = activation_bytes(shape, case)
    trained = trained_bytes(shape, case)
    gradients = trained.pop("gradients")
    static = weight_bytes(shape, case) + trained
    held = Counter(gradients=gradients if case.accumulation > 1 else 0)
    copies = LOSS_COPIES_FORWARD_BYTES[stream_bytes(case)]
    extra = trained["optimizer_states"] // 2 if case.optimizer == "adamw-foreach" else 0
    return {
        "end of forward": ("forward", static + held + Counter(activations=kept, logits_and_loss=copies * logits)),
        "loss backward": (
            "backward",
            static + held + Counter(activations=kept, logits_and_loss=LOSS_COPIES_BACKWARD_BYTES * logits),
        ),
        "first block backward": ("backward", static + held + Counter(activations=kept + block)),
        "last block backward": ("backward", static + Counter(gradients=gradients, activations=block)),
        "optimizer": ("optimizer", static + Counter(gradients=gradients, temporaries=extra)),
    }


def breakdown_and_phases(case: Case) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by kind at the estimated peak, and the estimated peak of every phase."""
    if case.method not in ("full", "lora", "qlora"):
        raise RequestError(f"The closed formulas do not cover method={case.method!r}; they cover full, lora, qlora.")
    if case.autocast:
        raise RequestError(f"The closed formulas do not cover autocast={case.autocast!r}; measure the case instead.")
    shape = shape_of(case.model)
    found = moments(shape, case).values()
    phases = {
        name: max(sum(kinds.values()) for phase, kinds in found if phase == name)
        for name in ("forward", "backward", "optimizer")
    }
    peak = max((kinds for _, kinds in found), key=lambda kinds: sum(kinds.values()))
    return {kind: size for kind, size in peak.items() if size}, phases


def estimate(case: Case, device_type: str = "cuda"):
    """Estimate `case` on a device type ('cpu' or 'cuda') and return a Record, without torch or a model."""
    from labkit.record import new_record

    case = case.on(device_type)
    breakdown, phases = breakdown_and_phases(case)
    peak = sum(breakdown.values())
    return new_record(
        case,
        "estimated",
        "memory",
        outcome="ok",
        peak_allocated_bytes=peak,
        managed_bytes=0,
        phases=phases,
        breakdown=breakdown,
    )


def largest_architecture(case: Case, limit_bytes: int) -> str | None:
    """The largest named architecture whose estimated peak with `case`'s settings is within `limit_bytes`."""
    peaks = {name: estimate(replace(case, model=name)).peak_allocated_bytes for name in ARCHITECTURES}
    fitting = [name for name, peak in peaks.items() if peak <= limit_bytes]
    return max(fitting, key=lambda name: shape_of(name).parameters, default=None)
