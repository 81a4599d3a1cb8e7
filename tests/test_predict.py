"""The predictor's core: fake steps against real ones, corrections that leave no trace, replays that add up."""

import pytest
import torch
from tiny import SHAPE
from torch import nn
from torch.nn import functional

from labkit import gpus
from labkit.case import Case
from labkit.memory.allocator import CachingAllocator, OutOfMemory
from labkit.memory.measure import measure_here
from labkit.memory.predict import predict_here, record_step
from labkit.memory.pretend import workspace_bytes
from labkit.memory.recorder import Recorder
from labkit.memory.replay import replay
from labkit.record import PHASES
from labkit.units import MIB

T4, H200 = gpus.find("t4"), gpus.find("h200")


def case_of(method: str, **changes) -> Case:
    return Case(model=SHAPE, method=method, **{"batch_size": 4, "sequence_length": 64, **changes})


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16", "attention": "flash"},
        {"attention": "eager", "optimizer": "sgd"},
        {"checkpointing": "non-reentrant"},
        {"checkpointing": "reentrant", "optimizer": "adamw-foreach"},
        {"accumulation": 2, "clip_norm": None},
    ],
    ids=lambda changes: ", ".join(map(str, changes.values())) or "plain",
)
def test_a_fake_step_holds_the_bytes_of_a_real_one(method, changes):
    case = case_of(method, **changes).on("cpu")
    real = measure_here(case.to_dict(), "cpu")
    recorder = Recorder()
    record_step(case, recorder)
    for phase in PHASES[1:]:
        assert recorder.peaks[phase].total_bytes == pytest.approx(real["phases"][phase], abs=1024), phase


@pytest.mark.parametrize(
    "case",
    [
        case_of("full"),
        case_of("lora", checkpointing="non-reentrant", attention="flash"),
        case_of("lora", dropout=0.1, optimizer="adamw-foreach", attention="cudnn"),
        case_of("qlora"),
        case_of("qlora", double_quant=False, upcast=False, attention="eager", optimizer="adamw-8bit"),
        case_of("full", precision="fp32", autocast="bf16", optimizer="lion-8bit"),
        Case(model="tiny", method="qlora", batch_size=2, sequence_length=32),
    ],
    ids=lambda case: f"{case.method} {case.attention} {case.optimizer}",
)
def test_what_is_replayed_adds_up(case):
    found = predict_here(case, H200)
    assert sum(found.breakdown.values()) == found.peak_allocated_bytes == max(found.phases[one] for one in PHASES[1:])
    assert found.peak_allocated_bytes <= found.peak_reserved_bytes
    assert found.breakdown["workspaces"] == 2 * 32 * MIB, "one for the forward thread, one for autograd's"
    assert max(found.timeline) == max(found.phases.values())
    steps = 3 * [*PHASES[1:]]
    assert [phase for _, phase in found.marks] == ["load", "forward", *steps, "forward"]
    assert predict_here(case, H200) == found, "the same case twice"


def test_weights_gradients_and_states_are_where_they_belong():
    found = predict_here(case_of("full", precision="fp32", optimizer="adamw-fused"), H200)
    weights = found.breakdown["weights"]
    assert found.breakdown["optimizer_states"] == pytest.approx(2 * weights, rel=0.01)
    assert 0 <= found.after_load_bytes - weights < 0.02 * weights


def test_the_card_decides_on_workspaces_and_on_four_bit_kernels():
    assert workspace_bytes(T4) == 8_519_680 and workspace_bytes(H200) == 32 * MIB
    case = case_of("qlora", batch_size=1, sequence_length=16, precision="fp16")
    small, large = predict_here(case, T4), predict_here(case, H200)
    assert large.peak_allocated_bytes - small.peak_allocated_bytes == pytest.approx(
        2 * (32 * MIB - 8_519_680), rel=0.01
    )


def test_a_card_that_is_too_small_is_out_of_memory():
    with pytest.raises(OutOfMemory, match="do not fit"):
        predict_here(case_of("full"), T4, capacity_bytes=20 * MIB)


def test_softmax_s_hidden_copy_is_counted():
    case, recorder = case_of("lora", attention="eager").on("cpu"), Recorder()
    record_step(case, recorder)
    scores = 4 * SHAPE["num_attention_heads"] * 64 * 64 * 4
    hidden = Recorder(hidden={"aten::_softmax_backward_data": lambda gradient, *_: gradient.nbytes})
    record_step(case, hidden)
    more = hidden.peaks["backward"].total_bytes - recorder.peaks["backward"].total_bytes
    assert len(hidden.events) > len(recorder.events) and 0 <= more <= scores


def test_nothing_is_left_behind():
    before = (nn.Module._apply, functional.softmax, functional.dropout, torch.ops.bitsandbytes.gemm_4bit.default)
    predict_here(case_of("qlora"), H200)
    after = (nn.Module._apply, functional.softmax, functional.dropout, torch.ops.bitsandbytes.gemm_4bit.default)
    assert before == after and not hasattr(torch._C, "_cuda_getCurrentRawStream")


def test_a_replay_needs_no_more_than_its_events():
    recorder = Recorder()
    recorder("load")
    weight = recorder.entered(3 * MIB, "weights")
    recorder("forward")
    recorder.died(recorder.entered(5 * MIB, "activations"))
    recorder("backward")
    recorder.moved(weight, "adapters")
    found = replay(recorder.events, recorder.kinds, CachingAllocator())
    assert found.phases == {"load": 3 * MIB, "forward": 8 * MIB, "backward": 3 * MIB, "optimizer": 0}
    assert found.breakdown == {"adapters": 3 * MIB, "activations": 5 * MIB}
    assert (found.after_load_bytes, found.peak_allocated_bytes) == (3 * MIB, 8 * MIB)
    assert found.peak_reserved_bytes == 20 * MIB
