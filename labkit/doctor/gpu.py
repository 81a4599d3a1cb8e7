"""The GPU, its driver, and managed memory."""

import re
import sys
from typing import Any

from labkit import machine
from labkit.doctor.check import Check
from labkit.units import MIB, format_bytes

OLDEST_DRIVERS = {  # CUDA major -> the oldest driver for any of its minor versions: on Linux, on Windows
    12: ((525, 60, 13), (528, 33)),
    13: ((580, 65, 6), (580,)),
}
"""NVIDIA's CUDA Toolkit release notes, table "Minimum Required Driver Version for CUDA Minor Version Compatibility"."""
_BUSY_BYTES = 256 * MIB


def gpu(libraries: dict[str, Any]) -> Check:
    """Which GPU labkit uses, whether torch can, and whether others use it."""
    facts = machine.gpu()
    if facts is None:
        return Check("GPU", "ok", "none: labs measure CPU tensors and say so")
    fact = f"{facts.name} ({machine.device_name()}): {format_bytes(facts.free_bytes)} of "
    fact += f"{format_bytes(facts.total_bytes)} free"
    if libraries.get("cuda_devices", 0) > 1:
        fact += f", the first of {libraries['cuda_devices']}: CUDA_VISIBLE_DEVICES chooses another"
    if not libraries.get("cuda"):
        remedy = "Install the CUDA build of torch." if not libraries.get("cuda_build") else "See the driver below."
        return Check("GPU", "warn", f"{fact}, but torch cannot use it", remedy)
    used_bytes = facts.used_by_others_bytes
    used_bytes = facts.total_bytes - facts.free_bytes if used_bytes is None else used_bytes
    if used_bytes > _BUSY_BYTES:
        busy = f"{fact}; GPU busy: {used_bytes // MIB} MiB by others"
        return Check("GPU", "warn", busy, "End what uses it before measuring; `nvidia-smi` lists the processes.")
    return Check("GPU", "ok", fact)


def driver(libraries: dict[str, Any]) -> Check | None:
    """Whether the driver is new enough for the CUDA that torch was built for; None without a GPU."""
    facts = machine.gpu()
    if facts is None:
        return None
    if facts.driver is None:
        remedy = (
            "A container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility; without, others' use of the GPU is unseen."
        )
        return Check("driver", "warn", "version unknown: NVIDIA's management library (NVML) does not answer", remedy)
    build = libraries.get("cuda_build")
    oldest = OLDEST_DRIVERS.get(int(build.split(".")[0])) if build else None
    if oldest is None:
        return Check("driver", "ok", facts.driver)
    needed = oldest[sys.platform == "win32"]
    least = ".".join(map(str, needed))
    if tuple(map(int, re.findall(r"\d+", facts.driver))) < needed:
        fact = f"{facts.driver}, too old for torch's CUDA {build}, which needs {least}"
        return Check("driver", "warn", fact, "Update the NVIDIA driver, or install a torch built for an older CUDA.")
    return Check("driver", "ok", f"{facts.driver} (torch's CUDA {build} needs {least})")


def managed_memory() -> Check | None:
    """Whether managed memory can move both ways while kernels run: what paged optimizers page with; None: no GPU."""
    if machine.gpu() is None:
        return None
    concurrent = machine.driver_attribute(machine.CONCURRENT_MANAGED_ACCESS)
    if concurrent:
        return Check("managed memory", "ok", "pages on demand (concurrentManagedAccess)")
    fact = "cannot be asked" if concurrent is None else "does not page on demand: no concurrentManagedAccess"
    return Check("managed memory", "warn", fact, "Paged optimizers cannot spill here; native Linux supports it.")
