"""What the browser tests share: a JupyterLab server, Chromium, and a page that drives one notebook.

`--expose-app-in-browser` gives the page `window.jupyterapp`, whose commands return promises: no test sleeps.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb",
    "--font-render-hinting=none", "--disable-background-networking", "--disable-component-update", "--no-first-run",
]  # fmt: skip
PATIENCE_SECONDS = 60  # nothing takes that long, but the machine may be busy with something else
KERNEL_IS_IDLE = """() => {
    const notebook = window.jupyterapp?.shell.currentWidget;
    return notebook?.sessionContext?.session?.kernel?.status === 'idle' && notebook.content?.widgets?.length > 0;
}"""
UNFINISHED_CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets
    .filter(cell => cell.model.type === 'code' && cell.model.sharedModel.getSource().trim())
    .map(cell => [cell.model.id, cell.model.executionCount,
                  cell.model.outputs.toJSON().filter(output => output.output_type === 'error').map(e => e.evalue)])
    .filter(([id, count, errors]) => count === null || errors.length)"""


@dataclass
class Server:
    """A running JupyterLab. It shows `root`, which holds a copy of the labs: autosave touches nothing else."""

    url: str
    token: str
    root: Path


def server_environment(base: Path) -> dict[str, str]:
    """This process's environment, with everything Jupyter keeps redirected into `base`."""
    folders = {f"JUPYTER_{name}": base / name for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
    folders |= {f"JUPYTERLAB_{name}": base / name for name in ("SETTINGS_DIR", "WORKSPACES_DIR")}
    folders |= {"IPYTHONDIR": base / "ipython"}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    own = {"OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": paths}
    return os.environ | own | {name: str(folder) for name, folder in folders.items()}


def wait_for_server(process: subprocess.Popen, base: Path, log: Path, seconds: float = 90) -> dict[str, Any]:
    """The server's own record of itself (`url`, `token`, `root_dir`), once it answers. Port 0 needs no agreed port."""
    record, end = base / "RUNTIME_DIR" / f"jpserver-{process.pid}.json", time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError, ValueError):
            found = json.loads(record.read_text())
            urllib.request.urlopen(f"{found['url']}api/status?token={found['token']}", timeout=5).close()
            return found
        time.sleep(0.05)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-4000:]}")


def stop(process: subprocess.Popen) -> None:
    """End a server we started in a session of its own, kernels included."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
        return
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def running_server(base: Path) -> Iterator[Server]:
    """JupyterLab on a free loopback port, with the settings the package ships."""
    root, settings, log, token = base / "root", base / "settings", base / "server.log", secrets.token_hex(16)
    shutil.copytree(ROOT / "labs", root / "labs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (root / "assets").symlink_to(ROOT / "assets")
    (settings / "overrides.d").mkdir(parents=True)
    shutil.copy(ROOT / "labkit" / "etc" / "labkit.json", settings / "overrides.d")
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--ServerApp.port=0",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}", f"--LabApp.app_settings_dir={settings}",
        "--expose-app-in-browser", "--MappingKernelManager.transport_encryption=auto",
        *(["--allow-root"] if os.geteuid() == 0 else []),
    ]  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=server_environment(base), start_new_session=True
        )
    try:
        yield Server(wait_for_server(process, base, log)["url"], token, root)
    finally:
        stop(process)


def find_chromium() -> str:
    """Path of a Chromium. Without one the tests are skipped, but fail in CI, where that must not go unnoticed."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _unavailable("no playwright: pip install playwright")
    names = (os.environ.get("LABKIT_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
    if not Path(found).exists():
        _unavailable("no Chromium: install it (apt-get install chromium) or set LABKIT_CHROMIUM to its path")
    return found


def _unavailable(reason: str) -> None:
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@contextmanager
def running_chromium(path: str):
    """A headless Chromium."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, headless=True, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Watched:
    """A playwright page from which nothing but `allowed` addresses can be reached."""

    page: Any
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def assert_quiet(self) -> None:
        """Nothing was asked of another machine, and the console holds no error."""
        assert not self.outside, self.outside
        assert not self.errors, self.errors


@contextmanager
def watched_page(chromium, *allowed: str, **context_options: Any) -> Iterator[Watched]:
    """A fresh browser context with one page, watched."""
    usual = {"viewport": {"width": 1400, "height": 1000}, "reduced_motion": "reduce"}
    context = chromium.new_context(**usual | context_options)
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    watched = Watched(context.new_page())

    def gate(route) -> None:
        if route.request.url.startswith((*allowed, "data:", "blob:")):
            route.continue_()
        else:
            watched.outside.append(route.request.url)
            route.abort()

    context.route("**/*", gate)
    watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
    watched.page.on("console", lambda line: watched.errors.append(line.text) if line.type == "error" else None)
    yield watched
    context.close()


class LabPage:
    """One notebook in JupyterLab. `page` is playwright's; paths are relative to the server's root."""

    def __init__(self, watched: Watched, server: Server):
        self.watched, self.page, self.server = watched, watched.page, server

    def open(self, notebook: str, **parameters: Any) -> "LabPage":
        """Open a notebook, first setting its parameters as papermill would, and wait for its kernel."""
        if parameters:
            set_parameters(self.server.root / notebook, parameters)
        self.page.goto(f"{self.server.url}lab/tree/{notebook}?reset&token={self.server.token}")
        self.page.wait_for_function(KERNEL_IS_IDLE)
        return self

    def run_all(self) -> "LabPage":
        """Run all cells; fails if one raised or was not run."""
        self.command("notebook:run-all-cells")
        bad = self.page.evaluate(UNFINISHED_CELLS)
        assert not bad, bad
        return self

    def command(self, name: str, **arguments: Any) -> None:
        """A command of JupyterLab; returns when it is over."""
        self.page.evaluate(
            "([name, arguments]) => window.jupyterapp.commands.execute(name, arguments).then(() => null)",
            [name, arguments],
        )

    def reload(self) -> None:
        """Save the notebook, load the page anew, and wait for the same kernel."""
        self.command("docmanager:save")
        self.page.reload()
        self.page.wait_for_function(KERNEL_IS_IDLE)

    def use_theme(self, name: str) -> None:
        """`JupyterLab Light` or `JupyterLab Dark`."""
        self.command("apputils:change-theme", theme=name)
        changed = "name => document.body.dataset.jpThemeName === name && !document.getElementById('jupyterlab-splash')"
        self.page.wait_for_function(changed, arg=name)


def set_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Insert a cell that sets the parameters after the notebook's parameters cell."""
    document = nbformat.read(notebook, as_version=4)
    at = next(i for i, cell in enumerate(document.cells) if "parameters" in cell.metadata.get("tags", []))
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    document.cells.insert(at + 1, nbformat.v4.new_code_cell(source))
    nbformat.write(document, notebook)
