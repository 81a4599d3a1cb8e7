"""JupyterLab, its extensions, the kernel the labs ask for, and a browser for the tests."""

import os
import shutil
import sys
from pathlib import Path

from labkit.doctor.check import INSTALL, Check

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EXTENSIONS = ("@jupyter-widgets/jupyterlab-manager", "anywidget", "jupyterlab-plotly")


def jupyterlab() -> Check:
    """Its version."""
    import importlib.metadata

    return Check("JupyterLab", "ok", importlib.metadata.version("jupyterlab"))


def extensions() -> Check:
    """The browser's half of widgets and plotly figures lies in JupyterLab's data folders."""
    from jupyter_core.paths import jupyter_path

    folders = [Path(folder) for folder in jupyter_path("labextensions")]
    absent = [name for name in EXTENSIONS if not any((folder / name / "package.json").exists() for folder in folders)]
    if absent:
        fact = f"JupyterLab lacks the extensions {', '.join(absent)}"
        return Check("plots and widgets", "missing", fact, f"{INSTALL} Restart JupyterLab and reload the page.")
    return Check("plots and widgets", "ok", f"JupyterLab has {', '.join(EXTENSIONS)}")


def kernel() -> Check:
    """The labs ask for the kernel `python3`; a spec of that name from elsewhere would run another environment."""
    from jupyter_client.kernelspec import KernelSpecManager

    spec = KernelSpecManager().get_kernel_spec("python3")
    command = spec.argv[0]
    own = {"python", "python3", f"python{sys.version_info[0]}.{sys.version_info[1]}"}  # Jupyter puts in its own Python
    if command in own or os.path.abspath(command) == os.path.abspath(sys.executable):
        return Check("kernel", "ok", f"python3 runs {sys.executable}")
    remedy = f"`{sys.executable} -m ipykernel install --sys-prefix`, or remove {spec.resource_dir}."
    return Check("kernel", "warn", f"python3 runs {command}, not {sys.executable}", remedy)


def chromium() -> Check:
    """Where Chromium is."""
    found = next((path for path in map(shutil.which, CHROMIUM_NAMES) if path), None)
    if found:
        return Check("Chromium", "ok", found)
    remedy = "Install the system's chromium package; only the browser tests need it."
    return Check("Chromium", "warn", "not found", remedy)
