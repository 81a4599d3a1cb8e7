"""The widgets of lab 00: one step of any known model against any known card, and a box to talk to a trained model."""

import html
from collections.abc import Callable
from dataclasses import replace

import ipywidgets

from labkit import gpus
from labkit.case import AVAILABLE_METHODS, CHECKPOINTING, Case
from labkit.figures.start import step_against_card
from labkit.lab.abilities import Facts, verdict
from labkit.memory.estimate import estimate
from labkit.memory.shape import shape_of
from labkit.models.architectures import ARCHITECTURES
from labkit.models.sources import EMBEDDED
from labkit.widgets.live import observe_safely
from labkit.widgets.panel import Panel, panel

HERE = "this machine"


def draw(case: Case, card: str, here: Facts):
    """The figure for one step of `case` with every method. `card`: a name of `gpus`, or HERE for this machine."""
    gpu, device = None if card == HERE else gpus.find(card), _device(card, here)
    memory_bytes = gpu.memory_bytes if gpu else here.memory_bytes
    estimates = [estimate(replace(case, method=method), _device_type(device)) for method in AVAILABLE_METHODS]
    records = [replace(record, device=device) for record in estimates]
    word = verdict(records[AVAILABLE_METHODS.index(case.method)].peak_allocated_bytes, memory_bytes)
    return step_against_card(records, case.method, word, gpu.title if gpu else HERE, memory_bytes)


def start_explorer(case: Case, here: Facts) -> Panel:
    """Slider over the models by size, method, batch, sequence, checkpointing and the card; one live figure.

    They start at `case`'s values and on this machine.
    """
    models = sorted({EMBEDDED, *ARCHITECTURES}, key=lambda name: shape_of(name).parameters)
    own = [] if case.model in models else [("your model", case.model)]
    lengths = sorted({64, 128, 256, 512, 1024, 2048, 4096, 8192, case.sequence_length})
    cards = [(_named(here), HERE), *((gpu.title, gpu.name) for gpu in gpus.GPUS)]
    controls = {
        "model": ipywidgets.SelectionSlider(options=[*own, *((name, name) for name in models)], value=case.model),
        "card": ipywidgets.Dropdown(options=cards, value=HERE),
        "batch_size": ipywidgets.IntSlider(case.batch_size, min=1, max=max(32, case.batch_size), description="batch"),
        "checkpointing": ipywidgets.Dropdown(
            options=CHECKPOINTING, value=case.checkpointing, description="checkpoints"
        ),
        "sequence_length": ipywidgets.SelectionSlider(
            options=lengths, value=case.sequence_length, description="sequence"
        ),
        "method": ipywidgets.ToggleButtons(options=AVAILABLE_METHODS, value=case.method),
    }

    def chosen(card: str, **values) -> Case:
        return replace(case, **values).on(_device_type(_device(card, here)))

    return panel(controls, lambda card, **values: draw(replace(case, **values), card, here), chosen)


def answer_box(answer: Callable[[str], str], instruction: str) -> ipywidgets.VBox:
    """A line to write an instruction into; `answer(instruction)` is shown below it when Enter is pressed.

    It starts with `instruction` answered, so that nothing waits for a reader who is not there.
    """
    style, wide = {"description_width": "7em"}, {"width": "auto", "max_width": "40em"}
    asked = ipywidgets.Text(instruction, description="instruction", continuous_update=False, style=style, layout=wide)
    shown, message = ipywidgets.HTML(), ipywidgets.HTML()

    def react() -> None:
        text = html.escape(answer(asked.value)) if asked.value.strip() else "write an instruction"
        shown.value = f'<pre role="status" style="margin: 4px 0 0 7.5em; white-space: pre-wrap">{text}</pre>'

    observe_safely([asked], react, message)
    return ipywidgets.VBox([asked, message, shown])


def _device(card: str, here: Facts) -> str:
    return here.device if card == HERE else card


def _device_type(device: str) -> str:
    return "cpu" if device == "cpu" else "cuda"


def _named(here: Facts) -> str:
    return f"{HERE}: {here.name}" if here.device_type == "cuda" else f"{HERE}: CPU"
