"""The figure of lab 00: the memory of one step by kind, for every method, against the memory of a card."""

from collections.abc import Sequence

import plotly.graph_objects as go

from labkit.figures.memory import kind_bars, label_of, unit_of
from labkit.figures.template import GREY, METHOD_TITLES, new_figure, sources_of
from labkit.record import Record
from labkit.units import format_bytes

IN_SIGHT = 2.5  # a card of up to so many times the tallest bar is drawn as a line, else it would flatten the bars
HEADROOM = 1.12  # above the highest thing drawn, for what is written on top of a bar
NEAR, CLEAR_PX = 0.08, 24  # a bar that ends so little (of the axis) below the line has its peak written above the line
LINE = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "line": {"color": GREY, "dash": "dash", "width": 2}}
CORNER = {"x": 1, "xref": "paper", "xanchor": "right", "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}


def step_against_card(records: Sequence[Record], method: str, verdict: str, card: str, memory_bytes: int) -> go.Figure:
    """Bars of `records` by kind of memory, that of `method` in full colour, and a line at `card`'s `memory_bytes`.

    `verdict`: whether `method` fits, the title's last words.
    """
    (chosen,) = (record for record in records if record.case.method == method)
    tallest_bytes = max(record.peak_allocated_bytes for record in records)
    drawn, height = memory_bytes <= IN_SIGHT * tallest_bytes, memory_bytes / unit_of(records)[0]
    highest = max(tallest_bytes, memory_bytes if drawn else 0) / unit_of(records)[0]
    bars = kind_bars([label_of(record) for record in records], records, method)
    bars["yaxis"] |= {"range": [0, HEADROOM * highest]}
    for peak in bars["annotations"]:
        peak |= {"yshift": CLEAR_PX} if drawn and 0 <= height - peak["y"] < NEAR * highest else {}
    bars["annotations"] += [CORNER | {"text": f"{'- -' if drawn else '↑'} {card}: {format_bytes(memory_bytes)}"}]
    return new_figure(
        _title(chosen, verdict),
        f"{sources_of(records)}, in {chosen.case.precision}",
        height=460,
        shapes=[LINE | {"y0": height, "y1": height}] if drawn else [],
        **bars,
    )


def _title(record: Record, verdict: str) -> str:
    model = record.case.model if isinstance(record.case.model, str) else record.case.model["model_type"]
    return f"{model}, {METHOD_TITLES[record.case.method]}: {verdict}"
