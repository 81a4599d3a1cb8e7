"""Make the base model of a Case on its device: trained weights from a folder, or random ones from a config.

Either way the model is laid out on torch's meta device and its tensors are made on the target device one by one. A
linear layer that is to be quantised is, before the next tensor is made, so that the peak while loading is the finished
model and one layer.
"""

import difflib
from collections.abc import Callable

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from labkit.case import Case
from labkit.errors import ModelNotAvailable, RequestError
from labkit.models.architectures import refuse_impossible_shape
from labkit.models.attention import implementation
from labkit.models.layers import quantisable_layers
from labkit.models.quiet import quiet_libraries
from labkit.models.sources import Source, find

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Convert = Callable[[nn.Linear], nn.Module]


def config_of(source: Source):
    """The transformers config of a source. RequestError for a model type transformers does not know."""
    keys = dict(source.config)
    model_type = keys.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        close = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING), 1)
        hint = f"did you mean {close[0]!r}?" if close else "llama, mistral and qwen2 are among those it knows."
        raise RequestError(
            f"Model {source.name!r} cannot be configured: the installed transformers does not know "
            f"model_type={model_type!r}; {hint}"
        )
    if keys.get("hidden_size") and keys.get("num_attention_heads"):  # transformers would say it in its own terms
        refuse_impossible_shape(source.name, keys)
    try:
        return AutoConfig.for_model(model_type, **keys)
    except Exception as error:  # transformers validates with error classes of several libraries
        raise RequestError(f"Model {source.name!r} cannot be configured: {_said(error)}.") from None


def _said(error: Exception) -> str:
    """An error on one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")


def build_base(case: Case, device: str, convert: Convert | None = None) -> PreTrainedModel:
    """The base model of a filled-in `case` (see `Case.on`), in `case.precision`, on `device`, in train mode.

    `convert` replaces every linear layer in the blocks as soon as it is made. The random weights of a seed are drawn
    in one order whatever the method: LoRA and QLoRA start from the same ones.
    """
    quiet_libraries()
    source = find(case.model)
    fp32 = case.autocast is None and case.stream_precision == "fp32"
    attention = implementation(case.attention, torch.device(device).type, fp32)
    dtype = DTYPES[case.precision]
    torch.manual_seed(case.seed)
    if source.trained:
        model = _load(source, dtype, attention, device, convert)
    else:
        model = _skeleton(source, dtype, attention)
        _materialise(model, device, convert)
    model.config.use_cache = False
    return model.train()


def _skeleton(source: Source, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The model without memory: every tensor is on the meta device."""
    config = config_of(source)
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    shape = {name: getattr(config, name, None) for name in names} | {"head_dim": source.config.get("head_dim")}
    if shape["hidden_size"] and shape["num_attention_heads"]:  # some architectures have no attention
        refuse_impossible_shape(source.name, shape)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RequestError(f"Model {source.name!r} cannot be built: {_said(error)}.") from None


@torch.no_grad()
def _materialise(model: PreTrainedModel, device: str, convert: Convert | None) -> None:
    """Give a skeleton its tensors on `device`, module by module, filled by the model's own initialisation."""
    chosen = set(quantisable_layers(model)) if convert else set()  # names: a reference would keep a layer alive
    tied = set(model.all_tied_weights_keys)

    def fill(module: nn.Module, path: str, owner: PreTrainedModel) -> None:
        for leaf in list(module._modules):
            child = getattr(module, leaf)
            fill(child, f"{path}{leaf}.", child if isinstance(child, PreTrainedModel) else owner)
            if f"{path}{leaf}" in chosen:
                setattr(module, leaf, convert(child))
            del child
        own = {f"{path}{name}" for name, _ in module.named_parameters(recurse=False)}
        if not own or own - tied:
            module.to_empty(device=device, recurse=False)
            owner._init_weights(module)

    fill(model, "", model)
    model.tie_weights(recompute_mapping=False)


def _load(source: Source, dtype: torch.dtype, attention: str, device: str, convert: Convert | None) -> PreTrainedModel:
    """Trained weights from a local folder, each read straight to the device. On a CPU a weight that already has the
    Case's dtype stays mapped from its file."""
    from labkit.models.loading import Conversion

    config_of(source)  # refuses in a sentence what from_pretrained would refuse in many
    if "quantization_config" in source.config:
        raise ModelNotAvailable(
            f"Model {source.name!r} is already quantised, and here quantising is the Case's choice; give the "
            "unquantised model it was made from."
        )
    conversion = Conversion(convert) if convert else None
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=dtype,
            attn_implementation=attention,
            device_map={"": device},
            quantization_config=conversion,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # refused below, in a sentence
            output_loading_info=True,
        )
    except RequestError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelNotAvailable(f"Model {source.name!r} cannot be loaded: {_said(error)}.") from None
    except RuntimeError as error:  # transformers reports, but does not pass on, what converting raised
        raise (conversion and conversion.failure) or error from None
    if wrong := [*sorted(report["missing_keys"]), *(name for name, *_ in sorted(report["mismatched_keys"]))]:
        raise ModelNotAvailable(
            f"Model {source.name!r} cannot be loaded: its files lack {len(wrong)} weights of the shape that its "
            f"config.json asks for, {wrong[0]} among them; get the model anew."
        )
    return model


def tokenizer_of(case: Case):
    """The tokenizer of a trained model. RequestError for a model with random weights, which has none."""
    source = find(case.model)
    if not source.trained:
        raise RequestError(
            f"Model {source.name!r} has random weights and no tokenizer, so it cannot be trained on a "
            "task; use a trained model such as 'tiny', or measure its memory instead."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelNotAvailable(f"Model {source.name!r} has no usable tokenizer: {_said(error)}.") from None
    if tokenizer.eos_token_id is None:
        raise ModelNotAvailable(
            f"Model {source.name!r} has a tokenizer without an end token, which an answer must end with; set eos_token "
            "in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
