"""Run the step on fake tensors, and make fake host tensors behave as a GPU's would.

Each correction is one function, a context manager with its reason: those of `FAKING` let real code run on fake tensors,
those of `PRETENDING` do what CUDA does differently. They replace parts of torch, transformers and bitsandbytes while
they last, so use them in a process of their own.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional

from labkit.gpus import Gpu
from labkit.methods import quantised
from labkit.models import attention
from labkit.units import MIB

aten = torch.ops.aten
HOPPER = (9, 0)


def workspace_bytes(gpu: Gpu) -> int:
    """cuBLAS's default workspace: `:4096:2:16:8` (KiB x count), and 32 MiB from Hopper on (`CublasHandlePool.cpp`)."""
    return 32 * MIB if gpu.compute_capability >= HOPPER else (2 * 4096 + 8 * 16) * 1024


@contextmanager
def pretending(gpu: Gpu) -> Iterator[None]:
    """Inside, fake host tensors stand for tensors on `gpu`."""
    with ExitStack() as stack:
        for correction in PRETENDING:
            stack.enter_context(correction(gpu))
        yield


@contextmanager
def faking() -> Iterator[None]:
    """Inside, every tensor is fake, and the step runs on it all the same."""
    with ExitStack() as stack:
        for correction in FAKING:
            stack.enter_context(correction())
        yield stack.enter_context(FakeTensorMode())


@contextmanager
def _replaced(owner: Any, name: str, value: Any, missing: bool = False) -> Iterator[None]:
    """Replace an attribute for a while. `missing`: it may not be there, and then it is not afterwards either."""
    absent = object()
    original = getattr(owner, name, absent) if missing else getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if original is absent else setattr(owner, name, original)


@contextmanager
def masks_are_skipped() -> Iterator[None]:
    """transformers takes fake tensors for a trace and then builds the causal mask that a real run leaves out."""
    from transformers import masking_utils

    with (
        _replaced(masking_utils, "is_tracing", lambda *_: False),
        _replaced(masking_utils, "fast_all", lambda _mask: True),
        _replaced(masking_utils, "find_packed_sequence_indices", lambda _positions: None),
    ):
        yield


@contextmanager
def modules_are_moved_by_new_parameters() -> Iterator[None]:
    """`Module.to` swaps tensors in place, which fake ones that are weakly referenced refuse."""

    def apply(module: nn.Module, function: Callable, recurse: bool = True) -> nn.Module:
        for child in module.children() if recurse else ():
            child._apply(function)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    moved = function(parameter)
                if moved is not parameter:
                    module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        module._buffers |= {name: function(each) for name, each in module._buffers.items() if each is not None}
        return module

    with _replaced(nn.Module, "_apply", apply):
        yield


@contextmanager
def attention_has_the_gpu_s_kernels(_gpu: Gpu) -> Iterator[None]:
    """The pinned aten operations for CUDA accept fake host tensors; only this project's own refusal stands between."""
    with (
        _replaced(attention, "ON_CPU", tuple(attention.IMPLEMENTATIONS)),
        _replaced(attention, "_flash_on_cpu", attention.flash_on_cuda),
    ):
        yield


@contextmanager
def softmax_reads_halves(_gpu: Gpu) -> Iterator[None]:
    """CUDA's softmax of fp16 into fp32 converts while it reads (`softmax_cuda_out`, `half_to_float`; not bf16)."""
    plain = functional.softmax

    def softmax(tensor, dim=None, _stacklevel=3, dtype=None):
        if dtype is torch.float32 and tensor.dtype is torch.float16:
            return aten._softmax(tensor, dim % tensor.ndim, True)
        return plain(tensor, dim, _stacklevel, dtype)

    with _replaced(functional, "softmax", softmax):
        yield


@contextmanager
def dropout_keeps_a_bool_mask(_gpu: Gpu) -> Iterator[None]:
    """CUDA's dropout is one kernel that saves a mask of one byte per element (`is_fused_kernel_acceptable`)."""
    plain = functional.dropout

    def dropout(tensor, p=0.5, training=True, inplace=False):
        if not training or not 0 < p < 1 or inplace:
            return plain(tensor, p, training, inplace)
        return aten.native_dropout(tensor, p, True)[0]

    with _replaced(functional, "dropout", dropout):
        yield


