"""Quantise while loading: transformers' seam for quantisers, the layers made by this project's own constructor.

transformers reads the weights of a folder one at a time, each straight to its device; a weight that is to be quantised
goes through `convert` before the next is read.
"""

from collections.abc import Callable

from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from labkit.models.layers import quantisable_layers

NAME = "labkit"


class Conversion(QuantizationConfigMixin):
    """What `from_pretrained` takes as its quantisation: `convert` makes the layer that replaces a linear one.

    `failure` is what `convert` raised, if it did: transformers logs it and goes on.
    """

    def __init__(self, convert: Callable[[nn.Linear], nn.Module]) -> None:
        self.quant_method = NAME
        self.convert = convert
        self.failure: Exception | None = None

    def __deepcopy__(self, memo) -> "Conversion":
        return self  # transformers copies what it is given, and the failure would stay with the copy


class _Convert(ConversionOps):
    def __init__(self, conversion: Conversion) -> None:
        self.conversion = conversion

    def convert(self, input_dict, model=None, **_):
        """{name of a weight: its tensor, or a list of it} -> the same name and the new layer's weight."""
        [(name, value)] = input_dict.items()
        if self.conversion.failure:
            raise self.conversion.failure
        path = name.rpartition(".")[0]
        layer = model.get_submodule(path)
        layer.weight = nn.Parameter(value[0] if isinstance(value, list) else value, requires_grad=False)
        try:
            made = self.conversion.convert(layer)
        except Exception as error:  # out of memory, say
            self.conversion.failure = error
            raise
        model.set_submodule(path, made)
        return {name: made.weight}


@register_quantizer(NAME)
class ConvertWhileLoading(HfQuantizer):
    """Hands every weight of `quantisable_layers` to the conversion, and leaves a model like any other behind."""

    is_trainable = True
    quantized_element_size = 0.5  # sizes the allocator's first request on a GPU, nothing else

    def is_serializable(self) -> bool:
        return False

    def _process_model_before_weight_loading(self, model, **_) -> None:
        self.names = {f"{name}.weight" for name in quantisable_layers(model)}

    def param_needs_quantization(self, model, param_name: str, **_) -> bool:
        return param_name in self.names

    def get_quantize_ops(self) -> ConversionOps:
        return _Convert(self.quantization_config)

    def postprocess_model(self, model, **_) -> None:
        self.remove_quantization_config(model)
