"""`results.json`: what came of every lab in an output folder, rewritten whole and atomically after each lab.

A run that is killed keeps what was finished. A lock in the folder keeps two runs from overwriting each other.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labkit.errors import RequestError
from labkit.record import write_atomically
from labkit.runner.request import Job

SCHEMA = 1
FILE_NAME = "results.json"


@dataclass(frozen=True)
class LabRun:
    """What came of one lab. `results`: objects with `name`, `value`, `unit` and `tolerance`, as the lab emitted them.

    `outcome` is `ok` or `failed`; `error` says why it failed; `seconds` are wall-clock; `created` is ISO 8601, UTC;
    `machine` is the GPU and processor it ran on, None in files older than this field.
    """

    name: str
    outcome: str
    seconds: float
    parameters: Mapping[str, Any]
    preset: str | None
    results: list[dict[str, Any]]
    error: str | None
    created: str
    machine: str | None = None

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    @property
    def values(self) -> dict[str, Any]:
        """Result name -> value."""
        return {result["name"]: result["value"] for result in self.results}

    def is_answer_to(self, job: Job, folder: Path) -> bool:
        """Whether the lab need not run again for `job`: it went well, as asked, and its files are still there."""
        same = self.parameters == job.parameters and self.preset == job.preset
        return self.ok and same and all((folder / f"{self.name}.{kind}").is_file() for kind in ("ipynb", "html"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the output folder, creating it; RequestError when another run holds it."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise RequestError(f"Another run is writing to {folder}; wait for it, or choose another --out.") from None
    except OSError as error:
        raise RequestError(f"The output folder {folder} cannot be written: {error.strerror}.") from None
    try:
        yield
    finally:
        lock.release()


def read_results(folder: Path) -> dict[str, LabRun]:
    """Lab name -> LabRun of an output folder, empty if nothing ran there; RequestError if the file is not ours."""
    path = folder / FILE_NAME
    try:
        document = json.loads(path.read_bytes())
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']}, not {SCHEMA}")
        return {name: LabRun(name=name, **run) for name, run in document["labs"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path} is not a results file of this labkit ({error}); remove it.") from None


def as_document(runs: Mapping[str, LabRun]) -> dict[str, Any]:
    """The object `results.json` holds."""
    labs = {name: asdict(runs[name]) for name in sorted(runs)}
    for run in labs.values():
        del run["name"]
    return {"schema": SCHEMA, "labs": labs}


def write_results(folder: Path, runs: Mapping[str, LabRun]) -> None:
    """Replace `results.json`."""
    text = json.dumps(as_document(runs), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / FILE_NAME, text.encode() + b"\n")
