"""`labkit measure`: measure one Case in a fresh process."""

import argparse
import json
import os
import sys
from pathlib import Path

from labkit.errors import RequestError


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "measure", help="measure a case's memory and speed in a fresh process", allow_abbrev=False
    )
    parser.add_argument("--case", metavar="FILE", required=True, help="a case as JSON; - reads standard input")
    parser.add_argument("--out", metavar="FILE", type=Path, help="append the record to this .jsonl file")
    parser.add_argument("--json", action="store_true", help="print the record as one JSON object")


def read_case(where: str):
    """The Case in file `where` ('-': standard input). RequestError for a missing file or a bad case."""
    from labkit.case import Case

    if where == "-":
        return Case.from_json(sys.stdin.read())
    try:
        return Case.from_json(Path(where).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RequestError(f"The case file {where!r} cannot be read: {reason}.") from None


def run(options: argparse.Namespace) -> int:
    """Print the record; 1 if the step did not fit or failed."""
    case = read_case(options.case)
    from labkit.models import check_available

    check_available(case.model)
    if options.out:
        _require_writable(options.out)
    print(f"Measuring {case.method} on {case.model}: importing torch, then a few steps ...", file=sys.stderr)
    from labkit.memory.measure import measure
    from labkit.record import append

    record = measure(case)
    print(json.dumps(record.to_dict()) if options.json else describe(record))
    if options.out:
        append(options.out, [record])
    return 0 if record.outcome == "ok" else 1


def _require_writable(out: Path) -> None:
    """RequestError before measuring, not after, where the record could not be kept."""
    if out.is_dir():
        raise RequestError(f"--out {out} is a folder; give a file in it, such as {out / 'measured.jsonl'}.")
    if not out.parent.is_dir():
        raise RequestError(f"--out {out} cannot be written: there is no folder {out.parent}.")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise RequestError(f"--out {out} cannot be written: permission is denied; choose another place.")


def describe(record) -> str:
    """A record in a few lines."""
    from labkit.units import format_bytes, format_seconds

    lines = [f"{record.outcome}: {record.case.method} on {record.case.model}, {record.meter} on {record.device}"]
    if record.outcome != "ok":
        return f"{lines[0]}\n  {record.scores.get('error', '')}"
    counters = ("peak_allocated", "peak_reserved", "device_used", "managed", "host_rss", "after_load")
    lines += [
        f"  {name.replace('_', ' '):<16}{format_bytes(getattr(record, f'{name}_bytes')):>12}" for name in counters
    ]
    lines += [f"  peak in {phase:<12}{format_bytes(size):>9}" for phase, size in record.phases.items()]
    lines += [
        f"  {kind.replace('_', ' '):<24}{format_bytes(size):>9}" for kind, size in record.breakdown.items() if size
    ]
    if record.seconds:
        lines.append(f"  {format_seconds(record.seconds)} per step, {record.tokens_per_second:,.0f} tokens per second")
    return "\n".join(lines)
