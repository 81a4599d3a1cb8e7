"""One progress bar for long work: a widget in JupyterLab, a line on standard error in a terminal."""

import os
import sys
from collections.abc import Iterable


def progress(items: Iterable, description: str, unit: str = "it"):
    """Wrap `items` in a tqdm bar. Headless runs (papermill) and redirected terminals get rare plain lines."""
    from tqdm import auto, std

    headless = bool(os.environ.get("LABKIT_HEADLESS"))
    if headless or ("ipykernel" not in sys.modules and not sys.stderr.isatty()):
        return std.tqdm(items, desc=description, unit=unit, mininterval=15, file=sys.stderr, ascii=True)
    return auto.tqdm(items, desc=description, unit=unit, mininterval=0.2)
