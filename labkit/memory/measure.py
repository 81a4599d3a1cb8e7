"""The measuring meter: the real step in a fresh process, peaks by phase and kind.

On CUDA the peaks are torch's own counters, reset at every phase; the split by kind comes from further steps under the
ledger. On a CPU torch keeps no such counters, so the ledger's sum over live storages is the measurement.
"""

import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import psutil
import torch

from labkit import isolate, machine
from labkit.case import Case
from labkit.errors import RequestError
from labkit.memory.cuda import CudaPhases, managed_bytes, workspace_bytes
from labkit.memory.estimate import estimate
from labkit.memory.ledger import Ledger, label_model, watch
from labkit.record import PHASES, Record, new_record
from labkit.train.step import Training, prepare, random_batches, train_step
from labkit.units import format_bytes

CHILD_MODULES = ("labkit.memory.measure", "peft", "bitsandbytes")
CHILD_ENVIRONMENT = {"HF_DEACTIVATE_ASYNC_LOAD": "1"}  # transformers' threaded load makes the allocator's slack random
CUDA_GRANULE_BYTES = 512  # torch's CUDA caching allocator rounds every request up to this


def measure_here(values: dict, device: str, steps: int = 2, free_before_bytes: int | None = None) -> dict:
    """Measure the Case `values` in this process; returns a Record's fields. Run it in a fresh process.

    `steps` >= 2 steps are measured after one warm-up step, which makes the optimizer's state. `free_before_bytes`: free
    device memory before this process touched the device. RequestError for a case that one process cannot run.
    """
    case = Case.from_dict(values).on(torch.device(device).type)
    try:
        if device.startswith("cuda"):
            return {"outcome": "ok", **_measure_cuda(case, device, steps, free_before_bytes)}
        return {"outcome": "ok", **_measure_cpu(case, device, steps)}
    except torch.OutOfMemoryError as error:
        return {"outcome": "oom", "scores": {"error": first_line(error)}}
    except RuntimeError as error:  # the CPU allocator has no error class of its own
        if "can't allocate memory" not in str(error):
            raise
        return {"outcome": "oom", "scores": {"error": first_line(error)}}


def _measure_cpu(case: Case, device: str, steps: int) -> dict:
    with Ledger("cpu") as ledger:
        training = prepare(case, device, ledger)
        label_model(ledger, training.model, is_upcast(training.case))
        watch(ledger, training)
        after_load_bytes = ledger.live_bytes
        ledger("forward")
        batches = random_batches(case, device, training.model.config.vocab_size)
        train_step(training, batches, ledger)
        ledger.forget_peaks()
        for _ in range(steps):
            train_step(training, batches, ledger)
    peak = ledger.step_peak()
    return {
        "peak_allocated_bytes": peak.total_bytes,
        "managed_bytes": 0,
        "after_load_bytes": after_load_bytes,
        "phases": {phase: ledger.peaks[phase].total_bytes for phase in PHASES},
        "breakdown": dict(peak.by_kind),
        "host_rss_bytes": machine.peak_rss_bytes(),
        **_speed(training, batches, steps),
    }


def _measure_cuda(case: Case, device: str, steps: int, free_before_bytes: int | None = None) -> dict:
    counters = CudaPhases(free_before_bytes)
    training = prepare(case, device, counters)
    torch.cuda.synchronize()
    after_load_bytes = torch.cuda.memory_allocated()
    batches = random_batches(case, device, training.model.config.vocab_size)
    train_step(training, batches, counters)
    counters.forget_steps()
    for _ in range(steps):
        train_step(training, batches, counters)
    counters("forward")  # closes the last phase
    peaks = dict(counters.peaks)
    fields = {
        "peak_allocated_bytes": max(peaks[phase] for phase in PHASES[1:]),
        "peak_reserved_bytes": counters.peak_reserved_bytes,
        "device_used_bytes": counters.device_used_bytes(),
        "managed_bytes": managed_bytes(),
        "after_load_bytes": after_load_bytes,
        "phases": peaks,
        "host_rss_bytes": machine.peak_rss_bytes(),
        **_speed(training, batches, steps),
    }
    try:
        fields["breakdown"] = _cuda_breakdown(training, batches, fields["peak_allocated_bytes"])
    except Exception as error:  # the counters' figures stand without the split
        fields["scores"] = {"breakdown_error": first_line(error)}
    return fields


