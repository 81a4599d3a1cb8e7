"""Where a Case's model comes from: the embedded one, an architecture by name, config keys, a folder, or the hub.

Nothing here imports torch, so a command can refuse a model it does not have before it starts anything. Asked are, in
this order: the known names, a folder, the local Hugging Face cache, the hub. So a model that is here whole costs no
network, and is not renewed either: ask for another revision with `organisation/name@revision`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from labkit import hub
from labkit.errors import ModelNotAvailable
from labkit.machine import require_folder
from labkit.models.architectures import ARCHITECTURES
from labkit.models.folders import (
    CONFIG,
    INDEX,
    SMALL_FILES,
    WEIGHTS,
    Unfit,
    config_in,
    lack_in,
    require_weights,
    weight_files,
)

EMBEDDED = "tiny"
KNOWN = (EMBEDDED, *ARCHITECTURES)


@dataclass(frozen=True)
class Source:
    """`folder` holds trained weights; without one the model is built from `config` with random weights.

    `commit` is the hub's, for a model that comes from there.
    """

    name: str
    config: Mapping
    folder: Path | None = None
    commit: str | None = None

    @property
    def trained(self) -> bool:
        return self.folder is not None


def find(model: str | Mapping, weights: bool = True) -> Source:
    """Resolve a Case's `model`; a hub id is downloaded if the cache does not hold it whole, be it for hours.

    Without `weights` the config is enough, and of a hub id nothing else is downloaded. Raises ModelNotAvailable in one
    sentence with the name, the cause and what works instead; the hub's failures within 5 s.
    """
    return _resolve(model, whole=weights, fetch=weights)


def check_available(model: str | Mapping) -> None:
    """Raise ModelNotAvailable, within 5 s, unless `find` will succeed, so far as the hub's list of files tells."""
    _resolve(model, whole=True, fetch=False)


def local_folder(model: str | Mapping) -> Path | None:
    """The existing folder that a Case's `model` names; None for every other kind of model."""
    if model == EMBEDDED:
        return require_folder("assets") / "model"
    if isinstance(model, Mapping) or model in ARCHITECTURES:
        return None
    try:
        folder = Path(model).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # a name too long for a path, a home that nobody has
        return None


def _resolve(model: str | Mapping, whole: bool, fetch: bool) -> Source:
    if isinstance(model, Mapping):
        return Source(str(model.get("model_type", "config")), model)
    if model in ARCHITECTURES:
        return Source(model, ARCHITECTURES[model])
    try:
        if folder := local_folder(model):
            return _from_folder(model, folder, whole)
        return _from_hub(model, whole, fetch)
    except Unfit as error:
        cause = error
    except hub.HubError as error:
        cause = f"{error}; without the hub these work: {_offline()}"
    raise ModelNotAvailable(f"Model {model[:100]!r} cannot be loaded: {cause}.")


def _offline() -> str:
    cached = (hub.cached(hub.Repository("model", one)) for one in hub.cached_ids("model"))
    whole = (one.repository.id for one in cached if one and not lack_in(one.folder))
    ids = ", ".join(islice(whole, 3))
    return ", ".join([*KNOWN, "a local folder"]) + (f", and from the cache {ids}" if ids else "")


def _from_folder(name: str, folder: Path, whole: bool) -> Source:
    config = config_in(folder)
    if lack := whole and lack_in(folder):
        raise Unfit(lack)
    return Source(name, config, folder)


def _from_hub(model: str, whole: bool, fetch: bool) -> Source:
    repository = hub.repository("model", model, KNOWN)
    snapshot = hub.cached(repository)
    if lack := _lack(snapshot, whole):
        snapshot = _completed(repository, snapshot, lack, fetch)
    return Source(model, config_in(snapshot.folder), snapshot.folder, snapshot.commit)


def _lack(snapshot: hub.Snapshot | None, whole: bool) -> str:
    """What the cache's snapshot lacks, as a clause; empty if it is enough."""
    if snapshot is None or not (snapshot.folder / CONFIG).is_file():
        return f"its {CONFIG} is missing"
    if not whole:
        return ""
    missing = snapshot.lacks(_wanted(snapshot)) if snapshot.files else []
    return f"its {missing[0]} is missing" if missing else lack_in(snapshot.folder)


def _wanted(snapshot: hub.Snapshot) -> list[str]:
    """What to download of a model, but for the shards that its index names."""
    weights = WEIGHTS if WEIGHTS in snapshot.files else INDEX
    return [name for name in (*SMALL_FILES, weights) if name in snapshot.files]


def _completed(repository: hub.Repository, partial: hub.Snapshot | None, lack: str, weights: bool) -> hub.Snapshot:
    """What the hub has of the repository: its config, after which it may be refused, and its weights if wanted."""
    try:
        snapshot = hub.listed(repository)
    except hub.HubError as error:
        if partial is None:
            raise
        raise hub.HubError(f"the cache holds only a part of it ({lack}), and {error}") from None
    if CONFIG not in snapshot.files:
        raise Unfit(f"the hub has no {CONFIG} in it")
    require_weights(snapshot.names)
    hub.download(snapshot, [CONFIG])
    config_in(snapshot.folder)
    if weights:
        hub.download(snapshot, _wanted(snapshot))
        names = weight_files(snapshot.folder)
        if absent := [name for name in names if name not in snapshot.files]:
            raise Unfit(f"its {INDEX} names {absent[0]}, which the hub does not have")
        hub.download(snapshot, names)
        if lack := lack_in(snapshot.folder):
            raise Unfit(lack)
    return snapshot
