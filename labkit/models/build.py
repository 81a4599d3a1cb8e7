"""Make the base model of a Case on its device: trained weights from a folder, or random ones from a config."""

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from labkit.case import Case
from labkit.errors import ModelNotAvailable, RequestError
from labkit.models.attention import implementation
from labkit.models.quiet import quiet_libraries
from labkit.models.sources import Source, find

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def config_of(source: Source):
    """The transformers config of a source. RequestError for a model type transformers does not know."""
    keys = dict(source.config)
    model_type = keys.pop("model_type", None)
    try:
        return AutoConfig.for_model(model_type, **keys)
    except Exception as error:  # transformers validates with error classes of several libraries
        raise RequestError(f"Model {source.name!r} cannot be configured: {_said(error)}.") from None


def _said(error: Exception) -> str:
    """An error on one line of at most 200 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")


def build_base(case: Case, device: str) -> PreTrainedModel:
    """The base model of a filled-in `case` (see `Case.on`), in `case.precision`, on `device`, in train mode."""
    quiet_libraries()
    source = find(case.model)
    fp32 = case.autocast is None and (case.precision == "fp32" or (case.quantised and bool(case.upcast)))
    attention = implementation(case.attention, torch.device(device).type, fp32)
    dtype = DTYPES[case.precision]
    torch.manual_seed(case.seed)
    load = _load if source.trained else _random
    model = load(source, dtype, attention, device)
    model.config.use_cache = False
    return model.train()


def _random(source: Source, dtype: torch.dtype, attention: str, device: str) -> PreTrainedModel:
    config = config_of(source)
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    if (config.hidden_size % heads and "head_dim" not in source.config) or (groups and heads % groups):
        raise RequestError(
            f"Model {source.name!r} cannot be built: hidden_size {config.hidden_size}, "
            f"num_attention_heads {heads} and num_key_value_heads {groups} must divide one another."
        )
    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"Model {source.name!r} cannot be built: {_said(error)}.") from None


def _load(source: Source, dtype: torch.dtype, attention: str, device: str) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_pretrained(
            source.folder, dtype=dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False
        ).to(device)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelNotAvailable(f"Model {source.name!r} cannot be loaded: {_said(error)}.") from None


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
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
