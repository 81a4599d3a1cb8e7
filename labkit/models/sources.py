"""Where a Case's model comes from: the embedded model, an architecture by name, config keys, or a local folder.

Nothing here imports torch, so a command can refuse a model it does not have before it starts anything.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import ModelNotAvailable
from labkit.machine import require_folder
from labkit.models.architectures import ARCHITECTURES

EMBEDDED = "tiny"


@dataclass(frozen=True)
class Source:
    """`folder` holds trained weights; without one the model is built from `config` with random weights."""

    name: str
    config: Mapping
    folder: Path | None = None

    @property
    def trained(self) -> bool:
        return self.folder is not None


def find(model: str | Mapping) -> Source:
    """Resolve a Case's `model`. Raises ModelNotAvailable in one sentence with what works instead."""
    if isinstance(model, Mapping):
        return Source(str(model.get("model_type", "config")), model)
    if model == EMBEDDED:
        return _from_folder(require_folder("assets") / "model", model)
    if model in ARCHITECTURES:
        return Source(model, ARCHITECTURES[model])
    try:
        folder = Path(model).expanduser()
        if folder.is_dir():
            return _from_folder(folder, model)
    except (OSError, RuntimeError):  # a name too long for a path, a home that nobody has
        pass
    return _from_folder(_cached(model), model)


def _from_folder(folder: Path, name: str) -> Source:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelNotAvailable(
            f"The model folder {name!r} has no config.json; give a folder written by save_pretrained."
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelNotAvailable(f"The model folder {name!r} has no .safetensors file; pickled weights are not loaded.")
    try:
        keys = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelNotAvailable(f"The config.json of model folder {name!r} is not valid JSON: {error}.") from None
    if not isinstance(keys, dict):
        raise ModelNotAvailable(f"The config.json of model folder {name!r} is not a JSON object.")
    return Source(name, keys, folder)


def _cached(name: str) -> Path:
    """A hub id's snapshot in the local cache; never asks the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    known = ", ".join([EMBEDDED, *ARCHITECTURES])
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise ModelNotAvailable(
            f"Model {name[:100]!r} is neither a known name, nor a folder, nor in the local Hugging Face cache; "
            f"these work offline: {known}."
        ) from None


def check_available(model: str | Mapping) -> None:
    """Raise ModelNotAvailable unless `model` can be loaded or built here."""
    find(model)
