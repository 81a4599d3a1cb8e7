"""Fixtures of the browser tests, and of those with a hub. Nothing here runs for a test that does not ask for it.

No test asks the public hub: it is switched off before anything imports huggingface_hub, here and in child processes.
"""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


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


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in hub on loopback in the place of the public one, with an empty cache; see `stand_in_hub`."""
    from stand_in_hub import running_hub

    with running_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
