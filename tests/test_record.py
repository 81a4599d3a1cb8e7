"""Records: validation that names the culprit, JSON round trips, and a store that loses nothing."""

import datetime
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import record as store
from labkit.case import Case, Trial
from labkit.errors import RequestError
from labkit.record import BREAKDOWN, CHOICES, PHASES, Record, TornLine

ROOT = Path(__file__).resolve().parents[1]
CASE = Case(model="tiny", method="lora", rank=4, targets=("q_proj", "v_proj"))
TRIAL = Trial(model="tiny", method="qlora", steps=7)

counts = st.none() | st.integers(0, 2**50)
texts = st.none() | st.text(max_size=20)
names = st.text(min_size=1, max_size=10)
finite = st.floats(0, 1e12, allow_nan=False)
breakdowns = st.dictionaries(st.sampled_from(BREAKDOWN), st.integers(0, 2**40), min_size=1)


@st.composite
def records(draw):
    breakdown = draw(st.just({}) | breakdowns)
    peak_bytes = draw(st.sampled_from((None, sum(breakdown.values())))) if breakdown else draw(counts)
    return Record(
        meter=draw(st.sampled_from(CHOICES["meter"])),
        kind=draw(st.sampled_from(CHOICES["kind"])),
        outcome=draw(st.sampled_from(CHOICES["outcome"])),
        case=draw(st.sampled_from((None, CASE, TRIAL))),
        device=draw(texts),
        peak_allocated_bytes=peak_bytes,
        peak_reserved_bytes=draw(counts),
        managed_bytes=draw(counts),
        phases=draw(st.dictionaries(st.sampled_from(PHASES), st.integers(0, 2**40))),
        breakdown=breakdown,
        seconds=draw(st.none() | finite),
        scores=draw(st.dictionaries(names, st.none() | finite | st.lists(finite, max_size=3) | st.text(max_size=5))),
        source=draw(texts),
        versions=draw(st.dictionaries(names, names)),
        dirty=draw(st.none() | st.booleans()),
        created=draw(st.none() | st.datetimes().map(datetime.datetime.isoformat)),
    )


@settings(deadline=None)
@given(records())
def test_json_round_trip_on_one_line(record):
    line = record.to_json()
    assert "\n" not in line
    assert Record.from_dict(json.loads(line)) == record


def test_the_keys_of_the_line_are_the_contract():
    keys = (
        "schema id case meter kind device outcome peak_allocated_bytes peak_reserved_bytes device_used_bytes "
        "managed_bytes host_rss_bytes after_load_bytes phases breakdown seconds tokens_per_second scores source "
        "versions driver commit dirty created"
    )
    line = json.loads(Record(meter="measured", kind="memory").to_json())
    assert list(line) == keys.split()
    assert line["phases"] is None and line["case"] is None and line["outcome"] == "ok"


def test_a_trial_comes_back_as_a_trial():
    back = Record.from_dict(json.loads(Record(meter="measured", kind="training", case=TRIAL).to_json()))
    assert type(back.case) is Trial and back.case == TRIAL


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metre": "measured"}, "'metre'"),
        ({"meter": "guessed"}, "measured, predicted, estimated, imported"),
        ({"kind": "speed"}, "memory, training, latency, paging, quantisation"),
        ({"outcome": "crash"}, "ok, oom, refused, failed"),
        ({"schema": 2}, "schema=2"),
        ({"id": ""}, "id=''"),
        ({"peak_reserved_bytes": -1}, "peak_reserved_bytes=-1"),
        ({"host_rss_bytes": 1.5}, "host_rss_bytes=1.5"),
        ({"managed_bytes": True}, "managed_bytes=True"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"tokens_per_second": float("inf")}, "tokens_per_second=inf"),
        ({"scores": {"loss": float("nan")}}, "scores"),
        ({"phases": {"warmup": 1}}, "'warmup'"),
        ({"phases": {"load": None}}, "'load'"),
        ({"breakdown": {"weight": 1}}, "'weight'"),
        ({"breakdown": {"weights": 2, "adapters": 3}, "peak_allocated_bytes": 6}, "5 bytes.*is 6"),
        ({"versions": {"torch": 2}}, "versions"),
        ({"versions": ["torch"]}, "versions"),
        ({"dirty": "yes"}, "dirty='yes'"),
        ({"created": "yesterday"}, "created='yesterday'"),
        ({"device": 0}, "device=0"),
        ({"case": {"model": "tiny", "method": "lora", "rnk": 4}}, "rank"),
        ({"case": "tiny"}, "Case"),
    ],
)
def test_what_cannot_be_is_named_in_one_sentence(change, words):
    with pytest.raises(RequestError, match=words) as caught:
        Record.from_dict({"meter": "measured", "kind": "memory"} | change)
    assert "\n" not in str(caught.value)


