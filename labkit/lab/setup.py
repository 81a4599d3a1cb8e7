"""The first cell of every lab: check the parameters, set the look of figures, show what machine this is."""

from labkit import machine
from labkit.case import check_field, field_of
from labkit.errors import RequestError
from labkit.units import format_bytes

PRESETS = ("smoke", "quick", "full")


def check_preset(preset: str) -> None:
    """RequestError unless `preset` is one of PRESETS."""
    if preset not in PRESETS:
        raise RequestError(f"preset={preset!r} is not possible: preset must be one of {', '.join(PRESETS)}.")


def setup(preset: str, **parameters) -> None:
    """Refuse impossible parameters with one sentence (RequestError), then show the machine card.

    Parameters named after a Case's fields obey its rules; `model` and `task` must be available here.
    """
    check_preset(preset)
    for name, value in parameters.items():
        if field := field_of(name):
            check_field(field, value)
    if "model" in parameters:
        from labkit.models import check_available

        check_available(parameters["model"])
    if "task" in parameters:
        from labkit.train.tasks.files import check_available as check_task

        check_task(parameters["task"])
    from labkit.figures.template import use_in_notebook

    use_in_notebook()
    _show_card()


def _show_card() -> None:
    from IPython.display import Markdown, display

    cpu, gpu, found = machine.processor(), machine.gpu(), machine.versions()
    where = f"{gpu.name}, {format_bytes(gpu.total_bytes)} ({format_bytes(gpu.free_bytes)} free)" if gpu else "none"
    parts = [
        f"**GPU**: {where}",
        f"**CPU**: {cpu.name}, {cpu.cores} cores, {format_bytes(cpu.memory_bytes)}",
        "**Versions**: "
        + ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes")),
    ]
    display(Markdown("  \n".join(parts)))
