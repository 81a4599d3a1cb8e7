"""Running labs headlessly: what must count as a failure does, what went well is kept, and the pages stand alone."""

import html.parser
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from tiny_labs import write_lab

from labkit.errors import LabFailed, ModelNotAvailable, RequestError
from labkit.lab.catalog import read_parameters
from labkit.lab.results import MIME, emit, show
from labkit.runner import LabRun, Progress, find_labs, parse_parameters, read_results, run_lab, run_labs
from labkit.runner.collect import problem_in
from labkit.runner.request import plan

ROOT = Path(__file__).resolve().parents[1]
EMIT = "from labkit.lab.results import emit"
SWALLOWED = """
import ipywidgets
from labkit.widgets import observe_safely

slider, message = ipywidgets.IntSlider(1, 0, 9), ipywidgets.HTML()
observe_safely([slider], lambda: 1 / slider.value, message)
try:
    slider.value = 0
except ZeroDivisionError:
    pass
message
"""
IN_OUTPUT = """
import ipywidgets
with ipywidgets.Output():
    raise KeyError("unseen")
"""
HANGS = """
import os, subprocess, time
worker = subprocess.Popen(["sleep", "600"], start_new_session=True)
open("pids", "w").write(f"{os.getpid()} {worker.pid}")
print("so far", flush=True)
time.sleep(600)
"""
WAITS = """
import os, pathlib, time
open("pid", "w").write(str(os.getpid()))
while not pathlib.Path("go").exists():
    time.sleep(0.1)
"""
BROKEN = {
    "10_no_parameters_cell": ("pass", "0 cells tagged 'parameters'"),
    "11_exits": ("raise SystemExit(0)", "cell 'cell-0' ended the lab early (SystemExit 0)"),
    "12_kernel_dies": ("import os\nos._exit(3)", "the kernel died in cell 'cell-0'"),
    "13_cell_raises": ("rank / 0", "cell 'cell-0' raised ZeroDivisionError: division by zero"),
    "14_refuses": (
        "from labkit.errors import RequestError\nraise RequestError('rank=5 is too much; use 4.')",
        "rank=5 is too much; use 4.",
    ),
    "15_emits_twice": (f"{EMIT}\nemit('loss', 1.0)\nemit('loss', 2.0)", "result 'loss' was emitted more than once"),
    "16_swallows": (SWALLOWED, "a widget's callback failed: ZeroDivisionError: division by zero"),
    "17_output_widget": (IN_OUTPUT, "an Output widget swallowed KeyError: 'unseen'"),
}


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> tuple[Path, dict[str, LabRun]]:
    """Every broken lab and a good one after them, in one run of two at a time."""
    folder = tmp_path_factory.mktemp("batch")
    for name, (source, _) in BROKEN.items():
        write_lab(folder / "labs" / f"{name}.ipynb", source, "left = 'for later'",
                  parameters=None if "no_parameters" in name else "preset = 'quick'\nrank = 8")  # fmt: skip
    good = f"{EMIT}\nimport os\nemit('parameters', 2 * rank, 'bytes', 0.0)"
    facts = "emit('headless', os.environ['LABKIT_HEADLESS'])\nemit('folder', os.path.basename(os.getcwd()))"
    write_lab(folder / "labs" / "18_good.ipynb", good, facts)
    labs = find_labs(folder=folder / "labs")
    return folder / "out", run_labs(labs, folder / "out", parameters={"rank": 4}, preset="smoke", jobs=2)


@pytest.mark.parametrize("name", BROKEN)
def test_what_must_fail_fails_and_says_why(batch, name):
    out, runs = batch
    assert runs[name].outcome == "failed"
    assert BROKEN[name][1] in runs[name].error
    assert "Traceback" not in runs[name].error
    saved = nbformat.read(out / f"{name}.ipynb", as_version=4)
    assert "left = 'for later'" in saved.cells[-1].source
    assert html.escape(runs[name].error, quote=False) in (out / f"{name}.html").read_text()


def test_the_labs_after_a_failure_run_and_everything_is_written(batch):
    out, runs = batch
    assert runs["18_good"].ok and runs["18_good"].error is None
    assert runs["18_good"].values == {"parameters": 8, "headless": "1", "folder": "labs"}
    assert runs["18_good"].results[0] == {"name": "parameters", "value": 8, "unit": "bytes", "tolerance": 0.0}
    document = json.loads((out / "results.json").read_text())
    assert document["schema"] == 1 and list(document["labs"]) == [*BROKEN, "18_good"]
    entry = document["labs"]["18_good"]
    assert set(entry) == {"outcome", "seconds", "parameters", "preset", "results", "error", "created", "machine"}
    assert (entry["parameters"], entry["preset"]) == ({"rank": 4}, "smoke")
    assert read_results(out) == runs
    kinds = {path.name for path in out.iterdir()} - {f"{name}.{kind}" for name in runs for kind in ("ipynb", "html")}
    assert kinds == {"results.json", "index.html", "plotly.min.js", ".lock"}


