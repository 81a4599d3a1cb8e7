"""Figures of memory Records: bytes by kind, by phase, and memory beside quality."""

from collections.abc import Sequence

import plotly.graph_objects as go

from labkit.figures.template import KIND_STYLES, METHOD_COLOURS, METHOD_TITLES, new_figure, source_of
from labkit.record import PHASES, Record
from labkit.units import MIB, format_bytes


def sources_of(records: Sequence[Record]) -> str:
    """The distinct sources of `records`, for a subtitle."""
    return "; ".join(dict.fromkeys(source_of(record) for record in records))


def label_of(record: Record) -> str:
    return METHOD_TITLES.get(record.case.method, record.case.method)


def kind_traces(labels: Sequence, records: Sequence[Record]) -> list[go.Bar]:
    """One stacked bar per record, one trace per kind that any of them has; heights in MiB."""
    traces = []
    for kind, (title, colour, pattern) in KIND_STYLES.items():
        sizes = [(record.breakdown or {}).get(kind, 0) for record in records]
        if any(sizes):
            traces.append(
                go.Bar(
                    name=title,
                    x=list(labels),
                    y=[size / MIB for size in sizes],
                    customdata=[format_bytes(size) for size in sizes],
                    hovertemplate="%{x}: %{customdata} of " + title + "<extra></extra>",
                    marker={"color": colour, "pattern": {"shape": pattern}},
                )
            )
    return traces


def write_peaks(figure: go.Figure, labels: Sequence[str], records: Sequence[Record], **place) -> None:
    """Write each record's peak on top of its bar. `place`: row and column of a subplot."""
    for label, record in zip(labels, records, strict=True):
        size = record.peak_allocated_bytes
        figure.add_annotation(x=label, y=size / MIB, text=format_bytes(size), showarrow=False, yshift=10, **place)


def memory_by_kind(records: Sequence[Record], labels: Sequence[str] | None = None) -> go.Figure:
    """Stacked bars: what the bytes of each record's peak are. Labels default to the methods' names."""
    labels = labels or [label_of(record) for record in records]
    figure = new_figure("What the peak is made of", sources_of(records))
    figure.add_traces(kind_traces(labels, records))
    figure.update_layout(barmode="stack", yaxis_title="MiB at the peak")
    write_peaks(figure, labels, records)
    return figure


def memory_by_phase(records: Sequence[Record]) -> go.Figure:
    """Grouped bars: the peak of every phase for every method. Loading is a phase of its own, not part of the peak."""
    figure = new_figure("The peak of every phase", sources_of(records))
    for record in records:
        sizes = [record.phases.get(phase, 0) for phase in PHASES]
        figure.add_bar(
            name=label_of(record),
            x=list(PHASES),
            y=[size / MIB for size in sizes],
            customdata=[format_bytes(size) for size in sizes],
            hovertemplate="%{x}: %{customdata}",
            marker_color=METHOD_COLOURS[record.case.method],
        )
    figure.update_layout(barmode="group", yaxis_title="peak in MiB", legend_traceorder="normal")
    return figure


def loss_curves(losses: dict[str, Sequence[float]], subtitle: str) -> go.Figure:
    """Training loss by step, one line per method."""
    figure = new_figure("Training loss", subtitle, height=360)
    for method, values in losses.items():
        figure.add_scatter(
            name=METHOD_TITLES[method],
            x=list(range(1, len(values) + 1)),
            y=list(values),
            mode="lines",
            line={"color": METHOD_COLOURS[method]},
        )
    figure.update_layout(xaxis_title="step", yaxis_title="nats per target token", legend_traceorder="normal")
    return figure


def memory_and_quality(records: Sequence[Record], scores: dict[str, float], subtitle: str) -> go.Figure:
    """One point per method: peak memory across, exact match after training up."""
    figure = new_figure("Memory without quality is half the truth", subtitle, height=360)
    for record in records:
        method = record.case.method
        figure.add_scatter(
            name=METHOD_TITLES[method],
            x=[record.peak_allocated_bytes / MIB],
            y=[100 * scores[method]],
            mode="markers+text",
            text=[METHOD_TITLES[method]],
            textposition="top center",
            showlegend=False,
            marker={"size": 14, "color": METHOD_COLOURS[method]},
        )
    figure.update_layout(
        xaxis={"title": "peak allocated, MiB", "rangemode": "tozero"},
        yaxis={"title": "exact match, %", "range": [0, 110]},
    )
    return figure
