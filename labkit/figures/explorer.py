"""The explorer of lab 03: memory of the three methods above what alpha does to a trained adapter."""

from collections.abc import Iterator, Mapping, Sequence

import plotly.graph_objects as go

from labkit.figures.memory import kind_bars, label_of
from labkit.figures.template import METHOD_COLOURS, METHOD_TITLES, new_figure, sources_of
from labkit.record import Record

ALPHA_AXIS = {"type": "log", "dtick": 0.30103 * 2, "title": {"text": "alpha"}}  # a tick at every power of 4


def explorer(records: Sequence[Record], method: str, alpha: float, curves: Mapping) -> go.Figure:
    """Above: bytes by kind of `records`, one bar per method, `method` in full colour. Below: loss and update norm of
    each trained adapter over alpha (`curves`: method -> AlphaCurve), with `alpha` marked on those of `method`."""
    bars = kind_bars([label_of(record) for record in records], records, method)
    bars["yaxis"]["domain"] = [0.5, 1]
    for name, curve in sorted(curves.items(), key=lambda item: item[0] == method):  # the chosen one on top
        bars["data"] += _curve(name, curve, alpha if name == method else None)
    return new_figure(
        _title(records[0].case, method, alpha),
        f"bytes: {sources_of(records)}; loss and norm: {sources_of(curves.values())}",
        height=620,
        **bars,
        xaxis2=ALPHA_AXIS | {"domain": [0, 0.39], "anchor": "y2"},
        yaxis2={"domain": [0, 0.36], "anchor": "x2", "title": {"text": "nats per token"}},
        xaxis3=ALPHA_AXIS | {"domain": [0.61, 1], "anchor": "y3"},
        yaxis3={"domain": [0, 0.36], "anchor": "x3", "title": {"text": "update norm"}, "type": "log", "dtick": 1},
    )


def _title(case, method: str, alpha: float) -> str:
    return (
        f"{METHOD_TITLES[method]}: rank {case.rank}, alpha {alpha:g}, {case.batch_size}×{case.sequence_length} tokens"
    )


def _curve(method: str, curve, alpha: float | None) -> Iterator[dict]:
    """Loss and norm of one method; with `alpha`, strong, and marked at the nearest of the curve's alphas."""
    colour, size = METHOD_COLOURS[method], [0] * len(curve.alphas)
    if alpha:
        size[min(range(len(size)), key=lambda i: abs(curve.alphas[i] - alpha))] = 9
    for axis, values, unit in (("2", curve.losses, "nats per token"), ("3", curve.norms, "Frobenius norm")):
        yield {
            "type": "scatter",
            "mode": "lines+markers",
            "name": METHOD_TITLES[method],
            "xaxis": f"x{axis}",
            "yaxis": f"y{axis}",
            "x": list(curve.alphas),
            "y": list(values),
            "showlegend": axis == "2",
            "line": {"color": colour, "width": 2 if alpha else 1},
            "marker": {
                "size": [5 + extra for extra in size],
                "symbol": ["diamond" if extra else "circle" for extra in size],
                "opacity": 1,
            },
            "hovertemplate": f"alpha %{{x}}: %{{y:.3g}} {unit}",
        }
