"""Case and Trial: what they refuse, and that JSON carries them whole."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.case import (
    ATTENTION,
    BLOCK_SIZES,
    CHECKPOINTING,
    DTYPES,
    METHODS,
    OPTIMIZERS,
    SCALINGS,
    TARGETS,
    Case,
    Trial,
    check_field,
)  # fmt: skip
from labkit.errors import RequestError

MODEL = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
CASES = st.builds(
    Case,
    model=st.sampled_from(["tiny", "llama-3.1-8b"]),
    method=st.sampled_from(METHODS),
    rank=st.integers(1, 512),
    alpha=st.floats(0.01, 1e4),
    targets=st.one_of(st.sampled_from(TARGETS), st.lists(st.sampled_from(["q_proj", "up_proj"]), min_size=1)),
    scaling=st.sampled_from(SCALINGS),
    precision=st.sampled_from([None, "fp32", "bf16"]),
    compute_dtype=st.sampled_from([None, *DTYPES]),
    block_size=st.sampled_from(BLOCK_SIZES),
    upcast=st.sampled_from([None, True, False]),
    optimizer=st.sampled_from(OPTIMIZERS),
    clip_norm=st.one_of(st.none(), st.floats(0.01, 100)),
    checkpointing=st.sampled_from(CHECKPOINTING),
    attention=st.sampled_from([None, *ATTENTION]),
)


@given(CASES)
def test_json_carries_a_case_whole(case):
    again = Case.from_json(json.dumps(case.to_dict()))
    assert again == case and hash(again) == hash(case)


@given(CASES, st.sampled_from(["cpu", "cuda"]))
def test_filling_in_leaves_nothing_open_and_is_done_once(case, device):
    filled = case.on(device)
    assert None not in (filled.precision, filled.compute_dtype, filled.upcast, filled.attention)
    assert filled.on(device) == filled
    assert case.precision in (None, filled.precision)


def test_the_usual_values_of_the_devices():
    case = Case(model="tiny", method="qlora")
    cpu, cuda = case.on("cpu"), case.on("cuda")
    assert (cpu.precision, cpu.attention, cpu.upcast) == ("fp32", "math", True)
    assert (cuda.precision, cuda.compute_dtype, cuda.attention) == ("bf16", "bf16", "efficient")
    assert Case(model="tiny", method="lora").on("cuda").upcast is False


def test_equal_numbers_make_equal_cases():
    left, right = Case(model="tiny", method="lora", alpha=16), Case(model="tiny", method="lora", alpha=16.0)
    assert left == right and hash(left) == hash(right)


def test_a_model_object_is_copied():
    keys = dict(MODEL)
    case = Case(model=keys, method="full")
    keys["hidden_size"] = 99
    assert case.model["hidden_size"] == 8


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rnk": 8}, ["'rnk'", "rank"]),
        ({"zzz": 1, "rank": 4}, ["'zzz'"]),
        ({"rank": 0}, ["rank=0", "at least 1"]),
        ({"rank": "abc"}, ["rank='abc'", "whole number"]),
        ({"rank": True}, ["rank=True"]),
        ({"rank": 2.5}, ["rank=2.5"]),
        ({"alpha": float("nan")}, ["alpha"]),
        ({"alpha": float("inf")}, ["alpha"]),
        ({"alpha": 0}, ["alpha=0", "above 0"]),
        ({"alpha": 10**400}, ["alpha", "below"]),
        ({"seed": 10**23}, ["seed", "up to"]),
        ({"dropout": 1.0}, ["dropout=1.0", "below 1"]),
        ({"method": "lorra"}, ["'lorra'", "qlora"]),
        ({"block_size": 48}, ["block_size=48", "64"]),
        ({"targets": []}, ["targets=[]", "all-linear"]),
        ({"targets": "qkv"}, ["'qkv'", "all-linear"]),
        ({"precision": "fp64"}, ["'fp64'", "bf16"]),
        ({"double_quant": 1}, ["double_quant=1", "true or false"]),
        ({"model": ""}, ["model=''"]),
        ({"model": {"hidden_size": 3}}, ["model_type"]),
        ({"model": MODEL | {"model_type": ["llama"]}}, ["model.model_type=['llama']"]),
        ({"model": MODEL | {"head_dim": "wide"}}, ["model.head_dim='wide'"]),
        ({"model": MODEL | {"hidden_size": -1}}, ["hidden_size=-1"]),
        ({"method": "full", "precision": "fp16", "autocast": "fp16"}, ["autocast", "fp32"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_that_names_it(values, words):
    with pytest.raises(RequestError) as caught:
        Case.from_dict({"model": "tiny", "method": "lora", **values})
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_missing_keys_and_broken_json_are_named():
    with pytest.raises(RequestError, match="method"):
        Case.from_dict({"model": "tiny"})
    with pytest.raises(RequestError, match="not valid JSON"):
        Case.from_json("{")
    with pytest.raises(RequestError, match="JSON object"):
        Case.from_json("[1]")
    with pytest.raises(RequestError, match="not valid JSON"):
        Case.from_json("[" * 200_000)


def test_a_trial_is_a_case_and_more():
    trial = Trial(model="tiny", method="lora", steps=7, learning_rate=1e-3)
    assert Trial.from_json(trial.to_json()) == trial and hash(trial) == hash(Trial.from_dict(trial.to_dict()))
    assert trial.case == Case(model="tiny", method="lora") and type(trial.case) is Case
    with pytest.raises(RequestError, match="steps=0"):
        Trial(model="tiny", method="lora", steps=0)


def test_check_field_knows_every_field_and_no_other():
    check_field("rank", 3)
    with pytest.raises(RequestError, match="rank"):
        check_field("rnk", 3)
