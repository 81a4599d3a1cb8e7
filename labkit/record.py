"""What a meter returns, and the files of lines that keep it.

A `Record` holds a Case, what the meter found, and where the finding comes from; it is one line of JSON in
`data/measurements/<device>/<yyyy-mm-dd>-<suite>.jsonl`. Unknown is null (an empty mapping in Python), never a guess.
Files only grow, by whole lines under a lock; a line torn by a crash is reported by `read` and skipped, and the next
`append` ends it first, so that it never swallows a good one.
"""

import datetime
import json
import math
import os
import threading
import uuid
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from labkit import machine
from labkit.case import Case, Trial
from labkit.errors import RequestError

SCHEMA = 1
CHOICES = {
    "meter": ("measured", "predicted", "estimated", "imported"),
    "kind": ("memory", "training", "latency", "paging", "quantisation"),
    "outcome": ("ok", "oom", "refused", "failed"),
}
PHASES = ("load", "forward", "backward", "optimizer")
BREAKDOWN = (
    "weights", "packed_weights", "quantisation_statistics", "upcast_weights", "adapters", "gradients",
    "optimizer_states", "activations", "logits_and_loss", "temporaries", "workspaces", "allocator_slack",
)  # fmt: skip


class TornLine(UserWarning):
    """A line of a file of Records that cannot be read and was skipped."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finding. Bytes are ints, times are seconds; the field names are the project's contract.

    Peaks are over the steps, load excluded. `phases`: peak allocated bytes while each of PHASES ran. `breakdown`: bytes
    per item of BREAKDOWN, summing exactly to `peak_allocated_bytes`. `id` is random: the same Case measured twice makes
    two Records. `created` is ISO 8601. RequestError names every field that cannot be.
    """

    meter: str
    kind: str
    schema: int = SCHEMA
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    case: Case | Trial | None = None
    device: str | None = None
    outcome: str = "ok"
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    device_used_bytes: int | None = None
    managed_bytes: int | None = None
    host_rss_bytes: int | None = None
    after_load_bytes: int | None = None
    phases: dict[str, int] = field(default_factory=dict)
    breakdown: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None
    tokens_per_second: float | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    driver: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    created: str | None = None

    def __post_init__(self) -> None:
        for name in _MAPPINGS:  # a private copy; null reads as empty
            value = {} if getattr(self, name) is None else getattr(self, name)
            object.__setattr__(self, name, dict(value) if isinstance(value, Mapping) else value)
        if problems := [problem for item in fields(self) for problem in _problems(item.name, getattr(self, item.name))]:
            raise RequestError(f"This Record is not possible: {'; '.join(problems)}.")
        total_bytes = sum(self.breakdown.values())
        if self.breakdown and self.peak_allocated_bytes not in (None, total_bytes):
            raise RequestError(
                f"This Record is not possible: its breakdown sums to {total_bytes} bytes, "
                f"its peak_allocated_bytes is {self.peak_allocated_bytes}."
            )

    def __hash__(self) -> int:
        return hash(self.id)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Record":
        """Build from JSON's object. RequestError names unknown and missing keys and impossible values."""
        names = [item.name for item in fields(cls)]
        if not isinstance(values, Mapping):
            raise RequestError(f"A Record must be a JSON object, not {values!r}.")
        if unknown := [str(key) for key in values if key not in names]:
            raise RequestError(f"A Record has no {', '.join(map(repr, unknown))}; its keys are {', '.join(names)}.")
        if missing := [name for name in ("meter", "kind") if name not in values]:
            raise RequestError(f"The Record lacks {' and '.join(missing)}, which must be given.")
        return cls(**{**values, "case": _case(values.get("case"))})

    def to_dict(self) -> dict[str, Any]:
        """JSON's object, every key of the contract present; what is unknown is None."""
        values = {name: getattr(self, name) for name in _ORDER}
        return values | {name: values[name] or None for name in _MAPPINGS} | {"case": self.case and self.case.to_dict()}

    def to_json(self) -> str:
        """One line, without its newline."""
        return json.dumps(self.to_dict(), allow_nan=False)


_ORDER = ("schema", "id", "case", *(item.name for item in fields(Record) if item.name not in ("schema", "id", "case")))
_MAPPINGS = ("phases", "breakdown", "scores", "versions")
_KEYS = {"phases": PHASES, "breakdown": BREAKDOWN}
_NUMBERS = ("seconds", "tokens_per_second")
_TEXTS = ("device", "source", "driver", "commit", "created")


