"""The clone's folders and the embedded model."""

from labkit import machine
from labkit.doctor.check import Check
from labkit.errors import RequestError
from labkit.units import format_bytes


def folders() -> list[Check]:
    """Whether labs, data and assets are beside the package."""
    return [_folder(name) for name in machine.FOLDERS]


def _folder(name: str) -> Check:
    try:
        return Check(f"{name}/", "ok", str(machine.require_folder(name)))
    except RequestError as error:
        return Check(f"{name}/", "missing", "not beside the package", str(error))


def embedded_model() -> Check:
    """Whether the model that all labs run on offline is there."""
    folder = machine.repository_root() / "assets" / "model"
    files = [*folder.glob("*.safetensors"), *folder.glob("config.json")]
    if len(files) >= 2:
        return Check("embedded model", "ok", format_bytes(sum(file.stat().st_size for file in folder.iterdir())))
    remedy = "Restore assets/model from the repository, or train it again with `labkit pretrain`."
    return Check("embedded model", "missing", f"not in {folder}", remedy)
