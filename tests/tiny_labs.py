"""Small notebooks for the tests of what runs notebooks."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}


def write_lab(
    path: Path, *sources: str, parameters: str | None = "preset = 'quick'\nrank = 8", text: str = "", **labkit: str
) -> Path:
    """A lab with a title, a parameters cell (None: without) and one code cell per source, named cell-0, cell-1, ...

    `text` replaces the title's cell; `labkit` is the lab's metadata of that name.
    """
    text = text or f"# {path.stem}\n\nSome text, and $W + \\frac{{\\alpha}}{{r}} BA$."
    cells = [new_markdown_cell(text, id="title")]
    if parameters is not None:
        cells.append(new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(source, id=f"cell-{number}") for number, source in enumerate(sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(
        new_notebook(cells=cells, metadata={"kernelspec": KERNEL} | ({"labkit": labkit} if labkit else {})), path
    )
    return path
