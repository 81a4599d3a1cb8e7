"""Which labs there are, and which parameters each takes: read from the notebooks, nothing is run."""

import ast
import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from labkit.errors import LabFailed, RequestError
from labkit.machine import require_folder

_LAB_FILE = re.compile(r"\d\d_\w+\.ipynb")
COMPUTED = object()
"""Stands for the default of a parameter that is not a literal."""


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
