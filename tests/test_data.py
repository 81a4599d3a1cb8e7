"""Data sets: files, folders and the hub give the same rows by one rule, and what is wrong is named by file and row."""

import json
import re
import socket
import time

import pytest

from labkit.errors import RequestError
from labkit.train.tasks import columns, files, grammar
from labkit.train.tasks.files import COLUMNS, NAMES, check_available, load

ROWS = [{"instruction": f"add {number} and 1", "answer": f"{number} + 1"} for number in range(30)]
FEW = ROWS[:3]
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def write(path, rows):
    """Rows as the format that the path's name asks for."""
    import pyarrow
    from pyarrow import csv, parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        table = pyarrow.Table.from_pylist(rows) if rows else pyarrow.table({"instruction": [], "answer": []})
        {".csv": csv.write_csv, ".parquet": parquet.write_table}[path.suffix](table, path)
    return path


def both(path):
    """All rows of a data set without a validation split."""
    return load(path, "train").to_list() + load(path, "validation").to_list()


def refused(call, *arguments) -> str:
    started = time.monotonic()
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None
    return str(caught.value)


# -------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", NAMES)
def test_the_repositorys_tasks_load(name):
    for split, size in grammar.SIZES.items():
        dataset = load(name, split)
        assert dataset.column_names == list(COLUMNS) and dataset.num_rows == size
    lines = (files.TASKS / name / "test.jsonl").read_text().splitlines()
    written = [tuple(json.loads(line).values()) for line in lines]
    assert [(row["instruction"], row["answer"]) for row in dataset.to_list()] == written


def test_loading_asks_no_network_and_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    load(NAMES[0])
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_datasets_reads_the_same_files_itself(tmp_path, suffix):
    import datasets

    datasets.disable_progress_bars()
    path = write(tmp_path / f"test{suffix}", ROWS)
    builder = "json" if suffix == ".jsonl" else suffix[1:]
    by_itself = datasets.load_dataset(builder, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert by_itself.to_list() == load(tmp_path, "test").to_list()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_stays_text_in_every_format(tmp_path, suffix):
    texts = ["None", "7", 'two,\n"lines"', "'NA'", "true", "1e5", " 007 ", "\ufeffmark", "é 한"]
    rows = [{"instruction": text, "answer": text} for text in texts]
    assert both(write(tmp_path / f"mine{suffix}", rows)) == rows
    assert both(str(tmp_path / f"mine{suffix}")) == rows


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_json_is_an_array_or_lines_where_the_name_says_json(tmp_path, name):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n\n" for row in FEW))
    assert both(tmp_path) == FEW


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"instruction": "a", "answer": ', "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (b'["a", "b"]', "a list, where an object"),
        (b'{"instruction": "a"}', "has the columns instruction, and answer is wanted"),
        (b"{}", "has the columns none, and instruction is wanted"),
        (b'{"instruction": "a", "answer": 7}', "answer is 7, not text"),
        (b'{"instruction": null, "answer": "7"}', "instruction is missing, not text"),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path, line, reason):
    good = [json.dumps(row).encode() for row in FEW]
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b"\n".join([good[0], b"", good[1], line, good[2]]))
    sentence = refused(load, path)
    assert sentence.startswith(f"{path}, line 4: ") and reason in sentence


def test_broken_tables_are_refused_with_their_name(tmp_path):
    (tmp_path / "uneven.csv").write_text("instruction,answer\na,1\nb,2,3\n")
    (tmp_path / "open.csv").write_text('instruction,answer\na,"1\n')
    (tmp_path / "latin.csv").write_bytes("instruction,answer\né,1\n".encode("latin-1"))
    (tmp_path / "false.parquet").write_bytes(b"not parquet")
    (tmp_path / "false.json").write_text("[{]")
    write(tmp_path / "hole.parquet", [*FEW, {"instruction": "b", "answer": None}])
    write(tmp_path / "numbers.parquet", [{"instruction": "a", "answer": 1}])
    for name, reason in {
        "uneven.csv": ", row 2: has 3 cells, where the header has 2",
        "open.csv": "is not a CSV table",
        "latin.csv": "is not a CSV table",
        "false.parquet": "is not a Parquet table",
        "false.json": "not a JSON object",
        "hole.parquet": ", row 4: answer is missing",
        "numbers.parquet": ", row 1: answer is 1, not text",
    }.items():
        sentence = refused(load, tmp_path / name)
        assert reason in sentence and sentence.startswith(str(tmp_path / name))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_is_refused(tmp_path, suffix):
    path = write(tmp_path / f"empty{suffix}", [])
    assert "is empty" in refused(load, path)
    path.write_bytes(b"")
    assert str(path) in refused(load, path)


