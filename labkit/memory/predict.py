"""The predicting meter: the real step on fake tensors, its allocations played through a simulated caching allocator.

No GPU and no weights are needed. What CUDA does differently is corrected in `pretend`; what is recorded is what the
allocator would be asked for, and `replay` says what it would answer.
"""

import gc

import torch

from labkit.case import Case
from labkit.gpus import Gpu
from labkit.memory.allocator import CachingAllocator
from labkit.memory.ledger import label_model, watch
from labkit.memory.measure import is_upcast
from labkit.memory.pretend import HIDDEN, faking, pretending, workspace_bytes
from labkit.memory.recorder import Recorder
from labkit.memory.replay import Replayed, replay
from labkit.train.step import prepare, train_step

STEPS = 3  # a warm-up, which makes the optimizer's state, and two, as they are measured


def record_step(case: Case, recorder: Recorder, steps: int = STEPS) -> None:
    """Run `steps` steps of a filled-in `case` on fake host tensors; what they ask for is written to `recorder`."""
    with faking(), recorder:
        training = prepare(case, "cpu", recorder)
        gc.collect()
        label_model(recorder, training.model, is_upcast(training.case))
        watch(recorder, training)
        recorder("forward")  # the batches are no part of the load
        tokens = torch.empty(case.accumulation, case.batch_size, case.sequence_length, dtype=torch.int64)
        batches = [{"input_ids": ids, "labels": ids.clone()} for ids in tokens]
        for _ in range(steps):
            train_step(training, batches, recorder)
        recorder("forward")  # what dies from here on is no part of the step


def predict_here(case: Case, gpu: Gpu, capacity_bytes: int | None = None) -> Replayed:
    """What torch's counters on `gpu` would say of `case`. Changes torch while it runs: use a process of its own.

    Raises OutOfMemory where `capacity_bytes` (default: the card's memory) does not suffice.
    """
    case = case.on("cuda")
    recorder = Recorder(workspace_bytes(gpu), HIDDEN)
    with pretending(gpu):
        record_step(case, recorder)
    return replay(recorder.events, recorder.kinds, CachingAllocator(capacity_bytes or gpu.memory_bytes))
