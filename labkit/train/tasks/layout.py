"""Which files of a data set hold which split, told by their names alone: the same for a folder and for the hub.

A split is named by a word in the file's name (`train.jsonl`, `data/valid-00000-of-00002.parquet`, `alpaca_train.csv`)
or in a folder's (`default/train/0000.parquet`). What is left of the name without the split's word and the numbers tells
files of different tables apart; files of one table are its shards, joined in the order of their names. Where no file
names a split, all are the train split.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
WORDS = {  # those of `datasets`: data_files.py, SPLIT_KEYWORDS
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")  # FILES_TO_IGNORE, there
_SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}
_SHARD = re.compile(r"\d+|of|[0-9a-f]{16}")  # 00000 of 00002, and the fingerprint that some names end in
_COUNT = re.compile(r"-of-(\d+)")


class Unclear(Exception):
    """The names do not tell which files hold a split: a clause whose subject is "it"."""


def splits_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Split -> its files in order. Unclear if a split is there twice or in part; empty if no file holds data."""
    tables = defaultdict(lambda: defaultdict(list))
    for name in sorted(names):
        if name.endswith(SUFFIXES) and PurePosixPath(name).name not in NO_DATA:
            split, table = _parsed(name)
            tables[split][table].append(name)
    unnamed = tables.pop(None, {})
    if not tables and unnamed:
        tables["train"] = unnamed
    return {split: _only_table(split, found) for split, found in tables.items()}


def _parsed(name: str) -> tuple[str | None, tuple]:
    """The split that a path names, None for none, and what distinguishes its table."""
    path = PurePosixPath(name)
    words = [re.split(r"[-._ ]+", part.lower()) for part in (*path.parent.parts, path.stem)]
    for place in reversed(range(len(words))):  # the file's own name says more than its folders'
        for word in words[place]:
            if word in _SPLIT_OF:
                words[place].remove(word)
                return _SPLIT_OF[word], _table(words, path.suffix)
    return None, _table(words, path.suffix)


def _table(words: list[list[str]], suffix: str) -> tuple:
    *folders, stem = words
    folders = [tuple(folder) for folder in folders if folder]
    return (*folders, tuple(word for word in stem if not _SHARD.fullmatch(word)), suffix)


def _only_table(split: str, tables: dict[tuple, list[str]]) -> list[str]:
    firsts = [names[0] for names in tables.values()]
    if len(firsts) > 1:
        raise Unclear(
            f"its split {split} is there {'twice' if len(firsts) == 2 else f'{len(firsts)} times'}: "
            f"{', '.join(firsts[:5])}; name one of these files, or the folder it is in"
        )
    (names,) = tables.values()
    count = _COUNT.search(names[0])
    if count and int(count[1]) != len(names):
        raise Unclear(f"its split {split} has {len(names)} of the {int(count[1])} files that {names[0]} speaks of")
    return names
