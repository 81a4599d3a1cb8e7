"""What this machine can do, and how to mend what it cannot.

Each check gives one `Check`: `ok`, `warn` (labkit works without it, in part) or `missing` (it does not). Libraries that
may crash while they are imported are asked in a process of their own.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labkit import isolate, machine
from labkit.errors import LabkitError, RequestError
from labkit.units import GIB, MIB, format_bytes

INSTALL = "Run `pip install -c constraints.txt -e .` in the clone."
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EXTENSIONS = ("@jupyter-widgets/jupyterlab-manager", "anywidget", "jupyterlab-plotly")
_LIBRARY_TIMEOUT_SECONDS = 120
_NEEDED_MEMORY_BYTES = 4 * GIB
_BUSY_BYTES = 256 * MIB
_MANAGED_ACCESS = 89  # CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS of cuda.h


@dataclass(frozen=True)
class Check:
    """One finding. `remedy` says what to do about a state other than `ok`."""

    name: str
    state: str
    fact: str
    remedy: str = ""


def examine() -> list[Check]:
    """Every check, in the order a reader wants them."""
    libraries = _asked_apart(library_facts)
    checks = [
        _python(),
        _torch(libraries),
        _gpu(libraries),
        _managed_memory(),
        _bitsandbytes(libraries),
        _processor(),
        _memory(),
        *_guarded("JupyterLab", _jupyterlab),
        *_guarded("plots and widgets", _extensions),
        *_guarded("kernel", _kernel),
        _chromium(),
        *[_folder(name) for name in machine.FOLDERS],
        _embedded_model(),
    ]
    return [check for check in checks if check]


def exit_code(checks: list[Check]) -> int:
    """0, or 1 where something required is missing."""
    return int(any(check.state == "missing" for check in checks))


def as_json(checks: list[Check]) -> str:
    """One JSON object: whether nothing required is missing, the device, the checks."""
    answer = {"ok": exit_code(checks) == 0, "device": machine.device_name(), "checks": [asdict(one) for one in checks]}
    return json.dumps(answer, indent=1)


def as_text(checks: list[Check]) -> str:
    """A line for each check; under what is not well, what to do."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:8}{check.name:{width}}  {check.fact}")
        if check.remedy and check.state != "ok":
            lines.append(f"{'':8}{'':{width}}  -> {check.remedy}")
    return "\n".join(lines)


def library_facts() -> dict[str, Any]:
    """torch's and bitsandbytes' own account; for a process of its own, about 5 s.

    `quantised_error`: the relative error of a 4-bit round trip (NF4, blocks of 64) of a ramp from -1 to 1.
    """
    import torch

    facts = {"torch": torch.__version__, "cuda_build": torch.version.cuda, "cuda": torch.cuda.is_available()}
    try:
        from bitsandbytes import functional

        ramp = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
        packed, state = functional.quantize_4bit(ramp, blocksize=64, quant_type="nf4")
        error = (functional.dequantize_4bit(packed, state) - ramp).norm() / ramp.norm()
        facts["quantised_error"] = float(error)
    except Exception as error:
        facts["bitsandbytes_problem"] = f"{type(error).__name__}: {error}"
    return facts


def _asked_apart(function: Callable[[], dict]) -> dict[str, Any]:
    try:
        return isolate.run(function, timeout_seconds=_LIBRARY_TIMEOUT_SECONDS)
    except LabkitError as error:
        return {"problem": str(error).splitlines()[0]}


def _guarded(name: str, check: Callable[[], Check]) -> list[Check]:
    """A check that stands on an optional import must not take the others down."""
    try:
        return [check()]
    except Exception as error:
        return [Check(name, "missing", f"could not be checked: {type(error).__name__}: {error}", INSTALL)]


def _python() -> Check:
    version = machine.versions()["python"]
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("Python", "ok" if good else "missing", version, "" if good else "Use Python 3.11, 3.12 or 3.13.")


def _torch(libraries: dict) -> Check:
    if "torch" not in libraries:
        return Check("torch", "missing", libraries["problem"], INSTALL)
    build = f"CUDA {libraries['cuda_build']}" if libraries.get("cuda_build") else "CPU only"
    return Check("torch", "ok", f"{libraries['torch']} ({build})")


def _gpu(libraries: dict) -> Check:
    facts = machine.gpu()
    if facts is None:
        return Check("GPU", "ok", "none: labs measure CPU tensors and say so")
    fact = f"{facts.name} ({machine.device_name()}): {format_bytes(facts.free_bytes)} of "
    fact += f"{format_bytes(facts.total_bytes)} free"
    if facts.driver:
        fact += f", driver {facts.driver}"
    if not libraries.get("cuda"):
        return Check("GPU", "warn", f"{fact}, but torch cannot use it", "Install the CUDA build of torch.")
    used_bytes = facts.used_by_others_bytes
    used_bytes = facts.total_bytes - facts.free_bytes if used_bytes is None else used_bytes
    if used_bytes > _BUSY_BYTES:
        busy = f"{fact}; GPU busy: {used_bytes // MIB} MiB by others"
        return Check("GPU", "warn", busy, "End what uses it before measuring; `nvidia-smi` lists the processes.")
    return Check("GPU", "ok", fact)


