"""The doctor: what it says of every kind of machine, on fakes, and that nothing it asks can hold it up."""

import http.server
import json
import platform
import shutil
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import fake_nvml
import pytest

from labkit import doctor, machine
from labkit.cli import doctor as command
from labkit.doctor import gpu, hub, jupyter, libraries, system
from labkit.units import GIB, MIB


@pytest.fixture
def nvml(monkeypatch):
    return fake_nvml.install(monkeypatch)


LIBRARIES = {
    "torch": "2.13.0", "cuda_build": "13.0", "cuda": True, "cuda_devices": 1, "quantised_error": 0.09,
    "native_library": "/lib/libbitsandbytes_cuda130.so", "native_cuda": True,
}  # fmt: skip


@pytest.fixture
def examined(monkeypatch):
    """The checks by name, with the libraries' answers put in place of asking them."""

    def examine(**found):
        answers = {name: value for name, value in (LIBRARIES | found).items() if value is not None}
        monkeypatch.setattr(libraries, "asked_apart", lambda: answers)
        monkeypatch.setattr(hub, "_problem", lambda: None)
        return {check.name: check for check in doctor.examine()}

    return examine


def test_a_busy_gpu_is_said_before_measuring(nvml, examined):
    check = examined()["GPU"]
    assert check.state == "warn" and "GPU busy: 300 MiB by others" in check.fact and "nvidia-smi" in check.remedy
    nvml.others = 1 * MIB
    assert examined()["GPU"].state == "ok"


def test_a_gpu_that_torch_cannot_use_is_said(nvml, examined):
    check = examined(cuda=False, cuda_build=None)["GPU"]
    assert check.state == "warn" and "torch cannot use it" in check.fact


def test_managed_memory_is_asked_only_with_a_gpu(nvml, examined, monkeypatch):
    assert "cannot be asked" in examined()["managed memory"].fact
    monkeypatch.setattr(machine, "driver_attribute", lambda attribute: {89: 0}[attribute])
    assert "does not page on demand" in examined()["managed memory"].fact
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "managed memory" not in examined()


@pytest.mark.parametrize(
    ("libraries", "name"),
    [
        ({"torch": None, "problem": "was killed by signal SIGSEGV"}, "torch"),
        ({"quantised_error": None, "bitsandbytes_problem": "ImportError: no"}, "bitsandbytes"),
        ({"quantised_error": 1.4}, "bitsandbytes"),
    ],
)
def test_a_broken_library_is_missing_with_a_remedy(examined, libraries, name):
    checks = examined(**libraries)
    assert checks[name].state == "missing" and "pip install" in checks[name].remedy
    assert doctor.exit_code(list(checks.values())) == 1


