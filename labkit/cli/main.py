"""Parse the command line, run one subcommand, turn what went wrong into a sentence and an exit code.

0: done; 1: a lab, check, claim or limit failed; 2: the request was wrong; 130: interrupted. Standard output carries the
answer, everything else goes to standard error.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from labkit.errors import LabkitError

COMMANDS = ("run", "measure", "doctor", "gallery", "lab", "pretrain")
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of `labkit ARGUMENTS` (default: this process's).

    argparse itself exits: with 2 when the arguments are wrong, with 0 after --help.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except LabkitError as error:
        print(f"labkit: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("labkit: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output left, as in `labkit run | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    modules = {name: importlib.import_module(f"labkit.cli.{name}") for name in COMMANDS}
    parser = argparse.ArgumentParser(
        prog="labkit",
        description="What full fine-tuning, LoRA or QLoRA costs on your machine, why, and what you lose.",
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in modules.values():
        module.add(subparsers)
    options = parser.parse_args(arguments)
    return modules[options.command].run(options)
