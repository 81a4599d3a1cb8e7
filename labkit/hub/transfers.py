"""Ask the hub what it has, and download files of it into the cache.

huggingface_hub's own downloader retries for 23 to 110 s when the hub is away or silent, so it is not used. Here a hub
that does not answer costs `PROBE_SECONDS`, a file that does not come `STALL_SECONDS`. A download that was healthy for
`HEALTHY_SECONDS` has earned patience: after a pause it goes on where it broke off. What has come is kept for the next
call, and every file is held against the size and the hash that the hub lists.
"""

import hashlib
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from labkit.hub.causes import HubError, cause_of
from labkit.hub.snapshots import File, Repository, Snapshot, snapshot_of, write_tree
from labkit.progress import progress
from labkit.record import write_atomically
from labkit.units import MIB, format_bytes

PROBE_SECONDS = 2.75  # with STALL_SECONDS under 5 s, and several times what the public hub takes
STALL_SECONDS = 2.0
HEALTHY_SECONDS = 10.0
PAUSE_SECONDS = 5.0
PATIENT_SECONDS = 20.0
SILENT_BELOW_BYTES = 10 * MIB  # no progress bar


class _Short(Exception):
    """The answer ended before the file did."""


def listed(repository: Repository) -> Snapshot:
    """The repository's revision as the hub lists it now. HubError within `PROBE_SECONDS` if it does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    revision = None if repository.revision == "main" else repository.revision

    def ask():
        return HfApi().repo_info(
            repository.id, repo_type=repository.kind, revision=revision, timeout=PROBE_SECONDS, files_metadata=True
        )

    try:
        info = _within(PROBE_SECONDS, ask)
        files = {
            one.rfilename: File(one.lfs.size if one.lfs else one.size, one.blob_id, one.lfs.sha256 if one.lfs else None)
            for one in info.siblings
        }
        return snapshot_of(repository, info.sha, files)
    except (HTTPError, OfflineModeIsEnabled, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(cause_of(error, repository)) from None


def require_access(snapshot: Snapshot, name: str) -> None:
    """HubError unless the hub would send the file: anyone may list a gated repository, and not everyone may read it."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    try:
        with _opened(snapshot, name, 0, STALL_SECONDS, "HEAD"):
            pass
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise HubError(cause_of(error, snapshot.repository)) from None


def _within(seconds: float, function: Callable):
    """`function()`, or TimeoutError: looking up a name knows no limit of its own, so its thread is left behind."""
    answers = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((function(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return value


def download(snapshot: Snapshot, names: Iterable[str]) -> None:
    """Bring those of `names` that the snapshot lacks into the cache, with progress on standard error if it takes long.

    HubError where that fails; what has come until then is kept.
    """
    names = list(names)
    if not snapshot.lacks(names):
        return
    repository = snapshot.repository
    try:
        with _alone(repository):
            missing = snapshot.lacks(names)
            write_tree(snapshot)
            total_bytes = sum(snapshot.files[name].size_bytes for name in missing)
            _require_space(repository, total_bytes)
            quiet = total_bytes < SILENT_BELOW_BYTES
            with progress(None, repository.id, "B", total=total_bytes, unit_scale=True, disable=quiet) as bar:
                for name in missing:
                    _bring(snapshot, name, bar.update)
            ref = repository.folder / "refs" / repository.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(ref, snapshot.commit.encode())
    except OSError as error:
        raise HubError(cause_of(error, repository)) from None


@contextmanager
def _alone(repository: Repository) -> Iterator[None]:
    """One process at a time downloads a repository; the others wait and find it done."""
    from filelock import FileLock, Timeout

    folder = repository.folder.parent / ".locks" / repository.folder.name
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "labkit.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that downloads {repository.id}.", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _require_space(repository: Repository, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(repository.folder).free
    if needed_bytes > free_bytes:
        raise HubError(
            f"it needs {format_bytes(needed_bytes)}, and {repository.folder.parent} has {format_bytes(free_bytes)} "
            "free: make room, or set HF_HOME to another disk"
        )


def _bring(snapshot: Snapshot, name: str, advance: Callable[[int], object]) -> None:
    """Download one file, check it, and link it into the snapshot."""
    file, link = snapshot.files[name], snapshot.folder / name
    blob = snapshot.repository.folder / "blobs" / file.digest
    if not (blob.is_file() and blob.stat().st_size == file.size_bytes):
        blob.parent.mkdir(parents=True, exist_ok=True)
        partial = blob.with_name(f"{blob.name}.incomplete")
        _receive(snapshot, name, partial, advance)
        if _digest_of(partial, file) != file.digest:
            partial.unlink()
            raise _other(name)
        partial.replace(blob)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:  # Windows without the right to make links
        shutil.move(blob, link)


def _digest_of(path: Path, file: File) -> str:
    """SHA-256, or git's hash of a blob: SHA-1 over a header and the content."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(4 * MIB):
            digest.update(block)
    return digest.hexdigest()


def _receive(snapshot: Snapshot, name: str, partial: Path, advance: Callable[[int], object]) -> None:
    """Append to `partial` until it has the listed size; HubError when it does not come."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    size_bytes, patience = snapshot.files[name].size_bytes, STALL_SECONDS
    advance(_size_of(partial))
    while True:
        started = last = time.monotonic()
        try:
            for last in _stream(snapshot, name, partial, patience, advance):  # noqa: B007 - used when it breaks off
                pass
            return
        except (HTTPError, OfflineModeIsEnabled, _Short) as error:
            if last - started >= HEALTHY_SECONDS:
                patience = PATIENT_SECONDS
                time.sleep(PAUSE_SECONDS)
                continue
            cause = cause_of(error, snapshot.repository)
            if getattr(error, "response", None) is None:
                part = f"{format_bytes(_size_of(partial))} of {format_bytes(size_bytes)}"
                cause = f"of {name} came {part}, then {cause}; what has come is kept, so try again"
            raise HubError(cause) from None


def _other(name: str) -> HubError:
    return HubError(f"what came as {name} is not the file that the hub lists; try again")


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _opened(snapshot: Snapshot, name: str, start: int, patience: float, method: str = "GET"):
    """The hub's answer to a request for a file, from byte `start` on if it can do that (HTTP 206)."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = f"{snapshot.repository.page}/resolve/{snapshot.commit}/{quote(name)}"
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with get_session().stream(method, url, headers=headers, timeout=patience, follow_redirects=True) as response:
        hf_raise_for_status(response)
        yield response


def _stream(snapshot: Snapshot, name: str, partial: Path, patience: float, advance) -> Iterator[float]:
    """Yields the time of every arrival. `patience`: seconds to wait for a connection, and for the next bytes."""
    size_bytes, have = snapshot.files[name].size_bytes, _size_of(partial)
    if have >= size_bytes:
        partial.touch()
        return
    with _opened(snapshot, name, have, patience) as response:
        if response.status_code != 206:
            advance(-have)
            have = 0
        announced = response.headers.get("Content-Length")
        if announced and have + int(announced) != size_bytes:
            raise _other(name)
        with open(partial, "ab" if have else "wb") as out:
            for block in response.iter_bytes():
                out.write(block)
                have += len(block)
                advance(len(block))
                yield time.monotonic()
                if have > size_bytes:
                    break
    if have < size_bytes:
        raise _Short
