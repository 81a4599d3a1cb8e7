"""One progress bar for long work: a widget in JupyterLab, a line on standard error in a terminal."""

import os
import sys
from collections.abc import Iterable


def progress(items: Iterable | None, description: str, unit: str = "it", **more):
    """A tqdm bar around `items`, or one moved by hand; `more` goes to tqdm: `total`, `unit_scale`, ...

    Headless runs (papermill) and redirected terminals get rare plain lines.
    """
    from tqdm import auto, std

    in_notebook = "ipykernel" in sys.modules
    if os.environ.get("LABKIT_HEADLESS") or not (in_notebook or sys.stderr.isatty()):
        stream = sys.stdout if in_notebook else sys.stderr  # a saved page shows standard error as if it were an error
        return std.tqdm(items, desc=description, unit=unit, mininterval=15, file=stream, ascii=True, **more)
    return auto.tqdm(items, desc=description, unit=unit, mininterval=0.2, **more)
