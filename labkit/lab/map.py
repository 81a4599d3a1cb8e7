"""The map of labs inside a notebook: a card for each lab that exists, as HTML that needs no script and no network."""

import base64
import html
from pathlib import Path

from labkit.lab.catalog import Card, find_labs, read_card
from labkit.machine import repository_root

RECORDED = "a recorded picture, not this run; its date is in it"
# Inline, because JupyterLab and saved pages keep styles of elements, and no colour but a grey that reads on any theme.
_GRID = "display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); gap: 1rem;"
_CARD = "border: 1px solid rgba(128,128,128,.5); border-radius: 6px; padding: .75rem; min-width: 0;"
_LINK = "display: block; min-height: 44px; font-weight: 600;"
_PICTURE = "display: block; width: 100%; height: auto; margin: .5rem 0 0;"


def map_of_labs() -> None:
    """Show a card for every lab: number, question, time, a stored picture where there is one, a link to its notebook.

    The picture of lab NN is `assets/lab-NN.png`, recorded when the lab was written, and its caption says so; the date
    stands in the picture. Links are relative to the folder of the labs.
    """
    from IPython.display import HTML, display

    cards = "".join(_card(read_card(lab), repository_root() / "assets") for lab in find_labs())
    display(HTML(f'<div class="labkit-map" role="list" aria-label="Map of the labs" style="{_GRID}">{cards}</div>'))


def _card(card: Card, pictures: Path) -> str:
    question = html.escape(f"{card.number} {card.question}")
    time = f"<div><small>{html.escape(card.time)}</small></div>" if card.time else ""
    return (
        f'<div role="listitem" style="{_CARD}"><a href="{html.escape(card.name)}.ipynb" style="{_LINK}">{question}</a>'
        f"{time}{_picture(card, pictures / f'lab-{card.number}.png')}</div>"
    )


def _picture(card: Card, path: Path) -> str:
    if not path.is_file():
        return ""
    address = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    alternative = html.escape(f"Picture of lab {card.number}, recorded earlier: {card.question}")
    return f'<img src="{address}" alt="{alternative}" style="{_PICTURE}"><small>{RECORDED}</small>'
