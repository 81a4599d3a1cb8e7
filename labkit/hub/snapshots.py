"""Repositories and their snapshots in the local cache, which is huggingface_hub's own: what any tool fetched is here.

A repository's folder in the cache holds `blobs/<hash>` (the contents), `snapshots/<commit>/<name>` (links to them),
`refs/<revision>` (a commit) and `trees/<commit>.json` (what the hub lists for a commit, so that a snapshot of which
only a part was fetched is known for what it is).
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

DEPTH = 4  # deeper than any data set's layout, and not a whole disk
TREE_VERSION = 1  # the format of `trees/`: huggingface_hub, _tree_cache.py
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Repository:
    """`kind` is "model" or "dataset", `id` is `name` or `organisation/name`, `revision` a branch, tag or commit."""

    kind: str
    id: str
    revision: str = "main"

    @property
    def folder(self) -> Path:
        """Where the cache keeps it."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) / f"{self.kind}s--{self.id.replace('/', '--')}"

    @property
    def page(self) -> str:
        """Its address for people, on the hub that is set (HF_ENDPOINT)."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"


@dataclass(frozen=True)
class File:
    """One file as the hub lists it. `sha256` is None for small files, which git's own `blob_id` identifies."""

    size_bytes: int
    blob_id: str
    sha256: str | None = None

    @property
    def digest(self) -> str:
        """The name of its blob."""
        return self.sha256 or self.blob_id


@dataclass(frozen=True)
class Snapshot:
    """A repository at a commit. `files`: what the hub lists, None where only what is in the cache is known."""

    repository: Repository
    commit: str
    files: Mapping[str, File] | None

    @property
    def folder(self) -> Path:
        """Where its files are, those that are."""
        return self.repository.folder / "snapshots" / self.commit

    @property
    def names(self) -> list[str]:
        """Every file's path with forward slashes, sorted: as listed, else those that are here."""
        found = self.files if self.files is not None else names_under(self.folder)
        return sorted(found)

    def has(self, name: str) -> bool:
        """Whether the file is here, whole."""
        path = self.folder / name
        return path.is_file() and (self.files is None or path.stat().st_size == self.files[name].size_bytes)

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are not here."""
        return [name for name in names if not self.has(name)]


def names_under(folder: Path) -> list[str]:
    """Every file at most `DEPTH` folders down, as a path with forward slashes, sorted; without hidden ones."""
    found = []
    for place, folders, files in os.walk(folder):
        below = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and len(below.parts) < DEPTH]
        found += [(below / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def cached(repository: Repository) -> Snapshot | None:
    """What the cache holds of the repository's revision; asks no network."""
    commit = repository.revision
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (repository.folder / "refs" / commit).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    snapshot = Snapshot(repository, commit, None)
    if not _COMMIT.fullmatch(commit) or not snapshot.folder.is_dir():
        return None
    return Snapshot(repository, commit, _read_tree(snapshot))


def cached_ids(kind: str) -> list[str]:
    """The ids of which the cache holds anything at all, sorted."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob(f"{kind}s--*/snapshots")
    return sorted(folder.parent.name.removeprefix(f"{kind}s--").replace("--", "/") for folder in folders)


def snapshot_of(repository: Repository, commit: str, files: Mapping[str, File]) -> Snapshot:
    """A snapshot as a hub lists it; ValueError if no hub would answer so. Names that lead elsewhere are left out."""
    kept = {name: file for name, file in files.items() if _is_inside(name)}
    sound = all(_DIGEST.fullmatch(file.digest) and file.size_bytes >= 0 for file in kept.values())
    if not _COMMIT.fullmatch(commit) or not sound:
        raise ValueError("not a commit and hashes")
    return Snapshot(repository, commit, kept)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def _tree_path(snapshot: Snapshot) -> Path:
    return snapshot.repository.folder / "trees" / f"{snapshot.commit}.json"


def write_tree(snapshot: Snapshot) -> None:
    """Keep what the hub lists for the snapshot's commit."""
    from labkit.record import write_atomically

    files = {
        name: {"size": file.size_bytes, "blob_id": file.blob_id}
        | ({"lfs_sha256": file.sha256, "lfs_size": file.size_bytes} if file.sha256 else {})
        for name, file in snapshot.files.items()
    }
    path = _tree_path(snapshot)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"format_version": TREE_VERSION, "files": files}).encode())


def _read_tree(snapshot: Snapshot) -> dict[str, File] | None:
    try:
        tree = json.loads(_tree_path(snapshot).read_text(encoding="utf-8"))
        if tree["format_version"] != TREE_VERSION:
            return None
        files = {
            name: File(entry.get("lfs_size") or entry["size"], entry["blob_id"], entry.get("lfs_sha256"))
            for name, entry in tree["files"].items()
        }
        return dict(snapshot_of(snapshot.repository, snapshot.commit, files).files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