def test_a_finished_notebook_with_a_cell_left_unrun_does_not_count(tmp_path):
    path = write_lab(tmp_path / "labs" / "01_lab.ipynb", "a = 1", "   ", "b = 2", parameters=None)
    notebook = nbformat.read(path, as_version=4)
    assert problem_in(notebook) == "cells 'cell-0', 'cell-2' were left unrun."
    for cell in notebook.cells:
        cell.execution_count = 1
    assert problem_in(notebook) is None


def test_progress_says_which_lab_and_on_a_terminal_which_cell():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (io.StringIO(), Terminal()):
        progress = Progress(stream)
        progress.started("01_lab")
        progress.at_cell("01_lab", 4, 12)
        progress.ended("01_lab", "ok after 3 s")
        lines = re.sub(r".*?\r\033\[K", "", stream.getvalue())
        assert lines == "01_lab: started\n01_lab: ok after 3 s\n"
        assert ("01_lab: cell 5 of 12" in stream.getvalue()) == stream.isatty()
    Progress().ended("01_lab", "to nobody")


@pytest.mark.slow
def test_a_lab_that_hangs_is_stopped_with_all_it_started(tmp_path):
    lab = write_lab(tmp_path / "labs" / "01_hangs.ipynb", HANGS)
    run = run_labs([lab], tmp_path / "out", timeout_seconds=15)["01_hangs"]
    assert run.error == "the lab took longer than 15.0 s and was stopped in cell 'cell-0'."
    wait_until(lambda: not any(map(alive, map(int, (lab.parent / "pids").read_text().split()))), "orphans are left")
    saved = nbformat.read(tmp_path / "out" / "01_hangs.ipynb", as_version=4)
    assert saved.cells[-1].outputs[0].text == "so far\n"


@pytest.mark.slow
def test_a_killed_run_keeps_what_was_finished_and_resumes(tmp_path):
    labs = [write_lab(tmp_path / "labs" / "01_fast.ipynb", f"{EMIT}\nemit('a', 1)"),
            write_lab(tmp_path / "labs" / "02_waits.ipynb", WAITS)]  # fmt: skip
    out, folder = tmp_path / "out", tmp_path / "labs"
    script = (
        f"from pathlib import Path\nfrom labkit.runner import *\nrun_labs({list(map(str, labs))!r}, Path({str(out)!r}))"
    )
    runner = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        wait_until(
            lambda: (folder / "pid").exists() and (folder / "pid").read_text(), "the second lab did not start", 90
        )
        with pytest.raises(RequestError, match="Another run is writing"):
            run_labs(labs, out)
    finally:
        runner.kill()
        runner.wait()
    kernel = int((folder / "pid").read_text())
    wait_until(lambda: not alive(kernel), "the kernel outlived its runner")
    kept = read_results(out)
    assert list(kept) == ["01_fast"] and kept["01_fast"].values == {"a": 1}
    assert not (out / "02_waits.ipynb").exists()

    (folder / "go").touch()
    runs = run_labs(labs, out, resume=True)
    assert runs["01_fast"] == kept["01_fast"] and runs["02_waits"].ok
    assert {path.name for path in out.glob(".*")} == {".lock"}
    repeated = run_labs(labs[:1], out, resume=True, parameters={"rank": 2})
    assert repeated["01_fast"].created > kept["01_fast"].created and list(read_results(out)) == ["01_fast", "02_waits"]
    (out / "01_fast.html").unlink()
    assert run_labs(labs[:1], out, resume=True, parameters={"rank": 2})["01_fast"] != repeated["01_fast"]


def test_run_lab_raises_for_a_failed_lab_and_returns_the_results_of_a_good_one(tmp_path):
    lab = write_lab(
        tmp_path / "labs {x}" / "01_lab.ipynb", f"{EMIT}\nemit('twice', [2 * rank])\nassert rank > 1, 'too small'"
    )
    assert run_lab(lab, tmp_path / "out {y}", rank=3).values == {"twice": [6]}
    with pytest.raises(LabFailed, match="01_lab: cell 'cell-0' raised AssertionError: too small"):
        run_lab(lab, tmp_path / "out {y}", rank=1)
    assert read_results(tmp_path / "out {y}")["01_lab"].values == {"twice": [2]}


