"""Ask the hub what it has, and let huggingface_hub download files of it into its cache.

Left alone, the library tries for 23 to 110 s when the hub is away or silent. So it downloads in a process of its own,
and a watch here ends that process: a hub that does not answer costs `PROBE_SECONDS`, a download of which nothing comes
`STALL_SECONDS`. One that was healthy for `HEALTHY_SECONDS` has earned `PATIENT_SECONDS`: the library tries again, and
goes on where it broke off. Files that came whole are kept for the next call, and each is held against the size that the
hub lists and, where the cache names it by its hash, against that.
"""

import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from labkit import isolate
from labkit.hub.causes import BrokenOff, HubError, cause_of
from labkit.hub.fetch import fetch
from labkit.hub.snapshots import Repository, Snapshot, snapshot_of
from labkit.progress import progress
from labkit.record import write_atomically
from labkit.units import MIB, format_bytes

PROBE_SECONDS = 2.25  # several times what the public hub takes, and under 5 s with
STALL_SECONDS = 1.75  # and the start of two processes, for the config and for the weights
HEALTHY_SECONDS = 10.0
PATIENT_SECONDS = 45.0  # the library's limit for a read is 10 s: several attempts
SILENT_BELOW_BYTES = 10 * MIB  # no progress bar


def listed(repository: Repository) -> Snapshot:
    """The repository's revision as the hub lists it now. HubError within `PROBE_SECONDS` if it does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    asked = {"repo_type": repository.kind, "revision": repository.revision, "files_metadata": True}
    try:
        info = _within(PROBE_SECONDS, lambda: HfApi().repo_info(repository.id, timeout=PROBE_SECONDS, **asked))
        files = {one.rfilename: one.lfs.size if one.lfs else one.size for one in info.siblings}
        return snapshot_of(repository, info.sha, files)
    except (HTTPError, OfflineModeIsEnabled, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(cause_of(error, repository)) from None


def require_access(snapshot: Snapshot, name: str) -> None:
    """HubError unless the hub would send the file: anyone may list a gated repository, and not everyone may read it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    repository = snapshot.repository
    url = hf_hub_url(repository.id, name, repo_type=repository.kind, revision=snapshot.commit)
    try:
        _within(STALL_SECONDS, lambda: get_hf_file_metadata(url, timeout=STALL_SECONDS))
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise HubError(cause_of(error, repository)) from None


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

    HubError where that fails; the files that came whole until then are kept.
    """
    missing, repository = snapshot.lacks(sorted(names)), snapshot.repository
    if not missing:
        return
    require_access(snapshot, missing[0])
    total_bytes = sum(snapshot.files[name] for name in missing)
    try:
        repository.folder.mkdir(parents=True, exist_ok=True)
        _require_space(repository, total_bytes)
        quiet = total_bytes < SILENT_BELOW_BYTES
        with progress(None, repository.id, "B", total=total_bytes, unit_scale=True, disable=quiet) as bar:
            _fetch_watched(snapshot, missing, bar.update)
        for name in missing:
            _require_sound(snapshot, name)
        ref = repository.folder / "refs" / repository.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(ref, snapshot.commit.encode())
    except OSError as error:
        raise HubError(cause_of(error, repository)) from None


def _require_space(repository: Repository, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(repository.folder).free
    if needed_bytes > free_bytes:
        raise HubError(
            f"it needs {format_bytes(needed_bytes)}, and {repository.folder.parent} has {format_bytes(free_bytes)} "
            "free: make room, or set HF_HOME to another disk"
        )


def _fetch_watched(snapshot: Snapshot, names: list[str], advance: Callable[[int], object]) -> None:
    """`fetch` in a process of its own, which is ended when nothing comes."""
    from huggingface_hub import constants

    environment = {
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HUB_CACHE": str(constants.HF_HUB_CACHE),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",  # it writes many megabytes at a time, between which nothing seems to come
    }
    watch = _Watch(snapshot.repository, advance)
    call = {"modules": ("huggingface_hub.hf_api",), "environment": environment, "seconds_left": watch}
    try:
        return isolate.run(fetch, snapshot, names, HEALTHY_SECONDS, **call)
    except BrokenOff as error:
        cause = str(error)
    except isolate.ChildFailed as error:
        cause = cause_of(TimeoutError(), snapshot.repository) if error.kind == "timeout" else error.message.rstrip(".")
    finally:
        came_bytes = watch.clear()
    name = (snapshot.lacks(names) or names)[0]
    came = f"{format_bytes(came_bytes)} of {format_bytes(snapshot.files[name])}"
    raise HubError(f"of {name} came {came}, then {cause}; files that came whole are kept, so try again")


class _Watch:
    """How many seconds a download may still go without a byte, told by the files that it writes."""

    def __init__(self, repository: Repository, advance: Callable[[int], object]):
        self._blobs, self._advance = repository.folder / "blobs", advance
        self._locks = repository.folder.parent / ".locks" / repository.folder.name
        self._before = self._seen = self._look()
        self._started = self._last = None

    def __call__(self) -> float:
        now, seen = time.monotonic(), self._look()
        if self._last is None:
            self._started = self._last = now
        if seen != self._seen:
            self._advance(sum(seen.values()) - sum(self._seen.values()))
            self._seen, self._last = seen, now
        patience = PATIENT_SECONDS if self._last - self._started >= HEALTHY_SECONDS else STALL_SECONDS
        return self._last + patience - now

    def clear(self) -> int:
        """Remove what is left of files that broke off, because the library begins them anew; bytes of the largest.

        Nobody is at work on a file whose lock is free. The library keeps it by the name of the blob.
        """
        from filelock import FileLock, Timeout

        self._seen |= self._look()
        parts = [path for path in self._seen if path.suffix == ".incomplete"]
        for path in parts:
            lock = self._locks / f"{path.name.partition('.')[0]}.lock"
            with suppress(Timeout, OSError, NotImplementedError), FileLock(lock, timeout=0):
                path.unlink(missing_ok=True)
        return max((self._seen[path] for path in parts if path not in self._before), default=0)

    def _look(self) -> dict[Path, int]:
        """The bytes of each file that the library keeps, or is about to."""
        sizes = {}
        for path in self._blobs.glob("*"):
            with suppress(OSError):  # it was renamed meanwhile
                sizes[path] = path.stat().st_size
        return sizes


def _require_sound(snapshot: Snapshot, name: str) -> None:
    """HubError, and the file is gone, unless it has the listed size, and its blob is called by the content's hash.

    The hub tells that hash: SHA-256, or git's for small files. Where no links can be made there are no blobs.
    """
    from huggingface_hub.utils.sha import git_hash, sha_fileobj

    link = snapshot.folder / name
    blob = link.resolve()
    if snapshot.has(name):
        with open(blob, "rb") as stream:
            digest = sha_fileobj(stream).hex() if len(blob.name) == 64 else git_hash(stream.read())
        if digest == blob.name or not link.is_symlink():
            return
    link.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    raise HubError.other(name)
