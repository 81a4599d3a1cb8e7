"""`labkit doctor`: what this machine can do and how to mend it."""

import argparse


def add(subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine can do and how to mend it",
        description="Check Python, torch, the GPU, bitsandbytes, JupyterLab and the clone's files (some seconds). "
        "Exit code 1 if something required is missing.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output and nothing else")


def run(options: argparse.Namespace) -> int:
    """Examine and print."""
    from labkit import doctor

    checks = doctor.examine()
    print(doctor.as_json(checks) if options.json else doctor.as_text(checks))
    return doctor.exit_code(checks)
