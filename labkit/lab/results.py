"""How a result leaves a notebook: one display output of a MIME type of our own, for people and for the runner alike.

A live kernel may emit the same name again (cells are re-run while learning); the runner refuses a *finished* notebook
in which a name occurs twice.
"""

import json
import math
from typing import Any

from labkit.errors import RequestError
from labkit.units import format_bytes

MIME = "application/vnd.labkit.result+json"
CALLBACK_ERROR = "labkit-callback-error"
"""CSS class of the line in which a widget shows its callback's exception; the runner fails a lab that holds one."""


def emit(name: str, value: Any, unit: str | None = None, tolerance: float | None = None) -> None:
    """Show `name = value unit` below the cell and leave it in the notebook for the runner.

    `value`: anything JSON can hold (text, true or false, null, finite numbers, lists and objects of these).
    `unit`: the unit of `value` in plain text, such as `bytes` or `seconds`.
    `tolerance`: how far another run may lie from this one, as a fraction of the value (0.05 = 5 %); 0 means equal.
    Raises RequestError for a value JSON cannot hold (a tensor, NaN) and for a tolerance that is not a number >= 0.
    """
    from IPython.display import display

    result = {"name": name, "value": _plain(name, value), "unit": unit, "tolerance": tolerance}
    if not isinstance(name, str) or not name.strip():
        raise RequestError(f"emit({name!r}, ...): a result needs a name in text, such as 'peak_allocated_bytes'.")
    if unit is not None and not isinstance(unit, str):
        raise RequestError(f"emit({name!r}, ..., unit={unit!r}): a unit is text, such as 'bytes'.")
    if tolerance is not None and not _is_fraction(tolerance):
        raise RequestError(f"emit({name!r}, ..., tolerance={tolerance!r}): a tolerance is a number of at least 0.")
    display({MIME: result, "text/plain": f"{name} = {show(result)}"}, raw=True)


def show(result: dict[str, Any]) -> str:
    """A result's value and unit as people read them: `{"value": 1536, "unit": "bytes"} -> '1,536 bytes (1.50 KiB)'`."""
    value, unit = result["value"], result.get("unit")
    text = written(value)
    if unit == "bytes" and isinstance(value, int | float) and value >= 1024:
        text += f" bytes ({format_bytes(round(value))})"
    elif unit:
        text += f" {unit}"
    return text


def written(value: Any) -> str:
    """A value as people read it: thousands separated, six digits of a fraction, JSON for what is no number or text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _plain(name: str, value: Any) -> Any:
    """The value as it will be read back, or RequestError."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except ValueError:
        raise RequestError(
            f"emit({name!r}, {value!r}): NaN and infinity cannot be compared; emit null or text."
        ) from None
    except TypeError:
        raise RequestError(
            f"emit({name!r}, ...): a {type(value).__name__} cannot be written as JSON; "
            "emit a plain number, text, list or dict, such as float(x) or x.tolist()."
        ) from None


def _is_fraction(tolerance: Any) -> bool:
    number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    return number and math.isfinite(tolerance) and tolerance >= 0
