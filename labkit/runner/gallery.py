"""The first page of an output folder: a card for every lab, with what came of it, or how to run it.

Everything on a card of a lab that ran is of that run: its headline is a result the lab emitted, its picture the lab's
own figure, drawn small from the executed notebook beside the page.
"""

import html
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.lab.catalog import Card, card_of
from labkit.lab.results import show
from labkit.runner.collect import widget_models
from labkit.runner.drawn import first_figure, thumbnail, title_lines
from labkit.runner.pages import NOSCRIPT, NOSCRIPT_STYLE, PLOTLY_FILE, asset, moment, title_of
from labkit.runner.store import FILE_NAME, LabRun
from labkit.units import format_seconds


@dataclass(frozen=True)
class Shown:
    """A lab on the page: its card, and its run and picture (a plotly figure as JSON) where it has them."""

    card: Card
    run: LabRun | None = None
    figure: Mapping[str, Any] | None = None


def shown(run: LabRun, folder: Path) -> Shown:
    """The lab as its executed notebook in `folder` has it; without one, by name alone."""
    try:
        notebook = json.loads((folder / f"{run.name}.ipynb").read_text(encoding="utf-8"))
        card = card_of(run.name, notebook)
        cell = next((cell for cell in notebook["cells"] if cell.get("id") == card.picture), {})
        return Shown(card, run, first_figure(cell, widget_models(notebook)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Shown(card_of(run.name, {}), run)


def gallery_page(runs: Mapping[str, LabRun], folder: Path, others: Iterable[Card] = ()) -> str:
    """The HTML of `index.html`: the runs of `folder`, and cards of `others` that did not run there."""
    labs = {card.name: Shown(card) for card in others} | {name: shown(run, folder) for name, run in runs.items()}
    cards = "\n".join(_card(labs[name]) for name in sorted(labs))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The LoRA lab: results</title><style>{asset("look.css")}{asset("gallery.css")}</style>
{NOSCRIPT_STYLE}
<script src="{PLOTLY_FILE}" defer></script></head><body>
<header><h1>The LoRA lab</h1><p>{_summary(labs.values())}</p></header>{NOSCRIPT}
<main><div class="labs">
{cards}
</div></main>
<footer><p class="links"><a href="{FILE_NAME}">All results: {FILE_NAME}</a></p></footer>
<script type="module">{asset("figures.js")}</script>
</body></html>
"""


def _summary(labs: Iterable[Shown]) -> str:
    outcomes = [lab.run.outcome if lab.run else "not run here" for lab in labs]
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in ("ok", "failed", "not run here")]
    return "Labs: " + ", ".join(count for count in counts if not count.startswith("0 ")) + "."


def _card(lab: Shown) -> str:
    card, run = lab.card, lab.run
    name, question = html.escape(card.name), html.escape(title_of(card))
    title = f'<a href="{name}.html">{question}</a>' if run else question
    parts = [f'<h2 id="{name}-title">{title}</h2>']
    if run:
        parts += [_outcome(run), _headline(card, run), _picture(lab.figure), _results(run), _links(name)]
    else:
        parts += [f"<p>Not run here yet. To run it: <code>labkit run {card.number}</code></p>"]
    outcome = run.outcome if run else "not-run"
    body = "\n".join(filter(None, parts))
    return f'<article class="lab {outcome}" id="{name}" aria-labelledby="{name}-title">\n{body}\n</article>'


def _outcome(run: LabRun) -> str:
    """How it went, with what, when and on what machine; why it failed."""
    facts = [f"took {format_seconds(run.seconds)}", f"preset {run.preset}" if run.preset else ""]
    facts += [f"{name}={json.dumps(value)}" for name, value in run.parameters.items()] + [run.machine or ""]
    told = " · ".join(html.escape(fact) for fact in facts if fact)
    error = f'<p class="error">{html.escape(run.error)}</p>' if run.error else ""
    when = f'<time datetime="{html.escape(run.created)}">{html.escape(moment(run))}</time>'
    return f'<p class="facts"><span class="outcome">{run.outcome}</span> · {told} · {when}</p>{error}'


def _headline(card: Card, run: LabRun) -> str:
    result = next((result for result in run.results if result["name"] == card.headline), None)
    if result is None:
        return ""
    words = html.escape(result["name"].replace("_", " "))
    return f'<p class="headline"><strong>{html.escape(show(result))}</strong> {words}</p>'


def _picture(figure: Mapping[str, Any] | None) -> str:
    if not figure:
        return ""
    caption = "<br>".join(html.escape(line) for line in title_lines(figure))
    return f"<figure>{thumbnail(figure)}<figcaption>{caption}</figcaption></figure>"


def _results(run: LabRun) -> str:
    scalars = [result for result in run.results if isinstance(result["value"], int | float | str)]
    if not scalars:
        return ""
    items = "".join(f"<li>{html.escape(result['name'])} = {html.escape(show(result))}</li>" for result in scalars)
    return f"<details><summary>Results ({len(scalars)})</summary><ul>{items}</ul></details>"


def _links(name: str) -> str:
    return f'<p class="links"><a href="{name}.html">page</a><a href="{name}.ipynb">notebook</a></p>'