def _managed_memory() -> Check | None:
    """Whether managed memory can move both ways while kernels run: what paged optimizers page with."""
    if machine.gpu() is None:
        return None
    concurrent = machine.driver_attribute(_MANAGED_ACCESS)
    if concurrent:
        return Check("managed memory", "ok", "pages on demand (concurrentManagedAccess)")
    fact = "cannot be asked" if concurrent is None else "does not page on demand: no concurrentManagedAccess"
    return Check("managed memory", "warn", fact, "Paged optimizers cannot spill here; native Linux supports it.")


def _bitsandbytes(libraries: dict) -> Check:
    version = machine.versions()["bitsandbytes"]
    if "quantised_error" not in libraries:
        cause = libraries.get("bitsandbytes_problem") or libraries.get("problem")
        return Check("bitsandbytes", "missing", f"{version or 'not installed'}: {cause}", INSTALL)
    if not 0 < libraries["quantised_error"] < 0.2:
        fact = f"{version}: a 4-bit round trip errs by {libraries['quantised_error']:.0%}"
        return Check("bitsandbytes", "missing", fact, INSTALL)
    fact = f"{version}: 4-bit weights work on the CPU"
    if machine.processor().avx512_bf16:
        fact += "; labkit guards them against this CPU's repacking in eval mode"
    return Check("bitsandbytes", "ok", fact)


def _processor() -> Check:
    facts = machine.processor()
    fact = f"{facts.name}, {facts.cores} {'core' if facts.cores == 1 else 'cores'}"
    return Check("processor", "ok", fact + (", AVX512-BF16" if facts.avx512_bf16 else ""))


def _memory() -> Check:
    total_bytes = machine.processor().memory_bytes
    good = total_bytes >= _NEEDED_MEMORY_BYTES
    remedy = "" if good else f"The labs need about {format_bytes(_NEEDED_MEMORY_BYTES)}; run one at a time."
    return Check("memory", "ok" if good else "warn", format_bytes(total_bytes), remedy)


def _jupyterlab() -> Check:
    import importlib.metadata

    return Check("JupyterLab", "ok", importlib.metadata.version("jupyterlab"))


def _extensions() -> Check:
    """The browser's half of widgets and plotly figures lies in JupyterLab's data folders."""
    from jupyter_core.paths import jupyter_path

    folders = [Path(folder) for folder in jupyter_path("labextensions")]
    absent = [name for name in EXTENSIONS if not any((folder / name / "package.json").exists() for folder in folders)]
    if absent:
        fact = f"JupyterLab lacks the extensions {', '.join(absent)}"
        return Check("plots and widgets", "missing", fact, f"{INSTALL} Restart JupyterLab and reload the page.")
    return Check("plots and widgets", "ok", f"JupyterLab has {', '.join(EXTENSIONS)}")


def _kernel() -> Check:
    """The labs ask for the kernel `python3`; a spec of that name from elsewhere would run another environment."""
    from jupyter_client.kernelspec import KernelSpecManager

    spec = KernelSpecManager().get_kernel_spec("python3")
    command = spec.argv[0]
    own = {"python", "python3", f"python{sys.version_info[0]}.{sys.version_info[1]}"}  # Jupyter puts in its own Python
    if command in own or os.path.abspath(command) == os.path.abspath(sys.executable):
        return Check("kernel", "ok", f"python3 runs {sys.executable}")
    remedy = f"`{sys.executable} -m ipykernel install --sys-prefix`, or remove {spec.resource_dir}."
    return Check("kernel", "warn", f"python3 runs {command}, not {sys.executable}", remedy)


def _chromium() -> Check:
    found = next((path for path in map(shutil.which, CHROMIUM_NAMES) if path), None)
    if found:
        return Check("Chromium", "ok", found)
    remedy = "Install the system's chromium package; only the browser tests need it."
    return Check("Chromium", "warn", "not found", remedy)


def _folder(name: str) -> Check:
    try:
        return Check(f"{name}/", "ok", str(machine.require_folder(name)))
    except RequestError as error:
        return Check(f"{name}/", "missing", "not beside the package", str(error))


def _embedded_model() -> Check:
    folder = machine.repository_root() / "assets" / "model"
    files = [*folder.glob("*.safetensors"), *folder.glob("config.json")]
    if len(files) >= 2:
        return Check("embedded model", "ok", format_bytes(sum(file.stat().st_size for file in folder.iterdir())))
    remedy = "Restore assets/model from the repository, or train it again with `labkit pretrain`."
    return Check("embedded model", "missing", f"not in {folder}", remedy)