def new_record(case: Case | None, meter: str, kind: str, **found: Any) -> Record:
    """A Record of this machine, now: `found` on top of source, versions, commit, dirty and created.

    A measurement is also given this machine's device and driver; a prediction names the device it is for.
    """
    facts: dict[str, Any] = {
        "source": f"labkit {machine.versions().get('labkit') or 'from source'}",
        "versions": {name: version for name, version in machine.versions().items() if version},
        "commit": machine.commit(),
        "dirty": machine.dirty(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if meter == "measured":
        facts["device"] = found.get("device") or machine.device_name()
        facts["driver"] = None if facts["device"] == "cpu" else machine.driver_version()
    return Record(case=case, meter=meter, kind=kind, **{**facts, **found})


def measurement_path(
    device: str, suite: str, date: datetime.date | None = None, root: Path | str | None = None
) -> Path:
    """`data/measurements/<device>/<yyyy-mm-dd>-<suite>.jsonl` under `root` (default: the clone); `date` is today."""
    for name, part in (("device", device), ("suite", suite)):
        if not part or part != Path(part).name or part.startswith("."):
            raise RequestError(f"{name}={part!r} is not possible: it becomes part of a file name.")
    folder = Path(root) if root is not None else machine.repository_root()
    return folder / "data" / "measurements" / device / f"{date or datetime.date.today():%Y-%m-%d}-{suite}.jsonl"


def append(path: Path | str, records: Iterable[Record]) -> None:
    """Add whole lines at the end of the file, under a lock, and wait until the disk has them; else RequestError."""
    path = Path(path)
    try:
        _append(path, "".join(record.to_json() + "\n" for record in records).encode())
    except OSError as error:
        raise RequestError(
            f"The records cannot be written to {path}: {error.strerror}; choose another place."
        ) from None


def _append(path: Path, lines: bytes) -> None:
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")), open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read(1) == b"\n" else b"\n" + lines
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path | str) -> list[Record]:
    """Every Record of the file. Lines that cannot be read are skipped, each with a TornLine warning that names it."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise RequestError(f"The records in {path} cannot be read: {error.strerror}.") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_dict(json.loads(line)))
        except ValueError as error:  # not UTF-8, not JSON, or a RequestError
            warnings.warn(f"{path}, line {number} is torn or broken and was skipped: {error}", TornLine, stacklevel=2)
    return records


def write_atomically(path: Path | str, content: bytes) -> None:
    """Replace the file in one step, so that a reader finds the old content or the new, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _case(value: Any) -> Case | Trial | None:
    if value is None or isinstance(value, Case):
        return value
    return (Trial if isinstance(value, Mapping) and "task" in value else Case).from_dict(value)


def _problems(name: str, value: Any) -> Iterable[str]:
    """What is wrong with a field's value, in words."""
    if name in CHOICES and value not in CHOICES[name]:
        yield f"{name}={value!r} is none of {', '.join(CHOICES[name])}"
    elif name == "schema" and (value != SCHEMA or isinstance(value, bool)):
        yield f"schema={value!r} is not the one this labkit reads ({SCHEMA})"
    elif name == "id" and not (isinstance(value, str) and value):
        yield f"id={value!r} is not text"
    elif name == "case" and not isinstance(value, Case | None):
        yield f"case={value!r} is not a Case"
    elif name.endswith("_bytes") and not _is_bytes(value):
        yield f"{name}={value!r} is not a whole number of bytes"
    elif name in _NUMBERS and not _is_number(value):
        yield f"{name}={value!r} is not a number of at least 0"
    elif name in _TEXTS and not isinstance(value, str | None):
        yield f"{name}={value!r} is not text"
    elif name == "created" and value is not None and not _is_date(value):
        yield f"created={value!r} is not an ISO 8601 date and time"
    elif name == "dirty" and not isinstance(value, bool | None):
        yield f"dirty={value!r} is not true or false"
    elif name in _MAPPINGS:
        yield from _mapping_problems(name, value)


def _mapping_problems(name: str, value: Any) -> Iterable[str]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        yield f"{name}={value!r} is not an object"
    elif name in _KEYS:
        if unknown := [key for key in value if key not in _KEYS[name]]:
            yield f"{name} has no {', '.join(map(repr, unknown))}, only {', '.join(_KEYS[name])}"
        if wrong := [key for key, count in value.items() if count is None or not _is_bytes(count)]:
            yield f"{name} of {', '.join(map(repr, wrong))} is not a whole number of bytes"
    elif name == "versions" and not all(isinstance(version, str) for version in value.values()):
        yield f"versions={value!r} holds something other than text"
    elif name == "scores" and not _is_json(value):
        yield f"scores={value!r} is not JSON"


def _is_bytes(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf)


def _is_date(value: str) -> bool:
    try:
        return bool(datetime.datetime.fromisoformat(value))
    except ValueError:
        return False


def _is_json(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError, RecursionError):
        return False
