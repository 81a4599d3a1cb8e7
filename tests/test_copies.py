"""The reader's copies of the labs: running and saving is no edit, an edit is never lost, git sees none of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from tiny_labs import write_lab

from labkit.lab import copies

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def lab(tmp_path) -> Path:
    return write_lab(tmp_path / "labs" / "03_lab.ipynb", "rank + 1")


def update(lab: Path) -> list[str]:
    (copy,), notes = copies.update(lab.parent)
    assert copy == copy_of(lab)
    return notes


def copy_of(lab: Path) -> Path:
    return lab.parent.parent / "work" / lab.name


def run_and_save(notebook: Path) -> None:
    """What JupyterLab leaves: outputs, counts, other metadata."""
    document = nbformat.read(notebook, as_version=4)
    document.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    document.cells[-1].execution_count = 1
    document.cells[-1].outputs = [nbformat.v4.new_output("stream", text="9")]
    nbformat.write(document, notebook)


def edit(notebook: Path, source: str = "rank + 2") -> None:
    document = nbformat.read(notebook, as_version=4)
    document.cells[-1].source = source
    nbformat.write(document, notebook)


def test_an_unedited_copy_follows_its_lab_even_after_it_was_run(lab):
    assert update(lab) == [] and copy_of(lab).read_bytes() == lab.read_bytes()
    run_and_save(copy_of(lab))
    ran = copy_of(lab).read_bytes()
    assert update(lab) == [] and copy_of(lab).read_bytes() == ran, "what was run is kept while the lab stays"
    edit(lab)
    assert update(lab) == [] and copy_of(lab).read_bytes() == lab.read_bytes()


def test_an_edited_copy_is_kept_and_the_reader_told_how_to_get_the_new_one(lab):
    update(lab)
    edit(copy_of(lab), "my own")
    mine = copy_of(lab).read_bytes()
    assert update(lab) == [], "nothing to say while the lab is the one that was copied"
    edit(lab)
    (note,) = update(lab)
    assert copy_of(lab).read_bytes() == mine and "`labkit lab --reset 03`" in note

    said = copies.reset(lab)
    (kept,) = copy_of(lab).parent.glob("03_lab.edited-*.ipynb")
    assert kept.read_bytes() == mine and kept.name in said
    assert copy_of(lab).read_bytes() == lab.read_bytes() and update(lab) == []


def test_an_edit_that_the_lab_has_taken_over_is_none_any_more(lab):
    update(lab)
    edit(copy_of(lab), "better")
    edit(lab, "better")
    assert update(lab) == [] and copy_of(lab).read_bytes() == lab.read_bytes()


def test_two_resets_at_once_keep_both_edits(lab):
    for text in ("first", "second"):
        update(lab)
        edit(copy_of(lab), text)
        copies.reset(lab)
    kept = copy_of(lab).parent.glob("03_lab.edited-*.ipynb")
    assert {nbformat.read(path, as_version=4).cells[-1].source for path in kept} == {"first", "second"}
    assert copies.reset(lab) == "work/03_lab.ipynb is the lab again."


def test_a_copy_that_is_no_notebook_counts_as_edited(lab):
    update(lab)
    copy_of(lab).write_text("{ torn")
    edit(lab)
    assert len(update(lab)) == 1 and copy_of(lab).read_text() == "{ torn"


def test_a_copy_without_its_origin_is_kept(lab):
    copy_of(lab).parent.mkdir()
    shutil.copy(lab, copy_of(lab))
    edit(copy_of(lab), "from elsewhere")
    assert len(update(lab)) == 1 and "from elsewhere" in copy_of(lab).read_text()


SLIDER = """
import ipywidgets
import plotly.graph_objects as go
from labkit.widgets import panel

def draw(rank):
    return go.Figure(go.Bar(y=[rank]), {"title": {"text": str(rank)}})

panel({"rank": ipywidgets.IntSlider(rank, 1, 64)}, draw)
"""


@pytest.fixture
def served_clone(tmp_path, chromium_path):
    """A git clone whose labs are open in `labkit lab`: its folder, the server's record."""
    from browser import server_environment, stop, wait_for_server

    clone, base = tmp_path / "clone", tmp_path / "jupyter"
    shutil.copytree(ROOT / "labkit", clone / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitignore", clone)
    write_lab(clone / "labs" / "03_slider.ipynb", SLIDER)
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-C", str(clone)]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "labs"]):
        subprocess.run([*git, *arguments], check=True)
    (base / "CONFIG_DIR").mkdir(parents=True)
    exposed = {"LabApp": {"expose_app_in_browser": True}}
    (base / "CONFIG_DIR" / "jupyter_lab_config.json").write_text(json.dumps(exposed))
    with (base / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "labkit", "lab", "--no-browser", "--port", "0"],
            env=server_environment(base) | {"PYTHONPATH": str(clone)}, cwd=tmp_path,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield clone, wait_for_server(process, base, base / "log")
    finally:
        stop(process)


@pytest.mark.slow
@pytest.mark.browser
def test_moving_a_slider_and_saving_leaves_git_clean(served_clone, browser):
    from browser import LabPage, Server, watched_page
    from playwright.sync_api import expect

    clone, record = served_clone
    url = record["url"]
    with watched_page(browser, url, url.replace("http:", "ws:")) as watched:
        server = Server(url, record["token"], clone)
        page = LabPage(watched, server).open("work/03_slider.ipynb").run_all()
        page.page.locator(".noUi-handle").first.press("ArrowRight")
        expect(page.page.locator(".gtitle")).to_contain_text("9")
        page.command("docmanager:save")
        watched.assert_quiet()
    saved = nbformat.read(clone / "work" / "03_slider.ipynb", as_version=4)
    assert saved.cells[-1].outputs
    status = subprocess.run(["git", "-C", str(clone), "status", "--porcelain"], capture_output=True, text=True)
    assert status.stdout == "" and status.returncode == 0
