"""Closed formulas for what autograd keeps of a forward pass, block by block.

Notation: T = batch x sequence tokens; an element takes 4 bytes (fp32) or 2 (fp16, bf16). What is kept was read off
transformers' `modeling_llama.py`, peft's `LoraLayer` and torch's `derivatives.yaml`; a test holds the sums against
measured steps.
"""

from labkit.case import Case
from labkit.memory.shape import Linear, Shape, adapted

ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
ADAPTER_BYTES = 4  # peft keeps adapters in fp32 whatever the base model's dtype (autocast_adapter_dtype)
RECOMPUTING = ("efficient", "flash", "cudnn")  # kernels that keep q, k, v and the output instead of scores


def tokens_of(case: Case) -> int:
    return case.batch_size * case.sequence_length


def stream_bytes(case: Case) -> int:
    """Bytes per element of the residual stream."""
    return ELEMENT_BYTES[case.stream_precision]


def scores_bytes(shape: Shape, case: Case) -> int:
    """One fp32 matrix of attention scores: heads x sequence^2 per row."""
    return 4 * case.batch_size * shape.heads * case.sequence_length**2


def attention_bytes(shape: Shape, case: Case) -> int:
    """What attention keeps of one block: queries, keys and values (repeated to all heads), and the softmax's result or,
    where the kernel recomputes it, its own output and log-sum-exp."""
    wide, size = tokens_of(case) * shape.attention_width, stream_bytes(case)
    if case.attention in RECOMPUTING:
        return 4 * wide * size + 4 * tokens_of(case) * shape.heads
    if case.attention == "math":  # torch's math kernel works in fp32
        return 3 * wide * 4 + scores_bytes(shape, case)
    copies = 1 if size == 4 else 1.5  # eager: fp32 softmax and, if the stream is 16-bit, a 16-bit copy
    return 3 * wide * size + int(copies * scores_bytes(shape, case))


def _keeps_input(linear: Linear, case: Case, chosen: tuple[Linear, ...]) -> bool:
    return case.method == "full" or linear in chosen


def _input_bytes(linears: list[Linear], case: Case) -> int:
    """Per token, inputs kept by `linears`, which read the same tensor: once if it is kept as it is; in 16 bits every
    adapter keeps an fp32 copy of its own, because peft casts its input."""
    if not linears:
        return 0
    size = stream_bytes(case)
    if case.method == "full" or size == 4:
        return size * linears[0].features_in
    return 4 * sum(linear.features_in for linear in linears)


def _norm_bytes(shape: Shape, case: Case) -> int:
    """Per token: the fp32 input, the fp32 scale and, to train the norm's weight, the normalised input."""
    return 4 * shape.hidden + 4 + (stream_bytes(case) * shape.hidden if case.method == "full" else 0)


def _linear_bytes(shape: Shape, case: Case, in_attention: bool) -> int:
    """Per token: inputs kept for a weight gradient (a frozen layer keeps none) and each adapter's A x, rank wide."""
    chosen = () if case.method == "full" else adapted(shape, case.targets)
    mine = [x for x in shape.linears if x.in_attention == in_attention and _keeps_input(x, case, chosen)]
    last = "o_proj" if in_attention else "down_proj"
    total = _input_bytes([x for x in mine if x.name != last], case) + _input_bytes(
        [x for x in mine if x.name == last], case
    )
    return total + ADAPTER_BYTES * case.rank * sum(x in chosen for x in mine)


def attention_half_bytes(shape: Shape, case: Case) -> int:
    """The first half of a block: norm, projections, attention."""
    per_token = _norm_bytes(shape, case) + _linear_bytes(shape, case, in_attention=True)
    return tokens_of(case) * per_token + attention_bytes(shape, case) - _shared_output_bytes(shape, case)


def mlp_half_bytes(shape: Shape, case: Case) -> int:
    """The second half: norm, linear inputs, and for the product of the MLP its gate, silu(gate) and up."""
    per_token = _norm_bytes(shape, case) + _linear_bytes(shape, case, in_attention=False)
    return tokens_of(case) * (per_token + 3 * stream_bytes(case) * shape.mlp)


def _shared_output_bytes(shape: Shape, case: Case) -> int:
    """Counted twice above: a kernel that keeps its output shares it with o_proj's input (not with an fp32 copy)."""
    size = stream_bytes(case)
    output_kept = case.method == "full" or (size == 4 and any(x.name == "o_proj" for x in adapted(shape, case.targets)))
    return size * tokens_of(case) * shape.attention_width if case.attention in RECOMPUTING and output_kept else 0


def frozen_start_bytes(shape: Shape, case: Case) -> int:
    """What the first block does not keep because nothing before its first adapter needs a gradient: the first norm;
    of q, k, v each one whose partner is frozen; all of attention, and the second norm, if only the MLP is adapted."""
    if case.method == "full" or case.checkpointing != "none":
        return 0
    names = {linear.name for linear in adapted(shape, case.targets)}
    query, key, value = (name in names for name in ("q_proj", "k_proj", "v_proj"))
    norm = tokens_of(case) * _norm_bytes(shape, case)
    if not (query or key or value):
        norms = norm * (1 if "o_proj" in names else 2)
        return norms + attention_bytes(shape, case) - _shared_output_bytes(shape, case)
    if case.attention in RECOMPUTING:  # one kernel keeps all its inputs
        return norm
    frozen = (not query) + (not key) + (not (query or key))
    size = 4 if case.attention == "math" else stream_bytes(case)
    return norm + frozen * tokens_of(case) * shape.attention_width * size


def kept_bytes(shape: Shape, case: Case) -> int:
    """What the whole forward pass keeps, inputs excluded. With checkpointing a block keeps its input alone."""
    tokens, size = tokens_of(case), stream_bytes(case)
    ends = tokens * _norm_bytes(shape, case)  # the last norm
    ends += 2 * case.sequence_length * shape.head_dim * size  # cos and sin of the positions
    ends += tokens * size * shape.hidden if case.method == "full" else 0  # the head's input
    if case.checkpointing != "none":
        return shape.layers * tokens * size * shape.hidden + ends
    block = attention_half_bytes(shape, case) + mlp_half_bytes(shape, case)
    return shape.layers * block + ends - frozen_start_bytes(shape, case)