def test_missing_keys_and_non_objects_are_named():
    with pytest.raises(RequestError, match="lacks meter and kind"):
        Record.from_dict({})
    with pytest.raises(RequestError, match="JSON object"):
        Record.from_dict([])


def test_a_new_record_says_where_it_comes_from():
    record = store.new_record(CASE, "estimated", "memory", device="h200", peak_allocated_bytes=5)
    assert (record.case, record.device, record.driver, record.peak_allocated_bytes) == (CASE, "h200", None, 5)
    assert record.versions["python"] == "{}.{}.{}".format(*sys.version_info[:3])
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(record.created)
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=1)
    assert store.new_record(CASE, "estimated", "memory").id != record.id


def some(count):
    return [Record(meter="measured", kind="memory", id=str(number), seconds=float(number)) for number in range(count)]


def test_append_then_read(tmp_path):
    path = tmp_path / "deep" / "folder" / "runs.jsonl"
    first, second = some(2), some(3)
    store.append(path, first)
    store.append(path, iter(second))
    assert store.read(path) == first + second


WRITER = """
import sys
import threading
sys.path.insert(0, sys.argv[1])
from labkit.record import Record, append
for number in range(300):
    append(sys.argv[2], [Record(meter="measured", kind="memory", id=f"{sys.argv[3]}-{number}", source="x" * 3000)])
"""


def test_two_processes_writing_at_once_lose_nothing(tmp_path):
    path = tmp_path / "runs.jsonl"
    command = [sys.executable, "-c", WRITER, str(ROOT), str(path)]
    writers = [subprocess.Popen([*command, name]) for name in ("left", "right")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    ids = [record.id for record in store.read(path)]
    assert sorted(ids) == sorted(f"{name}-{number}" for name in ("left", "right") for number in range(300))
    for name in ("left", "right"):
        assert [one for one in ids if one.startswith(name)] == [f"{name}-{number}" for number in range(300)]


@settings(deadline=None, max_examples=25)
@given(cut=st.integers(1, 200))
def test_a_torn_last_line_is_reported_and_swallows_nothing(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("torn") / "runs.jsonl"
    kept, torn, later = some(3)
    store.append(path, [kept, torn])
    path.write_bytes(path.read_bytes()[: -cut - 1])
    with pytest.warns(TornLine, match="line 2"):
        assert store.read(path) == [kept]
    store.append(path, [later])
    with pytest.warns(TornLine, match="line 2"):
        assert store.read(path) == [kept, later]


def test_a_last_line_that_only_lacks_its_newline_is_whole(tmp_path):
    path = tmp_path / "runs.jsonl"
    one, two = some(2)
    path.write_text(one.to_json())
    store.append(path, [two])
    assert store.read(path) == [one, two]


def test_every_broken_line_is_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    good = some(1)[0]
    lines = [b'{"meter": "guessed", "kind": "memory"}', good.to_json().encode(), b"\xff\xfe", b"", b"[1, 2]"]
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.warns(TornLine) as caught:
        assert store.read(path) == [good]
    assert [str(warning.message).split("line ")[1].split()[0] for warning in caught] == ["1", "3", "5"]


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(RequestError, match=r"nowhere\.jsonl cannot be read: No such file"):
        store.read(tmp_path / "nowhere.jsonl")


def test_where_measurements_go():
    day = datetime.date(2026, 3, 9)
    path = store.measurement_path("h200", "ladder", day, "/r")
    assert path == Path("/r/data/measurements/h200/2026-03-09-ladder.jsonl")
    assert store.measurement_path("cpu", "x").is_relative_to(ROOT)
    for device, suite in (("../x", "s"), ("cpu", "a/b"), ("", "s"), ("cpu", ".")):
        with pytest.raises(RequestError, match="file name"):
            store.measurement_path(device, suite, day, "/r")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    store.write_atomically(path, b"old")
    store.write_atomically(str(path), b"new")
    assert path.read_bytes() == b"new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        store.write_atomically(tmp_path / "folder", b"a folder cannot be replaced by a file")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "folder", path]


def test_append_waits_for_the_lock(tmp_path):
    path = tmp_path / "runs.jsonl"
    with FileLock(tmp_path / ".runs.jsonl.lock"):
        writer = threading.Thread(target=store.append, args=(path, some(1)))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive() and not path.exists()
    writer.join(10)
    assert store.read(path) == some(1)
