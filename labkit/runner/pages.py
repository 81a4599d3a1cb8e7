"""An executed lab as one page that needs neither a kernel nor a network.

nbconvert makes the page; what it would fetch from elsewhere is left out, plotly.js is one file beside all pages, and
figures, live ones included, become plotly figures the reader can still hover and zoom. Light or dark as the system is.
"""

import copy
import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labkit.record import write_atomically
from labkit.runner.collect import plain_text, widget_models
from labkit.runner.formulas import Formulas
from labkit.runner.store import LabRun
from labkit.units import format_seconds

PLOTLY_FILE = "plotly.min.js"
_FIGURE = "application/vnd.plotly.v1+json"
_VIEW = "application/vnd.jupyter.widget-view+json"
_ELSEWHERE = ("require_js_url", "jquery_url", "mathjax_url", "mermaid_js_url", "jupyter_widgets_base_url")
_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
_STYLE = """
.labkit-run { max-width: 60rem; margin: 0 auto 1rem; padding: .5rem 1rem; font-family: sans-serif;
  color: var(--jp-ui-font-color1); border-left: 4px solid var(--jp-brand-color1); }
.labkit-run a { color: var(--jp-content-link-color); }
.labkit-run.failed { border-color: var(--jp-error-color1); }
.labkit-control { font-family: sans-serif; color: var(--jp-ui-font-color1); }
main { max-width: 70rem; margin: 0 auto; }
"""


def write_plotly(folder: Path) -> None:
    """Put plotly.js beside the pages, unless it is there."""
    from plotly.offline import get_plotlyjs

    content = get_plotlyjs().encode()
    path = folder / PLOTLY_FILE
    if not path.is_file() or path.stat().st_size != len(content):
        write_atomically(path, content)


def lab_page(notebook, run: LabRun, lab_folder: Path) -> str:
    """The HTML of an executed notebook; pictures are taken in from paths relative to `lab_folder`."""
    from nbconvert import HTMLExporter

    notebook = copy.deepcopy(notebook)
    models, formulas = widget_models(notebook), Formulas()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas.take_out(cell.source)
        for output in cell.get("outputs", []):
            if drawn := _drawn(output.get("data", {}), models):
                output["data"] = {"text/html": drawn}
    exporter = HTMLExporter(template_name="lab", embed_images=True, **dict.fromkeys(_ELSEWHERE, ""))
    resources = {"metadata": {"name": run.name, "path": str(lab_folder)}}
    page, _ = exporter.from_notebook_node(notebook, resources)
    dark = exporter.environment.loader.get_source(exporter.environment, "static/theme-dark.css")[0]
    head = (
        f'<script src="{PLOTLY_FILE}"></script>'
        f"<style>@media (prefers-color-scheme: dark) {{ {dark} }} {_STYLE}</style></head>"
    )
    return formulas.put_in(page).replace("</head>", head, 1).replace("<main>", "<main>" + _heading(run), 1)


def _heading(run: LabRun) -> str:
    facts = [run.outcome, format_seconds(run.seconds), f"preset {run.preset}" if run.preset else ""]
    facts += [f"{name} = {json.dumps(value)}" for name, value in run.parameters.items()] + [run.created]
    text = html.escape(" · ".join(filter(None, facts)))
    error = f"<p><strong>{html.escape(run.error)}</strong></p>" if run.error else ""
    return f'<div class="labkit-run {run.outcome}"><a href="index.html">All labs</a> · {text}{error}</div>'


def _drawn(data: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """HTML for an output that only JupyterLab could show: a plotly figure, a tree of widgets; else empty."""
    if _FIGURE in data:
        return _figure(data[_FIGURE])
    if _VIEW in data:
        return "".join(_widget(data[_VIEW]["model_id"], models))
    return ""


def _widget(model_id: str, models: Mapping[str, Any]) -> Iterator[str]:
    """A widget and its children, in order: figures, text, and controls as the values they had."""
    model = models.get(model_id.removeprefix("IPY_MODEL_"), {})
    state, name = model.get("state", {}), model.get("model_name", "")
    for child in state.get("children", []):
        yield from _widget(child, models)
    if "figure" in state:
        yield _figure(state["figure"], state.get("label", ""))
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
    return _drawn(data, models) or "".join(data.get("text/html", "")) or f"<pre>{html.escape(text)}</pre>"


def _figure(figure: Mapping[str, Any], label: str = "") -> str:
    from plotly.io import to_html

    layout = figure.get("layout", {})
    markup = to_html(
        {"data": figure["data"], "layout": layout},
        config=_CONFIG,
        include_plotlyjs=False,
        full_html=False,
        default_height=layout.get("height", 420),
        validate=False,
    )
    label = label or plain_text((layout.get("title") or {}).get("text") or "figure")
    return f'<div role="img" aria-label="{html.escape(label)}">{markup}</div>'
