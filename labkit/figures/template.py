"""One plotly template and one colour for one thing, everywhere.

Colours are Okabe and Ito's (methods) and Paul Tol's "bright" (kinds of memory), both made for colour-blind readers;
kinds that belong together share a hue and differ by a pattern. Backgrounds are transparent and text is a grey that
reads on white and on black, so figures follow JupyterLab's theme.
"""

import plotly.graph_objects as go

GREY, GRID = "#808080", "rgba(128,128,128,.25)"
METHOD_COLOURS = {"full": "#D55E00", "lora": "#0072B2", "qlora": "#009E73"}
METHOD_TITLES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
BLUE, CYAN, GREEN, YELLOW = "#4477AA", "#66CCEE", "#228833", "#CCBB44"
RED, PURPLE, PALE = "#EE6677", "#AA3377", "#BBBBBB"
KIND_STYLES: dict[str, tuple[str, str, str]] = {  # kind -> title, colour, pattern; in stacking order, bottom first
    "adapters": ("adapters", GREEN, ""),
    "gradients": ("gradients", YELLOW, ""),
    "optimizer_states": ("optimizer states", RED, ""),
    "weights": ("weights", BLUE, ""),
    "upcast_weights": ("weights upcast to fp32", BLUE, "/"),
    "packed_weights": ("4- or 8-bit codes", CYAN, ""),
    "quantisation_statistics": ("quantisation statistics", CYAN, "x"),
    "activations": ("activations", PURPLE, ""),
    "logits_and_loss": ("logits and loss", PURPLE, "/"),
    "temporaries": ("temporaries", PALE, ""),
    "workspaces": ("workspaces", PALE, "/"),
    "allocator_slack": ("allocator slack", PALE, "x"),
}


def template() -> go.layout.Template:
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "automargin": True, "title": {"standoff": 8}}
    layout = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": GREY, "size": 13},
        "margin": {"l": 60, "r": 20, "t": 80, "b": 50},
        "xaxis": axis,
        "yaxis": axis,
        "legend": {"traceorder": "reversed"},
        "hoverlabel": {"namelength": -1},
        "uirevision": "keep",
    }
    return go.layout.Template(layout=layout)


def new_figure(title: str, subtitle: str, height: int = 420) -> go.Figure:
    """An empty figure with the lab's template. `subtitle` says which meter, on which device, when.

    It is the title's second line: plotly's own subtitle moves above the title when a figure is drawn again.
    """
    text = f"{title}<br><span style='font-size: 12px'>{subtitle}</span>"
    return go.Figure(
        layout={"template": template(), "title": {"text": text, "x": 0, "xref": "paper"}, "height": height}
    )


def use_in_notebook() -> None:
    """Make plain plotly figures small and themed: the mimetype renderer never embeds plotly.js."""
    import plotly.io as pio

    pio.templates["labkit"] = template()
    pio.templates.default, pio.renderers.default = "labkit", "plotly_mimetype"
    # plotly.js would show a button that uploads the reader's chart to its makers' server.
    pio.renderers["plotly_mimetype"].config = {"showSendToCloud": False, "displaylogo": False}


def source_of(record) -> str:
    """'measured on cpu, 2026-01-31', from a Record: what every subtitle says."""
    where = f" on {record.device}" if record.device else ""
    when = f", {record.created[:10]}" if record.created else ""
    return f"{record.meter}{where}{when}"
