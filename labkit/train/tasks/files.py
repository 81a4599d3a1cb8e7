"""Load a task as a `datasets.Dataset`: one of the repository's own, or any local JSONL, CSV or Parquet file.

Every row is checked before the data set is made, so that a broken line is named by file and line. Tables are read into
memory with pyarrow, the format `datasets` itself holds: nothing is cached on disk and no network is asked. Text columns
stay text (a CSV reader that guesses types would turn the expression `7` into a number and `None` into nothing).
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import RequestError

if TYPE_CHECKING:
    import datasets
    import pyarrow

TASKS = Path(__file__).resolve().parents[3] / "data" / "tasks"
NAMES = ("expressions-easy", "expressions-hard")
COLUMNS = ("instruction", "expression")


def load(name_or_path: str | Path, split: str = "train") -> "datasets.Dataset":
    """The rows of one split, with the text columns `instruction` and `expression`; other columns are dropped.

    `name_or_path` is a task of `NAMES` (splits "train", "validation", "test"), a folder that holds `<split>.jsonl`,
    `.csv` or `.parquet`, or one such file, which is a train split. Raises RequestError for an unknown name, a missing
    split, wrong or missing columns, an empty file, and a broken line, named by file and line.
    """
    path = _find(name_or_path, split)
    table = READERS[path.suffix](path)
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise RequestError(f"{path} has the columns {_listed(table.column_names)}; wanted are {_listed(COLUMNS)}.")
    if not table.num_rows:
        raise RequestError(f"{path} is empty; wanted are rows with {_listed(COLUMNS)}.")
    table = table.select(COLUMNS)
    _check_text(path, table)
    import datasets

    return datasets.Dataset(table)


def check_available(name_or_path: str | Path) -> None:
    """Raise RequestError unless the task is there with what training needs: a train and a validation split."""
    for split in ("train", "validation"):
        _find(name_or_path, split)


def _listed(names) -> str:
    return ", ".join(map(str, names))


def _find(name_or_path: str | Path, split: str) -> Path:
    """The one file that holds the split."""
    path = Path(name_or_path).expanduser()
    if str(name_or_path) in NAMES:
        path = TASKS / name_or_path
        if not TASKS.is_dir():
            raise RequestError(f"The task {name_or_path} needs {TASKS}, which is not there: labkit runs from a clone.")
    elif not path.exists():
        raise RequestError(
            f"There is no task and no file {name_or_path}. Tasks are {_listed(NAMES)}; "
            f"a local file or folder may hold {_listed(READERS)}."
        )
    return _in_folder(path, split) if path.is_dir() else _single_file(path, split)


def _in_folder(folder: Path, split: str) -> Path:
    found = [file for suffix in READERS if (file := folder / f"{split}{suffix}").is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise RequestError(f"The split {split} of {folder} is there twice: {_listed(file.name for file in found)}.")
    splits = sorted(file.stem for file in folder.iterdir() if file.suffix in READERS)
    raise RequestError(f"{folder} has no split {split}; it has {_listed(splits) or f'no {_listed(READERS)} file'}.")


def _single_file(path: Path, split: str) -> Path:
    if path.suffix not in READERS:
        raise RequestError(f"{path} cannot be read as a task: its name must end in one of {_listed(READERS)}.")
    if split != "train":
        raise RequestError(f"{path} is one file, a train split; for {split}, give a folder with {split}{path.suffix}.")
    return path


def _read_jsonl(path: Path) -> "pyarrow.Table":
    import pyarrow

    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            rows.append(_parse_line(line, f"{path}, line {number}"))
    return pyarrow.table({column: pyarrow.array([row[column] for row in rows], pyarrow.string()) for column in COLUMNS})


def _parse_line(line: bytes, place: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{place}: not a JSON object ({error}).") from None
    if not isinstance(row, dict):
        raise RequestError(f"{place}: a {type(row).__name__}, where an object with {_listed(COLUMNS)} is wanted.")
    if not row.keys() >= set(COLUMNS):
        raise RequestError(f"{place}: has the columns {_listed(row) or 'none'}; wanted are {_listed(COLUMNS)}.")
    for column in COLUMNS:
        if not isinstance(row[column], str):
            raise RequestError(f"{place}: {column} is {json.dumps(row[column])[:40]}, not text.")
    return row


def _read_csv(path: Path) -> "pyarrow.Table":
    from pyarrow import ArrowInvalid, csv, string

    try:
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False),  # with threads, errors do not say the row
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, string())),
        )
    except ArrowInvalid as error:
        raise RequestError(f"{path} is not a CSV table: {error}.") from None


def _read_parquet(path: Path) -> "pyarrow.Table":
    from pyarrow import ArrowInvalid, parquet

    try:
        return parquet.read_table(path)
    except ArrowInvalid as error:
        raise RequestError(f"{path} is not a Parquet table: {error}.") from None


def _check_text(path: Path, table: "pyarrow.Table") -> None:
    """Raise RequestError unless every cell is text."""
    for name in COLUMNS:
        column = table[name]
        if str(column.type) not in ("string", "large_string", "string_view"):
            raise RequestError(f"{path}: the column {name} holds {column.type}, not text.")
        if column.null_count:
            row = column.is_null().to_pylist().index(True) + 1
            raise RequestError(f"{path}, row {row}: {name} is missing.")


READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