def test_rows_without_text_are_left_out_and_said(tmp_path, capsys):
    rows = [FEW[0], {"instruction": "a", "answer": " "}, FEW[1], {"instruction": "", "answer": "b"}, FEW[2]]
    path = write(tmp_path / "train.jsonl", rows)
    assert load(path).to_list() == FEW[:2]
    assert capsys.readouterr().err == f"{path}: 2 rows are left out as empty, the first is {path}, line 2.\n"


# -------------------------------------------------------------------------------------------------- splits


LAYOUTS = {
    "flat": ["train.jsonl", "validation.jsonl", "test.jsonl"],
    "hub": [f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")],
    "converted": ["default/train/0000.parquet", "default/validation/0000.parquet", "default/test/0000.parquet"],
    "words": ["my_training.csv", "my.valid.csv", "my eval.csv"],
    "mixed": ["train.json", "dev.csv", "test/part-0.parquet"],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_found_by_their_names(tmp_path, layout):
    for place, name in enumerate(LAYOUTS[layout]):
        write(tmp_path / name, ROWS[place * 10 : place * 10 + 10])
    for other in ("README.md", "dataset_infos.json", ".hidden.jsonl", ".cache/train.jsonl", "load.py"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("{}")
    for place, split in enumerate(grammar.SIZES):
        assert load(tmp_path, split).to_list() == ROWS[place * 10 : place * 10 + 10]


def test_shards_are_joined_in_order(tmp_path):
    for place in range(3):
        write(tmp_path / f"data/test-0000{place}-of-00003-0123456789abcdef.parquet", ROWS[place * 10 : place * 10 + 10])
    assert load(tmp_path, "test").to_list() == ROWS
    (tmp_path / "data/test-00001-of-00003-0123456789abcdef.parquet").unlink()
    assert "its split test has 2 of the 3 files" in refused(load, tmp_path, "test")


@pytest.mark.parametrize("names", [["data.jsonl"], ["part-0.csv", "part-1.csv"], ["train.jsonl"]])
def test_without_a_validation_split_the_end_of_train_is_held_out(tmp_path, names):
    for name in names:
        write(tmp_path / name, ROWS)
    train, validation = load(tmp_path).to_list(), load(tmp_path, "validation").to_list()
    assert train + validation == ROWS * len(names) and len(validation) == 3 * len(names)
    assert "has no split test; it has train" in refused(load, tmp_path, "test")


def test_what_is_held_out_is_bounded_and_never_empty(tmp_path):
    path = write(tmp_path / "many.csv", ROWS * 150)
    assert load(path, "validation").num_rows == files.HELD_OUT_ROWS == grammar.SIZES["validation"]
    assert load(write(tmp_path / "two.csv", ROWS[:2]), "validation").to_list() == ROWS[1:2]
    assert "has one row" in refused(load, write(tmp_path / "one.csv", ROWS[:1]))


@pytest.mark.parametrize(
    "names", [["train.jsonl", "train.csv"], ["main/train.csv", "more/train.csv"], ["train_sft.csv", "train_gen.csv"]]
)
def test_a_split_that_is_there_twice_is_refused_with_the_files(tmp_path, names):
    for name in names:
        write(tmp_path / name, FEW)
    sentence = refused(check_available, tmp_path)
    assert "is there twice" in sentence and all(name in sentence for name in names)
    assert both(tmp_path / names[0]) == FEW


def test_wrong_requests_say_what_there_is(tmp_path, monkeypatch):
    assert "did you mean 'expressions-easy'?" in refused(load, "expressions-esy")
    assert "has no split dev; it has test, train, validation" in refused(load, NAMES[0], "dev")
    assert "has no split train; it has no .jsonl, .json, .csv, .parquet file" in refused(load, tmp_path)
    (tmp_path / "notes.txt").write_text("a")
    assert "must end in one of .jsonl, .json, .csv, .parquet" in refused(load, tmp_path / "notes.txt")
    monkeypatch.setattr(files, "TASKS", tmp_path / "absent")
    assert "labkit runs from a clone" in refused(load, NAMES[0])


# ------------------------------------------------------------------------------------------------- columns


def turns(*said, keys=("role", "content")):
    return [dict(zip(keys, turn, strict=True)) for turn in said]


MAPPED = [
    ({"instruction": "i", "expression": "e"}, "i", "e"),
    ({"instruction": "i", "answer": "a"}, "i", "a"),
    ({"instruction": "i", "input": "n", "output": "o", "text": "all"}, "i\nn", "o"),
    ({"instruction": "i", "input": "", "output": "o"}, "i", "o"),
    ({"instruction": "i", "input": None, "output": "o"}, "i", "o"),
    ({"instruction": "i", "context": "c", "response": "r", "category": "qa"}, "i\nc", "r"),
    ({"prompt": "p", "completion": "c"}, "p", "c"),
    ({"question": "q", "answer": "a", "id": 1}, "q", "a"),
    ({"messages": turns(("system", "s"), ("user", "u"), ("assistant", "a"))}, "s\nu", "a"),
    ({"messages": turns(("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b"))}, "u\na\nv", "b"),
    ({"messages": turns(("user", "u"), ("assistant", "a"), ("user", "v"))}, "u", "a"),
    ({"conversations": turns(("human", "h"), ("gpt", "g"), keys=("from", "value"))}, "h", "g"),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(("row", "instruction", "answer"), MAPPED)
def test_columns_are_mapped_by_one_rule(tmp_path, row, instruction, answer, suffix):
    write(tmp_path / f"test{suffix}", [row])
    assert load(tmp_path, "test").to_list() == [{"instruction": instruction, "answer": answer}]


def test_the_documented_rule_is_the_one_in_force():
    table = [line for line in columns.__doc__.splitlines() if line.startswith("| `")]
    documented = [tuple(re.findall(r"`(\w+)`", line.split("|")[1])) for line in table]
    assert documented == [*(pair[:2] for pair in columns.PAIRS), columns.CHATS]
    for line, pair in zip(table, columns.PAIRS, strict=False):
        assert re.findall(r"`(\w+)`", line.split("|", 2)[2]) == [pair[0], *filter(None, pair[2:]), pair[1]]


@pytest.mark.parametrize(
    ("row", "how"),
    [
        ({"text": "a"}, "has the columns text, which fits none of the rules"),
        ({"Instruction": "a", "answer": "b"}, "fits none"),
        ({"instruction": "a", "output": "b", "response": "c"}, "fits more than one"),
        ({"prompt": "a", "completion": "b", "messages": []}, "fits more than one"),
        ({}, "has the columns none"),
    ],
)
def test_a_table_that_no_rule_fits_is_refused_with_its_columns(tmp_path, row, how):
    sentence = refused(load, write(tmp_path / "train.jsonl", [row]))
    assert how in sentence and "instruction + output" in sentence and "messages, conversations" in sentence


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("hello", 'messages is "hello", not a list of turns'),
        (["hello"], 'turn 1 is "hello", not an object'),
        (turns(("user", "u"), ("tool", "t")), 'turn 2 is by "tool"; known are system, user'),
        (turns(("user", None)), "content is missing, not text"),
        (turns(("user", [{"type": "image"}])), "content is [{"),
    ],
)
def test_a_broken_chat_is_named_by_row(tmp_path, value, reason):
    path = write(
        tmp_path / "train.jsonl", [{"messages": turns(("user", "u"), ("assistant", "a"))}, {"messages": value}]
    )
    sentence = refused(load, path)
    assert f"{path}, line 2: " in sentence and reason in sentence


def test_a_chat_without_an_answer_is_an_empty_row(tmp_path, capsys):
    chats = [turns(("user", "u")), turns(("assistant", "a")), turns(("user", "u"), ("assistant", "a"))]
    write(tmp_path / "test.jsonl", [{"messages": chat} for chat in chats])
    assert load(tmp_path, "test").to_list() == [{"instruction": "u", "answer": "a"}]
    assert "2 rows are left out" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- hub

ID = "acme/sums"
FAILING = {
    "404": "has no such data set (HTTP 404)",
    "401": "HTTP 401",
    "gated": "it is gated (HTTP 403): accept the licence on",
    "503": "is failing (HTTP 503)",
    "html": "does not answer as a hub does",
    "reset": "has broken off the connection",
    "silent": "does not answer",
    "file-403": "refuses access (HTTP 403): accept the licence on",
    "file-half": "files that came whole are kept, so try again",
    "file-stalls": "files that came whole are kept, so try again",
    "file-silent": "does not answer",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_data_set_of_the_hub_is_what_its_folder_is(hub, tmp_path, layout):
    for place, name in enumerate(LAYOUTS[layout]):
        write(tmp_path / "local" / name, ROWS[place * 10 : place * 10 + 10])
    hub.add("dataset", ID, tmp_path / "local")
    for split in grammar.SIZES:
        assert load(ID, split).to_list() == load(tmp_path / "local", split).to_list()
    hub.asked.clear()
    check_available(ID)
    load(ID)
    assert hub.asked == [], "what is in the cache is not asked for again"


def test_only_the_files_of_the_split_are_downloaded(hub, tmp_path):
    for name in ("train.jsonl", "test.jsonl", "sums.py", "README.md"):
        write(tmp_path / "local" / name if name.endswith("l") else tmp_path / "unused.jsonl", FEW)
        (tmp_path / "local" / name).touch()
    hub.add("dataset", ID, tmp_path / "local")
    check_available(ID)
    assert hub.sent == []
    load(ID)
    assert hub.sent == ["train.jsonl"]
    assert load(ID, "validation").to_list() == FEW[2:]


def test_a_folder_or_file_of_a_data_set_can_be_asked_for(hub, tmp_path):
    for folder, rows in (("main", ROWS[:10]), ("more", ROWS[10:])):
        write(tmp_path / "local" / folder / "test.csv", rows)
        write(tmp_path / "local" / folder / "train.csv", rows)
    hub.add("dataset", ID, tmp_path / "local")
    assert "main/test.csv, more/test.csv; name one of these files, or the folder" in refused(load, ID, "test")
    assert load(f"{ID}/more", "test").to_list() == ROWS[10:] == load(tmp_path / "local" / "more", "test").to_list()
    assert both(f"{ID}/main/test.csv") == ROWS[:10]
    commit = hub.repositories["dataset", ID].commit
    assert load(f"{ID}@{commit}/main", "test").to_list() == ROWS[:10]
    assert "has no revision 'v9'" in refused(load, f"{ID}@v9/main")
    assert "has no split train; it has no" in refused(load, f"{ID}/absent")


@pytest.mark.parametrize("name", ["../../../train.jsonl", "/train.jsonl", "data/../../train.jsonl", "..\\train.jsonl"])
def test_a_hub_cannot_write_outside_its_folder(hub, tmp_path, name):
    hub.add("dataset", ID, {name: json.dumps(ROWS[0]).encode()})
    assert "has no split train" in refused(load, ID)
    assert not list(tmp_path.rglob("*train*")) and hub.sent == []


@pytest.mark.parametrize("failure", FAILING)
def test_a_failing_hub_costs_under_5_seconds_and_one_sentence(hub, tmp_path, failure):
    write(tmp_path / "local" / "train.jsonl", ROWS)
    hub.add("dataset", ID, tmp_path / "local", failure)
    sentence = refused(load, ID)
    assert sentence.startswith(f"Data set '{ID}' cannot be loaded: ") and FAILING[failure] in sentence
    assert "without the hub these work: expressions-easy, expressions-hard, a local file or folder." in sentence
    if not failure.startswith("file-") or failure == "file-403":
        assert FAILING[failure] in refused(check_available, ID)


def test_offline_the_cache_is_used_and_what_it_lacks_is_said(hub, tmp_path, monkeypatch):
    write(tmp_path / "local" / "train.jsonl", ROWS)
    write(tmp_path / "local" / "test.jsonl", FEW)
    hub.add("dataset", ID, tmp_path / "local")
    load(ID)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load(ID).num_rows == 27
    assert "HF_HUB_OFFLINE is set" in refused(load, ID, "test")
    assert f"and from the cache {ID}" in refused(load, "acme/other")


@pytest.mark.parametrize("name", ["./x.jsonl", "/no/such", "~/nothing-here", "a b", "C:\\data", "x" * 5000])
def test_what_looks_like_a_path_is_not_asked_for(hub, name):
    assert "neither a path that is there, nor a hub id" in refused(load, name)
    assert hub.asked == []


# ----------------------------------------------------------------------------------------- requests to labs


@pytest.fixture
def one_lab(tmp_path):
    from tiny_labs import write_lab

    source = "from labkit.train.tasks.files import load\nfrom labkit.lab.results import emit\n"
    return write_lab(
        tmp_path / "labs" / "01_a.ipynb",
        f"{source}emit('rows', load(task).num_rows)",
        parameters="preset = 'quick'\nmodel = 'tiny'\ntask = 'expressions-easy'",
    )


def test_a_request_is_held_against_hub_and_disk_before_a_lab_starts(hub, one_lab, tmp_path, monkeypatch):
    from labkit.runner.request import plan

    write(tmp_path / "mine" / "train.jsonl", ROWS)
    hub.add("dataset", ID, tmp_path / "mine")
    hub.add("model", "acme/gated", {"config.json": b"{}", "model.safetensors": b""}, "gated")
    assert plan([one_lab], parameters={"task": ID})[0].parameters == {"task": ID}
    monkeypatch.chdir(tmp_path)
    assert plan([one_lab], parameters={"task": "mine"})[0].parameters == {"task": str(tmp_path / "mine")}
    assert "it is gated" in refused(lambda: plan([one_lab], parameters={"model": "acme/gated"}))
    assert "HTTP 401" in refused(lambda: plan([one_lab], parameters={"task": "acme/none"}))


@pytest.mark.slow
def test_a_lab_trains_on_a_data_set_of_the_hub(hub, one_lab, tmp_path, monkeypatch):
    """Through the runner: the lab's kernel is a process of its own, which the environment tells of the hub."""
    from labkit.runner import run_lab

    write(tmp_path / "mine" / "train.jsonl", ROWS)
    hub.add("dataset", ID, tmp_path / "mine")
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    run = run_lab(one_lab, tmp_path / "out", task=ID)
    assert run.values == {"rows": 27} and hub.sent == ["train.jsonl"]
