"""torch and bitsandbytes, asked in a process of their own: they may crash while they are imported."""

from typing import Any

from labkit import isolate, machine
from labkit.doctor.check import INSTALL, Check
from labkit.errors import LabkitError

_TIMEOUT_SECONDS = 120
_LARGEST_ERROR = 0.2  # of the round trip below, which errs by 0.09 where NF4 is right


def facts() -> dict[str, Any]:
    """torch's and bitsandbytes' own account; for a process of its own, about 5 s.

    `native_library`: the file bitsandbytes loaded, None if none. `quantised_error`: the relative error of a 4-bit round
    trip (NF4, blocks of 64) of a ramp from -1 to 1.
    """
    import torch

    found = {"torch": torch.__version__, "cuda_build": torch.version.cuda, "cuda": torch.cuda.is_available()}
    found["cuda_devices"] = torch.cuda.device_count()
    try:
        from bitsandbytes import cextension, functional

        library = getattr(cextension.lib, "_lib", None)
        found["native_library"] = getattr(library, "_name", None)
        found["native_cuda"] = bool(library) and cextension.lib.compiled_with_cuda
        ramp = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
        packed, state = functional.quantize_4bit(ramp, blocksize=64, quant_type="nf4")
        error = (functional.dequantize_4bit(packed, state) - ramp).norm() / ramp.norm()
        found["quantised_error"] = float(error)
    except Exception as error:
        found["bitsandbytes_problem"] = f"{type(error).__name__}: {error}"
    return found


def asked_apart() -> dict[str, Any]:
    """`facts`, or `problem`: what went wrong."""
    try:
        return isolate.run(facts, timeout_seconds=_TIMEOUT_SECONDS)
    except LabkitError as error:
        return {"problem": str(error).splitlines()[0]}


def torch(found: dict[str, Any]) -> Check:
    """Whether torch imports, and for what it was built."""
    if "torch" not in found:
        return Check("torch", "missing", found["problem"], INSTALL)
    build = f"CUDA {found['cuda_build']}" if found.get("cuda_build") else "CPU only"
    return Check("torch", "ok", f"{found['torch']} ({build})")


def bitsandbytes(found: dict[str, Any]) -> Check:
    """Whether 4-bit weights come back as they should, and with which native library."""
    version = machine.versions()["bitsandbytes"]
    if "quantised_error" not in found:
        cause = found.get("bitsandbytes_problem") or found.get("problem")
        return Check("bitsandbytes", "missing", f"{version or 'not installed'}: {cause}", INSTALL)
    if not 0 < found["quantised_error"] < _LARGEST_ERROR:
        fact = f"{version}: a 4-bit round trip errs by {found['quantised_error']:.0%}"
        return Check("bitsandbytes", "missing", fact, INSTALL)
    path = (found.get("native_library") or "").replace("\\", "/").rpartition("/")[2]
    fact = f"{version}: 4-bit weights work; native library {path or 'not loaded'}"
    if found.get("cuda") and not found.get("native_cuda"):
        remedy = f"Install a bitsandbytes that has a library for CUDA {found['cuda_build']}."
        return Check("bitsandbytes", "warn", f"{fact}, which cannot use the GPU", remedy)
    if not path:
        return Check("bitsandbytes", "warn", fact, INSTALL)
    if machine.processor().avx512_bf16:
        fact += "; labkit guards 4-bit layers against this CPU's repacking in eval mode"
    return Check("bitsandbytes", "ok", fact)
