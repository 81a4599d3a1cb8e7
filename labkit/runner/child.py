"""The process that runs one lab: papermill executes the notebook, and one line of JSON per event tells how far it is.

Started by `execute` as `python -m labkit.runner.child` with the job as one line on standard input. Events, on standard
output: `{"cell": id, "index": i, "count": n}` before each code cell, `{"failed": id, "name": ..., "message": ...}` when
one raised, `{"died": message}` when the kernel went away, `{"done": true}` last. What the kernel itself prints goes to
standard error. SIGTERM shuts the kernel down and keeps the notebook as far as it got; when standard input ends, the
runner is gone, and this process ends with everything it started.
"""

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the job read from standard input."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the kernel inherits standard output: it must not write between the events
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_runner, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    def tell(**event: Any) -> None:
        print(json.dumps(event), file=events, flush=True)

    _execute(job, tell)
    tell(done=True)


def _execute(job: dict[str, Any], tell) -> None:
    import papermill
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # it would only repeat what the events tell
    lab = Path(job["lab"])
    count = len(json.loads(lab.read_text(encoding="utf-8"))["cells"]) + bool(job["parameters"])  # one is injected

    def cell_started(cell, cell_index: int) -> None:
        tell(cell=cell.get("id", "?"), index=cell_index, count=count)

    def cell_failed(cell, cell_index: int, execute_reply) -> None:
        reply = execute_reply["content"]
        tell(failed=cell.get("id", "?"), name=reply.get("ename", "error"), message=reply.get("evalue", ""))

    try:
        papermill.execute_notebook(
            _literally(str(lab)),
            _literally(job["output"]),
            parameters=job["parameters"],
            cwd=lab.parent,
            kernel_name="python3",
            language="python",
            start_timeout=120,
            iopub_timeout=60,
            progress_bar=False,
            on_cell_execute=cell_started,
            on_cell_error=cell_failed,
            # ipykernel 7 warns about TCP without encryption unless told; shutdown: the wait for a kernel that is busy
            config=Config({"KernelManager": {"transport_encryption": "auto", "shutdown_wait_time": 3.0}}),
        )
    except papermill.PapermillExecutionError:
        pass  # told by cell_failed
    except RuntimeError as error:  # nbclient's DeadKernelError, and a kernel that does not start
        tell(died=str(error))


def _literally(path: str) -> str:
    """papermill fills `{name}` in paths; ours are meant as they are."""
    return path.replace("{", "{{").replace("}", "}}")


def _end_with_runner() -> None:
    import psutil

    while os.read(0, 4096):  # not through sys.stdin, whose lock would be held when the interpreter ends
        pass
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(1)


if __name__ == "__main__":
    main()
