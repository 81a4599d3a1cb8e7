"""What a model's folder must hold: a config without remote code, and whole .safetensors files. Reads no tensor."""

import json
import struct
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SMALL_FILES = (
    CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""Beside the weights, all that is ever downloaded of a model: data that transformers reads, and no code."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Unfit(Exception):
    """Why a folder or repository is no model that can be loaded here: a clause whose subject is "it"."""


def read_json(path: Path) -> dict:
    """The object in a JSON file. Unfit if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unfit(f"its {path.name} is not valid JSON ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(content, dict):
        raise Unfit(f"its {path.name} is not a JSON object")
    return content


def config_in(folder: Path) -> dict:
    """The keys of a folder's config.json. Unfit if it is missing, broken or asks for code of its own.

    A config with `auto_map` names Python code beside it. It is refused even where transformers has a class of its own
    for the model type, because the two need not compute the same.
    """
    if not (folder / CONFIG).is_file():
        if (folder / "adapter_config.json").is_file():
            raise Unfit("it holds an adapter (adapter_config.json) and no config.json; give the model it was made for")
        raise Unfit("it has no config.json; a model's folder is one written by save_pretrained")
    config = read_json(folder / CONFIG)
    if "auto_map" in config:
        raise Unfit(
            "its config.json asks for Python code that comes with it (auto_map), and such code is never run here"
        )
    return config


def require_weights(names: Iterable[str]) -> None:
    """Unfit if the files of these names in a folder, or on the hub, hold no weights that are loaded here."""
    names = set(names)
    if names & {WEIGHTS, INDEX}:
        return
    if pickled := sorted(name for name in names if name.endswith(PICKLES)):
        raise Unfit(
            f"its weights are pickled ({pickled[0]}) and could run code when they are loaded, so only .safetensors are"
        )
    raise Unfit(f"it has neither {WEIGHTS} nor {INDEX}")


def weight_files(folder: Path) -> list[str]:
    """The names of a folder's weight files, as its index lists them if it has one. Unfit if the index is broken."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [WEIGHTS]
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(_is_shard(name) for name in shards.values()):
        raise Unfit(f"its {INDEX} names no .safetensors files beside it")
    return sorted(set(shards.values()))


def _is_shard(name) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def lack_in(folder: Path) -> str:
    """Why the weights in a folder cannot be loaded, as a clause; empty if every file has the length its header says."""
    try:
        require_weights(path.name for path in folder.iterdir())
        names = weight_files(folder)
    except Unfit as error:
        return str(error)
    for name in names:
        path = folder / name
        if not path.is_file():
            return f"its {name} is missing"
        status = path.stat()
        if not _is_whole(path, status.st_size, status.st_mtime_ns):
            return f"its {name} is no whole .safetensors file"
    return ""


@lru_cache(1024)
def _is_whole(path: Path, size_bytes: int, _changed: int) -> bool:
    """The format: 8 bytes with the length of a JSON header, which says where each tensor is; the last ends the file."""
    with open(path, "rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length < size_bytes else {}
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return bool(ends) and 8 + length + max(ends) == size_bytes
        except (struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError):
            return False
