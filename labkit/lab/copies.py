"""The reader's own copies of the labs: what JupyterLab opens and saves, so that the committed labs never change.

They lie in `work/` of the clone, which git ignores. Beside them, `work/.origin/` remembers each lab as it was copied. A
copy counts as edited when its cells' sources differ from that: running a lab, moving its sliders and saving it is no
edit. An unedited copy follows the lab; an edited one is kept until `reset`.
"""

import json
from datetime import datetime
from itertools import count
from pathlib import Path

from labkit.errors import RequestError
from labkit.lab.catalog import find_labs
from labkit.record import write_atomically

FOLDER, _ORIGINS = "work", ".origin"


def update(labs_folder: Path) -> tuple[list[Path], list[str]]:
    """The copies of all labs, brought up to date, and a sentence for each edited one whose lab is newer than it."""
    copies, notes = [], []
    for lab in find_labs(folder=labs_folder):
        copy, origin = _places(lab)
        edited = copy.is_file() and _is_edited(copy, origin) and _is_edited(copy, lab)
        if not copy.is_file() or (_is_newer(lab, origin) and not edited):
            _take(lab)
        elif _is_newer(lab, origin):
            notes.append(
                f"{lab.name} has changed since you edited your copy, which is kept; "
                f"`labkit lab --reset {lab.name[:2]}` gives you the new one and keeps yours beside it."
            )
        copies.append(copy)
    return copies, notes


def reset(lab: Path) -> str:
    """Replace the copy of `lab` by the lab as it is; an edited one is kept under a dated name. Says what was done."""
    copy, _ = _places(lab)
    edited = copy.is_file() and _is_edited(copy, lab)
    kept = _free_name(copy) if edited else None
    try:
        if kept:
            copy.rename(kept)
    except OSError as error:
        raise RequestError(f"Your copy {copy} cannot be renamed: {error.strerror}; make its folder writable.") from None
    _take(lab)
    place = f"{FOLDER}/{copy.name}"
    return f"{place} is the lab again; your version is {FOLDER}/{kept.name}." if kept else f"{place} is the lab again."


def _places(lab: Path) -> tuple[Path, Path]:
    """Where the lab's copy lies, and the lab as it was when copied."""
    folder = lab.parent.parent / FOLDER
    return folder / lab.name, folder / _ORIGINS / lab.name


def _take(lab: Path) -> None:
    try:
        for place in reversed(_places(lab)):  # a copy without its origin would count as edited
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, lab.read_bytes())
    except OSError as error:
        folder = lab.parent.parent / FOLDER
        raise RequestError(f"{lab.name} cannot be copied to {folder}: {error.strerror}; make it writable.") from None


def _is_newer(lab: Path, origin: Path) -> bool:
    return not origin.is_file() or lab.read_bytes() != origin.read_bytes()


def _is_edited(copy: Path, origin: Path) -> bool:
    sources = _sources(copy)
    return sources is None or sources != _sources(origin)


def _sources(notebook: Path) -> list[tuple[str, str]] | None:
    """Kind and source of every cell; None for what is not there or is no notebook."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _free_name(copy: Path) -> Path:
    stem = f"{copy.stem}.edited-{datetime.now():%Y-%m-%d-%H%M%S}"
    names = (copy.with_name(f"{stem}{f'-{number}' if number else ''}.ipynb") for number in count())
    return next(name for name in names if not name.exists())
