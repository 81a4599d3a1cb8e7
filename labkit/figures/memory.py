"""Figures of memory Records: bytes by kind, by phase, and memory beside quality."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from labkit.figures.template import KIND_STYLES, METHOD_COLOURS, METHOD_SYMBOLS, METHOD_TITLES, new_figure, sources_of
from labkit.record import PHASES, Record
from labkit.units import axis_unit, format_bytes

FADED = 0.45
LABEL_LETTERS = 12


def label_of(record: Record) -> str:
    return METHOD_TITLES.get(record.case.method, record.case.method)


def unit_of(records: Sequence[Record]) -> tuple[int, str]:
    """The unit (bytes, name) in which the records' peaks are drawn."""
    return axis_unit(max(record.peak_allocated_bytes for record in records))


def broken(label: Any) -> Any:
    """A bar's label in lines short enough for four bars side by side on a phone; a number stays one."""
    return "<br>".join(textwrap.wrap(label, LABEL_LETTERS, break_on_hyphens=False)) if isinstance(label, str) else label


def kind_bars(labels: Sequence, records: Sequence[Record], method: str | None = None) -> dict[str, Any]:
    """What `new_figure` needs to draw a stacked bar per record, one trace per kind that any of them has, each record's
    peak written on top: `data`, `barmode`, `annotations`, `yaxis`. With `method`, all but its bars are faded."""
    labels, (scale, unit) = [broken(label) for label in labels], unit_of(records)
    strengths = [1 if method in (None, record.case.method) else 0 for record in records]
    traces = []
    for kind, (title, colour, pattern) in KIND_STYLES.items():
        sizes = [(record.breakdown or {}).get(kind, 0) for record in records]
        if any(sizes):
            traces.append(
                {
                    "type": "bar",
                    "name": title,
                    "x": labels,
                    "y": [size / scale for size in sizes],
                    "customdata": [format_bytes(size) for size in sizes],
                    "hovertemplate": "%{x}: %{customdata} of " + title + "<extra></extra>",
                    "marker": _fills(colour, strengths) | {"pattern": {"shape": pattern}},
                }
            )
    peaks = [record.peak_allocated_bytes for record in records]
    tops = [
        {"x": label, "y": size / scale, "text": format_bytes(size), "showarrow": False, "yshift": 10}
        for label, size in zip(labels, peaks, strict=True)
    ]
    axis = {"title": {"text": f"{unit} at the peak"}}
    return {"data": traces, "barmode": "stack", "annotations": tops, "yaxis": axis}


def _fills(colour: str, strengths: Sequence[int]) -> dict[str, Any]:
    """A bar's fill in `colour` where its strength is 1, faded where it is 0; outlines keep theirs. A scale, because the
    legend shows its middle, but of a list of colours the first bar's."""
    faded = "rgba({}, {}, {}, {})".format(*bytes.fromhex(colour[1:]), FADED)
    return {"color": list(strengths), "cmin": 0, "cmax": 1, "colorscale": [[0, faded], [0.5, colour], [1, colour]]}


def memory_by_kind(records: Sequence[Record], labels: Sequence[str] | None = None) -> go.Figure:
    """Stacked bars: what the bytes of each record's peak are. Labels default to the methods' names."""
    labels = labels or [label_of(record) for record in records]
    return new_figure("What the peak is made of", sources_of(records), **kind_bars(labels, records))


def memory_by_phase(records: Sequence[Record]) -> go.Figure:
    """Grouped bars: the peak of every phase for every method. Loading is a phase of its own, not part of the peak."""
    bars, (scale, unit) = [], unit_of(records)
    for record in records:
        sizes = [record.phases.get(phase, 0) for phase in PHASES]
        bars.append(
            {
                "type": "bar",
                "name": label_of(record),
                "x": list(PHASES),
                "y": [size / scale for size in sizes],
                "customdata": [format_bytes(size) for size in sizes],
                "hovertemplate": "%{x}: %{customdata}",
                "marker": {"color": METHOD_COLOURS[record.case.method]},
            }
        )
    axis = {"title": {"text": f"peak in {unit}"}}
    return new_figure("The peak of every phase", sources_of(records), data=bars, barmode="group", yaxis=axis)


def loss_curves(losses: Mapping[str, Sequence[float]], subtitle: str) -> go.Figure:
    """Training loss by step, one line per method. `subtitle`: the setting, and the source as `source_of` puts it."""
    lines = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": METHOD_TITLES[method],
            "x": list(range(1, len(values) + 1)),
            "y": list(values),
            "line": {"color": METHOD_COLOURS[method]},
        }
        for method, values in losses.items()
    ]
    whole_steps = {"dtick": 1} if max(map(len, losses.values())) < 10 else {}
    axes = {"xaxis": {"title": {"text": "step"}} | whole_steps, "yaxis": {"title": {"text": "nats per target token"}}}
    return new_figure("Training loss", subtitle, height=380, data=lines, showlegend=True, **axes)


def memory_and_quality(records: Sequence[Record], scores: Mapping[str, float], setting: str) -> go.Figure:
    """One point per method: peak memory across, exact match after training up, as shares of 1.

    `setting`: which model was trained on what, and how; the subtitle adds whose memory it is, and its source.
    """
    scale, unit = unit_of(records)
    model = records[0].case.model
    points = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": METHOD_TITLES[record.case.method],
            "x": [record.peak_allocated_bytes / scale],
            "y": [100 * scores[record.case.method]],
            "marker": {
                "size": 14,
                "color": METHOD_COLOURS[record.case.method],
                "symbol": METHOD_SYMBOLS[record.case.method],
            },
        }
        for record in records
    ]
    return new_figure(
        "Memory without quality is half the truth",
        f"exact match: {setting}; peak: {model if isinstance(model, str) else 'own model'}, {sources_of(records)}",
        height=380,
        data=points,
        xaxis={"title": {"text": f"peak allocated, {unit}"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "exact match, %"}, "range": [-5, 105]},
    )
