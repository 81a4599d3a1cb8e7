"""`labkit run`: execute labs headlessly; their pages and results go to a folder."""

import argparse
import json
import sys
from pathlib import Path

from labkit.units import format_seconds


def add(subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "run",
        help="run labs without a browser, collect their results and pages",
        description="Run labs with papermill. The folder gets each lab's notebook and page, index.html and "
        "results.json. Exit code: 0 all labs went well, 1 one failed, 2 the request was wrong.",
        allow_abbrev=False,
    )
    parser.add_argument("labs", nargs="*", metavar="LAB", help="a number (3) or a full name; default: all labs")
    presets = parser.add_mutually_exclusive_group()
    for name, words in (
        ("smoke", "seconds: only proves that the labs run"),
        ("quick", "a two-core machine, about a minute a lab (default)"),
        ("full", "a GPU, or patience"),
    ):
        presets.add_argument(f"--{name}", dest="preset", action="store_const", const=name, help=words)
    parser.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE",
                        help="set a lab's parameter; the value is JSON if it parses, else text")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="output folder (default: out)")
    parser.add_argument("--resume", action="store_true", help="skip labs whose results are already complete")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="labs at a time (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")


def run(options: argparse.Namespace) -> int:
    """Run the labs; 0 if all went well, else 1."""
    from labkit.runner import Progress, find_labs, parse_parameters, run_labs
    from labkit.runner.store import as_document

    runs = run_labs(
        find_labs(options.labs),
        options.out,
        preset=options.preset or "quick",
        parameters=parse_parameters(options.parameters),
        jobs=options.jobs,
        resume=options.resume,
        progress=Progress(sys.stderr),
    )
    print(json.dumps(as_document(runs), ensure_ascii=False) if options.json else _table(runs, options.out))
    return 0 if all(run.ok for run in runs.values()) else 1


def _table(runs, out: Path) -> str:
    width = max(map(len, runs))
    lines = [
        f"{run.name:<{width}}  {run.outcome:<7} {format_seconds(run.seconds):>12}  {out / run.name}.html"
        for run in runs.values()
    ]
    return "\n".join([f"{'lab':<{width}}  {'outcome':<7} {'took':>12}  page", *lines, f"\nAll of it: {out}/index.html"])
