"""The explorer of lab 03: memory of the three methods beside what alpha does to a trained adapter."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from labkit.figures.memory import kind_traces, label_of, write_peaks
from labkit.figures.template import METHOD_COLOURS, METHOD_TITLES, new_figure, source_of
from labkit.record import Record

FADED = 0.45


def explorer(records: Sequence[Record], method: str, alpha: float, curves: Mapping) -> go.Figure:
    """Left: bytes by kind of `records`, one bar per method, `method` in full colour. Right: loss and update norm of
    each trained adapter over alpha (`curves`: method -> AlphaCurve), with `alpha` marked on those of `method`."""
    grid = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"rowspan": 2}, {}], [None, {}]],
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.13,
        vertical_spacing=0.16,
        subplot_titles=("peak memory (does not depend on alpha)", "validation loss", "norm of the update"),
    )
    heading = new_figure(_title(records, method, alpha), source_of(records[0]), height=480)
    grid.update_layout(
        template=heading.layout.template, title=heading.layout.title, height=500, barmode="stack", margin_t=120
    )
    labels = [label_of(record) for record in records]
    opacities = [1 if record.case.method == method else FADED for record in records]
    for trace in kind_traces(labels, records):
        grid.add_trace(trace.update(marker_opacity=opacities), row=1, col=1)
    write_peaks(grid, labels, records, row=1, col=1)
    for name, curve in curves.items():
        _add_curve(grid, name, curve, alpha if name == method else None)
    return _with_axes(grid)


def _title(records: Sequence[Record], method: str, alpha: float) -> str:
    case = records[0].case
    return (
        f"rank {case.rank}, alpha {alpha:g}, batch {case.batch_size} x {case.sequence_length} tokens: "
        f"{METHOD_TITLES[method]}"
    )


def _add_curve(grid: go.Figure, method: str, curve, alpha: float | None) -> None:
    colour = METHOD_COLOURS[method]
    for row, values, unit in ((1, curve.losses, "nats per token"), (2, curve.norms, "Frobenius norm")):
        grid.add_trace(
            go.Scatter(
                x=curve.alphas,
                y=values,
                mode="lines+markers",
                name=METHOD_TITLES[method],
                showlegend=False,
                line={"color": colour, "width": 2 if alpha else 1},
                opacity=1 if alpha else FADED,
                hovertemplate=f"alpha %{{x}}: %{{y:.3g}} {unit}",
            ),
            row=row,
            col=2,
        )
        if alpha:
            nearest = min(range(len(curve.alphas)), key=lambda i: abs(curve.alphas[i] - alpha))
            grid.add_trace(
                go.Scatter(
                    x=[curve.alphas[nearest]],
                    y=[values[nearest]],
                    mode="markers",
                    showlegend=False,
                    marker={"color": colour, "size": 15, "symbol": "diamond"},
                    name=f"alpha {alpha:g}",
                ),
                row=row,
                col=2,
            )


def _with_axes(grid: go.Figure) -> go.Figure:
    grid.update_yaxes(title_text="MiB at the peak", row=1, col=1)
    grid.update_yaxes(title_text="nats per token", row=1, col=2)
    grid.update_yaxes(title_text="Frobenius norm", type="log", row=2, col=2)
    for row in (1, 2):
        grid.update_xaxes(type="log", dtick=0.30103 * 2, row=row, col=2)
    grid.update_xaxes(title_text="alpha", row=2, col=2)
    grid.update_layout(legend={"orientation": "h", "y": -0.12, "traceorder": "normal"})
    return grid
