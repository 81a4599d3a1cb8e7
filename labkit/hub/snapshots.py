"""Repositories and their snapshots in the local cache, which is huggingface_hub's own: what any tool fetched is here.

A repository's folder in the cache holds `blobs/<hash>` (the contents), `snapshots/<commit>/<name>` (links to them) and
`refs/<revision>` (a commit). Beside them the library keeps what the hub lists for a commit, so that a snapshot of which
only a part was fetched is known for what it is.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

DEPTH = 4  # deeper than any data set's layout, and not a whole disk
_COMMIT = re.compile(r"[0-9a-f]{40}")


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
class Snapshot:
    """A repository at a commit.

    `files`: the bytes of each file that the hub lists, None where only what is in the cache is known.
    """

    repository: Repository
    commit: str
    files: Mapping[str, int] | None

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
        return path.is_file() and (self.files is None or path.stat().st_size == self.files[name])

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
    return Snapshot(repository, commit, _listing(snapshot))


def cached_ids(kind: str) -> list[str]:
    """The ids of which the cache holds any file at all, sorted."""
    from huggingface_hub import constants

    found = Path(constants.HF_HUB_CACHE).glob(f"{kind}s--*/snapshots/*/*")
    return sorted({path.parents[2].name.removeprefix(f"{kind}s--").replace("--", "/") for path in found})


def snapshot_of(repository: Repository, commit: str, files: Mapping[str, int]) -> Snapshot:
    """A snapshot as a hub lists it; ValueError if no hub would answer so. Names that lead elsewhere are left out."""
    kept = {name: size_bytes for name, size_bytes in files.items() if _is_inside(name)}
    if not _COMMIT.fullmatch(commit) or not all(size_bytes >= 0 for size_bytes in kept.values()):
        raise ValueError("not a commit and sizes")
    return Snapshot(repository, commit, kept)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def _listing(snapshot: Snapshot) -> Mapping[str, int] | None:
    """What the hub listed for the commit when the library last downloaded of it."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    repository = snapshot.repository
    try:
        tree = get_cached_repo_tree(repository.id, repo_type=repository.kind, revision=snapshot.commit)
        return snapshot_of(repository, snapshot.commit, {file.path: file.size for file in tree}).files
    except (CachedRepoTreeNotFoundError, ValueError, TypeError):
        return None
