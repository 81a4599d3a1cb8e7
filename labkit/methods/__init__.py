"""How a base model is made trainable: full fine-tuning, LoRA, or QLoRA."""

from torch import nn

from labkit.case import AVAILABLE_METHODS, Case
from labkit.errors import RequestError
from labkit.methods.quantised import quantise, quantiser
from labkit.methods.targets import target_names
from labkit.models.build import build_base
from labkit.models.quiet import quiet_libraries


def make_trainable(base: nn.Module, case: Case) -> nn.Module:
    """Apply the method of a filled-in `case` to `base` (changed in place) and return the model to train.

    For QLoRA, layers of `base` that are not yet quantised are.
    """
    if case.method not in AVAILABLE_METHODS:
        raise RequestError(f"method={case.method!r} cannot be run yet; use one of {', '.join(AVAILABLE_METHODS)}.")
    quiet_libraries()
    if case.method == "full":
        model = base
    else:
        names = target_names(base, case.targets)
        if case.quantised:
            _prepare_quantised(base, case)
        model = add_lora(base, case, names)
    _checkpoint(model, case)
    return model.train()


def build(case: Case, device: str) -> nn.Module:
    """The trainable model of a filled-in `case` on `device`: its layers are quantised as they are made."""
    return make_trainable(build_base(case, device, quantiser(case) if case.quantised else None), case)


def _prepare_quantised(base: nn.Module, case: Case) -> None:
    """Freeze `base`; the upcast to fp32 holds one parameter twice at a time."""
    from peft import prepare_model_for_kbit_training

    quantise(base, case)
    if case.upcast:
        prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    else:
        base.requires_grad_(False)


def add_lora(base: nn.Module, case: Case, names: list[str]) -> nn.Module:
    """peft's LoRA on the layers `names`: A kaiming-uniform, B zero, scaling alpha/r or alpha/sqrt(r)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=case.rank,
        lora_alpha=case.alpha,
        lora_dropout=case.dropout,
        use_rslora=case.scaling == "alpha/sqrt(r)",
        target_modules=names,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def _checkpoint(model: nn.Module, case: Case) -> None:
    if case.checkpointing == "none":
        return
    reentrant = case.checkpointing == "reentrant"
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant and case.method != "full":
        model.enable_input_require_grads()  # a reentrant segment needs one input with a gradient