def test_a_kernel_of_another_environment_is_warned_of(monkeypatch, tmp_path):
    pytest.importorskip("jupyter_client")
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = ["/elsewhere/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "p", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    check = jupyter.kernel()
    assert check.state == "warn" and "/elsewhere/bin/python" in check.fact and str(spec) in check.remedy


def test_the_clone_without_its_folders_is_missing(examined, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "repository_root", lambda: tmp_path)
    checks = examined()
    assert {checks[name].state for name in ("labs/", "data/", "assets/", "embedded model")} == {"missing"}


def test_the_command_prints_one_json_object_and_nothing_else(examined, capsys):
    checks = examined()
    assert command.run(SimpleNamespace(json=True)) in (0, 1)
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert printed.err == "" and [one["name"] for one in answer["checks"]] == list(checks)
    assert answer["ok"] == all(check.state != "missing" for check in checks.values())


def test_the_text_puts_the_remedy_under_what_is_not_well():
    text = doctor.as_text([doctor.Check("a", "ok", "fine", "unused"), doctor.Check("bb", "warn", "bad", "mend it")])
    assert text.splitlines() == ["ok      a   fine", "warn    bb  bad", "            -> mend it"]


@pytest.mark.slow
def test_the_libraries_are_asked_in_a_process_of_their_own():
    pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    facts = libraries.asked_apart()
    assert 0.01 < facts["quantised_error"] < 0.2 and facts["torch"] == machine.versions()["torch"]
    assert Path(facts["native_library"]).name.startswith("libbitsandbytes")


@pytest.mark.parametrize(
    ("platform_name", "release", "has_gpu", "state", "words"),
    [
        ("linux", "6.8.0-45-generic", True, "ok", "Linux 6.8.0"),
        ("linux", "5.15.153.1-microsoft-standard-WSL2", True, "warn", "WSL2; managed memory does not page on demand"),
        ("linux", "5.15.153.1-microsoft-standard-WSL2", False, "ok", "WSL2"),
        ("linux", "4.4.0-19041-Microsoft", False, "warn", "WSL1, which has no GPU"),
        ("win32", "11", True, "warn", "not tested here; with a GPU, managed memory does not page on demand"),
        ("darwin", "24.6.0", False, "warn", "labs use the CPU only"),
        ("freebsd14", "14.1", False, "warn", "not tested here"),
    ],
)
def test_every_system_is_told_what_does_not_work_there(monkeypatch, platform_name, release, has_gpu, state, words):
    names = {"linux": "Linux", "win32": "Windows", "darwin": "Darwin"}
    monkeypatch.setattr(sys, "platform", platform_name)
    monkeypatch.setattr(platform, "system", lambda: names.get(platform_name, platform_name))
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(machine, "gpu", lambda: SimpleNamespace() if has_gpu else None)
    check = system.operating_system()
    assert check.state == state and words in check.fact and bool(check.remedy) == (state != "ok")


@pytest.mark.parametrize(
    ("driver", "build", "state"),
    [
        ("580.65.06", "13.0", "ok"),
        ("580.9", "13.0", "warn"),
        ("575.57.08", "13.0", "warn"),
        ("575.57.08", "12.8", "ok"),
        ("525.60.13", "12.6", "ok"),
        ("525.60.12", "12.6", "warn"),
        ("470.1", None, "ok"),
        ("470.1", "14.0", "ok"),
    ],
)
def test_a_driver_too_old_for_torch_is_said(nvml, monkeypatch, driver, build, state):
    monkeypatch.setattr(sys, "platform", "linux")
    nvml.driver = driver
    check = gpu.driver({"cuda_build": build})
    assert check.state == state and driver in check.fact
    assert ("Update the NVIDIA driver" in check.remedy) == (state == "warn")


def test_windows_has_driver_numbers_of_its_own(nvml, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    nvml.driver = "527.41"
    assert gpu.driver({"cuda_build": "12.4"}).state == "warn"


def test_a_container_without_nvml_is_said(monkeypatch):
    facts = machine.GpuFacts("NVIDIA L4", 22 * GIB, 22 * GIB, None, None)
    monkeypatch.setattr(machine, "gpu", lambda: facts)
    check = gpu.driver(LIBRARIES)
    assert check.state == "warn" and "NVML" in check.fact and "NVIDIA_DRIVER_CAPABILITIES" in check.remedy
    assert gpu.gpu(LIBRARIES).state == "ok"


def test_of_several_gpus_the_one_used_is_named(nvml, examined):
    nvml.others = 0
    fact = examined(cuda_devices=4)["GPU"].fact
    assert nvml.names[1] in fact and "the first of 4: CUDA_VISIBLE_DEVICES" in fact
    assert "first of" not in examined()["GPU"].fact


def test_without_a_gpu_nothing_is_asked_of_one(monkeypatch, examined):
    monkeypatch.setattr(machine, "gpu", lambda: None)
    checks = examined(cuda=False, cuda_build=None, native_cuda=False, native_library="/lib/libbitsandbytes_cpu.so")
    assert not {"driver", "managed memory"} & set(checks) and checks["GPU"].state == "ok"
    assert checks["bitsandbytes"].state == "ok" and "libbitsandbytes_cpu.so" in checks["bitsandbytes"].fact


@pytest.mark.parametrize(
    ("found", "words"),
    [({"native_cuda": False}, "cannot use the GPU"), ({"native_library": None, "cuda": False}, "not loaded")],
)
def test_the_native_library_of_bitsandbytes_is_named(examined, found, words):
    check = examined(**found)["bitsandbytes"]
    assert check.state == "warn" and words in check.fact and check.remedy


def test_little_disk_space_is_warned_of_with_the_reason(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10 * GIB, 7 * GIB, 3 * GIB))
    monkeypatch.setattr(system, "_hub_cache", lambda: tmp_path / "not" / "there" / "yet")
    states = {check.name: check.state for check in system.disks()}
    assert states == {"disk (clone)": "ok", "disk (hub cache)": "warn", "disk (temporary)": "ok"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10 * GIB, 10 * GIB, 10 * MIB))
    assert all(check.state == "warn" and "Make room" in check.remedy for check in system.disks())


@pytest.fixture
def hub_at(monkeypatch, tmp_path):
    """Point the hub at an address, with a cache of its own and a token."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)


class Answers(http.server.BaseHTTPRequestHandler):
    """200 at once, 503 below /failing, silence below /silent."""

    def do_HEAD(self):
        if self.path.startswith("/silent"):
            time.sleep(8)
        self.send_response(503 if self.path.startswith("/failing") else 200)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def loopback():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "state", "words"),
    [("", "ok", "answers"), ("/failing", "warn", "HTTP 503"), ("/silent", "warn", "does not answer")],
)
def test_the_hub_is_asked_for_seconds_at_most(hub_at, loopback, path, state, words):
    hub._problem()  # imports the HTTP library
    hub_at(loopback + path)
    started = time.monotonic()
    check = hub.hub()
    assert time.monotonic() - started < 3
    assert check.state == state and words in check.fact
    assert "a token is set" in check.fact and "hf_secret" not in check.fact + check.remedy


def test_a_hub_that_is_away_or_switched_off_is_no_fault(hub_at, monkeypatch, tmp_path):
    from huggingface_hub import constants

    blobs = tmp_path / "hub" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs.parent / "snapshots" / "0").mkdir(parents=True)
    (blobs.parent / "snapshots" / "0" / "config.json").touch()
    (blobs / "one").write_bytes(bytes(2048))
    hub_at("http://127.0.0.1:9")
    check = hub.hub()
    assert check.state == "warn" and "refuses the connection" in check.fact and "offline" in check.remedy
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check = hub.hub()
    assert check.state == "ok" and "offline" in check.fact and "1 models and 0 data sets, 2.00 KiB" in check.fact
