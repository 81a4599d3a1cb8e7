"""Building layer by layer: the model's own initialisation, quantised as made, and never two copies at a time."""

import gc
import json
import math

import psutil
import pytest
import torch
from bitsandbytes.nn import Int8Params, Params4bit
from tiny import SHAPE, UNTIED, llama
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from labkit import isolate, machine
from labkit.case import BLOCK_SIZES, Case
from labkit.errors import ModelNotAvailable, RequestError
from labkit.memory.ledger import Ledger, label_model
from labkit.memory.measure import CHILD_MODULES
from labkit.memory.shape import shape_of
from labkit.methods import build
from labkit.methods.quantised import PIECE_ELEMENTS, codes_and_state
from labkit.models.build import build_base, config_of
from labkit.models.layers import linear_layers
from labkit.models.sources import find

QWEN = SHAPE | {"model_type": "qwen2"}  # biases
MISTRAL = UNTIED | {"model_type": "mistral", "sliding_window": None}
GPT2 = SHAPE | {"model_type": "gpt2", "n_positions": 64}  # parents fill what their children hold
WIDE_BLOCKS = SHAPE | {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
FAMILIES = {"llama": SHAPE, "untied": UNTIED, "qwen2": QWEN, "mistral": MISTRAL, "gpt2": GPT2}
QUANTISATIONS = [
    {"quant_type": "nf4"},
    {"quant_type": "fp4", "block_size": 256},
    {"quant_type": "nf4", "block_size": 32, "double_quant": False},
    {"quant_type": "int8"},
]


def case_of(model, method: str = "lora", **changes) -> Case:
    return Case(model=model, method=method, **({"attention": "eager"} | changes)).on("cpu")


def everything(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_are_the_models_own_initialisation(family):
    built = build_base(case_of(FAMILIES[family], seed=3), "cpu")
    reference = AutoModelForCausalLM.from_config(config_of(find(FAMILIES[family])))
    for module in reference.modules():
        module._is_hf_initialized = False
    if reference.config.tie_word_embeddings:
        reference.get_output_embeddings()._is_hf_initialized = True
    torch.manual_seed(3)
    reference.initialize_weights()
    torch.testing.assert_close(everything(built), everything(reference), rtol=0, atol=0)
    assert built.training and type(built) is type(reference)
    head, embedding = built.get_output_embeddings().weight, built.get_input_embeddings().weight
    assert (head is embedding) == bool(FAMILIES[family]["tie_word_embeddings"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_random_weights_are_finite_and_of_the_models_spread(precision):
    model = build_base(case_of(WIDE_BLOCKS, precision=precision), "cpu")
    for name, layer in linear_layers(model).items():
        weight = layer.weight.float()
        assert layer.weight.dtype == getattr(
            torch, {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
        )
        assert weight.isfinite().all() and weight.std().item() == pytest.approx(0.02, rel=0.05), name


def test_a_seed_is_the_same_model_each_time_and_another_seed_another():
    first, again, other = (everything(build(case_of(SHAPE, seed=seed), "cpu")) for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("changes", QUANTISATIONS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_qlora_starts_from_loras_weights(changes, precision):
    """Quantised as made, the codes are those of quantising LoRA's finished model; the adapters are the same, too."""
    options = {"precision": precision, "upcast": False, "seed": 5, **changes}
    qlora = build(case_of(QWEN, "qlora", **options), "cpu")
    lora = build(case_of(QWEN, "lora", **options), "cpu")
    layers = dict(qlora.named_modules())
    for name, module in lora.named_modules():
        if name.endswith("base_layer"):
            expected = by_bitsandbytes(module.weight.data, changes)
            assert torch.equal(layers[name].weight.data, expected.data), name
    for name, parameter in lora.named_parameters():
        # peft rounds A to the dtype of the weight beside it, unless that is int8
        if "base_layer.weight" not in name and (changes["quant_type"] != "int8" or "lora_A" not in name):
            assert torch.equal(parameter, qlora.get_parameter(name)), name


def by_bitsandbytes(weight: torch.Tensor, changes: dict):
    """What bitsandbytes itself makes of a weight in one go."""
    if changes["quant_type"] == "int8":
        return Int8Params(weight.clone(), requires_grad=False).to("cpu")
    return Params4bit(
        weight.clone(),
        blocksize=changes.get("block_size", 64),
        compress_statistics=changes.get("double_quant", True),
        quant_type=changes["quant_type"],
    ).to("cpu")


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pieces_give_the_bits_of_the_whole(quant_type, double_quant, dtype):
    torch.manual_seed(0)
    weight = torch.randn(1061, 1013, dtype=dtype)  # odd, and more than one piece
    assert weight.numel() > PIECE_ELEMENTS and PIECE_ELEMENTS % max(BLOCK_SIZES) == 0
    for block_size in BLOCK_SIZES:
        changes = {"quant_type": quant_type, "block_size": block_size, "double_quant": double_quant}
        codes, state = codes_and_state(weight, case_of(SHAPE, "qlora", **changes))
        expected = by_bitsandbytes(weight, changes)
        assert torch.equal(codes, expected.data)
        made, reference = state.as_dict(packed=True), expected.quant_state.as_dict(packed=True)
        torch.testing.assert_close(made, reference, rtol=0, atol=0)
        assert state.dtype == expected.quant_state.dtype and state.nested == expected.quant_state.nested


def peak_and_final_bytes(case: Case) -> tuple[int, int]:
    with Ledger("cpu") as ledger:
        model = build(case, "cpu")
        label_model(ledger, model, upcast=False)
        gc.collect()
    return ledger.peaks["load"].total_bytes, ledger.live_bytes


@pytest.mark.parametrize("model", [WIDE_BLOCKS, WIDE_BLOCKS | {"tie_word_embeddings": False}], ids=["tied", "untied"])
@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"quant_type": "int8"}], ids=str)
@pytest.mark.parametrize("folder", [False, True], ids=["random", "folder"])
def test_a_qlora_model_takes_itself_and_one_layer(tmp_path, model, changes, folder):
    case = case_of(saved(tmp_path, model) if folder else model, "qlora", **changes)
    peak, final = peak_and_final_bytes(case)
    shape = shape_of(model)
    size = 2 if case.precision == "bf16" else 4
    layer = max(max(linear.elements for linear in shape.linears), shape.vocabulary * shape.hidden) * size
    layer *= 1.5 if case.quant_type == "int8" else 1  # and its fp16 copy
    statistics = layer / 16
    assert peak <= final + layer + statistics < shape.parameters * size


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("folder", [False, True], ids=["random", "folder"])
def test_an_unquantised_model_takes_itself(tmp_path, method, precision, folder):
    peak, final = peak_and_final_bytes(
        case_of(saved(tmp_path, WIDE_BLOCKS) if folder else WIDE_BLOCKS, method, precision=precision)
    )
    assert peak <= 1.01 * final


def saved(folder, model: dict, **options) -> str:
    """`folder`, with a random model in it."""
    build_base(case_of(model, seed=7), "cpu").save_pretrained(folder, **options)
    return str(folder)


@pytest.mark.parametrize("changes", QUANTISATIONS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", [QWEN, UNTIED], ids=["tied, biases", "untied"])
def test_quantising_while_loading_is_quantising_the_loaded_model(tmp_path, changes, precision, model):
    case = case_of(saved(tmp_path, model, max_shard_size="100KB"), "qlora", precision=precision, **changes)
    made = build(case, "cpu")
    lora = build(case_of(case.model, "lora", precision=precision), "cpu")
    layers = dict(lora.named_modules())
    quantised = {name: module for name, module in made.named_modules() if name.endswith("base_layer")}
    assert len(quantised) == 7 * model["num_hidden_layers"]
    for name, module in quantised.items():
        expected = by_bitsandbytes(layers[name].weight.data, changes)
        assert torch.equal(module.weight.data, expected.data), name
        assert type(module.weight) is type(expected) and not module.weight.requires_grad
        if layers[name].bias is not None:
            torch.testing.assert_close(module.bias, layers[name].bias.to(module.bias.dtype))
        if changes["quant_type"] != "int8":
            assert module.support_avx512bf16_for_cpu is False
            torch.testing.assert_close(
                module.weight.quant_state.as_dict(packed=True),
                expected.quant_state.as_dict(packed=True),
                rtol=0,
                atol=0,
            )
    loss = made(input_ids=torch.arange(32)[None], labels=torch.arange(32)[None]).loss
    loss.backward()
    assert math.isfinite(loss.item()) and not hasattr(made.config, "quantization_config")


def test_a_folder_without_a_weight_is_refused(tmp_path):
    model = llama()
    state = model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelNotAvailable, match=r"lack 1 weight.*layers\.1\.mlp\.up_proj"):
        build_base(case_of(str(tmp_path)), "cpu")


def test_a_folder_of_another_shape_is_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    llama(intermediate_size=256).config.save_pretrained(tmp_path)
    with pytest.raises(ModelNotAvailable, match="lack 6 weights.*shape"):
        build_base(case_of(str(tmp_path)), "cpu")


def test_a_model_that_is_already_quantised_is_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelNotAvailable, match="already quantised"):
        build_base(case_of(str(tmp_path), "qlora"), "cpu")


def test_layers_that_cannot_be_quantised_are_refused_while_loading_too(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=64)).save_pretrained(tmp_path)
    for model in (GPT2, str(tmp_path)):
        with pytest.raises(RequestError, match="Conv1D.*method='lora'"):
            build(case_of(model, "qlora"), "cpu")


def test_running_out_of_memory_while_quantising_stays_what_it_is(tmp_path):
    def no_room(layer):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    for model in (SHAPE, saved(tmp_path, SHAPE)):
        with pytest.raises(torch.OutOfMemoryError):
            build_base(case_of(model, "qlora"), "cpu", no_room)


def resident_bytes_of_building(values: dict) -> tuple[int, int, int]:
    """(peak, resident afterwards, live storages) of making a model in this process, less what it had before."""
    before = psutil.Process().memory_info().rss
    model = build(Case.from_dict(values).on("cpu"), "cpu")
    peak, after = machine.peak_rss_bytes(), psutil.Process().memory_info().rss
    ledger = Ledger("cpu")
    label_model(ledger, model, upcast=False)
    return peak - before, after - before, ledger.live_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"method": "qlora"}, 1.5),
        ({"method": "qlora", "precision": "bf16"}, 1.5),
        ({"method": "lora", "precision": "bf16"}, 1.1),
        ({"method": "full"}, 1.1),
    ],
    ids=str,
)
def test_a_1b_model_is_made_without_a_second_copy(changes, bound):
    modules = (*CHILD_MODULES, "test_build")
    values = {"model": "llama-3.2-1b", "quant_type": "nf4", **changes}
    peak, after, live = isolate.run(resident_bytes_of_building, values, modules=modules)
    print(f"{changes}: peak {peak / 1e9:.2f} GB, resident after {after / 1e9:.2f} GB, live {live / 1e9:.2f} GB")
    assert peak < bound * live and peak < bound * after
