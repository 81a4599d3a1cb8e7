"""`labkit lab`: open JupyterLab on copies of the labs, or give one lab back as it came."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from labkit.errors import RequestError


def add(subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "lab",
        help="open the labs in JupyterLab",
        description="Start JupyterLab for this machine alone (127.0.0.1) at the first lab. It opens copies of the "
        "labs, in work/, which git ignores; a copy you did not edit follows its lab.",
        allow_abbrev=False,
    )
    parser.add_argument("--reset", metavar="NN", help="copy lab NN anew, keep an edited copy beside it, and end")
    parser.add_argument("--port", type=int, metavar="N", help="port of the server (default: 8888 or the next free one)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def run(options: argparse.Namespace) -> int:
    """Reset one lab, or become the JupyterLab server (then this does not return)."""
    from labkit.lab import copies
    from labkit.lab.catalog import find_labs
    from labkit.machine import require_folder

    if options.reset is not None:
        print(copies.reset(*find_labs([options.reset])))
        return 0
    if options.port is not None and not 0 <= options.port <= 65535:
        raise RequestError(f"--port {options.port} is not possible: a port is a number from 0 (any free one) to 65535.")
    opened, notes = copies.update(require_folder("labs"))
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
    return _serve(opened[0], options)


def _serve(first: Path, options: argparse.Namespace) -> int:
    root = first.parent.parent
    command = [
        sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--ServerApp.root_dir={root}",
        f"--LabApp.default_url=/lab/tree/{first.relative_to(root).as_posix()}",
        "--MappingKernelManager.transport_encryption=auto",
    ]  # fmt: skip
    command += [f"--port={options.port}"] if options.port is not None else []
    command += ["--no-browser"] if options.no_browser else []
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    paths = filter(None, (str(root), os.environ.get("PYTHONPATH")))  # kernels import this labkit
    # a kernel of the same name in the home folder must not win
    environment = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": os.pathsep.join(paths)}
    os.chdir(root)
    sys.stdout.flush()
    if os.name != "nt":
        os.execvpe(command[0], command, environment)
    return _wait_for(subprocess.Popen(command, env=environment))


def _wait_for(server: subprocess.Popen) -> int:
    """On Windows exec would give the terminal back at once: wait instead, and leave Ctrl-C to the server."""
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:
            continue
