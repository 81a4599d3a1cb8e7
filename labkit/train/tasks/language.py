"""The expression language: its operators, functions and methods, and the limits they keep.

Each table maps a name or a syntax node to the function that does it. What could make a large value from small ones
(`**`, `*` on a sequence, padding, rounding) checks the size of its result before making it.
"""

import ast
import operator
from collections.abc import Callable

from labkit.errors import RequestError

MAX_SOURCE_CHARACTERS = 400
MAX_NESTING = 32  # syntax nodes; evaluating one takes about four Python frames, of the 1,000 that Python allows
MAX_SIZE = 2_000  # of one value, in the units of `size_of`
MAX_OPERATIONS = 10_000  # the sum of all sizes in one evaluation
MAX_INTEGER_BITS = 4_096
VALUES = (int, float, str, bool, type(None), list, tuple, set, dict, range)
VIEWS = (type({}.keys()), type({}.values()), type({}.items()))


class ExpressionRefused(RequestError):
    """The expression is outside the language, over a limit, or fails when evaluated; the message says which."""


def size_of(value: object) -> int:
    """Units of a value: 1, plus its characters, its items with their contents, or its blocks of 64 bits.

    Raises ExpressionRefused for what is not data, and as soon as `MAX_SIZE` or `MAX_INTEGER_BITS` is passed.
    """
    size = 1
    if type(value) not in VALUES:
        raise ExpressionRefused(f"a value of type {type(value).__name__} is outside the language")
    if isinstance(value, int):
        size += value.bit_length() // 64
        limit(value.bit_length(), MAX_INTEGER_BITS, "bits in an integer")
    elif isinstance(value, str | range):
        size += len(value)
    elif isinstance(value, list | tuple | set | dict):
        for item in value.items() if isinstance(value, dict) else value:
            size += size_of(item)
            limit(size, MAX_SIZE, "units in a value")
    limit(size, MAX_SIZE, "units in a value")
    return size


def limit(amount: int, most: int, what: str) -> None:
    """Raise ExpressionRefused if `amount` is above `most`."""
    if amount > most:
        raise ExpressionRefused(f"more than {most:,} {what}")


def multiply(left, right):
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(count, int):
            limit(size_of(sequence) * count, MAX_SIZE, "units in a value")
    return left * right


def power(base, exponent):
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1:
        limit(base.bit_length() * exponent, MAX_INTEGER_BITS, "bits in an integer")
    return base**exponent


def modulo(left, right):
    if isinstance(left, str):  # '%999999999d' % 1
        raise ExpressionRefused("% formatting is outside the language")
    return left % right


def rounded(number, digits=None):
    if digits is not None:  # round(1, -n) computes 10**n
        limit(abs(digits), MAX_SIZE, "digits to round to")
    return round(number, digits)


def _padding(method: Callable) -> Callable:
    def pad(text, width, *fill):
        limit(width, MAX_SIZE, "characters of padding")
        return method(text, width, *fill)

    return pad


BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: multiply, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: modulo, ast.Pow: power, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor,
}  # fmt: skip
UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Not: operator.not_}
COMPARE = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda item, group: item in group,
    ast.NotIn: lambda item, group: item not in group,
}  # fmt: skip
FUNCTIONS: dict[str, Callable] = {
    function.__name__: function
    for function in (
        abs, all, any, bin, bool, chr, dict, divmod, enumerate, float, hex, int, len, list, max, min, ord, range,
        reversed, set, sorted, str, sum, tuple, zip,
    )
} | {"pow": power, "round": rounded}  # fmt: skip
METHOD_NAMES = {
    str: "capitalize count endswith find index isalnum isalpha isdigit islower isspace istitle isupper join lower "
    "lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines "
    "startswith strip swapcase title upper",
    list: "copy count index",
    tuple: "count index",
    dict: "copy get items keys values",
    set: "copy difference intersection isdisjoint issubset issuperset symmetric_difference union",
}
METHODS = {kind: {name: getattr(kind, name) for name in names.split()} for kind, names in METHOD_NAMES.items()}
METHODS[str] |= {name: _padding(getattr(str, name)) for name in ("center", "ljust", "rjust", "zfill")}
