"""Full, LoRA and QLoRA: what is trained, how it is counted, and that 4-bit training survives an evaluation."""

import math

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from tiny import SHAPE

from labkit.case import Case
from labkit.errors import RequestError
from labkit.memory.shape import adapted, shape_of
from labkit.methods import build, quantised
from labkit.methods.counts import count_parameters
from labkit.methods.rescale import alpha_curve, lora_layers, rescaled, update_norm
from labkit.methods.targets import target_names

TOKENS = torch.arange(64).reshape(2, 32) % 300


def make(method: str, **changes):
    return build(Case(model=SHAPE, method=method, **changes).on("cpu"), "cpu")


def loss_of(model) -> torch.Tensor:
    return model(input_ids=TOKENS, labels=TOKENS).loss


@pytest.mark.parametrize("targets", ["qv", "attention", "mlp", "all-linear", ("o_proj", "up_proj")])
def test_lora_trains_r_times_in_plus_out_and_nothing_else(targets):
    model = make("lora", rank=3, targets=targets)
    shape = shape_of(SHAPE)
    by_hand = shape.layers * sum(3 * (x.features_in + x.features_out) for x in adapted(shape, targets))
    counts = count_parameters(model)
    assert counts.trainable == counts.adapter == by_hand
    assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert counts.base == shape.parameters


@pytest.mark.parametrize("quant_type", ["nf4", "fp4", "int8"])
def test_quantised_parameters_are_counted_whole(quant_type):
    counts = count_parameters(make("qlora", quant_type=quant_type))
    assert counts.base == shape_of(SHAPE).parameters


def test_full_trains_everything():
    counts = count_parameters(make("full"))
    assert counts.trainable == counts.base == shape_of(SHAPE).parameters and counts.adapter == 0


@pytest.mark.parametrize(("scaling", "factor"), [("alpha/r", 16 / 4), ("alpha/sqrt(r)", 16 / 2)])
def test_scaling(scaling, factor):
    model = make("lora", rank=4, scaling=scaling)
    assert {layer.scaling["default"] for layer in lora_layers(model)} == {factor}


def test_an_adapter_starts_as_nothing():
    torch.testing.assert_close(loss_of(make("lora")), loss_of(make("full")), rtol=0, atol=0)


def test_quantisation_is_what_was_asked():
    model = make("qlora", quant_type="fp4", block_size=128, double_quant=False, compute_dtype="bf16")
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 7 * SHAPE["num_hidden_layers"]
    for layer in layers:
        state = layer.weight.quant_state
        assert (state.quant_type, state.blocksize, state.nested) == ("fp4", 128, False)
        assert layer.compute_dtype is torch.bfloat16
    assert any(isinstance(module, Linear8bitLt) for module in make("qlora", quant_type="int8").modules())


@pytest.mark.parametrize(("upcast", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_upcast_is_a_choice(upcast, dtype):
    model = make("qlora", precision="bf16", upcast=upcast)
    assert model.get_input_embeddings().weight.dtype is dtype


def adapters_with_gradient(model) -> int:
    return sum(
        parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        for name, parameter in model.named_parameters()
        if "lora_B" in name
    )


def gradients_after_an_evaluation(model) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        model(input_ids=TOKENS)
    model.train()
    loss_of(model).backward()
    return torch.cat(
        [p.grad.flatten() for name, p in model.named_parameters() if "lora_B" in name and p.grad is not None]
    )


@pytest.mark.parametrize("quant_type", ["nf4", "fp4", "int8"])
def test_gradients_survive_an_evaluation(quant_type):
    model = make("qlora", quant_type=quant_type)
    loss_of(model).backward()
    before = torch.cat([p.grad.flatten() for name, p in model.named_parameters() if "lora_B" in name])
    model.zero_grad()
    after = gradients_after_an_evaluation(model)
    assert adapters_with_gradient(model) == 7 * SHAPE["num_hidden_layers"]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-8)


def test_without_the_guard_they_do_not(monkeypatch):
    """The trap is real here: this is what the guard is for. Only CPUs with AVX512-BF16 have it."""
    import bitsandbytes.nn.modules as modules

    if not modules.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes never repacks")
    model = make("qlora")
    loss_of(model).backward()
    before = torch.cat([p.grad.flatten() for name, p in model.named_parameters() if "lora_B" in name])
    model.zero_grad()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True
    with pytest.warns(UserWarning):
        after = gradients_after_an_evaluation(model)
    assert after.numel() < before.numel() or torch.cosine_similarity(after, before, dim=0) < 0.99


def test_unknown_targets_are_refused_with_the_models_own_names():
    with pytest.raises(RequestError, match=r"no linear layer for c_attn, foo; .*gate_proj.*q_proj"):
        make("lora", targets=("q_proj", "c_attn", "foo"))


def test_targets_of_another_family():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))
    assert {name.rsplit(".", 1)[-1] for name in target_names(model, "all-linear")} == {"c_attn", "c_proj", "c_fc"}
    with pytest.raises(RequestError, match="c_attn"):
        target_names(model, "qv")


def test_methods_without_code_are_refused():
    with pytest.raises(RequestError, match="'prefix'.*full, lora, qlora"):
        make("prefix")


def randomised(model):
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def test_update_norm_is_the_norm_of_the_updates():
    model = randomised(make("lora", rank=4))
    squares = [layer.get_delta_weight("default").double().square().sum().item() for layer in lora_layers(model)]
    assert update_norm(model) == pytest.approx(math.sqrt(sum(squares)), rel=1e-6)


def test_rescaling_is_undone_and_proportional():
    model = randomised(make("lora", rank=4, alpha=8))
    norm, loss = update_norm(model), loss_of(model)
    with rescaled(model, 24):
        assert update_norm(model) == pytest.approx(3 * norm)
        assert loss_of(model) != loss
    torch.testing.assert_close(loss_of(model), loss, rtol=0, atol=0)
    curve = alpha_curve(model, [4, 8, 16], lambda: loss_of(model).item(), 8)
    assert curve.norms == pytest.approx((norm / 2, norm, 2 * norm)) and curve.losses[1] == pytest.approx(loss.item())


def test_the_guard_stands_in_the_constructor():
    layer = torch.nn.Linear(64, 64, bias=True)
    made = quantised.linear_4bit(layer, Case(model=SHAPE, method="qlora").on("cpu"))
    assert made.support_avx512bf16_for_cpu is False and made.bias is layer.bias and not made.weight.requires_grad


@pytest.mark.parametrize("quant_type", ["nf4", "int8"])
def test_quantising_holds_one_layer_twice_not_all(monkeypatch, quant_type):
    import gc
    import weakref

    alive, most = weakref.WeakSet(), []
    name = "linear_8bit" if quant_type == "int8" else "linear_4bit"
    made = getattr(quantised, name)

    def counted(layer, *rest):
        alive.add(layer)
        gc.collect()
        most.append(len(alive))
        return made(layer, *rest)

    monkeypatch.setattr(quantised, name, counted)
    make("qlora", quant_type=quant_type)
    assert len(most) == 7 * SHAPE["num_hidden_layers"] and max(most) <= 2


def test_layers_that_bitsandbytes_does_not_know_are_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=64))
    with pytest.raises(RequestError, match="Conv1D"):
        quantised.quantise(model, Case(model=SHAPE, method="qlora").on("cpu"))
