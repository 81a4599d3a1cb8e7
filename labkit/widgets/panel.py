"""The one way to put controls around a live figure.

    panel({"rank": IntSlider(8, 1, 64)}, draw=lambda rank: figure_of(rank), case=lambda rank: Case(..., rank=rank))

`draw(**values)` and `case(**values)` get the controls' values by name, at once and whenever one changes. The panel adds
what every lab's widget owes its reader: a label for each control (its `description`, else its name), a button that
restores the values it was built with, a link to the case as `labkit measure --case FILE` reads it, a line for errors,
and a figure that says when it is being computed. Give a control its range and start value; its width is the panel's.
"""

import html
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import ipywidgets

from labkit.case import Case
from labkit.widgets.live import LiveFigure, observe_safely

LABEL_WIDTH = "7em"
CLASS, CONTROLS_CLASS, FIXED_CLASS = (
    "labkit-panel",
    "labkit-controls",
    "labkit-fixed",
)  # names.js and live.css read them
COLUMNS = {"grid_template_columns": "repeat(auto-fill, minmax(24em, 1fr))", "grid_gap": "2px 16px", "width": "100%"}


class Panel(ipywidgets.VBox):
    """Controls, reset button, link, error line and figure, in the order in which Tab reaches them.

    `controls` (name -> widget), `reset_button`, `link`, `message` and `live` are the parts.
    """

    def __init__(
        self,
        controls: Mapping[str, ipywidgets.ValueWidget],
        draw: Callable[..., Any],
        case: Callable[..., Case] | None = None,
    ):
        self.controls, self._draw, self._case = dict(controls), draw, case
        self._start, self._resetting = self.values, False
        self.reset_button = ipywidgets.Button(
            description="reset", icon="undo", tooltip="back to the values this was made with", layout={"width": "auto"}
        )
        self.link, self.message = ipywidgets.HTML(), ipywidgets.HTML()
        self.live = LiveFigure()
        for name, control in self.controls.items():
            _fit(name, control)
        grid = ipywidgets.GridBox(list(self.controls.values()), layout=COLUMNS, _dom_classes=(CONTROLS_CLASS,))
        actions = ipywidgets.HBox([self.reset_button, self.link], layout={"align_items": "center", "grid_gap": "16px"})
        super().__init__([grid, actions, self.message, self.live], _dom_classes=(CLASS,))
        self.reset_button.on_click(lambda _button: self.reset())
        self._react = observe_safely(self.controls.values(), self._show, self.message)

    @property
    def values(self) -> dict[str, Any]:
        """The controls' values by name."""
        return {name: control.value for name, control in self.controls.items()}

    def reset(self) -> None:
        """Set every control back to the value it was given, and draw once."""
        self._resetting = True
        try:
            for name, value in self._start.items():
                self.controls[name].value = value
        finally:
            self._resetting = False
        self._react()

    def _show(self) -> None:
        if self._resetting:
            return
        values = self.values
        with self.live.working():
            if self._case:
                self.link.value = ""  # never the link of other values, whatever fails below
                self.link.value = link_to(self._case(**values))
            self.live.show(self._draw(**values))


def panel(
    controls: Mapping[str, ipywidgets.ValueWidget],
    draw: Callable[..., Any],
    case: Callable[..., Case] | None = None,
) -> Panel:
    """A Panel: `controls` by name around the plotly figure that `draw(**values)` returns, for `case(**values)`.

    What `draw` or `case` raises now is raised here; later it is shown in the panel, and fails a headless run.
    """
    return Panel(controls, draw, case)


def link_to(case: Case) -> str:
    """HTML: a link that saves `case` as case.json, its content in the link itself, so that it needs no server."""
    text = json.dumps(case.to_dict(), indent=2) + "\n"
    address = f"data:application/json;charset=utf-8,{quote(text)}"
    return f'<a download="case.json" href="{html.escape(address)}">case.json</a> (for labkit measure --case case.json)'


def _fit(name: str, control: ipywidgets.ValueWidget) -> None:
    """Give a control its label and the panel's width."""
    control.description = control.description or name
    control.tooltip = control.tooltip or control.description  # without one, ipywidgets shows the word null
    control.style.description_width = LABEL_WIDTH
    control.layout.width = "auto"
    if isinstance(control, ipywidgets.SelectionSlider):
        control.add_class(FIXED_CLASS)
