"""House rules that a program can hold: floors, sizes, clean notebooks, versions that agree, no machine's traces."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted((ROOT / "labkit").rglob("*.py"))
LABS = sorted((ROOT / "labs").glob("[0-9][0-9]_*.ipynb"))
MAXIMUM_REPOSITORY_BYTES = 24 * 2**20

# The house, floor by floor: a room imports only from floors below its own, and sideways only as listed.
FLOORS = {
    room: floor
    for floor, rooms in enumerate(
        (
            "errors units gpus machine case record isolate progress hub",
            "models methods lowrank quant optimizers",
            "train",
            "memory timing",
            "plan compare sweep paging",
            "figures lab runner",
            "cli widgets doctor",
            "__init__ __main__",
        )
    )
    for room in rooms.split()
}
SIDEWAYS = {
    "case": {"errors"},
    "gpus": {"errors", "units"},
    "hub": {"errors", "isolate", "progress", "record", "units"},
    "isolate": {"errors"},
    "machine": {"errors", "gpus"},
    "record": {"case", "errors", "machine"},
    "lab": {"figures"},
    "methods": {"models"},
    "runner": {"lab"},
    "cli": {"doctor"},
}
HEAVY = {
    "accelerate", "bitsandbytes", "datasets", "jupyter_client", "matplotlib", "nbconvert", "nbformat", "pandas",
    "papermill", "peft", "plotly", "scipy", "torch", "transformers",
}  # fmt: skip
# Imported, and part of a declared package or its foundation.
COMES_WITH = {
    "ipython": "ipykernel",
    "jupyter-client": "jupyterlab",
    "jupyter-core": "jupyterlab",
    "pyarrow": "datasets",
    "pynvml": "nvidia-ml-py",
    "traitlets": "ipywidgets",
}
# These must be collected, and pass, where torch is not installed.
WITHOUT_TORCH = (
    "test_case.py",
    "test_doctor.py",
    "test_hygiene.py",
    "test_isolate.py",
    "test_machine.py",
    "test_record.py",
    "test_units.py",
)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "labkit").parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """Every room of labkit that the module imports, inside functions too, with the line."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "labkit" else [module]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "labkit":
                room = rest.split(".")[0]
                yield (room if room in FLOORS else "__init__"), node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "labkit")))
def test_imports_only_go_down(path):
    room = room_of(path)
    assert room in FLOORS, f"{room} is on no floor: add it to FLOORS"
    for target, line in imported_rooms(path):
        allowed = target == room or FLOORS[target] < FLOORS[room] or target in SIDEWAYS.get(room, ())
        assert allowed, f"{path.name}:{line}: {room} (floor {FLOORS[room]}) imports {target} (floor {FLOORS[target]})"


def test_every_sideways_edge_is_used_and_none_goes_round():
    used = {(room_of(path), target) for path in MODULES for target, _ in imported_rooms(path)}
    listed = {(room, target) for room, targets in SIDEWAYS.items() for target in targets}
    assert listed <= used, f"not used any more: {sorted(listed - used)}"
    left = dict(SIDEWAYS)
    while free := [room for room in left if not left[room] & left.keys()]:
        for room in free:
            del left[room]
    assert not left, f"a circle among {sorted(left)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "labkit")))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.name}:{node.lineno}: {node.name} has {length} lines"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    everything = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=everything, cwd=ROOT)


