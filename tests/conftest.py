"""Fixtures of the browser tests. Nothing here runs, or is imported, for a test that does not ask for it."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Where Chromium is; skips, or fails in CI, where there is none."""
    from browser import find_chromium

    return find_chromium()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory, chromium_path):
    """A JupyterLab server on loopback for the browser; `root / "labs"` is a copy of the labs."""
    from browser import running_server

    with running_server(tmp_path_factory.mktemp("jupyter")) as server:
        yield server


@pytest.fixture(scope="module")  # not longer: playwright keeps an event loop running in the main thread
def browser(chromium_path):
    """A headless Chromium."""
    from browser import running_chromium

    with running_chromium(chromium_path) as chromium:
        yield chromium


@pytest.fixture
def lab_page(jupyter, browser):
    """A fresh browser page on the server, its kernels ended afterwards; see `browser.LabPage`."""
    from browser import LabPage, watched_page

    with watched_page(browser, jupyter.url, jupyter.url.replace("http:", "ws:")) as watched:
        yield LabPage(watched, jupyter)
        watched.page.evaluate("() => window.jupyterapp?.serviceManager.sessions.shutdownAll()")


@pytest.fixture
def screenshots(tmp_path) -> Path:
    """Where screenshots go: the folder LABKIT_SCREENSHOTS, else one that pytest removes."""
    folder = Path(os.environ.get("LABKIT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
