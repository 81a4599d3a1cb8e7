"""Rows of a table in a file: JSON lines, a JSON array, CSV, Parquet. Each comes with its place, so that errors name it.

Text stays text: a CSV reader that guesses types would turn the expression `7` into a number and `None` into nothing.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from labkit.errors import RequestError

Rows = Iterator[tuple[str, Mapping]]


def rows_of(path: Path, label: str) -> Rows:
    """(place, row) of each row of a file, which messages call `label`. RequestError where it is broken."""
    try:
        yield from READERS[path.suffix](path, label)
    except OSError as error:
        raise RequestError(f"{label} cannot be read: {error.strerror or error}.") from None


def _json(path: Path, label: str) -> Rows:
    """An array of objects, or lines of them all the same."""
    content = path.read_bytes()
    if content.lstrip()[:1] != b"[":
        yield from _json_lines(path, label)
        return
    for number, row in enumerate(_parsed(content, label), start=1):
        yield _object(row, f"{label}, row {number}")


def _json_lines(path: Path, label: str) -> Rows:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{label}, line {number}"
                yield _object(_parsed(line, place), place)


def _parsed(text: bytes, place: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{place}: not a JSON object ({error}).") from None


def _object(value, place: str) -> tuple[str, Mapping]:
    if not isinstance(value, dict):
        raise RequestError(f"{place}: a {type(value).__name__}, where an object is wanted.")
    return place, value


def _csv(path: Path, label: str) -> Rows:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        lines = csv.reader(stream, strict=True)
        try:
            header = next(lines, [])
            for number, cells in enumerate(filter(None, lines), start=1):
                place = f"{label}, row {number}"
                if len(cells) != len(header):
                    raise RequestError(f"{place}: has {len(cells)} cells, where the header has {len(header)}.")
                yield place, dict(zip(header, cells, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise RequestError(f"{label} is not a CSV table: {error} (line {lines.line_num}).") from None


def _parquet(path: Path, label: str) -> Rows:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{label}, row {number}", row
    except ArrowException as error:
        raise RequestError(f"{label} is not a Parquet table: {error}.") from None


READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
