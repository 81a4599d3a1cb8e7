"""bitsandbytes layers, made in this one place, with every choice explicit.

The AVX512-BF16 guard lives here. On a CPU with that instruction set, the first forward of a `Linear4bit` in eval mode
repacks its weight in place; afterwards the adapters' gradients are wrong or missing, and merging gives garbage, all
without an error. Turning the packed path off costs speed at inference only.
"""

import torch
from torch import nn

from labkit.case import Case
from labkit.errors import RequestError
from labkit.methods.targets import linear_layers

INT8_OUTLIER_THRESHOLD = 6.0  # LLM.int8() paper (arXiv:2208.07339), section 3.2


def linear_4bit(layer: nn.Linear, case: Case, compute_dtype: torch.dtype) -> nn.Module:
    """A frozen `Linear4bit` holding `layer`'s weight as NF4 or FP4. The bias, if any, is kept."""
    import bitsandbytes as bnb

    device = layer.weight.device
    with torch.device("meta"):  # the constructor's own random weight is never used
        made = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute_dtype,
            compress_statistics=case.double_quant,
            quant_type=case.quant_type,
        )
    made.weight = bnb.nn.Params4bit(
        layer.weight.data,
        requires_grad=False,
        blocksize=case.block_size,
        compress_statistics=case.double_quant,
        quant_type=case.quant_type,
        module=made,
    ).to(device)
    made.bias = layer.bias
    made.support_avx512bf16_for_cpu = False  # the guard
    return made


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
    made.weight = bnb.nn.Int8Params(layer.weight.data.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
    made.bias = layer.bias
    return made


def quantise(model: nn.Module, case: Case, compute_dtype: torch.dtype) -> nn.Module:
    """Replace every linear layer in the blocks, one at a time, so that only one is held twice."""
    layers = linear_layers(model)
    if unlike := [name for name, layer in layers.items() if not isinstance(layer, nn.Linear)]:
        raise RequestError(
            f"bitsandbytes cannot quantise this model's {type(layers[unlike[0]]).__name__} layers "
            f"({unlike[0]}, ...); use method='lora'."
        )
    for name in list(layers):
        layer = layers.pop(name)
        parent_name, _, leaf = name.rpartition(".")
        made = linear_8bit(layer) if case.quant_type == "int8" else linear_4bit(layer, case, compute_dtype)
        setattr(model.get_submodule(parent_name), leaf, made.train(layer.training))
    # peft reads these flags to choose its own quantised layers
    setattr(model, "is_loaded_in_8bit" if case.quant_type == "int8" else "is_loaded_in_4bit", True)
    return model
