"""A stand-in for NVIDIA's management library."""

import os
import sys
from types import SimpleNamespace

from labkit import machine
from labkit.units import GIB, MIB


class FakeNvml:
    """Two cards; this process and another use the second."""

    NVMLError, nvmlMemory_v2 = RuntimeError, 2
    names = ("NVIDIA L4", "NVIDIA A100-SXM4-80GB")
    driver = "580.1"
    others: int | None = 300 * MIB

    def nvmlInit(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return self.driver

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return {"GPU-one": 1}[uuid]

    def nvmlDeviceGetName(self, handle):
        return self.names[handle]

    def nvmlDeviceGetMemoryInfo(self, handle, version):
        assert version == self.nvmlMemory_v2
        return SimpleNamespace(total=80 * GIB, reserved=600 * MIB, free=70 * GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        used = ((os.getpid(), 900 * MIB), (1, self.others))
        return [SimpleNamespace(pid=pid, usedGpuMemory=count_bytes) for pid, count_bytes in used]


def install(monkeypatch) -> FakeNvml:
    """Put it in NVML's place, with a driver that has no device, and let this process use the second card."""
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(machine, "_cuda_driver", lambda: SimpleNamespace(cuInit=lambda flags: 100))  # no device
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    return fake
