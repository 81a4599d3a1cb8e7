"""Load a task as a `datasets.Dataset`: one of the repository's own, a local file or folder, or a data set of the hub.

A data set is JSON lines, JSON, CSV or Parquet; no code of it is ever run. Which files hold which split is told by their
names (`layout`), which columns become instruction and answer by one rule (`columns`), both the same for a folder and
for the hub: what is on the hub is downloaded, split by split, into Hugging Face's own cache and read from there.

Where there is no validation split, the last tenth of the train split, at most `HELD_OUT_ROWS` rows, is held out for it.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from labkit import hub
from labkit.errors import RequestError
from labkit.train.tasks.columns import NAMES as COLUMNS
from labkit.train.tasks.columns import rule_for
from labkit.train.tasks.layout import SUFFIXES, Unclear, splits_of
from labkit.train.tasks.readers import rows_of

if TYPE_CHECKING:
    import datasets

TASKS = Path(__file__).resolve().parents[3] / "data" / "tasks"
NAMES = ("expressions-easy", "expressions-hard")
HELD_OUT_ROWS = 400  # as many as the repository's own tasks have


class Files(NamedTuple):
    """Of one data set, called `name`: the folder or file, the files of each split below it, and its hub snapshot."""

    name: str
    root: Path
    splits: dict[str, list[str]]
    snapshot: hub.Snapshot | None = None


def load(name_or_path: str | Path, split: str = "train") -> "datasets.Dataset":
    """The rows of one split, with the text columns `instruction` and `answer`, in the order of the files.

    `name_or_path` is a task of `NAMES` (splits "train", "validation", "test"); a local file or folder; or a data set of
    the hub: `name` or `organisation/name`, with `@revision` and `/folder` or `/file` after it if need be. A row whose
    instruction or answer is empty is left out, and standard error says so. Raises RequestError in a sentence or two: an
    unknown name, a missing or unclear split, unknown columns, nothing to read, a broken row, named by file and row;
    what the hub does not give, within 5 s.
    """
    files = _files(str(name_or_path))
    wanted = _required(files, split)
    if files.snapshot:
        _download(files, wanted)
    pairs = _read(files, wanted)
    if "validation" not in files.splits and split != "test":
        held_out = _held_out(files.name, len(pairs))
        pairs = pairs[-held_out:] if split == "validation" else pairs[:-held_out]
    import datasets
    import pyarrow

    columns = zip(*pairs, strict=True)
    table = {name: pyarrow.array(texts, pyarrow.string()) for name, texts in zip(COLUMNS, columns, strict=True)}
    return datasets.Dataset(pyarrow.table(table))


def check_available(name_or_path: str | Path) -> None:
    """Raise RequestError, within 5 s, unless there is what training needs: a train split that can be had.

    A local one is read through; what is in a data set of the hub shows when it is loaded.
    """
    files = _files(str(name_or_path))
    train = _required(files, "train")
    if not files.snapshot and files.name not in NAMES:
        rows = len(_read(files, train))
        if "validation" not in files.splits:
            _held_out(files.name, rows)
    if files.snapshot and files.snapshot.lacks(train):
        try:
            hub.require_access(files.snapshot, train[0])
        except hub.HubError as error:
            raise _not_available(files.name, error) from None


def local_path(name_or_path: str | Path) -> Path | None:
    """The local file or folder that is asked for; None for a task of `NAMES` and for what is not there."""
    if str(name_or_path) in NAMES:
        return None
    try:
        path = Path(name_or_path).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name too long for a path, a home that nobody has
        return None


def _files(name: str) -> Files:
    if name in NAMES:
        if not TASKS.is_dir():
            raise RequestError(f"The task {name} needs {TASKS}, which is not there: labkit runs from a clone.")
        return _local(TASKS / name, name)
    if path := local_path(name):
        return _local(path, name)
    try:
        return _on_hub(name)
    except hub.HubError as error:
        raise _not_available(name, error) from None


def _not_available(name: str, error: Exception) -> RequestError:
    cached = ", ".join(hub.cached_ids("dataset")[:3])
    offline = f"{', '.join(NAMES)}, a local file or folder{f', and from the cache {cached}' if cached else ''}"
    return RequestError(f"Data set {name[:100]!r} cannot be loaded: {error}; without the hub these work: {offline}.")


def _local(path: Path, name: str) -> Files:
    if path.is_dir():
        return Files(name, path, _splits(name, hub.names_under(path)))
    if path.suffix not in SUFFIXES:
        raise RequestError(f"{name} cannot be read as a task: its name must end in one of {', '.join(SUFFIXES)}.")
    return Files(name, path.parent, {"train": [path.name]})


def _splits(name: str, names: list[str]) -> dict[str, list[str]]:
    try:
        return splits_of(names)
    except Unclear as error:
        raise RequestError(f"{name} cannot be read as a task: {error}.") from None


def _required(files: Files, split: str) -> list[str]:
    """The files to read for a split."""
    if split in files.splits:
        return files.splits[split]
    if split == "validation" and "train" in files.splits:
        return files.splits["train"]
    there = ", ".join(sorted(files.splits)) or f"no {', '.join(SUFFIXES)} file"
    raise RequestError(f"{files.name} has no split {split}; it has {there}.")


def _on_hub(name: str) -> Files:
    """What the cache holds, if the hub's list of its files is there, too; else what the hub has."""
    *id_parts, inside = [*name.split("/", 2), "", ""][:3]
    repository = hub.repository("dataset", "/".join(id_parts).rstrip("/"), NAMES)
    snapshot = hub.cached(repository)
    if snapshot is None or snapshot.files is None:
        try:
            snapshot = hub.listed(repository)
        except hub.HubError:
            if snapshot is None:
                raise
    below = [one.removeprefix(f"{inside}/") for one in snapshot.names if one.startswith(f"{inside}/")]
    if not inside:
        return Files(name, snapshot.folder, _splits(name, snapshot.names), snapshot)
    if inside in snapshot.names:
        return Files(name, snapshot.folder, {"train": [inside]}, snapshot)
    splits = {split: [f"{inside}/{one}" for one in files] for split, files in _splits(name, below).items()}
    return Files(name, snapshot.folder, splits, snapshot)


def _download(files: Files, names: list[str]) -> None:
    try:
        hub.download(files.snapshot, names)
    except hub.HubError as error:
        raise _not_available(files.name, error) from None


def _read(files: Files, names: list[str]) -> list[tuple[str, str]]:
    """The pairs of instruction and answer in some files of a data set, without those of which one is empty."""
    pairs, empty = [], []
    for name in names:
        label, rule = name if files.snapshot else str(files.root / name), None
        for place, row in rows_of(files.root / name, label):
            rule = rule or rule_for(row, label)
            try:
                pair = rule(row)
            except ValueError as error:
                raise RequestError(f"{place}: {error}.") from None
            if all(text.strip() for text in pair):
                pairs.append(pair)
            else:
                empty.append(place)
    if empty:
        print(f"{files.name}: {len(empty)} rows are left out as empty, the first is {empty[0]}.", file=sys.stderr)
    if not pairs:
        raise RequestError(f"{files.name} is empty; wanted are rows with an instruction and an answer.")
    return pairs


def _held_out(name: str, rows: int) -> int:
    """How many of a train split's rows are the validation split, where there is no other."""
    if rows < 2:
        raise RequestError(f"{name} has one row and no validation split; with two, one is held out for it.")
    return min(HELD_OUT_ROWS, max(1, rows // 10))
