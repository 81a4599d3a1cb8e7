"""bitsandbytes layers, made in this one place, with every choice explicit.

The AVX512-BF16 guard lives here. On a CPU with that instruction set, the first forward of a `Linear4bit` in eval mode
repacks its weight in place; afterwards the adapters' gradients are wrong or missing, and merging gives garbage, all
without an error. Turning the packed path off costs speed at inference only.
"""

from collections.abc import Callable

import torch
from torch import nn

from labkit.case import NESTED_BLOCK_SIZE, Case
from labkit.models.build import DTYPES
from labkit.models.layers import quantisable_layers
from labkit.models.quiet import quiet_libraries

PIECE_ELEMENTS = 2**20  # a multiple of every block size
INT8_OUTLIER_THRESHOLD = 6.0  # LLM.int8() paper (arXiv:2208.07339), section 3.2


def codes_and_state(weight: torch.Tensor, case: Case):
    """(packed codes, QuantState) of a weight, the same bits as bitsandbytes makes of it in one go.

    A GPU has a kernel for that. On a CPU bitsandbytes makes several fp32 copies of its input; in pieces that fit the
    cache they take less than half the time, and next to no memory.
    """
    from bitsandbytes.functional import quantize_4bit, quantize_blockwise

    options = {"blocksize": case.block_size, "quant_type": case.quant_type}
    if weight.device.type != "cpu" or weight.numel() <= PIECE_ELEMENTS:
        return quantize_4bit(weight, compress_statistics=case.double_quant, **options)
    made = [quantize_4bit(piece, **options) for piece in weight.reshape(-1).split(PIECE_ELEMENTS)]
    state = made[0][1]
    state.shape, state.absmax = weight.shape, torch.cat([piece.absmax for _, piece in made])
    if case.double_quant:
        state.nested, state.offset = True, state.absmax.mean()
        state.absmax, state.state2 = quantize_blockwise(state.absmax - state.offset, blocksize=NESTED_BLOCK_SIZE)
    return torch.cat([codes for codes, _ in made]), state


def linear_4bit(layer: nn.Linear, case: Case) -> nn.Module:
    """A frozen `Linear4bit` holding `layer`'s weight as NF4 or FP4. The bias, if any, is kept."""
    import bitsandbytes as bnb

    with torch.device("meta"):  # the constructor's own random weight is never used
        made = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=DTYPES[case.compute_dtype],
            compress_statistics=case.double_quant,
            quant_type=case.quant_type,
        )
    codes, made.quant_state = codes_and_state(layer.weight.data, case)
    made.weight = bnb.nn.Params4bit(
        codes,
        requires_grad=False,
        quant_state=made.quant_state,
        blocksize=case.block_size,
        compress_statistics=case.double_quant,
        quant_type=case.quant_type,
        module=made,
        bnb_quantized=True,
    )
    made.bias = layer.bias
    made.support_avx512bf16_for_cpu = False  # the guard
    return made.train(layer.training)


def linear_8bit(layer: nn.Linear) -> nn.Module:
    """A frozen `Linear8bitLt` (vector-wise int8, outlier columns in 16 bits) holding `layer`'s weight."""
    import bitsandbytes as bnb

    device = layer.weight.device
    with torch.device("meta"):
        made = bnb.nn.Linear8bitLt(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            has_fp16_weights=False,
            threshold=INT8_OUTLIER_THRESHOLD,
        )
    host = layer.weight.data.cpu()  # bitsandbytes quantises to int8 on the way from the host to the device
    made.weight = bnb.nn.Int8Params(host, requires_grad=False, has_fp16_weights=False).to(device)
    made.bias = layer.bias
    return made.train(layer.training)


def quantiser(case: Case) -> Callable[[nn.Linear], nn.Module]:
    """What turns a linear layer into the frozen, quantised one of a filled-in `case`."""
    quiet_libraries()
    return linear_8bit if case.quant_type == "int8" else lambda layer: linear_4bit(layer, case)


def quantise(model: nn.Module, case: Case) -> nn.Module:
    """Quantise every linear layer in the blocks that is not yet, one at a time, so that only one is held twice."""
    convert = quantiser(case)
    for name in list(quantisable_layers(model)):
        model.set_submodule(name, convert(model.get_submodule(name)))
    # peft reads these flags to choose its own quantised layers
    setattr(model, "is_loaded_in_8bit" if case.quant_type == "int8" else "is_loaded_in_4bit", True)
    return model
