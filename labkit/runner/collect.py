"""What an executed notebook says: its results, and whether it may count as a run at all.

papermill itself lets pass what must not: a cell left unrun by `SystemExit(0)`, an exception swallowed by an `Output`
widget or by a widget's callback, a result emitted twice.
"""

import html
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from labkit import errors
from labkit.lab.results import CALLBACK_ERROR, MIME

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


def widget_models(notebook) -> dict[str, dict[str, Any]]:
    """Model id -> `{"model_name", "state"}` of the widgets saved in the notebook."""
    return notebook["metadata"].get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})


def results_in(notebook) -> list[dict[str, Any]]:
    """Every emitted result, in the order of the cells, those shown inside Output widgets last."""
    return [output["data"][MIME] for output in _outputs(notebook) if MIME in output.get("data", {})]


def problem_in(notebook) -> str | None:
    """Why the executed notebook does not count, in one sentence, or None."""
    return _unrun(notebook) or _swallowed(notebook) or _repeated(notebook)


def in_words(cell_id: str, name: str, message: str) -> str:
    """A cell's exception in one line; the errors meant for the reader speak for themselves."""
    ours = isinstance(getattr(errors, name, None), type)
    if name == "SystemExit":
        return f"cell {cell_id!r} ended the lab early (SystemExit {message}): the cells after it were left unrun."
    return message if ours else f"cell {cell_id!r} raised {name}: {message}".rstrip(": ")


def _unrun(notebook) -> str | None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    left = [cell.get("id", "?") for cell in code if cell.execution_count is None]
    return f"cells {', '.join(map(repr, left))} were left unrun." if left else None


def _swallowed(notebook) -> str | None:
    for output in _outputs(notebook):
        if output["output_type"] == "error":
            return f"an Output widget swallowed {output['ename']}: {output['evalue']}"
    for model in widget_models(notebook).values():
        if CALLBACK_ERROR in str(model["state"].get("value", "")):
            return f"a widget's callback failed: {plain_text(model['state']['value'])}"
    return None


def _repeated(notebook) -> str | None:
    counts = Counter(result["name"] for result in results_in(notebook))
    twice = [repr(name) for name, count in counts.items() if count > 1]
    return f"result {', '.join(twice)} was emitted more than once; give each result its own name." if twice else None


def _outputs(notebook) -> Iterator[dict[str, Any]]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])
    for model in widget_models(notebook).values():
        yield from model["state"].get("outputs", []) if model["model_name"] == "OutputModel" else []


def plain_text(markup: str) -> str:
    """HTML without its tags."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup)).strip()
