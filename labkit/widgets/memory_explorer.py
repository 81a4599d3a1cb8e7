"""The widget of lab 03: sliders over the estimating meter and the alpha curves of trained adapters."""

from collections.abc import Mapping
from dataclasses import replace

import ipywidgets

from labkit.case import TARGETS, Case
from labkit.figures.explorer import explorer
from labkit.memory.estimate import estimate
from labkit.widgets.live import LiveFigure, observe_safely

METHODS = ("full", "lora", "qlora")
WIDE = {"style": {"description_width": "7em"}, "layout": ipywidgets.Layout(width="24em")}


def draw(case: Case, method: str, device_type: str, curves: Mapping):
    """The explorer's figure for `case`'s settings, all three methods estimated."""
    records = [estimate(replace(case, method=name), device_type) for name in METHODS]
    return explorer(records, method, case.alpha, curves)


def memory_explorer(case: Case, device_type: str, curves: Mapping) -> ipywidgets.VBox:
    """Sliders for rank, alpha, batch and sequence, choices of targets and method, and one live figure.

    They start at `case`'s values; alpha moves over the grid on which `curves` were evaluated.
    """
    grid = sorted({alpha for curve in curves.values() for alpha in curve.alphas} | {case.alpha})
    rank = ipywidgets.IntSlider(case.rank, min=1, max=max(128, case.rank), description="rank", **WIDE)
    alpha = ipywidgets.SelectionSlider(
        options=[(f"{x:g}", x) for x in grid], value=case.alpha, description="alpha", **WIDE
    )
    batch = ipywidgets.IntSlider(case.batch_size, min=1, max=max(32, case.batch_size), description="batch", **WIDE)
    lengths = sorted({32, 64, 128, 256, 512, 1024, case.sequence_length})
    sequence = ipywidgets.SelectionSlider(options=lengths, value=case.sequence_length, description="sequence", **WIDE)
    choices = list(dict.fromkeys([*TARGETS, case.targets]))
    targets = ipywidgets.Dropdown(
        options=[(str(x), x) for x in choices], value=case.targets, description="targets", **WIDE
    )
    method = ipywidgets.ToggleButtons(
        options=METHODS,
        value=case.method,
        description="method",
        style={"description_width": "7em", "button_width": "4.5em"},
        layout={"width": "28em"},
    )
    message = ipywidgets.HTML()

    def settings() -> Case:
        return replace(
            case,
            rank=rank.value,
            alpha=alpha.value,
            targets=targets.value,
            batch_size=batch.value,
            sequence_length=sequence.value,
        )

    live = LiveFigure(draw(case, case.method, device_type, curves))

    def show() -> None:
        live.show(draw(settings(), method.value, device_type, curves))

    observe_safely([rank, alpha, batch, sequence, targets, method], show, message)
    columns = ipywidgets.HBox(
        [ipywidgets.VBox([rank, alpha]), ipywidgets.VBox([batch, sequence]), ipywidgets.VBox([targets, method])]
    )
    return ipywidgets.VBox([columns, message, live])
