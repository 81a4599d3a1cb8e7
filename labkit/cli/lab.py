"""`labkit lab`: open JupyterLab on the labs, or give one lab back as it was committed."""

import argparse
import datetime
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
        description="Start JupyterLab for this machine alone (127.0.0.1) at the first lab.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--reset", metavar="NN", help="restore lab NN as committed, keep your version beside it, and end"
    )
    parser.add_argument("--port", type=int, metavar="N", help="port of the server (default: 8888 or the next free one)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def run(options: argparse.Namespace) -> int:
    """Reset one lab, or become the JupyterLab server (then this does not return)."""
    from labkit.runner import find_labs

    if options.reset is not None:
        print(_reset(*find_labs([options.reset])))
        return 0
    return _serve(find_labs()[0], options)


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
    environment = {"JUPYTER_PREFER_ENV_PATH": "1"}  # a kernel of the same name in the home folder must not win
    os.chdir(root)
    sys.stdout.flush()
    os.execvpe(command[0], command, os.environ | environment)


def _reset(lab: Path) -> str:
    """Restore the lab from the last commit; what was edited is kept beside it. Says what was done."""
    from labkit.record import write_atomically

    committed = _committed(lab)
    if lab.read_bytes() == committed:
        return f"{lab.name} is as committed; nothing to do."
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    kept = lab.with_name(f"{lab.stem}.edited-{stamp}.ipynb")
    kept.write_bytes(lab.read_bytes())
    write_atomically(lab, committed)
    return f"{lab.name} is as committed again; your version is {kept.name}."


def _committed(lab: Path) -> bytes:
    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{lab.name}"], cwd=lab.parent, capture_output=True)
    except FileNotFoundError:
        raise RequestError(f"{lab.name} cannot be restored: git is not installed.") from None
    if shown.returncode:
        reason = shown.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
        raise RequestError(f"{lab.name} cannot be restored from git: {reason}.")
    return shown.stdout
