"""The operating system, Python, the processor, memory and disk.

What CUDA lacks on WSL2: NVIDIA's "CUDA on WSL User Guide", section "Known Limitations for Linux CUDA Applications"
(managed memory as on Windows; NVML does not list processes). What it lacks on Windows: "CUDA C++ Programming Guide",
section "Unified Memory on Windows, WSL, and Tegra".
"""

import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from labkit import machine
from labkit.doctor.check import Check
from labkit.units import GIB, MIB, format_bytes

_NEEDED_MEMORY_BYTES = 4 * GIB
_NO_PAGING = "managed memory does not page on demand, so paged optimizers cannot spill"
_NEEDED_DISK = (  # name, free bytes below which to warn, what they are for
    ("disk (clone)", 200 * MIB, "pages and notebooks of a run of all labs, and copies of the labs"),
    ("disk (hub cache)", 4 * GIB, "a model of a billion parameters is 2.5 GB in 16 bits"),
    ("disk (temporary)", GIB, "every measuring process keeps what it prints there, and compilers their work"),
)


def operating_system() -> Check:
    """Where labkit runs: all of it on Linux; elsewhere, what does not work there."""
    name = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform == "linux":
        return _linux(name)
    if sys.platform == "win32":
        fact = f"{name}: not tested here; with a GPU, {_NO_PAGING}"
        return Check("system", "warn", fact, "Linux is what the tests run on; on Windows that is WSL2.")
    if sys.platform == "darwin":
        return Check("system", "warn", f"{name}: not tested here; labs use the CPU only", "Use Linux to measure a GPU.")
    return Check("system", "warn", f"{name}: not tested here", "Use Linux.")


def _linux(name: str) -> Check:
    release = platform.release().lower()
    container = ", in a container" if any(map(Path.exists, map(Path, ("/.dockerenv", "/run/.containerenv")))) else ""
    if "microsoft" not in release:
        return Check("system", "ok", f"{name}{container}")
    if "microsoft-standard" not in release:  # WSL1 calls itself 4.4.0-...-Microsoft
        return Check("system", "warn", f"{name}: WSL1, which has no GPU", "Convert it: `wsl --set-version NAME 2`.")
    if machine.gpu() is None:
        return Check("system", "ok", f"{name}: WSL2")
    fact = f"{name}: WSL2; {_NO_PAGING}, and other processes' GPU memory is not listed"
    return Check("system", "warn", fact, "Use native Linux for these.")


def python() -> Check:
    """Whether this Python is one of those supported."""
    version = machine.versions()["python"]
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("Python", "ok" if good else "missing", version, "" if good else "Use Python 3.11, 3.12 or 3.13.")


def processor() -> Check:
    """The CPU that measures where there is no GPU."""
    facts = machine.processor()
    fact = f"{facts.name}, {facts.cores} {'core' if facts.cores == 1 else 'cores'}"
    return Check("processor", "ok", fact + (", AVX512-BF16" if facts.avx512_bf16 else ""))


def memory() -> Check:
    """Whether a lab fits into the host's memory."""
    total_bytes = machine.processor().memory_bytes
    good = total_bytes >= _NEEDED_MEMORY_BYTES
    remedy = "" if good else f"The labs need about {format_bytes(_NEEDED_MEMORY_BYTES)}; run one at a time."
    return Check("memory", "ok" if good else "warn", format_bytes(total_bytes), remedy)


def disks() -> Iterator[Check]:
    """Free space where labkit writes: the clone, the hub's cache, temporary files."""
    places = (machine.repository_root(), _hub_cache(), Path(tempfile.gettempdir()))
    for (name, needed_bytes, reason), place in zip(_NEEDED_DISK, places, strict=True):
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        free_bytes = shutil.disk_usage(existing).free
        good = free_bytes >= needed_bytes
        remedy = "" if good else f"Make room for {format_bytes(needed_bytes)}: {reason}."
        yield Check(name, "ok" if good else "warn", f"{format_bytes(free_bytes)} free at {place}", remedy)


def _hub_cache() -> Path:
    """The hub's cache; the home folder, where it is by default, when huggingface_hub is not installed."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return Path.home()
    return Path(HF_HUB_CACHE)
