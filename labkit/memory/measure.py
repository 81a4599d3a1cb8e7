"""The measuring meter: the real step in a fresh process, peaks by phase and kind.

On CUDA the peaks are torch's own counters, reset at every phase; the split by kind comes from further steps under the
ledger. On a CPU torch keeps no such counters, so the ledger's sum over live storages is the measurement.
"""

import math
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch

from labkit import isolate, machine
from labkit.case import Case
from labkit.memory.cuda import CudaPhases, managed_bytes, workspace_bytes
from labkit.memory.ledger import PHASES, Ledger, label_model, watch
from labkit.record import Record, new_record
from labkit.train.step import Training, prepare, random_batches, train_step
from labkit.units import format_bytes

CHILD_MODULES = ("labkit.memory.measure", "peft", "bitsandbytes")
CHILD_ENVIRONMENT = {"HF_DEACTIVATE_ASYNC_LOAD": "1"}  # transformers' threaded load makes the allocator's slack random
CUDA_GRANULE_BYTES = 512  # torch's CUDA caching allocator rounds every request up to this


def measure_here(values: dict, device: str, steps: int = 2) -> dict:
    """Measure the Case `values` in this process; returns a Record's fields. Run it in a fresh process.

    `steps` >= 2 steps are measured after one warm-up step, which makes the optimizer's state.
    """
    case = Case.from_dict(values).on(torch.device(device).type)
    meter = _measure_cuda if device.startswith("cuda") else _measure_cpu
    try:
        return {"outcome": "ok", **meter(case, device, steps)}
    except torch.OutOfMemoryError:
        return {"outcome": "oom", "peak_allocated_bytes": torch.cuda.max_memory_allocated()}


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
        "host_rss_bytes": peak_rss_bytes(),
        **_speed(training, batches, steps),
    }


def _measure_cuda(case: Case, device: str, steps: int) -> dict:
    counters = CudaPhases()
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
        "host_rss_bytes": peak_rss_bytes(),
        **_speed(training, batches, steps),
    }
    return {**fields, "breakdown": _cuda_breakdown(training, batches, fields["peak_allocated_bytes"])}


def _cuda_breakdown(training: Training, batches: list, peak_bytes: int) -> dict[str, int]:
    """Split a measured peak by kind: the ledger's storages, cuBLAS workspaces, rounding, and what operations hide."""
    with Ledger("cuda", granule_bytes=CUDA_GRANULE_BYTES) as ledger:
        label_model(ledger, training.model, is_upcast(training.case))
        ledger.relabel_state(training.optimizer)
        watch(ledger, training)
        ledger.relabel((tensor for batch in batches for tensor in batch.values()), "activations")
        for _ in range(2):
            train_step(training, batches, ledger)
    split = dict(ledger.step_peak().by_kind)
    workspaces = workspace_bytes()
    hidden = peak_bytes - sum(split.values()) - workspaces
    split["workspaces"] = workspaces
    split["temporaries"] = split.get("temporaries", 0) + hidden
    return split


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


def peak_rss_bytes() -> int:
    """The largest resident set this process has had. Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _alone_on_the_gpu() -> Iterator[None]:
    """One measurement of ours at a time; memory that others hold is said before, because it moves device figures."""
    with machine.gpu_lock():
        others_bytes = (facts := machine.gpu()) and facts.used_by_others_bytes
        if others_bytes:
            print(f"GPU busy: {format_bytes(others_bytes)} by other processes.", file=sys.stderr)
        yield


def measuring_spares(count: int = 1) -> isolate.Spares:
    """Fresh processes that have already imported what a measurement needs; a context manager."""
    return isolate.Spares(CHILD_MODULES, count, CHILD_ENVIRONMENT)


def measure(case: Case, device: str | None = None, spares=None, timeout_seconds: float = 600) -> Record:
    """Measure `case` in a fresh process and return a Record; a child that dies is a `failed` Record, not an error.

    `spares` (see `measuring_spares`) saves the seconds of starting Python. RequestError for an impossible request.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    filled = case.on(torch.device(device).type)
    call = spares.call if spares is not None else partial(isolate.run, environment=CHILD_ENVIRONMENT)
    try:
        with _alone_on_the_gpu() if device.startswith("cuda") else nullcontext():
            fields = call(measure_here, case.to_dict(), device, timeout_seconds=timeout_seconds)
    except isolate.ChildFailed as error:
        fields = {"outcome": "failed", "source": str(error)}
    return new_record(filled, "measured", "memory", **fields)
