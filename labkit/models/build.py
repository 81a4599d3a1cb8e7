"""Make the base model of a Case on its device: trained weights from a folder, or random ones from a config."""

import torch
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
    except (ValueError, TypeError, KeyError) as error:
        raise RequestError(f"Model {source.name!r} cannot be configured: {str(error).splitlines()[0]}") from None


def build_base(case: Case, device: str) -> PreTrainedModel:
    """The base model of a filled-in `case` (see `Case.on`), in `case.precision`, on `device`, in train mode."""
    quiet_libraries()
    source = find(case.model)
    attention = implementation(case.attention, torch.device(device).type)
    dtype = DTYPES[case.precision]
    torch.manual_seed(case.seed)
    if source.trained:
        model = _load(source, dtype, attention).to(device)
    else:
        with torch.device(device):
            config = config_of(source)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.config.use_cache = False
    return model.train()


def _load(source: Source, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_pretrained(
            source.folder, dtype=dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelNotAvailable(f"Model {source.name!r} cannot be loaded: {str(error).splitlines()[0]}") from None


def tokenizer_of(case: Case):
    """The tokenizer of a trained model. RequestError for a model with random weights, which has none."""
    source = find(case.model)
    if not source.trained:
        raise RequestError(
            f"Model {source.name!r} has random weights and no tokenizer, so it cannot be trained on a "
            "task; use a trained model such as 'tiny', or measure its memory instead."
        )
    return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
