"""The pre-training corpus: Python source of the running interpreter's standard library, split by file hash.

Every machine that runs the lab has it, so nothing is downloaded. Tests, bundled packages and generated tables
(`encodings`, `pydoc_data`) are left out: the first two are absent from some distributions, the last are not code.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

EXCLUDED = {"site-packages", "dist-packages", "encodings", "pydoc_data", "__phello__", "__pycache__"}
HELD_OUT_SHARE = 12  # one file in this many is held out


@dataclass(frozen=True)
class Corpus:
    """Source texts: `train` and `held_out`, in path order, and the SHA-256 over all names and contents."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    sha256: str

    @property
    def size_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.train + self.held_out)


def is_source(path: Path) -> bool:
    """True for library code: not a test, not generated, not third-party. `path` is relative to the library."""
    return not any(part in EXCLUDED or part.removeprefix("idle_") in {"test", "tests"} for part in path.parts)


def is_held_out(path: Path) -> bool:
    """Decided by the path's hash alone, so a file keeps its side in every Python version."""
    digest = hashlib.sha256(path.as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


def standard_library(root: Path | None = None) -> Corpus:
    """Read every source file under `root` (default: the running interpreter's standard library)."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    train, held_out, digest = [], [], hashlib.sha256()
    for path in sorted(p.relative_to(root) for p in root.rglob("*.py")):
        if not is_source(path):
            continue
        text = (root / path).read_text(encoding="utf-8", errors="replace")
        digest.update(f"{path.as_posix()}\0{text}\0".encode())
        (held_out if is_held_out(path) else train).append(text)
    return Corpus(tuple(train), tuple(held_out), digest.hexdigest())
