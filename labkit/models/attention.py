"""The attention backend, pinned: each name calls one aten kernel, the same on real and on fake tensors.

`F.scaled_dot_product_attention` chooses a kernel by device, version and environment, and the choice changes memory.
A training step has no padding mask (a causal mask hides what stands to the right of a sequence), so the pinned kernel
serves it; generation, which needs masks and a cache, takes PyTorch's own choice.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import sdpa_mask

from labkit.errors import RequestError

aten = torch.ops.aten
ON_CPU = ("eager", "math", "flash")


def _math(query, key, value, scale):
    return aten._scaled_dot_product_attention_math(query, key, value, None, 0.0, True, None, scale=scale)[0]


def _efficient(query, key, value, scale):
    return aten._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, True, scale=scale)[0]


def _flash(query, key, value, scale):
    return (_flash_on_cpu if query.device.type == "cpu" else flash_on_cuda)(query, key, value, scale)


def _flash_on_cpu(query, key, value, scale):
    return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True, scale=scale)[0]


def flash_on_cuda(query, key, value, scale):
    """The CUDA kernel; on fake host tensors, too."""
    return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, False, scale=scale)[0]


def _cudnn(query, key, value, scale):
    return aten._scaled_dot_product_cudnn_attention(query, key, value, None, True, 0.0, True, False, scale=scale)[0]


# transformers takes any name with "flash" in it for a package to import
IMPLEMENTATIONS = {"eager": "eager", "math": "labkit-math", "efficient": "labkit-efficient", "flash": "labkit-fa",
                   "cudnn": "labkit-cudnn"}  # fmt: skip
KERNELS = {"math": _math, "efficient": _efficient, "flash": _flash, "cudnn": _cudnn}


def _forward(kernel):
    def forward(module, query, key, value, attention_mask, dropout=0.0, scaling=None, softcap=None, **_):
        """query: (batch, heads, queries, head_dim); key, value: (batch, key_value_heads, keys, head_dim)."""
        if softcap is not None or dropout or (module.training and attention_mask is not None):
            raise RequestError(
                "A pinned attention kernel takes no mask, soft cap or dropout in training, as this model "
                "or sequence length (sliding window) asks for; use attention='eager'."
            )
        groups = getattr(module, "num_key_value_groups", 1)
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        causal = query.shape[2] == key.shape[2]
        if attention_mask is None and causal:
            out = kernel(query, key, value, scaling)
        else:
            out = scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    return forward


def implementation(backend: str, device_type: str, fp32: bool) -> str:
    """The name to give transformers for a Case's `attention`. RequestError where the device or dtype has no kernel.

    `fp32`: queries, keys and values are fp32, which the flash and cuDNN kernels of a GPU do not take.
    """
    if device_type == "cpu" and backend not in ON_CPU:
        raise RequestError(f"attention={backend!r} needs a GPU; on this CPU use one of {', '.join(ON_CPU)}.")
    if device_type == "cuda" and fp32 and backend in ("flash", "cudnn"):
        raise RequestError(
            f"attention={backend!r} takes 16-bit inputs only, and here they are fp32; use 'efficient', or "
            "16-bit precision (for qlora with upcast=false)."
        )
    return IMPLEMENTATIONS[backend]


for _name, _kernel in KERNELS.items():
    AttentionInterface.register(IMPLEMENTATIONS[_name], _forward(_kernel))
    AttentionMaskInterface.register(IMPLEMENTATIONS[_name], sdpa_mask)
