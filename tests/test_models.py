"""Architectures count right, attention kernels agree, and what cannot be loaded is refused in a sentence."""

import pytest
import torch
from tiny import SHAPE, llama
from transformers import AutoModelForCausalLM

from labkit.case import Case
from labkit.errors import ModelNotAvailable, RequestError
from labkit.memory.shape import shape_of
from labkit.models import check_available
from labkit.models.architectures import ARCHITECTURES
from labkit.models.build import build_base, config_of, tokenizer_of
from labkit.models.sources import find

PUBLISHED = {  # from the model cards; transformers' num_parameters counts a tied head once
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(find(name)))
    model.tie_weights()
    assert model.num_parameters() == PUBLISHED[name] == shape_of(name).parameters


@pytest.mark.parametrize("backend", ["math", "flash"])
def test_pinned_kernels_give_eagers_loss_and_gradients(backend):
    tokens = torch.arange(40).reshape(2, 20) % 300
    found = {}
    for attention in ("eager", backend):
        model = build_base(Case(model=SHAPE, method="full", attention=attention).on("cpu"), "cpu")
        model(input_ids=tokens, labels=tokens).loss.backward()
        found[attention] = model.model.layers[0].self_attn.k_proj.weight.grad
    torch.testing.assert_close(found[backend], found["eager"], rtol=1e-4, atol=1e-6)


def test_generation_with_padding_agrees_with_eager():
    prompts = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    texts = []
    for attention in ("eager", "math"):
        model = build_base(Case(model=SHAPE, method="full", attention=attention).on("cpu"), "cpu").eval()
        texts.append(
            model.generate(input_ids=prompts, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        )
    assert torch.equal(*texts)


@pytest.mark.parametrize("backend", ["efficient", "cudnn"])
def test_gpu_kernels_are_refused_on_a_cpu(backend):
    with pytest.raises(RequestError, match=f"{backend}.*needs a GPU"):
        build_base(Case(model=SHAPE, method="full", attention=backend).on("cpu"), "cpu")


def test_a_saved_folder_is_a_model(tmp_path):
    llama().save_pretrained(tmp_path)
    case = Case(model=str(tmp_path), method="full").on("cpu")
    loaded = build_base(case, "cpu")
    torch.testing.assert_close(loaded.state_dict(), llama().state_dict())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "config.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), "safetensors"),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(ModelNotAvailable, match=words):
        check_available(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path):
    llama().config.save_pretrained(tmp_path)
    torch.save(llama().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelNotAvailable, match="safetensors"):
        check_available(str(tmp_path))


@pytest.mark.parametrize("name", ["no/such", "nosuch", "a b c", "./no/such/folder"])
def test_an_unknown_model_is_refused_and_told_what_works(name):
    with pytest.raises(ModelNotAvailable) as caught:
        check_available(name)
    assert name in str(caught.value) and "tiny" in str(caught.value) and "\n" not in str(caught.value)


def test_random_weights_have_no_tokenizer():
    with pytest.raises(RequestError, match="random weights"):
        tokenizer_of(Case(model=SHAPE, method="full"))


def test_an_unknown_model_type_is_refused():
    keys = SHAPE | {"model_type": "nosuch"}
    with pytest.raises(RequestError, match="cannot be configured"):
        build_base(Case(model=keys, method="full").on("cpu"), "cpu")
