"""A plotly figure that follows the kernel, and callbacks that cannot fail unseen.

plotly's own FigureWidget carries all of plotly.js in every figure (5 MB each) and shows its first data after the page
is reloaded. `LiveFigure` sends plotly.js once per page, when the first figure asks for it, and keeps the figure in one
synchronised attribute, so that a reloaded page draws what the kernel holds.

    live = LiveFigure(draw(rank=8))
    message = ipywidgets.HTML()
    observe_safely([rank, alpha], lambda: live.show(draw(rank.value, alpha.value)), message)
    ipywidgets.VBox([rank, alpha, message, live])
"""

import html
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets

from labkit.errors import LabkitError
from labkit.lab.results import CALLBACK_ERROR

STALE_CLASS = "labkit-stale"  # live.css reads it


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


class LiveFigure(anywidget.AnyWidget):
    """Shows a plotly figure; `show` replaces it, keeping the reader's zoom where the template's `uirevision` says so.

    `label` is read out by screen readers in place of the picture; it defaults to the figure's title.
    """

    figure = traitlets.Dict().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    _esm = "\n".join(map(_source, ("library.js", "names.js", "numbers.js", "live.js")))
    _css = _source("live.css")

    def __init__(self, figure=None, label: str = "", **widget_options: Any):
        super().__init__(figure=_plain(figure) if figure else {}, label=label, **widget_options)
        self.on_msg(self._serve)

    def show(self, figure) -> None:
        """Draw `figure` (plotly.graph_objects.Figure) instead of the current one."""
        self.figure = _plain(figure)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, the reader is told that the next figure is being computed; if it fails, the old one is dimmed."""
        self.busy = True
        with self.hold_sync():  # figure and end arrive together
            try:
                yield
            except Exception:
                self.add_class(STALE_CLASS)
                raise
            else:
                self.remove_class(STALE_CLASS)
            finally:
                self.busy = False

    def _serve(self, _widget, content: dict[str, Any], _buffers: list) -> None:
        if content.get("kind") == "plotly.js wanted":
            from plotly.offline import get_plotlyjs

            self.send({"kind": "plotly.js"}, buffers=[get_plotlyjs().encode()])


def observe_safely(
    controls: Iterable[ipywidgets.ValueWidget], callback: Callable[[], None], message: ipywidgets.HTML
) -> Callable[[], None]:
    """Call `callback()` now and whenever the `value` of one of the controls changes.

    An exception of the callback is shown in `message` in one line (JupyterLab itself would only write it to a log) and
    raised again: then a headless run fails at the cell that caused it, or else at the line left in `message`.
    Returns the function that does so, for what is no control's change.
    """

    def react(_change=None) -> None:
        try:
            callback()
        except Exception as error:
            message.value = _shown(error)
            raise
        if CALLBACK_ERROR in message.value:
            message.value = ""

    for control in controls:
        control.observe(react, names="value")
    react()
    return react


def _shown(error: Exception) -> str:
    text = str(error) if isinstance(error, LabkitError) else f"{type(error).__name__}: {error}"
    line = html.escape(" ".join(text.split()))
    return f'<span class="{CALLBACK_ERROR}" role="alert" style="color: var(--jp-error-color1, #c62828)">{line}</span>'


def _plain(figure) -> dict[str, Any]:
    """The figure as JSON: plotly's own encoder knows dates and arrays, and makes NaN null, which browsers accept."""
    return json.loads(figure.to_json())
