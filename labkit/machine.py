"""Facts of this machine: the processor, the GPU, the versions, the commit, the clone.

Nothing here imports torch unless a GPU has to be asked and NVIDIA's management library (NVML) cannot say. GPU facts are
those of the first GPU this process may use (`CUDA_VISIBLE_DEVICES`). What cannot be found out is None.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit import gpus
from labkit.errors import RequestError

PACKAGES = ("labkit", "torch", "transformers", "peft", "bitsandbytes", "datasets", "plotly", "papermill")
FOLDERS = ("labs", "data", "assets")
CAPABILITY_MAJOR, CAPABILITY_MINOR, CONCURRENT_MANAGED_ACCESS = 75, 76, 89
"""CUdevice_attribute of cuda.h: the halves of the compute capability, and whether managed memory pages on demand."""
_RESULT_PATHS = ("labkit", "labs", "assets", "data/tasks")  # what a result depends on


@dataclass(frozen=True)
class Processor:
    """`cores` counts those this process may run on; `avx512_bf16` is None where the system does not say."""

    name: str
    cores: int
    memory_bytes: int
    avx512_bf16: bool | None


@dataclass(frozen=True)
class GpuFacts:
    """One GPU now. `total_bytes`: what CUDA can hand out. `used_by_others_bytes` is None where the driver hides it."""

    name: str
    total_bytes: int
    free_bytes: int
    driver: str | None
    used_by_others_bytes: int | None


@functools.cache
def processor() -> Processor:
    """The CPU and the host's memory."""
    import psutil

    facts = _cpu_facts()
    flags = facts.get("flags")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Processor(
        name=facts.get("model name") or platform.processor() or platform.machine(),
        cores=cores,
        memory_bytes=psutil.virtual_memory().total,
        avx512_bf16=None if flags is None else "avx512_bf16" in flags.split(),
    )


def _cpu_facts() -> dict[str, str]:
    """The first processor of Linux's /proc/cpuinfo, empty elsewhere."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            facts[key.strip()] = value.strip()
    return facts


@functools.cache
def versions() -> dict[str, str | None]:
    """Python's and PACKAGES' versions; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = None
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def peak_rss_bytes() -> int:
    """The most host memory this process has had resident."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def device_name() -> str:
    """`cpu`, or the GPU's short name as in `gpus` (the driver's own name in small letters for a GPU not listed)."""
    facts = gpu()
    if facts is None:
        return "cpu"
    known = gpus.match(facts.name, facts.total_bytes)
    return known.name if known else facts.name.lower().replace(" ", "-")


def driver_version() -> str | None:
    """The NVIDIA driver's version, None without a GPU."""
    facts = gpu()
    return facts.driver if facts else None


def gpu() -> GpuFacts | None:
    """The GPU this process may use, asked now; None without one. Where NVML answers, CUDA is not started."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or _cuda_driver() is None:
        return None
    return _gpu_by_nvml() or _gpu_by_torch()


def driver_attribute(attribute: int) -> int | None:
    """A `CUdevice_attribute` (cuda.h) of the GPU, asked of the driver without a CUDA context; None if it fails."""
    driver, device, value = _cuda_driver(), ctypes.c_int(), ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    failed = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return None if failed else value.value


@functools.cache
def _cuda_driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None


def _gpu_by_nvml() -> GpuFacts | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = _nvml_handle(pynvml)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        return GpuFacts(
            name=pynvml.nvmlDeviceGetName(handle),
            total_bytes=memory.total - memory.reserved,
            free_bytes=memory.free,
            driver=pynvml.nvmlSystemGetDriverVersion(),
            used_by_others_bytes=_used_by_others(pynvml, handle),
        )
    except pynvml.NVMLError:  # not in this container, or a driver before 510
        return None


def _nvml_handle(pynvml: Any) -> Any:
    """NVML counts the machine's GPUs, CUDA those of CUDA_VISIBLE_DEVICES (indices or UUIDs)."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return pynvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(first)


def _used_by_others(pynvml: Any, handle: Any) -> int | None:
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    used = [process.usedGpuMemory for process in processes if process.pid != os.getpid()]
    return None if None in used else sum(used)


def _gpu_by_torch() -> GpuFacts | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return GpuFacts(torch.cuda.get_device_name(), total_bytes, free_bytes, None, None)


def repository_root() -> Path:
    """The folder of the clone: the parent of the package."""
    return Path(__file__).resolve().parents[1]


def require_folder(name: str) -> Path:
    """The clone's folder `name` (`labs`, `data`, `assets`); RequestError where labkit was installed without it."""
    folder = repository_root() / name
    if not folder.is_dir():
        raise RequestError(
            f"The folder {name}/ is not beside the labkit package ({folder.parent}): labkit runs from a clone of its "
            "repository, set up with `pip install -c constraints.txt -e .`."
        )
    return folder


@functools.cache
def commit() -> str | None:
    """The clone's git commit, else the environment's LABKIT_COMMIT, else None."""
    return _git("rev-parse", "HEAD") or os.environ.get("LABKIT_COMMIT") or None


@functools.cache
def dirty() -> bool | None:
    """Whether what results depend on (the code, the labs, the model, the tasks) differs from the commit; None: no git.

    Read once per process, like the code itself.
    """
    changes = _git("status", "--porcelain", "--", *_RESULT_PATHS)
    return None if changes is None or _git("rev-parse", "HEAD") is None else bool(changes)


def _git(*arguments: str) -> str | None:
    root = repository_root()
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@contextmanager
def gpu_lock(name: str | None = None, folder: Path | None = None) -> Iterator[None]:
    """One measurement at a time per device on this machine; says on standard error for whom it waits.

    `name`: the device (default `device_name()`). `folder`: where the lock lies (default: the system's temporary one).
    The system frees the lock of a process that ends in any way.
    """
    from filelock import FileLock, Timeout

    path = (folder or Path(tempfile.gettempdir())) / f"labkit-{name or device_name()}.lock"
    holder = path.with_suffix(".holder")
    lock = FileLock(path, mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for {path.stem.removeprefix('labkit-')}: {_holder(holder)} is measuring.", file=sys.stderr)
        lock.acquire()
    try:
        with suppress(OSError):  # another user's, left by a process that was killed
            holder.write_text(f"process {os.getpid()} ({' '.join(sys.argv)[:80].strip() or 'python'})")
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text() or "another process"
    return "another process"
