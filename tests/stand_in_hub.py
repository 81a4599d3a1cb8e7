"""A hub on loopback for tests: it answers what huggingface_hub and labkit ask of one, and fails as it is told.

    with running_hub() as hub:
        hub.add("model", "acme/tiny", folder, failure="gated")
        hub.url, hub.asked, hub.sent

`failure` is one of FAILURES, or "file-slow"; one that begins with `file-` strikes when a weight or data file is asked
for, the others at the first request.
"""

import hashlib
import http.server
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

FAILURES = (
    "404", "401", "403", "gated", "token", "429", "503", "html", "json", "reset", "silent", "redirects",
    "file-403", "file-503", "file-reset", "file-silent", "file-stalls", "file-half", "file-other", "file-html",
)  # fmt: skip
SLOW_SECONDS = 8
LFS = (".safetensors", ".parquet", ".bin")
STRUCK = (*LFS, ".jsonl", ".csv")
HEADERS = {
    "404": ("RepoNotFound", "Repository not found"),
    "gated": ("GatedRepo", "Access to this model is restricted"),
    "token": ("", "Invalid credentials in Authorization header"),
}


@dataclass
class Repository:
    kind: str
    id: str
    files: dict[str, bytes]
    failure: str = ""
    revisions: dict[str, str] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        return hashlib.sha1(b"".join(name.encode() + data for name, data in self.files.items())).hexdigest()

    def info(self) -> dict:
        siblings = []
        for name, data in self.files.items():
            entry = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
            if name.endswith(LFS):
                entry["lfs"] = {"size": len(data), "sha256": self.etag(name), "pointerSize": 135}
            siblings.append(entry)
        return {"id": self.id, "sha": self.commit, "private": False, "tags": [], "siblings": siblings}

    def tree(self) -> list[dict]:
        """What huggingface_hub's own downloader asks for."""
        return [
            {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
            | ({"lfs": {"size": len(data), "oid": self.etag(name), "pointerSize": 135}} if name.endswith(LFS) else {})
            for name, data in self.files.items()
        ]

    def etag(self, name: str) -> str:
        data = self.files[name]
        return hashlib.sha256(data).hexdigest() if name.endswith(LFS) else git_hash(data)


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class StandInHub:
    """`asked`: every request as `METHOD path`; `sent`: names of files sent whole; `tokens`: (port, header) of each;
    `ranges`: where each file was asked to start.
    """

    def __init__(self, url: str):
        self.url, self.asked, self.sent, self.tokens, self.ranges = url, [], [], [], []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.over = threading.Event()

    def add(self, kind: str, name: str, files: Path | dict[str, bytes], failure: str = "") -> Repository:
        if isinstance(files, Path):
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in sorted(files.rglob("*.*"))}
        self.repositories[kind, name] = Repository(kind, name, dict(files), failure)
        return self.repositories[kind, name]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        if path == "/api/agent-harnesses":  # what huggingface_hub asks of its own accord, once per process
            return self._refuse(404)
        hub.asked.append(f"{self.command} {path}")
        hub.tokens.append((self.server.server_port, self.headers.get("Authorization")))
        api = re.fullmatch(r"/api/(model|dataset)s/(.+?)(?:/(?:revision|(tree))/([^/]+))?", path)
        resolve = re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path)
        content = re.fullmatch(r"/content/(model|dataset)/([^:]+):(.+)", path)
        if api:
            self._repository(api[1], api[2], api[4], api[3])
        elif resolve:
            self._repository("dataset" if resolve[1] else "model", resolve[2], resolve[3], resolve[4])
        elif content:
            self._file(hub.repositories[content[1], content[2]], content[3])
        else:
            self._refuse(404)

    do_HEAD = do_GET

    def _repository(self, kind, name, revision, file):
        """`file`: "tree" and None ask for the list of files, in two forms."""
        repository = self.server.hub.repositories.get((kind, name))
        if repository is None:
            return self._refuse(401)  # what the public hub says
        public = repository.failure == "gated" and file in ("tree", None)  # anyone may list a gated repository
        if repository.failure and not repository.failure.startswith("file-") and not public:
            return self._fail(repository.failure)
        if revision not in (None, "main", repository.commit):
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        if file in ("tree", None):
            listing = repository.tree() if file else repository.info()
            return self._send(200, json.dumps(listing).encode(), **{"Content-Type": "application/json"})
        if file not in repository.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        facts = {"X-Repo-Commit": repository.commit, "ETag": f'"{repository.etag(file)}"'}
        if file.endswith(LFS):
            linked = {"X-Linked-Etag": facts["ETag"], "X-Linked-Size": str(len(repository.files[file]))}
            return self._redirect(f"{self.server.content}/content/{kind}/{name}:{file}", **facts, **linked)
        self._file(repository, file, **facts)

    def _file(self, repository, name, **facts):
        data, failure = repository.files[name], repository.failure
        strikes = failure.startswith("file-") and name.endswith(STRUCK)
        start = int((re.search(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        self.server.hub.ranges.append(start)
        if self.command == "HEAD" and failure in ("file-stalls", "file-half", "file-slow"):
            strikes = False  # what is sent is at fault
        if not strikes:
            if self.command == "GET":
                self.server.hub.sent.append(name)
            return self._send(206 if start else 200, data[start:], **facts)
        if failure in ("file-stalls", "file-half"):
            self._head(206 if start else 200, len(data) - start)
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.wfile.flush()
            self.close_connection = True
            if failure == "file-stalls":
                self.server.hub.over.wait()
        elif failure == "file-slow":
            self._trickle(data, start, **facts)
        elif failure == "file-other":
            self._send(200, bytes(len(data)))
        else:
            self._fail(failure.removeprefix("file-"))

    def _trickle(self, data, start, **facts):
        """All of it in `SLOW_SECONDS`; then it is no failure."""
        self._head(206 if start else 200, len(data) - start, **facts)
        for place in range(start, len(data), step := len(data) // 40):
            self.wfile.write(data[place : place + step])
            self.wfile.flush()
            time.sleep(SLOW_SECONDS / 40)

    def _fail(self, failure):
        if failure == "reset":
            linger = struct.pack("ii", 1, 0)  # closing at once sends a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RD)
            self.rfile.close()
            self.connection.close()
        elif failure == "silent":
            self.close_connection = True
            self.server.hub.over.wait()
        elif failure == "html":
            self._send(200, b"<!doctype html><p>Please log in", **{"Content-Type": "text/html"})
        elif failure == "json":
            self._send(200, b'["not", "a", "repository"]')
        elif failure == "redirects":
            self._redirect(self.path)
        else:
            status = {"gated": 403, "token": 401}.get(failure) or int(failure)
            self._refuse(status, *HEADERS.get(failure, ("", "")))

    def _redirect(self, location, **headers):
        self._head(302, 0, Location=location, **headers)

    def _refuse(self, status, code="", message=""):
        self._head(status, 0, **{"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status, data, **headers):
        self._head(status, len(data), **headers)
        if self.command == "GET":
            self.wfile.write(data)

    def _head(self, status, length, **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(length)} | headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # the other end gave up, as it should


@contextmanager
def running_hub() -> Iterator[StandInHub]:
    """Two servers, as the public hub has: one answers, and sends the reader on to the other for large files."""
    servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(2)]
    urls = [f"http://127.0.0.1:{server.server_port}" for server in servers]
    hub = StandInHub(urls[0])
    for server in servers:
        server.hub, server.content = hub, urls[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.over.set()
        for server in servers:
            server.shutdown()
            server.server_close()
