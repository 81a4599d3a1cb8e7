"""Outputs that only JupyterLab could show (plotly figures, widgets) as HTML that stands alone.

A figure leaves its data in the page as JSON, in a box that `figures.js` draws into with the plotly.js beside the page.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from labkit.runner.numbers import numbers_of, plain

_FIGURE = "application/vnd.plotly.v1+json"
_VIEW = "application/vnd.jupyter.widget-view+json"
_HEIGHT, _THUMBNAIL_HEIGHT = 420, 190  # pixels
_SECOND_LINE = re.compile(r"<br\s*/?>(?=<span)")  # where `new_figure` begins the subtitle


def drawn(data: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """HTML for the output if only JupyterLab could show it, else empty. `models`: of `collect.widget_models`."""
    if _FIGURE in data:
        return _with_numbers(data[_FIGURE])
    if _VIEW in data:
        return "".join(_widget(data[_VIEW]["model_id"], models))
    return ""


def first_figure(cell: Mapping[str, Any], models: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first figure, plain or live, among the outputs of a code cell."""
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        if _FIGURE in data:
            return data[_FIGURE]
        if _VIEW in data:
            trees = _models_under(data[_VIEW]["model_id"], models)
            found = next((model["state"]["figure"] for model in trees if model["state"].get("figure")), None)
            if found:
                return found
    return None


def figure_box(figure: Mapping[str, Any], label: str = "", **options: Any) -> str:
    """The figure as a box for `figures.js`; `label` (default: its title) is read out; `options` are plotly's config.

    A still one is a picture; one with buttons of its own is no single picture to a screen reader.
    """
    layout = figure.get("layout", {})
    content = json.dumps({"data": figure.get("data", []), "layout": layout, "config": options}, ensure_ascii=False)
    role = "img" if options.get("staticPlot") else "figure"
    label = html.escape(label or ", ".join(title_lines(figure)) or "figure")
    height = layout.get("height", _HEIGHT)
    return (
        f'<div class="labkit-figure" role="{role}" aria-label="{label}" style="height: {height}px">'
        f'<script type="application/json">{content.replace("<", chr(92) + "u003c")}</script></div>'
    )


def _with_numbers(figure: Mapping[str, Any], label: str = "") -> str:
    return figure_box(figure, label) + numbers_of(figure)


def thumbnail(figure: Mapping[str, Any]) -> str:
    """The figure small and still: only its marks and axes; its title belongs into a caption beside it."""
    layout = {key: value for key, value in figure.get("layout", {}).items() if key not in ("title", "legend", "width")}
    small = {
        "height": _THUMBNAIL_HEIGHT,
        "margin": {"l": 36, "r": 8, "t": 8, "b": 24},
        "font": {**layout.get("font", {}), "size": 10},
        "showlegend": False,
        "annotations": [],
        "updatemenus": [],
        "sliders": [],
    }
    label = "Small picture of the figure: " + ", ".join(title_lines(figure))
    return figure_box({"data": figure.get("data", []), "layout": layout | small}, label, staticPlot=True)


def title_lines(figure: Mapping[str, Any]) -> list[str]:
    """The figure's title in plain text, then its subtitle: meter, device and date."""
    title = figure.get("layout", {}).get("title") or {}
    text = (title.get("text") if isinstance(title, Mapping) else title) or ""
    return [line for line in map(plain, _SECOND_LINE.split(text)) if line]


def _models_under(model_id: str, models: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A widget's children and then itself, depth first."""
    model = models.get(model_id.removeprefix("IPY_MODEL_"), {})
    for child in model.get("state", {}).get("children", []):
        yield from _models_under(child, models)
    yield {"model_name": model.get("model_name", ""), "state": model.get("state", {})}


def _widget(model_id: str, models: Mapping[str, Any]) -> Iterator[str]:
    """A widget and its children, in order: figures, text, and controls as the values they had."""
    for model in _models_under(model_id, models):
        state, name = model["state"], model["model_name"]
        if "figure" in state:
            yield _with_numbers(state["figure"], state.get("label", ""))
        elif name in ("HTMLModel", "HTMLMathModel"):
            yield f'<div class="labkit-control">{state.get("value", "")}</div>'
        elif name == "OutputModel":
            yield from (_output(output, models) for output in state.get("outputs", []))
        elif state.get("description") and (value := _value(state)) is not None:
            text = html.escape(f"{state['description']}: {value}")
            yield f'<div class="labkit-control">{text}</div>'


def _value(state: Mapping[str, Any]) -> Any:
    """What a control is set to: the chosen labels of a selection, else its value."""
    labels, index = state.get("_options_labels"), state.get("index")
    if labels and index is not None:
        return ", ".join(labels[i] for i in (index if isinstance(index, list | tuple) else [index]))
    return state.get("value")


def _output(output: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    data = output.get("data", {})
    text = "".join(data.get("text/plain", output.get("text", "")))
    return drawn(data, models) or "".join(data.get("text/html", "")) or f"<pre>{html.escape(text)}</pre>"
