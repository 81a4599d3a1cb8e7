"""`labkit gallery`: serve the pages of a run on loopback."""

import argparse
import webbrowser
from contextlib import suppress
from pathlib import Path


def add(subparsers) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "gallery",
        help="show the pages of a run in the browser",
        description="Serve the folder that `labkit run` wrote to this machine alone (127.0.0.1) until Ctrl-C.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="the run's folder (default: out)")
    parser.add_argument("--port", type=int, metavar="N", help="port of the server (default: 8899 or the next free one)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted, which is the way to end it: 0."""
    from labkit.runner.serve import ADDRESS, gallery_server

    with gallery_server(options.out, options.port) as server:
        address = f"http://{ADDRESS}:{server.server_port}/"
        print(f"{address}\nCtrl-C ends it.", flush=True)
        with suppress(KeyboardInterrupt):
            if not options.no_browser:
                webbrowser.open(address)
            server.serve_forever()
    return 0