@pytest.mark.parametrize(
    "code",
    [
        "import labkit",
        "import labkit.record, labkit.machine, labkit.isolate, labkit.doctor",
        "from labkit.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_what_must_be_quick_imports_nothing_heavy(code):
    done = run_python(f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)")
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "labkit" in loaded and not loaded & HEAVY


def test_the_tests_of_the_ground_floor_need_no_torch():
    files = [str(ROOT / "tests" / name) for name in WITHOUT_TORCH if (ROOT / "tests" / name).exists()]
    block = "import sys\nfor name in ('torch', 'transformers', 'peft', 'bitsandbytes'): sys.modules[name] = None\n"
    collect = f"import pytest\nsys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', *{files!r}]))"
    done = run_python(block + collect)
    assert done.returncode == 0, done.stdout[-3000:]


def tracked_files() -> list[Path]:
    """What is or would be committed."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git clone")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


HOME = re.compile(r"/(?:home|Users)/[A-Za-z]|/root\b/|[A-Z]:\\{1,2}Users\b")
INDEX = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org", re.IGNORECASE)


@pytest.mark.parametrize(("pattern", "what"), [(HOME, "a home folder"), (INDEX, "a package index")])
def test_no_file_names(pattern, what):
    found = []
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert not found, f"{what} is named: {found[:10]}"


def test_the_repository_stays_small_enough_to_carry():
    sizes = {path: path.stat().st_size for path in tracked_files()}
    largest = sorted(sizes, key=sizes.get)[-3:]
    assert sum(sizes.values()) < MAXIMUM_REPOSITORY_BYTES, f"the largest: {largest}"


def pinned() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def requirements(*lists: list[str]) -> list[Requirement]:
    found = [Requirement(text) for texts in lists for text in texts]
    return [requirement for requirement in found if requirement.name != PROJECT["project"]["name"]]


def test_the_tested_versions_satisfy_the_ranges():
    extras = PROJECT["project"]["optional-dependencies"].values()
    versions = pinned()
    for requirement in requirements(PROJECT["project"]["dependencies"], *extras):
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"constraints.txt lacks {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement} does not allow the tested {version}"
    assert "+" not in versions["torch"], "torch's local version would exclude the other builds"


def test_one_ruff_everywhere():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    hooked = {text for hook in hooks for text in hook["additional_dependencies"]}
    dev = {text for text in PROJECT["project"]["optional-dependencies"]["dev"] if text.startswith("ruff")}
    assert hooked == dev == {f"ruff=={pinned()['ruff']}"}


def test_the_conda_environment_is_the_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    by_pip = next(item["pip"] for item in environment if isinstance(item, dict))
    assert f"python{PROJECT['project']['requires-python']}" in environment
    assert by_pip == ["-c constraints.txt", "-e .", *PROJECT["project"]["dependencies"]]


def test_what_labkit_imports_is_declared():
    declared = {canonicalize_name(one.name) for one in requirements(PROJECT["project"]["dependencies"])}
    assert set(COMES_WITH.values()) <= declared
    declared |= COMES_WITH.keys()
    found = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.split(".")[0]: path.name for name in names}
    third_party = found.keys() - sys.stdlib_module_names - {"labkit"}
    undeclared = {name: found[name] for name in third_party if canonicalize_name(name) not in declared}
    assert not undeclared, f"pyproject.toml lacks {undeclared}"


def test_continuous_integration_runs_the_readmes_own_command():
    marked = re.findall(r"^<!-- test command -->\n```bash\n(.+?)\n```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(marked) == 1 and "\n" not in marked[0] and marked[0].endswith("pytest")
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "<!-- test command -->" in script.read_text()


@pytest.fixture(params=LABS, ids=lambda path: path.stem)
def lab(request):
    nbformat = pytest.importorskip("nbformat")
    return request.param, nbformat.read(request.param, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_labs_are_committed_in_their_plain_form(lab):
    import nbformat

    path, notebook = lab
    nbformat.validate(notebook)
    assert path.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n", "write it with nbformat.writes"


def test_labs_hold_no_results(lab):
    _, notebook = lab
    assert "widgets" not in notebook.metadata
    assert [cell.id for cell in code_cells(notebook) if cell.outputs or cell.execution_count is not None] == []


def test_labs_can_be_run_by_anyone(lab):
    _, notebook = lab
    assert notebook.metadata.kernelspec.name == "python3"
    tagged = [cell.cell_type for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert tagged == ["code"], "exactly one code cell is tagged `parameters`"
    installs = [cell.id for cell in code_cells(notebook) if re.search(r"\b(pip|conda|uv)\d? install\b", cell.source)]
    assert not installs, f"cells {installs} install packages"
    assert not any(HOME.search(cell.source) for cell in notebook.cells), "a home folder is named"


def test_labs_keep_their_cells_short(lab):
    _, notebook = lab
    long = [cell.id for cell in code_cells(notebook) if len(cell.source.splitlines()) > 30]
    assert not long, f"cells {long} have more than 30 lines"
    definitions = sum(len(re.findall(r"^\s*(?:async )?def ", cell.source, re.M)) for cell in code_cells(notebook))
    assert definitions <= 5, f"{definitions} functions; the rest belongs into labkit"
