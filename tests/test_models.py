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
from labkit.models.layers import linear_layers
from labkit.models.sources import find

PUBLISHED = {  # from the model cards; transformers' num_parameters counts a tied head once
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "mistral-7b": 7_248_023_552,  # v0.3
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-2-7b": 6_738_415_616,
    "llama-65b": 65_285_660_672,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(find(name)))
    assert model.num_parameters() == PUBLISHED[name] == shape_of(name).parameters
    assert shape_of(name).linear_elements == sum(layer.weight.numel() for layer in linear_layers(model).values())


# vocabulary, hidden, MLP, layers, query width, key and value width, embeddings (1: tied), biases of q, k and v
BY_HAND = {
    "smollm2-135m": (49_152, 576, 1536, 30, 576, 192, 1, False),
    "qwen2.5-0.5b": (151_936, 896, 4864, 24, 896, 128, 1, True),
    "qwen2.5-7b": (152_064, 3584, 18_944, 28, 3584, 512, 2, True),
    "mistral-7b": (32_768, 4096, 14_336, 32, 4096, 1024, 2, False),
    "llama-3.2-1b": (128_256, 2048, 8192, 16, 2048, 512, 1, False),
    "llama-3.2-3b": (128_256, 3072, 8192, 28, 3072, 1024, 1, False),
    "llama-2-7b": (32_000, 4096, 11_008, 32, 4096, 4096, 2, False),
    "llama-65b": (32_000, 8192, 22_016, 80, 8192, 8192, 2, False),
    "llama-3.1-8b": (128_256, 4096, 14_336, 32, 4096, 1024, 2, False),
    "llama-3.1-70b": (128_256, 8192, 28_672, 80, 8192, 1024, 2, False),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_by_hand(name):
    vocabulary, hidden, mlp, layers, wide, narrow, embeddings, biases = BY_HAND[name]
    attention = 2 * hidden * wide + 2 * hidden * narrow + (wide + 2 * narrow if biases else 0)
    block = attention + 3 * hidden * mlp + 2 * hidden  # and two norms
    assert layers * block + embeddings * vocabulary * hidden + hidden == PUBLISHED[name]


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads 5 .* must divide one another"),
        ({"num_key_value_heads": 3}, "divide"),
        ({"tie_word_embeddings": "yes"}, "cannot be configured"),
        ({"hidden_act": "nope"}, "cannot be built"),
        ({"vocab_size": 0}, "vocab_size=0 is not possible"),
        ({"hidden_size": -64}, "hidden_size=-64 is not possible"),
        ({"intermediate_size": "big"}, "intermediate_size='big' is not possible"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5 is not possible"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0 is not possible"),
        ({"head_dim": -16}, "head_dim=-16 is not possible"),
        ({"head_dim": 15}, "head_dim.*=15"),
        ({"head_dim": "wide"}, "head_dim='wide' is not possible"),
        ({"hidden_size": 10**15}, "cannot be built"),
        ({"model_type": "lama"}, "know model_type='lama'; did you mean 'llama'"),
        ({"model_type": None}, "model_type"),
        ({"model_type": "clip"}, "clip"),
        ({"model_type": "t5"}, "t5"),
    ],
    ids=str,
)
def test_an_impossible_model_is_refused_in_one_line(changes, words):
    with pytest.raises(RequestError, match=words) as caught:
        build_base(Case(model=SHAPE | changes, method="full").on("cpu"), "cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "changes", [{"num_attention_heads": 5}, {"num_key_value_heads": 3}, {"head_dim": 15}, {"head_dim": -16}], ids=str
)
def test_the_formulas_refuse_it_too(changes):
    with pytest.raises(RequestError, match="cannot be built"):
        shape_of(SHAPE | changes)


def test_a_broken_folder_is_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelNotAvailable, match="cannot be loaded"):
        build_base(Case(model=str(tmp_path), method="full").on("cpu"), "cpu")
    llama().save_pretrained(tmp_path)
    with pytest.raises(ModelNotAvailable, match="tokenizer"):
        tokenizer_of(Case(model=str(tmp_path), method="full"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelNotAvailable, match="not valid JSON"):
        check_available(str(tmp_path))


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "x" * 5000])
def test_a_name_that_is_no_path_is_refused(name):
    with pytest.raises(ModelNotAvailable, match="tiny"):
        check_available(name)


def test_a_pinned_kernel_never_stands_in_for_another():
    """A sliding window shorter than the sequence needs a mask, which the pinned kernels do not take."""
    keys = SHAPE | {"model_type": "mistral", "sliding_window": 8}
    tokens = torch.arange(32).reshape(1, 32)
    for length, refused in ((6, False), (32, True)):
        model = build_base(Case(model=keys, method="full", attention="flash").on("cpu"), "cpu")
        if refused:
            with pytest.raises(RequestError, match="eager"):
                model(input_ids=tokens[:, :length])
        else:
            model(input_ids=tokens[:, :length])


@pytest.mark.parametrize(
    ("backend", "fp32", "refused"), [("flash", True, True), ("flash", False, False), ("math", True, False)]
)
def test_gpu_kernels_that_take_16_bits_refuse_fp32(backend, fp32, refused):
    from labkit.models.attention import implementation

    if refused:
        with pytest.raises(RequestError, match="16-bit"):
            implementation(backend, "cuda", fp32)
    else:
        assert implementation(backend, "cuda", fp32)
