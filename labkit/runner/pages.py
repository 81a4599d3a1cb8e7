"""An executed lab as one page that needs neither a kernel nor a network.

nbconvert makes the page from `page.html.j2`: what it would fetch from elsewhere is left out, plotly.js is one file
beside all pages, and figures, live ones included, become plotly figures the reader can still hover and zoom. Light or
dark as the system is; wide tables and code scroll inside their own box, so that a phone shows the rest.
"""

import copy
import html
import json
import re
from pathlib import Path

from labkit.lab.catalog import Card, card_of
from labkit.record import write_atomically
from labkit.runner.collect import widget_models
from labkit.runner.drawn import drawn
from labkit.runner.formulas import Formulas
from labkit.runner.store import LabRun
from labkit.units import format_seconds

PLOTLY_FILE = "plotly.min.js"
NOSCRIPT_STYLE = "<noscript><style>.labkit-figure { display: none; }</style></noscript>"
NOSCRIPT = (
    '<noscript><p class="labkit-noscript">Figures need JavaScript; text, tables and numbers are all here without it.'
    "</p></noscript>"
)
_OVERWRITTEN = re.compile(r"[^\n]*\r(?=[^\n])")
_LAB_LINK = re.compile(r'(<a href=")(\d\d_\w+)\.ipynb"')


def asset(name: str) -> str:
    """The text of a file beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


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

    card = card_of(run.name, notebook)
    notebook, formulas = copy.deepcopy(notebook), Formulas()
    _make_standalone(notebook, formulas)
    notebook.metadata["title"] = title_of(card)
    exporter = HTMLExporter(template_name="lab", raw_template=asset("page.html.j2"), embed_images=True)
    dark = exporter.environment.loader.get_source(exporter.environment, "static/theme-dark.css")[0]
    own = {
        "plotly": PLOTLY_FILE,
        "noscript": NOSCRIPT_STYLE,
        "style": f"@media (prefers-color-scheme: dark) {{ {dark} }}\n{asset('look.css')}{asset('page.css')}",
        "script": asset("figures.js"),
        "header": f"{header(run)}{NOSCRIPT}",
    }
    resources = {"metadata": {"name": run.name, "path": str(lab_folder)}, "labkit": own}
    page, _ = exporter.from_notebook_node(notebook, resources)
    return formulas.put_in(_boxed_tables(_LAB_LINK.sub(r'\1index.html#\2"', page)))


def plain_page(run: LabRun) -> str:
    """The page of a lab whose notebook could not be made into one: what is known of the run, and the notebook."""
    name = html.escape(run.name)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{asset('look.css')}{asset('page.css')}</style></head><body>\n{header(run)}<main><h1>{name}</h1>"
        f'<p>The notebook as far as it was run: <a href="{name}.ipynb">{name}.ipynb</a></p></main></body></html>\n'
    )


def title_of(card: Card) -> str:
    """`03 Full fine-tuning, LoRA and QLoRA: ...`"""
    return f"{card.number} {card.question}"


def moment(run: LabRun) -> str:
    """`2026-01-31 12:30 UTC`"""
    return f"{run.created[:16].replace('T', ' ')} UTC"


def header(run: LabRun) -> str:
    """The line above a page: the way back, and how the run went."""
    facts = [run.outcome, format_seconds(run.seconds), f"preset {run.preset}" if run.preset else ""]
    facts += [f"{name} = {json.dumps(value)}" for name, value in run.parameters.items()]
    text = html.escape(" · ".join(filter(None, [*facts, run.machine, moment(run)])))
    error = f"<p><strong>{html.escape(run.error)}</strong></p>" if run.error else ""
    return (
        f'<header class="labkit-run {run.outcome}"><nav aria-label="Labs"><a href="index.html">All labs</a></nav>'
        f"<p>{text}</p>{error}</header>"
    )


def _make_standalone(notebook, formulas: Formulas) -> None:
    """Replace, in place, what only JupyterLab shows: formulas, figures and widgets."""
    models = widget_models(notebook)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = formulas.take_out(cell.source)
        if "outputs" in cell:
            cell.outputs = _as_on_a_terminal(cell.outputs)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if markup := drawn(data, models):
                output["data"] = {"text/html": markup}
            elif "text/markdown" in data:
                data["text/markdown"] = formulas.take_out("".join(data["text/markdown"]))


def _as_on_a_terminal(outputs: list) -> list:
    """The outputs with each run of printed pieces as one, and of a progress bar its last state only."""
    kept = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream" and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = _OVERWRITTEN.sub("", output.text)
    return kept


def _boxed_tables(page: str) -> str:
    return page.replace("<table", '<div class="labkit-scroll"><table').replace("</table>", "</table></div>")