def _cuda_breakdown(training: Training, batches: list, peak_bytes: int) -> dict[str, int]:
    """Split a measured peak by kind: the ledger's storages, cuBLAS workspaces, rounding, and what operations hide."""
    with Ledger("cuda", granule_bytes=CUDA_GRANULE_BYTES) as ledger:
        label_model(ledger, training.model, is_upcast(training.case))
        ledger.relabel_state(training.optimizer)
        watch(ledger, training)
        ledger.relabel((tensor for batch in batches for tensor in batch.values()), "activations")
        for _ in range(2):
            train_step(training, batches, ledger)
    split = ledger.step_peak().by_kind + Counter(workspaces=workspace_bytes())
    split["temporaries"] += peak_bytes - split.total()  # what operations allocate and free inside themselves
    split["activations"] += min(0, split["temporaries"])  # a ledger above the counter: activations take the difference
    return dict(+split)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_upcast(case: Case) -> bool:
    """True where the weights left unquantised are fp32 copies made by the upcast."""
    return case.quantised and bool(case.upcast) and case.precision != "fp32"


def _speed(training: Training, batches: list, steps: int) -> dict:
    """Median seconds of `steps` steps without the ledger, and tokens per second."""
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        train_step(training, batches)
        if training.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    tokens = sum(math.prod(batch["input_ids"].shape) for batch in batches)
    return {"seconds": median, "tokens_per_second": tokens / median}


@contextmanager
def _alone_on_the_gpu() -> Iterator[None]:
    """One measurement of ours at a time; memory that others hold is said before, because it moves device figures."""
    with machine.gpu_lock():
        others_bytes = (facts := machine.gpu()) and facts.used_by_others_bytes
        if others_bytes:
            print(f"GPU busy: {format_bytes(others_bytes)} by other processes.", file=sys.stderr)
        yield


def _too_large(case: Case, device: str) -> str | None:
    """Why a step on the CPU is not tried: the system would not refuse memory, but end some process that has much."""
    if device != "cpu":
        return None
    try:
        needed_bytes = estimate(case, device).peak_allocated_bytes
    except RequestError:  # no formula covers it: try
        return None
    free_bytes = psutil.virtual_memory().available
    if needed_bytes <= free_bytes:
        return None
    return (
        f"The step takes {format_bytes(needed_bytes)} (estimated), and this machine has {format_bytes(free_bytes)} of "
        "memory free; choose a smaller model, batch or sequence, or estimate the case instead."
    )


def measuring_spares(count: int = 1) -> isolate.Spares:
    """Fresh processes that have already imported what a measurement needs; a context manager."""
    return isolate.Spares(CHILD_MODULES, count, CHILD_ENVIRONMENT)


def measure(case: Case, device: str | None = None, spares=None, timeout_seconds: float = 600) -> Record:
    """Measure `case` in a fresh process and return a Record; a child that dies is a `failed` Record, not an error.

    `spares` (see `measuring_spares`) saves the seconds of starting Python. What a CPU's memory cannot hold, by the
    closed formulas, is a `refused` Record. RequestError for an impossible request.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    filled = case.on(torch.device(device).type)
    call = spares.call if spares is not None else partial(isolate.run, environment=CHILD_ENVIRONMENT)
    if refusal := _too_large(filled, device):
        return new_record(filled, "measured", "memory", outcome="refused", scores={"error": refusal})
    try:
        with _alone_on_the_gpu() if device.startswith("cuda") else nullcontext():
            before = facts.free_bytes if device.startswith("cuda") and (facts := machine.gpu()) else None
            fields = call(measure_here, case.to_dict(), device, 2, before, timeout_seconds=timeout_seconds)
    except isolate.ChildFailed as error:
        fields = {"outcome": "failed", "scores": {"error": first_line(error), "kind": error.kind}}
    return new_record(filled, "measured", "memory", **fields)