@pytest.mark.parametrize(
    ("parameters", "error", "match"),
    [
        ({"rnak": 4}, RequestError, r"no parameter 'rnak'. Did you mean rank\? The parameters are model, preset, rank"),
        ({"rank": 0}, RequestError, "rank=0 is not possible"),
        ({"rank": "abc"}, RequestError, "rank='abc' is not possible"),
        ({"seconds": "soon"}, RequestError, "in 02_b seconds is a number"),
        ({"verbose": 1}, RequestError, "in 02_b verbose is true or false"),
        ({"preset": "fast"}, RequestError, "must be one of smoke, quick, full"),
        ({"model": "no/such-model"}, ModelNotAvailable, "no/such-model"),
        ({"task": "no-such-task"}, RequestError, "no-such-task"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(two_labs, tmp_path, parameters, error, match):
    with pytest.raises(error, match=match) as raised:
        run_labs(two_labs, tmp_path / "out", parameters=parameters)
    assert raised.value.exit_code == 2 and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def two_labs(tmp_path) -> list[Path]:
    write_lab(
        tmp_path / "labs" / "01_a.ipynb",
        parameters="preset: str = 'quick'  # how long\nrank = 8\nmodel = 'tiny'\ntask = 'x'",
    )
    write_lab(tmp_path / "labs" / "02_b.ipynb", parameters="seconds = 2 * 3.0\nseconds = 60\nverbose = False")
    write_lab(tmp_path / "labs" / "02_b.edited-2026-01-01.ipynb")
    return find_labs(folder=tmp_path / "labs")


def test_each_lab_gets_the_parameters_it_has(two_labs, tmp_path, monkeypatch):
    first, second = plan(two_labs, "full", {"rank": 4, "seconds": 2.5})
    assert first.injected == {"rank": 4, "preset": "full"}
    assert (second.injected, second.preset) == ({"seconds": 2.5}, None)
    monkeypatch.chdir(ROOT)  # a lab runs in its own folder
    assert plan(two_labs, "quick", {"model": "assets/model"})[0].parameters == {"model": str(ROOT / "assets" / "model")}


def test_labs_are_found_by_number_or_name(two_labs):
    first, second = two_labs
    folder = first.parent
    assert find_labs(["02", "1", "01_a"], folder) == [first, second]
    assert find_labs(["02_b.ipynb"], folder) == [second]
    with pytest.raises(RequestError, match="no lab '77': there are 01_a, 02_b"):
        find_labs(["77"], folder)
    with pytest.raises(RequestError, match="did you mean 02_b"):
        find_labs(["02_bb"], folder)
    assert set(read_parameters(second)) == {"seconds", "verbose"} and read_parameters(second)["seconds"] == 60


def test_an_unreadable_notebook_fails_its_lab_alone(two_labs, tmp_path):
    two_labs[0].write_text("{ not json")
    write_lab(two_labs[1], parameters="rank = (")
    problems = [job.problem for job in plan(two_labs, parameters={"rank": 3})]
    assert "01_a.ipynb cannot be read as a notebook" in problems[0]
    assert "parameters cell of 02_b.ipynb is not valid Python" in problems[1]
    runs = run_labs(two_labs[:1], tmp_path / "out")
    assert runs["01_a"].error == problems[0] and (tmp_path / "out" / "01_a.html").is_file()


def test_parameters_are_json_where_they_parse_else_text():
    texts = ["rank=16", "model=tiny", 'targets=["q_proj"]', "upcast=null", "note=a=b", "clip_norm=NaN", "alpha=1e999"]
    parsed = {"rank": 16, "model": "tiny", "targets": ["q_proj"], "upcast": None, "note": "a=b"}
    assert parse_parameters(texts) == parsed | {"clip_norm": "NaN", "alpha": "1e999"}
    with pytest.raises(RequestError, match="NAME=VALUE"):
        parse_parameters(["rank"])


def test_a_foreign_results_file_is_refused_and_left_alone(two_labs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for content in ('{"schema": 2, "labs": {}}', "[]", '{"schema": 1, "labs": {"01_a": {}}}', "{"):
        (out / "results.json").write_text(content)
        with pytest.raises(RequestError, match="not a results file"):
            run_labs(two_labs, out)
        assert (out / "results.json").read_text() == content


def test_emit_leaves_one_output_for_people_and_for_the_runner(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    emit("peak_allocated_bytes", 3 * 2**20, unit="bytes", tolerance=0.05)
    emit("peak_allocated_bytes", 1)  # a cell may be run again
    assert shown[0] == {
        MIME: {"name": "peak_allocated_bytes", "value": 3 * 2**20, "unit": "bytes", "tolerance": 0.05},
        "text/plain": "peak_allocated_bytes = 3,145,728 bytes (3.00 MiB)",
    }
    assert [show({"value": value}) for value in (0.25, "nf4", [1, 2], None, True)] == [
        "0.25",
        "nf4",
        "[1, 2]",
        "null",
        "true",
    ]


def test_emit_refuses_what_cannot_be_compared():
    import numpy

    wrong = [
        ("x", float("nan")),
        ("x", [float("inf")]),
        ("x", numpy.arange(3)),
        ("", 1),
        (3, 1),
        ("x", 1, 5),
        ("x", 1, "s", -1),
    ]
    wrong += [("x", 1, "s", float("nan")), ("x", 1, "s", True)]
    for arguments in wrong:
        with pytest.raises(RequestError, match="emit"):
            emit(*arguments)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until(condition, complaint: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, complaint
        time.sleep(0.1)
