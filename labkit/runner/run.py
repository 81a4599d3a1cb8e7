"""Run labs, several at once if asked, and keep every finished one whatever happens to the rest."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

from labkit.errors import LabFailed, RequestError
from labkit.lab.catalog import Card, find_labs, read_card
from labkit.record import write_atomically
from labkit.runner.execute import execute
from labkit.runner.progress import Progress
from labkit.runner.request import Job, plan
from labkit.runner.store import LabRun, locked, read_results, write_results

TIMEOUT_SECONDS = {"smoke": 600.0, "quick": 1800.0, "full": 6 * 3600.0}
"""For a whole lab, by preset: far above what it should take, so that only a lab that hangs meets it."""


def run_lab(lab: str | Path, out: str | Path = "out", *, timeout_seconds: float | None = None, **parameters) -> LabRun:
    """Run one lab, by number, full name or path, into the folder `out`; `preset` is one of the parameters.

    Raises RequestError for a wrong request, LabFailed when the lab fails (its pages and results are kept all the same).
    """
    labs = [lab] if isinstance(lab, Path) else find_labs([str(lab)])
    (run,) = run_labs(labs, Path(out), parameters=parameters, timeout_seconds=timeout_seconds).values()
    if not run.ok:
        raise LabFailed(f"{run.name}: {run.error}")
    return run


def run_labs(
    labs: Iterable[Path],
    out: Path,
    *,
    preset: str = "quick",
    parameters: Mapping[str, Any] | None = None,
    jobs: int = 1,
    resume: bool = False,
    timeout_seconds: float | None = None,
    progress: Progress | None = None,
) -> dict[str, LabRun]:
    """Run the labs, `jobs` at once, into the folder `out`; lab name -> LabRun, in the order given.

    The request is checked before anything starts (RequestError, and no folder is made). A lab that fails does not stop
    the others. `resume` skips labs that already went well with the same parameters and preset; else all are repeated.
    Other labs' results in the folder stay.
    """
    if jobs < 1:
        raise RequestError(f"--jobs {jobs}: at least one lab must run at a time.")
    planned = plan([Path(lab).resolve() for lab in labs], preset, parameters)
    out = Path(out).resolve()
    progress = progress or Progress()
    with locked(out):
        others = [read_card(lab) for lab in _labs_beside(planned)]
        runs = read_results(out)
        todo = [job for job in planned if not (resume and _is_done(job, runs, out))]
        for job in todo:  # what is being repeated must not look finished
            runs.pop(job.name, None)
        _publish(out, runs, others)
        for run in _all(todo, out, jobs, timeout_seconds, progress):
            runs[run.name] = run
            _publish(out, runs, others)
    return {job.name: runs[job.name] for job in planned}


def _labs_beside(planned: list[Job]) -> list[Path]:
    """All labs of the folders that the planned ones come from: those that do not run are on the gallery, too."""
    labs = []
    for folder in sorted({job.lab.parent for job in planned}):
        with suppress(RequestError):  # no file there has a lab's name, the one that runs included
            labs += find_labs(folder=folder)
    return labs


def _is_done(job: Job, runs: Mapping[str, LabRun], out: Path) -> bool:
    return job.name in runs and runs[job.name].is_answer_to(job, out)


def _all(todo: list[Job], out: Path, jobs: int, timeout_seconds: float | None, progress: Progress) -> Iterator[LabRun]:
    """The labs' runs as they end. When the caller is interrupted or gives up, what still runs is ended first."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = [
            pool.submit(execute, job, out, timeout_seconds or TIMEOUT_SECONDS[job.preset or "quick"], progress, stop)
            for job in todo
        ]
        for future in as_completed(futures):
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _publish(out: Path, runs: Mapping[str, LabRun], others: list[Card]) -> None:
    from labkit.runner.gallery import gallery_page
    from labkit.runner.pages import write_plotly

    write_plotly(out)
    write_results(out, runs)
    write_atomically(out / "index.html", gallery_page(runs, out, others).encode())
