"""The numbers of a figure as tables in HTML, for a page without JavaScript, and for who cannot see the picture.

The same tables as those of the live figures (`widgets/numbers.js`), made from the figure's own traces.
"""

import base64
import html
import re
from collections.abc import Mapping
from typing import Any

from labkit.runner.collect import plain_text

LARGEST_TABLE = 200  # rows
_LINE_BREAK = re.compile(r"<br\s*/?>")


def numbers_of(figure: Mapping[str, Any]) -> str:
    """A closed `<details>` with a table per pair of axes: a row for each x, a column for each trace. Empty for a figure
    without numbers. A heatmap has a row for each y, a column for each x."""
    tables: dict[Any, list[Mapping[str, Any]]] = {}
    for place, trace in enumerate(figure.get("data", [])):
        axes = (trace.get("xaxis", "x"), trace.get("yaxis", "y"), trace.get("orientation", "v"))
        tables.setdefault(place if "z" in trace else axes, []).append(trace)
    drawn = "".join(_table(traces, figure.get("layout", {})) for traces in tables.values())
    summary = "<summary>The numbers in this figure</summary>"
    return f'<details class="labkit-numbers">{summary}{drawn}</details>' if drawn else ""


def _table(traces: list[Mapping[str, Any]], layout: Mapping[str, Any]) -> str:
    first, lies = traces[0], traces[0].get("orientation") == "h" or "z" in traces[0]
    along, up = ("y", "x") if lies else ("x", "y")
    titles = [_axis_title(layout, letter, first) for letter in (along, up)]
    if "z" in first:
        names, rows = _list(first.get("x")), list(enumerate(_list(first["z"])))
        names, places = names or list(range(len(rows[0][1]) if rows else 0)), _list(first.get("y"))
        rows = [(places[index] if places else index, list(values)) for index, values in rows]
    else:
        names = [trace.get("name") or titles[1] for trace in traces]
        rows = _rows(traces, along, up)
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{_shown(name)}</th>' for name in [titles[0], *names])
    body = "".join(_row(place, values) for place, values in rows[:LARGEST_TABLE])
    left = f", the first {LARGEST_TABLE} of {len(rows)} rows" if len(rows) > LARGEST_TABLE else ""
    caption = html.escape(" by ".join(filter(None, reversed(titles))) + left)
    return f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>"


def _rows(traces: list[Mapping[str, Any]], along: str, up: str) -> list[tuple[Any, list]]:
    """(x, the traces' values there); an x used twice in a trace has two rows."""
    rows: dict[tuple[Any, int], list] = {}
    for column, trace in enumerate(traces):
        values, places, times = _list(trace.get(up)), _list(trace.get(along)), {}
        for place, value in zip(places or range(len(values)), values, strict=False):
            times[place] = times.get(place, 0) + 1
            rows.setdefault((place, times[place]), [None] * len(traces))[column] = value
    return [(place, values) for (place, _), values in rows.items()]


def _row(place: Any, values: list) -> str:
    cells = "".join(f"<td>{_shown(value)}</td>" for value in values)
    return f'<tr><th scope="row">{_shown(place)}</th>{cells}</tr>'


def _list(values: Any) -> list:
    """A trace's array: a list, or plotly's `{dtype, bdata, shape}` with base64 inside."""
    if not isinstance(values, Mapping):
        return list(values if values is not None else ())
    import numpy

    found = numpy.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    shape = values.get("shape")
    return (found.reshape([int(size) for size in str(shape).split(",")]) if shape else found).tolist()


def _axis_title(layout: Mapping[str, Any], letter: str, trace: Mapping[str, Any]) -> str:
    axis = layout.get(f"{letter}axis{trace.get(f'{letter}axis', letter)[1:]}") or {}
    title = axis.get("title") or {}
    return plain((title.get("text") if isinstance(title, Mapping) else title) or "")


def plain(text: str) -> str:
    """The text without markup, on one line."""
    return " ".join(plain_text(_LINE_BREAK.sub(" ", str(text))).split())


def _shown(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else html.escape(plain("" if value is None else value))