@contextmanager
def lists_of_tensors_go_to_foreach_kernels() -> Iterator[None]:
    """torch takes foreach kernels for plain tensors alone, by their type."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    with (
        _replaced(optimizer, "_foreach_supported_types", [*optimizer._foreach_supported_types, FakeTensor]),
        _replaced(_foreach_utils, "_foreach_supported_types", [*_foreach_utils._foreach_supported_types, FakeTensor]),
    ):
        yield


@contextmanager
def four_bit_layers_hold_plain_parameters() -> Iterator[None]:
    """bitsandbytes' `Params4bit` cannot wrap a fake tensor; a parameter with the same attributes serves its layer."""
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Linear4bit

    def linear_4bit(layer: nn.Linear, case) -> nn.Module:
        packed, state = quantize_4bit(
            layer.weight.data,
            blocksize=case.block_size,
            compress_statistics=case.double_quant,
            quant_type=case.quant_type,
        )
        weight = nn.Parameter(packed, requires_grad=False)
        weight.quant_state, weight.bnb_quantized, weight.blocksize = state, True, case.block_size
        weight.compress_statistics, weight.quant_type = case.double_quant, case.quant_type
        weight.quant_storage = torch.uint8
        made = Linear4bit.__new__(Linear4bit)
        nn.Module.__init__(made)
        made.in_features, made.out_features, made.bias = layer.in_features, layer.out_features, layer.bias
        made.compute_dtype, made.compute_type_is_set = quantised.DTYPES[case.compute_dtype], True
        made.quant_storage, made.support_avx512bf16_for_cpu = torch.uint8, False
        made.weight, made.quant_state, weight.module = weight, state, made
        return made.train(layer.training)

    with _replaced(quantised, "linear_4bit", linear_4bit):
        yield


def _softmax_backward(gradient, *_) -> int:
    """`softmax_backward_cuda_out` multiplies gradient and output into a temporary of their size (`SoftMax.cu`)."""
    return gradient.nbytes


HIDDEN = {"aten::_softmax_backward_data": _softmax_backward}
"""Operation -> bytes that its CUDA kernel takes and gives back, which no fake kernel shows."""


@contextmanager
def four_bit_products_choose_the_gpu_s_kernel(gpu: Gpu) -> Iterator[None]:
    """bitsandbytes multiplies small batches in one kernel and unpacks the whole matrix for others, by the GPU's kind.

    Its own rules are asked (`backends/cuda/ops.py`); only what they call on the device is left out.
    """
    with _replaced(torch._C, "_cuda_getCurrentRawStream", None, missing=True):  # asked for while it is imported
        from bitsandbytes.backends.cuda import ops as library

    def product(inputs, packed, shape, absmax, blocksize, quant_type, bias=None, **nested):
        rows, columns = inputs.numel() // inputs.shape[-1], inputs.shape[-1]
        aligned = rows <= library._gemm_4bit_custom_max_m and columns % blocksize == 0
        if aligned and library._gemm_4bit_use_custom_cuda(gpu.name, inputs.dtype, rows, shape[0], columns):
            inputs = inputs.contiguous()
            return inputs.new_empty((*inputs.shape[:-1], shape[0]))
        return library._dequant_linear_fallback(inputs, packed, shape, absmax, blocksize, quant_type, bias, **nested)

    facts = (gpu.multiprocessors, *gpu.compute_capability)
    with (
        _replaced(library, "_gpu_dispatch_props", lambda _name: facts),
        _replaced(library, "_dequantize_blockwise_impl", lambda *_, **__: None),
        _replaced(library, "_dequantize_4bit_impl", lambda *_, **__: None),
        _replaced(torch.ops.bitsandbytes.gemm_4bit, "default", product),
    ):
        yield


@contextmanager
def trained_weights_are_not_read() -> Iterator[None]:
    """Memory depends on shapes alone: a trained model is made as one with random weights is."""
    from labkit.models import build

    def load(source, dtype, attention_name, device, convert):
        model = build._skeleton(source, dtype, attention_name)
        build._materialise(model, device, convert)
        return model

    with _replaced(build, "_load", load):
        yield


@contextmanager
def code_tables_are_copied() -> Iterator[None]:
    """bitsandbytes computes its table of 256 codes from Python numbers and copies it to the GPU for every layer."""
    from bitsandbytes import functional as library

    class Tables(dict):
        def __contains__(self, _name) -> bool:
            return True

        def __getitem__(self, _name) -> torch.Tensor:
            return torch.empty(256)

    with (
        _replaced(library, "name2qmap", Tables()),
        _replaced(library, "create_dynamic_map", lambda *_, **__: torch.empty(256)),
    ):
        yield


FAKING = (
    masks_are_skipped,
    modules_are_moved_by_new_parameters,
    lists_of_tensors_go_to_foreach_kernels,
    four_bit_layers_hold_plain_parameters,
    trained_weights_are_not_read,
    code_tables_are_copied,
)
PRETENDING = (
    attention_has_the_gpu_s_kernels,
    softmax_reads_halves,
    dropout_keeps_a_bool_mask,
    four_bit_products_choose_the_gpu_s_kernel,
)
