"""labkit: measure, predict and explain what fine-tuning a language model costs.

The names below are imported on first use, so `import labkit` stays cheap.
"""

__version__ = "0.1.0"

_EXPORTS = {
    "Case": "labkit.case",
    "Trial": "labkit.case",
    "estimate": "labkit.memory.estimate",
    "measure": "labkit.memory.measure",
    "run_lab": "labkit.runner",
    "emit": "labkit.lab.results",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
