"""One plotly template and one colour for one thing, everywhere.

Colours are Okabe and Ito's (methods) and Paul Tol's "bright" (kinds of memory; its green, too near its blue for
tritanopes, is ColorBrewer's "paired" one). A test simulates three kinds of colour blindness on them. Kinds that belong
together share a hue and differ by a pattern. Bars have a grey outline, so that pale ones stand out from white and dark
ones from black. Backgrounds are transparent; live figures and pages write in the theme's own colour. A plain `.show()`
does not know the theme and writes in the grey that stands out best from both, 4.3 to 1: none reaches 4.5 on both.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

GREY, GRID = "#7A7A7A", "rgba(128,128,128,.25)"
METHOD_COLOURS = {"full": "#D55E00", "lora": "#0072B2", "qlora": "#009E73"}
METHOD_SYMBOLS = {"full": "square", "lora": "circle", "qlora": "diamond"}
METHOD_TITLES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
BLUE, CYAN, GREEN, YELLOW = "#4477AA", "#66CCEE", "#33A02C", "#CCBB44"
RED, PURPLE, PALE = "#EE6677", "#AA3377", "#BBBBBB"
KIND_STYLES: dict[str, tuple[str, str, str]] = {  # kind -> title, colour, pattern; in stacking order, bottom first
    "adapters": ("adapters", GREEN, ""),
    "gradients": ("gradients", YELLOW, ""),
    "optimizer_states": ("optimizer states", RED, ""),
    "weights": ("weights", BLUE, ""),
    "upcast_weights": ("upcast weights", BLUE, "/"),
    "packed_weights": ("4- or 8-bit codes", CYAN, ""),
    "quantisation_statistics": ("quantiser statistics", CYAN, "x"),
    "activations": ("activations", PURPLE, ""),
    "logits_and_loss": ("logits and loss", PURPLE, "/"),
    "temporaries": ("temporaries", PALE, ""),
    "workspaces": ("workspaces", PALE, "/"),
    "allocator_slack": ("allocator slack", PALE, "x"),
}
# Lines break so that a title fits a phone: letters of about 8 and 6.5 px in about 330 px.
TITLE_LETTERS, SUBTITLE_LETTERS = 40, 50
TITLE_LINE_PX, SUBTITLE_LINE_PX, MARGIN_PX = 20, 16, 38
SOURCE = re.compile(r"(measured|imported) on .+, \d{4}-\d\d-\d\d|(estimated|predicted) for .+, \d{4}-\d\d-\d\d")


def template() -> go.layout.Template:
    axis = {
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "automargin": True,
        "title": {"standoff": 8},
        "tickfont": {"size": 11},
    }
    layout = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": GREY, "size": 13},
        "title": {
            "x": 0,
            "xref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"l": 8, "t": 20},
            "font": {"size": 16},
        },
        "margin": {"l": 52, "r": 4, "t": 80, "b": 40},
        "xaxis": axis | {"tickangle": 0},
        "yaxis": axis,
        "legend": {
            "orientation": "h",
            "traceorder": "normal",
            "entrywidth": 115,  # pixels: two columns on a phone
            "x": 0,
            "xref": "container",
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "font": {"size": 11},
        },
        "hoverlabel": {"namelength": -1},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        "uirevision": "keep",
    }
    bar = {"marker": {"line": {"color": GREY, "width": 1}}}
    return go.layout.Template(layout=layout, data={"bar": [bar]})


def new_figure(title: str, subtitle: str, height: int = 420, data: Sequence[Any] = (), **layout: Any) -> go.Figure:
    """A figure with the lab's template, in one go: plotly checks each part of one that is built step by step anew.

    `subtitle` says which meter, for which device, when, in the words of `source_of`; ValueError if it does not.
    `data`: traces; `layout`: further keys of plotly's layout; `height` in pixels.
    The subtitle is the title's second line: plotly's own moves above the title when a figure is drawn again.
    """
    if not SOURCE.search(subtitle):
        raise ValueError(f"{title!r}: the subtitle {subtitle!r} names no meter, device and date; see source_of.")
    lines = textwrap.wrap(title, TITLE_LETTERS), _broken(subtitle)
    text = "<br>".join(lines[0]) + f"<br><span style='font-size: 12px'>{'<br>'.join(lines[1])}</span>"
    margin = {"t": MARGIN_PX + TITLE_LINE_PX * len(lines[0]) + SUBTITLE_LINE_PX * len(lines[1])}
    known = {"template": _TEMPLATE, "title": {"text": text}, "height": height, "margin": margin}
    return go.Figure({"data": list(data), "layout": known | layout})


def _broken(subtitle: str) -> list[str]:
    """The subtitle's lines; one that is too long breaks between its parts first, and then within them."""
    if len(subtitle) <= SUBTITLE_LETTERS:
        return [subtitle]
    parts = re.split(r"(?<=;) ", subtitle)
    return [line for part in parts for line in textwrap.wrap(part, SUBTITLE_LETTERS)]


_TEMPLATE = template()


def use_in_notebook() -> None:
    """Make plain plotly figures small and themed: the mimetype renderer never embeds plotly.js."""
    import plotly.io as pio

    pio.templates["labkit"] = _TEMPLATE
    pio.templates.default, pio.renderers.default = "labkit", "plotly_mimetype"
    # plotly.js would show a button that uploads the reader's chart to its makers' server.
    pio.renderers["plotly_mimetype"].config = {"showSendToCloud": False, "displaylogo": False}


def source_of(found: Any) -> str:
    """'measured on cpu, 2026-01-31', from a Record or anything else with a meter, a device and a date of creation."""
    preposition = "on" if found.meter in ("measured", "imported") else "for"
    where = f" {preposition} {found.device}" if found.device else ""
    when = f", {found.created[:10]}" if found.created else ""
    return f"{found.meter}{where}{when}"


def sources_of(found: Iterable[Any]) -> str:
    """The distinct sources of Records, for a subtitle."""
    return "; ".join(dict.fromkeys(map(source_of, found)))
