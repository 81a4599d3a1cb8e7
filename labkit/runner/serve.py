"""An output folder on loopback, for browsers that open no files: nothing but the files in it, to this machine alone."""

import functools
import os
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from labkit.errors import RequestError

ADDRESS = "127.0.0.1"
PORT, PORTS_TRIED = 8899, 20
INDEX = "index.html"


def gallery_server(folder: Path, port: int | None = None) -> ThreadingHTTPServer:
    """A server of the gallery in `folder`, bound but not yet serving; `server_port` tells its port.

    `port`: None tries PORT and the next ones, 0 takes any free one. RequestError where there is no gallery yet, or the
    port is taken.
    """
    folder = folder.resolve()
    if not (folder / INDEX).is_file():
        raise RequestError(f"There is no gallery in {folder} yet: `labkit run` makes one; --out names another folder.")
    if port is not None and not 0 <= port <= 65535:
        raise RequestError(f"--port {port} is not possible: a port is a number from 0 (any free one) to 65535.")
    handler = functools.partial(_Files, directory=str(folder))
    ports = range(PORT, PORT + PORTS_TRIED) if port is None else [port]
    for number in ports:
        try:
            return _Server((ADDRESS, number), handler)
        except OSError as error:
            reason = error.strerror
    raise RequestError(f"The gallery cannot be served at port {ports[0]}: {reason}; choose another --port.")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port

    def handle_error(self, request, client_address) -> None:
        """A browser that leaves early is no error."""


class _Files(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".ipynb": "application/x-ipynb+json",
    }

    def send_head(self):
        """Refuse what is not a plain file of the folder: other hosts' names for us, links that lead out, dot files."""
        if self.headers.get("Host", "").partition(":")[0] not in (ADDRESS, "localhost"):
            self.send_error(403, "Only for this machine")  # a page elsewhere that made its name point here
            return None
        root, path = Path(self.directory), Path(self.translate_path(self.path)).resolve()
        path = path / INDEX if path == root else path
        inside = path.is_relative_to(root) and not any(part.startswith(".") for part in path.relative_to(root).parts)
        if not (inside and path.is_file()):
            self.send_error(404, "Not in the gallery")
            return None
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # a new run replaces the files
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, *_arguments) -> None:
        """Nothing on the terminal for a page that was read."""
