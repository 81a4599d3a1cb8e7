"""Counters of a CUDA device by phase: torch's own, NVML's for the device, bitsandbytes' for managed memory."""

import gc

import torch

from labkit import machine
from labkit.record import PHASES


class CudaPhases:
    """Call with a phase's name to begin it; `peaks` then holds the peak allocated bytes of every phase.

    `free_before_bytes`: free memory of the device before this process had a context there, so that the context counts.
    """

    def __init__(self, free_before_bytes: int | None) -> None:
        self.peaks = dict.fromkeys(PHASES, 0)
        self.peak_reserved_bytes = 0
        self.free_before_bytes = free_before_bytes
        self.phase: str | None = None

    def __call__(self, phase: str) -> None:
        torch.cuda.synchronize()
        if self.phase is not None:
            self.peaks[self.phase] = max(self.peaks[self.phase], torch.cuda.max_memory_allocated())
            if self.phase != "load":
                self.peak_reserved_bytes = max(self.peak_reserved_bytes, torch.cuda.max_memory_reserved())
        torch.cuda.reset_peak_memory_stats()
        self.phase = phase

    def forget_steps(self) -> None:
        """Start the peaks of the steps again; the load peak stays."""
        self("forward")
        self.peaks.update(dict.fromkeys(PHASES[1:], 0))
        self.peak_reserved_bytes = 0

    def device_used_bytes(self) -> int | None:
        """Bytes given out since `free_before_bytes`: reserved, context, kernels, resident managed pages."""
        facts = machine.gpu()
        return self.free_before_bytes - facts.free_bytes if facts and self.free_before_bytes is not None else None


def managed_bytes() -> int:
    """Bytes bitsandbytes holds in CUDA managed memory; torch's counters never see them."""
    from bitsandbytes.functional import GlobalPageManager

    return sum(tensor.nbytes for tensor in GlobalPageManager.get_instance().paged_tensors)


def workspace_bytes() -> int:
    """Bytes of cuBLAS workspaces in torch's allocator, found by freeing them."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch._C._cuda_clearCublasWorkspaces()
    return before - torch.cuda.memory_allocated()
