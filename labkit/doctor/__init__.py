"""What this machine can do, and how to mend what it cannot.

`system` (operating system, processor, memory, disk), `libraries` (torch, bitsandbytes), `gpu`, `jupyter`, `hub` and
`clone` each examine a part; a check that stands on something optional cannot take the others down.
"""

from collections.abc import Callable

from labkit.doctor import clone, gpu, hub, jupyter, libraries, system
from labkit.doctor.check import INSTALL, Check, as_json, as_text, exit_code

__all__ = ["Check", "as_json", "as_text", "examine", "exit_code"]


def examine() -> list[Check]:
    """Every check, in the order a reader wants them; 5 to 10 s, most of it to import the libraries once."""
    facts = libraries.asked_apart()
    checks = [
        system.operating_system(),
        system.python(),
        libraries.torch(facts),
        gpu.gpu(facts),
        gpu.driver(facts),
        gpu.managed_memory(),
        libraries.bitsandbytes(facts),
        system.processor(),
        system.memory(),
        *system.disks(),
        _guarded("hub", "warn", hub.hub),
        _guarded("JupyterLab", "missing", jupyter.jupyterlab),
        _guarded("plots and widgets", "missing", jupyter.extensions),
        _guarded("kernel", "missing", jupyter.kernel),
        jupyter.chromium(),
        *clone.folders(),
        clone.embedded_model(),
    ]
    return [check for check in checks if check]


def _guarded(name: str, state: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        return Check(name, state, f"could not be checked: {type(error).__name__}: {error}", INSTALL)
