"""Run one lab in a process of its own and leave what came of it in the output folder.

A process per lab gives every lab its own environment and working directory, lets several run at once, and can be ended
whatever its kernel does. The notebook grows under a hidden name and takes its final one when the lab is over.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from labkit import machine
from labkit.machine import repository_root
from labkit.record import write_atomically
from labkit.runner.collect import in_words, problem_in, results_in
from labkit.runner.progress import Progress
from labkit.runner.request import Job
from labkit.runner.store import LabRun
from labkit.units import format_seconds

STOP_SECONDS = 15
"""How long a lab that must stop may take to shut its kernel down before everything it started is killed."""


class Stopped(Exception):
    """The lab was ended because nobody waits for it any more; nothing of it is written."""


def execute(
    job: Job,
    out_folder: Path,
    timeout_seconds: float,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> LabRun:
    """Run the lab; write its notebook and its page. Nothing is raised for a lab that fails: the LabRun says why.

    `timeout_seconds` is for the whole lab. `stop`, when set from another thread, ends the lab: Stopped is raised.
    """
    progress, stop, started = progress or Progress(), stop or threading.Event(), time.monotonic()
    partial = out_folder / f".{job.name}.partial.ipynb"
    progress.started(job.name)
    try:
        error = job.problem or _run_child(job, partial, timeout_seconds, progress, stop)
        notebook = _read(partial, job.lab)
    finally:
        partial.unlink(missing_ok=True)
    error = error or problem_in(notebook)
    run = LabRun(
        name=job.name,
        outcome="failed" if error else "ok",
        seconds=round(time.monotonic() - started, 1),
        parameters=dict(job.parameters),
        preset=job.preset,
        results=results_in(notebook),
        error=error,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
    )
    run = _write(out_folder, job, notebook, run)
    progress.ended(job.name, f"failed: {run.error}" if run.error else f"ok after {format_seconds(run.seconds)}")
    return run


def _run_child(
    job: Job, partial: Path, timeout_seconds: float, progress: Progress, stop: threading.Event
) -> str | None:
    """Execute the notebook into `partial`; why it went wrong, or None."""
    cell, problem, done = None, None, False
    with tempfile.TemporaryFile() as printed, _child(job, partial, printed) as child:
        try:
            for event in _events(child, time.monotonic() + timeout_seconds, stop, progress):
                if "cell" in event:
                    cell = event["cell"]
                    progress.at_cell(job.name, event["index"], event["count"])
                elif "failed" in event:
                    problem = problem or in_words(event["failed"], event["name"], event["message"])
                elif "died" in event:
                    died = f"died{_where(cell)}, most often because memory ran out"
                    how = died if cell else f"did not start: {event['died']}"
                    problem = f"the kernel {how}{_last_words(printed)}"
                done = "done" in event
        except TimeoutError:
            return f"the lab took longer than {format_seconds(timeout_seconds)} and was stopped{_where(cell)}."
        if stop.is_set():
            raise Stopped
        if not done:
            return f"the lab's process ended by itself ({child.returncode}){_where(cell)}{_last_words(printed)}"
        return problem


@contextmanager
def _child(job: Job, partial: Path, printed: BinaryIO) -> Iterator[subprocess.Popen]:
    """The process that runs the lab; when the block is left, it and what it started are gone."""
    paths = filter(None, (str(repository_root()), os.environ.get("PYTHONPATH")))
    environment = {"LABKIT_HEADLESS": "1", "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": os.pathsep.join(paths)}
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "labkit.runner.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=printed,
        env=os.environ | environment,
        start_new_session=True,  # an interrupt from the terminal is the runner's to handle
    )
    request = {"lab": str(job.lab), "output": str(partial), "parameters": job.injected}
    try:
        with suppress(BrokenPipeError):  # it died: the missing answer tells
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
        yield child
    finally:
        _end(child)


def _events(
    child: subprocess.Popen, deadline: float, stop: threading.Event, progress: Progress
) -> Iterator[dict[str, Any]]:
    """What the child tells until it ends or `stop` is set; TimeoutError at the deadline (of `time.monotonic`)."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def listen() -> None:
        with child.stdout:
            for line in child.stdout:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while not stop.is_set():
        if time.monotonic() >= deadline:
            raise TimeoutError
        with suppress(queue.Empty):
            line = lines.get(timeout=0.2)
            if line is None:
                child.wait(STOP_SECONDS)
                return
            yield json.loads(line)
        progress.tick()


def _end(child: subprocess.Popen) -> None:
    """Ask the child to shut its kernel down, then kill what is left of it and of everything it started."""
    import psutil

    started = []
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_SECONDS)
    child.kill()
    for process in started:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    child.wait()
    with suppress(BrokenPipeError):
        child.stdin.close()


def _where(cell: str | None) -> str:
    return f" in cell {cell!r}" if cell else " before its first cell"


def _last_words(printed: BinaryIO) -> str:
    """The last line the process and its kernel printed, if any."""
    printed.seek(0)
    lines = printed.read().decode(errors="replace").split("\n")
    return next((f" (its last words: {line.strip()})" for line in reversed(lines) if line.strip()), "")


def _read(partial: Path, lab: Path):
    """The notebook as far as it was executed, else as it is."""
    import nbformat

    for path in (partial, lab):
        with suppress(OSError, ValueError):
            notebook = nbformat.read(path, as_version=4)
            break
    else:
        return nbformat.v4.new_notebook()
    markers = "papermill-error-cell-tag"  # our page and results.json say where it stopped
    notebook.cells = [cell for cell in notebook.cells if markers not in cell.metadata.get("tags", [])]
    return notebook


def _write(out_folder: Path, job: Job, notebook, run: LabRun) -> LabRun:
    """Write notebook and page; the run, failed if no page could be made of what the lab left."""
    import nbformat

    from labkit.runner.pages import lab_page, plain_page

    write_atomically(out_folder / f"{job.name}.ipynb", (nbformat.writes(notebook) + "\n").encode())
    try:
        page = lab_page(notebook, run, job.lab.parent)
    except Exception as error:  # nbconvert raises many kinds for an output it cannot show
        cause = f"its page could not be made ({type(error).__name__}: {' '.join(str(error).split())})"
        run = replace(run, outcome="failed", error=run.error or f"{cause}; the notebook is complete.")
        page = plain_page(run)
    write_atomically(out_folder / f"{job.name}.html", page.encode())
    return run


def _machine() -> str:
    """`Processor, 2 cores`, after the GPU's name where there is one."""
    cpu, gpu = machine.processor(), machine.gpu()
    host = f"{cpu.name}, {cpu.cores} cores"
    return f"{gpu.name}; {host}" if gpu else f"{host}, no GPU"
