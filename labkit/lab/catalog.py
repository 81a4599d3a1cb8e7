"""Which labs there are, what each says of itself, which parameters it takes: read from the notebooks, nothing is run.

A lab's question is its first heading, `# NN Question`; its time follows `**Time**:` in the same text. Its metadata may
hold `"labkit": {"headline": NAME, "picture": ID}`: the emitted result that sums the lab up, and the code cell whose
first figure is the lab's picture.
"""

import ast
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabFailed, RequestError
from labkit.machine import require_folder

_LAB_FILE = re.compile(r"\d\d_\w+\.ipynb")
_TITLE = re.compile(r"^#\s+(?:\d\d[\s_]+)?(\S.*)$", re.MULTILINE)
_TIME = re.compile(r"\*\*Time\*\*:\s*([^.,;(]+)")
COMPUTED = object()
"""Stands for the default of a parameter that is not a literal."""


@dataclass(frozen=True)
class Card:
    """What a lab says of itself. What it does not say is None; the question is then its name."""

    name: str
    question: str
    time: str | None = None
    headline: str | None = None
    picture: str | None = None

    @property
    def number(self) -> str:
        return self.name[:2]


def find_labs(wanted: Iterable[str] = (), folder: Path | None = None) -> list[Path]:
    """The labs asked for by number (`3`, `03`) or full name, each once, in the order of their numbers; default: all.

    `folder` defaults to `labs/` of the clone labkit runs from. RequestError lists what exists when one is unknown.
    """
    folder = folder or require_folder("labs")
    labs = {path.stem: path for path in sorted(folder.glob("*.ipynb")) if _LAB_FILE.fullmatch(path.name)}
    if not labs:
        raise RequestError(f"There is no lab in {folder}: labs are files such as 00_start_here.ipynb.")
    chosen = {_match(text, labs) for text in wanted} or labs.keys()
    return [labs[name] for name in sorted(chosen)]


def _match(text: str, labs: dict[str, Path]) -> str:
    for name in labs:
        if text.removesuffix(".ipynb") == name or (text.isdecimal() and int(text) == int(name[:2])):
            return name
    close = difflib.get_close_matches(text, labs, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(labs)}."
    raise RequestError(f"There is no lab {text!r}: {hint}")


def read_card(lab: Path) -> Card:
    """The lab's card; of a notebook that cannot be read no more than its name."""
    try:
        return card_of(lab.stem, json.loads(lab.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return card_of(lab.stem, {})


def card_of(name: str, notebook: Mapping[str, Any]) -> Card:
    """The card of the lab called `name`, from its notebook as JSON or nbformat holds it."""
    texts = ["".join(cell["source"]) for cell in notebook.get("cells", ()) if cell["cell_type"] == "markdown"]
    title, time = _TITLE.search("\n\n".join(texts)), _TIME.search(texts[0] if texts else "")
    own = notebook.get("metadata", {}).get("labkit", {})
    return Card(
        name=name,
        question=re.sub(r"[`*]", "", title[1]).strip() if title else name[3:].replace("_", " "),
        time=" ".join(time[1].split()) if time else None,
        headline=own.get("headline"),
        picture=own.get("picture"),
    )


def read_parameters(lab: Path) -> dict[str, Any]:
    """Parameter name -> default, from the lab's one cell tagged `parameters`; LabFailed if it has not exactly one."""
    try:
        cells = json.loads(lab.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise LabFailed(f"{lab.name} cannot be read as a notebook: {type(error).__name__}: {error}.") from None
    if len(sources) != 1:
        raise LabFailed(
            f"{lab.name} has {len(sources)} cells tagged 'parameters'; a lab needs exactly one, "
            "or its parameters could not be set."
        )
    try:
        return dict(_assignments(ast.parse(sources[0])))
    except SyntaxError as error:
        raise LabFailed(f"The parameters cell of {lab.name} is not valid Python: {error}.") from None


def _assignments(module: ast.Module) -> Iterable[tuple[str, Any]]:
    for statement in module.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and getattr(statement, "value", None):
                yield target.id, _literal(statement.value)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return COMPUTED
