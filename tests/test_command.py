"""The command as a reader meets it: exit codes, what goes where, and that a wrong request costs nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from browser import server_environment, stop, wait_for_server
from tiny_labs import write_lab

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "plotly", "papermill", "nbformat", "transformers", "bitsandbytes", "anywidget", "datasets", "numpy"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone with labs of its own."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "labkit", folder / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    write_lab(folder / "labs" / "00_good.ipynb", "from labkit.lab.results import emit\nemit('twice', 2 * rank)")
    write_lab(folder / "labs" / "01_bad.ipynb", "assert rank == 0, 'never'")
    write_lab(
        folder / "labs" / "02_waits.ipynb", "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    return folder


def environment(clone: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}


def labkit(clone: Path, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "labkit", *arguments],
        cwd=folder or clone, env=environment(clone), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_help_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "labkit", "--help"]
    done = subprocess.run(command, env=environment(ROOT), capture_output=True, text=True)
    assert done.returncode == 0 and "COMMAND" in done.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "labkit" in loaded and not loaded & HEAVY


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "77"], ["no lab '77'", "00_good, 01_bad, 02_waits"]),
        (["run", "00", "-p", "rnak=3"], ["no parameter 'rnak'", "Did you mean rank?"]),
        (["run", "00", "-p", "rank=abc"], ["rank='abc' is not possible"]),
        (["run", "00", "-p", "rank=0"], ["rank=0 is not possible"]),
        (["run", "00", "-p", "rank"], ["NAME=VALUE"]),
        (["run", "00", "-p", "preset=fast"], ["smoke, quick, full"]),
        (["run", "00", "--jobs", "0"], ["--jobs 0"]),
        (["run", "00", "--full", "--quick"], ["not allowed with"]),
        (["run", "00", "--ful"], ["unrecognized arguments"]),
        (["rnu"], ["invalid choice: 'rnu'"]),
        ([], ["required"]),
        (["lab", "--reset", "9"], ["no lab '9'"]),
        (["lab", "--port", "99999"], ["--port 99999 is not possible"]),
        (["gallery"], ["no gallery in", "labkit run"]),
        (["gallery", "--port", "x"], ["invalid int value"]),
    ],
)
def test_a_wrong_request_exits_with_2_and_one_sentence(clone, tmp_path, arguments, words):
    done = labkit(clone, *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_labs_it_says_where_it_runs_from(tmp_path):
    shutil.copytree(ROOT / "labkit", tmp_path / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    done = labkit(tmp_path, "run")
    assert done.returncode == 2 and "clone" in done.stderr and "Traceback" not in done.stderr


def test_run_says_what_came_of_each_lab_and_where_it_is(clone, tmp_path):
    done = labkit(clone, "run", "0", "1", "--smoke", "--jobs", "2", folder=tmp_path)
    assert done.returncode == 1
    _, good, bad, _, where = done.stdout.splitlines()
    assert good.split()[:2] == ["00_good", "ok"] and good.endswith("out/00_good.html")
    assert bad.split()[:2] == ["01_bad", "failed"] and where.endswith("out/index.html")
    assert (
        "00_good: started\n" in done.stderr
        and "01_bad: failed: cell 'cell-0' raised AssertionError: never" in done.stderr
    )
    assert (tmp_path / "out" / "index.html").is_file()

    again = labkit(clone, "run", "00_good", "--smoke", "--resume", "--json", folder=tmp_path)
    assert again.returncode == 0 and "started" not in again.stderr
    document = json.loads(again.stdout)
    assert document["labs"]["00_good"]["results"] == [{"name": "twice", "value": 16, "unit": None, "tolerance": None}]
    assert list(document["labs"]) == ["00_good"]
    assert set(json.loads((tmp_path / "out" / "results.json").read_text())["labs"]) == {"00_good", "01_bad"}


def interruptible() -> None:
    """A shell starts background jobs with interrupts ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_an_interrupt_ends_every_kernel_and_keeps_what_was_finished(clone, tmp_path):
    command = [sys.executable, "-P", "-m", "labkit", "run", "0", "2", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, env=environment(clone), stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    pid_file, end = clone / "labs" / "pid", time.monotonic() + 90
    try:
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < end:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and said.endswith("labkit: interrupted\n") and "Traceback" not in said
    assert not psutil.pid_exists(int(pid_file.read_text()))
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["labs"]) == ["00_good"]
    assert not list((tmp_path / "out").glob("*02_waits*"))


def test_a_reader_that_leaves_early_is_no_error(clone):
    done = subprocess.run(
        f"{sys.executable} -P -m labkit run --help | true",
        shell=True,
        env=environment(clone),
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


def test_reset_copies_the_lab_anew_and_keeps_the_edited_copy(clone, tmp_path):
    folder = tmp_path / "clone"
    shutil.copytree(clone, folder)
    lab, copy = folder / "labs" / "01_bad.ipynb", folder / "work" / "01_bad.ipynb"
    done = labkit(folder, "lab", "--reset", "1", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "work/01_bad.ipynb is the lab again.\n")
    assert copy.read_bytes() == lab.read_bytes()

    copy.write_bytes(b"edited")
    done = labkit(folder, "lab", "--reset", "01_bad", folder=tmp_path)
    (kept,) = copy.parent.glob("01_bad.edited-*.ipynb")
    assert done.returncode == 0 and kept.read_bytes() == b"edited" and kept.name in done.stdout
    assert copy.read_bytes() == lab.read_bytes()


@pytest.mark.slow
def test_lab_serves_the_clone_on_loopback_at_a_copy_of_the_first_lab(clone, tmp_path):
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "labkit", "lab", "--no-browser", "--port", "0"],
            env=server_environment(tmp_path) | {"PYTHONPATH": str(clone)},
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        server = wait_for_server(process, tmp_path, log)
        assert server["token"] and server["url"].startswith("http://127.0.0.1:") and server["root_dir"] == str(clone)
        with urllib.request.urlopen(f"{server['url']}?token={server['token']}") as answer:
            assert answer.url.partition("?")[0].endswith("/lab/tree/work/00_good.ipynb")
    finally:
        stop(process)
