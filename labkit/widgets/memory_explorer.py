"""The widget of lab 03: sliders over the estimating meter and the alpha curves of trained adapters."""

from collections.abc import Mapping
from dataclasses import replace

import ipywidgets

from labkit.case import AVAILABLE_METHODS, TARGETS, Case
from labkit.figures.explorer import explorer
from labkit.memory.estimate import estimate
from labkit.widgets.panel import Panel, panel


def draw(case: Case, method: str, device_type: str, curves: Mapping):
    """The explorer's figure for `case`'s settings, all three methods estimated."""
    records = [estimate(replace(case, method=name), device_type) for name in AVAILABLE_METHODS]
    return explorer(records, method, case.alpha, curves)


def memory_explorer(case: Case, device_type: str, curves: Mapping) -> Panel:
    """Sliders for rank, alpha, batch and sequence, choices of targets and method, and one live figure.

    They start at `case`'s values; alpha moves over the grid on which `curves` were evaluated.
    """
    alphas = sorted({alpha for curve in curves.values() for alpha in curve.alphas} | {case.alpha})
    lengths = sorted({32, 64, 128, 256, 512, 1024, case.sequence_length})
    targets = [(str(choice), choice) for choice in dict.fromkeys([*TARGETS, case.targets])]
    controls = {
        "rank": ipywidgets.IntSlider(case.rank, min=1, max=max(128, case.rank)),
        "alpha": ipywidgets.SelectionSlider(options=[(f"{x:g}", x) for x in alphas], value=case.alpha),
        "batch_size": ipywidgets.IntSlider(case.batch_size, min=1, max=max(32, case.batch_size), description="batch"),
        "sequence_length": ipywidgets.SelectionSlider(
            options=lengths, value=case.sequence_length, description="sequence"
        ),
        "targets": ipywidgets.Dropdown(options=targets, value=case.targets),
        "method": ipywidgets.ToggleButtons(options=AVAILABLE_METHODS, value=case.method),
    }

    return panel(
        controls,
        lambda **values: draw(replace(case, **values), values["method"], device_type, curves),
        lambda **values: replace(case, **values).on(device_type),
    )
