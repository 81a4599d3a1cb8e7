"""Facts of this machine, the GPU table, the lock, and the doctor."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from labkit import doctor, gpus, machine
from labkit.cli import doctor as command
from labkit.errors import RequestError
from labkit.units import GIB, MIB

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["t4", "l4", "a10g", "rtx3060-12gb", "rtx4090", "l40s", "a100-40gb", "a100-80gb", "h100", "h200"]


def test_the_processor_is_this_one():
    facts = machine.processor()
    assert facts.memory_bytes == psutil.virtual_memory().total
    assert 1 <= facts.cores <= os.cpu_count()
    assert facts.name


def test_versions_name_every_package_and_none_for_the_absent():
    found = machine.versions()
    assert set(found) == {"python", *machine.PACKAGES}
    assert found["python"] == sys.version.split()[0]


def test_peak_resident_memory_is_at_least_what_is_resident():
    held = bytearray(os.urandom(1 << 20) * 64)
    resident_bytes = psutil.Process().memory_info().rss
    assert machine.peak_rss_bytes() >= resident_bytes > len(held)


def test_a_wheel_without_the_clone_says_so_in_one_sentence(monkeypatch, tmp_path):
    assert machine.require_folder("labkit") == ROOT / "labkit"
    monkeypatch.setattr(machine, "repository_root", lambda: tmp_path)
    with pytest.raises(RequestError, match=r"labs/ is not beside.*labkit runs from a clone") as caught:
        machine.require_folder("labs")
    assert "\n" not in str(caught.value)


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def clone(monkeypatch, tmp_path):
    """A repository with one commit in the place of labkit's own."""
    (tmp_path / "labkit").mkdir()
    (tmp_path / "labkit" / "case.py").write_text("one")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(machine, "repository_root", lambda: tmp_path)
    return tmp_path


def asked_anew(function):
    return function.__wrapped__()


def test_the_commit_and_whether_the_code_differs_from_it(clone):
    assert asked_anew(machine.commit) == git(clone, "rev-parse", "HEAD")
    (clone / "data").mkdir()
    (clone / "data" / "new_measurement.jsonl").write_text("{}")
    assert asked_anew(machine.dirty) is False
    (clone / "labkit" / "case.py").write_text("two")
    assert asked_anew(machine.dirty) is True


def test_without_git_the_commit_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "repository_root", lambda: tmp_path)
    monkeypatch.delenv("LABKIT_COMMIT", raising=False)
    assert (asked_anew(machine.commit), asked_anew(machine.dirty)) == (None, None)
    monkeypatch.setenv("LABKIT_COMMIT", "abc123")
    assert (asked_anew(machine.commit), asked_anew(machine.dirty)) == ("abc123", None)


class FakeNvml:
    """Two cards; this process and another use the second."""

    NVMLError, nvmlMemory_v2 = RuntimeError, 2
    names = ("NVIDIA L4", "NVIDIA A100-SXM4-80GB")
    others: int | None = 300 * MIB

    def nvmlInit(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return "580.1"

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return {"GPU-one": 1}[uuid]

    def nvmlDeviceGetName(self, handle):
        return self.names[handle]

    def nvmlDeviceGetMemoryInfo(self, handle, version):
        assert version == self.nvmlMemory_v2
        return SimpleNamespace(total=80 * GIB, reserved=600 * MIB, free=70 * GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        used = ((os.getpid(), 900 * MIB), (1, self.others))
        return [SimpleNamespace(pid=pid, usedGpuMemory=count_bytes) for pid, count_bytes in used]


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(machine, "_cuda_driver", lambda: SimpleNamespace(cuInit=lambda flags: 100))  # no device
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    return fake


def test_the_gpu_is_the_one_this_process_may_use(nvml, monkeypatch):
    facts = machine.gpu()
    assert (facts.name, machine.device_name(), machine.driver_version()) == (nvml.names[1], "a100-80gb", "580.1")
    assert (facts.total_bytes, facts.free_bytes) == (80 * GIB - 600 * MIB, 70 * GIB)
    assert facts.used_by_others_bytes == 300 * MIB
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-one")
    assert machine.gpu() == facts
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # an L4 with the memory of an A100 is no L4
    assert machine.device_name() == "nvidia-l4"


def test_what_the_driver_hides_is_unknown(nvml):
    nvml.others = None
    assert machine.gpu().used_by_others_bytes is None


def test_no_visible_gpu_is_no_gpu(nvml, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (machine.gpu(), machine.device_name(), machine.driver_version()) == (None, "cpu", None)


@pytest.mark.gpu
def test_nvml_and_torch_agree_on_this_gpu():
    if machine.gpu() is None:
        pytest.skip("no CUDA GPU on this machine")
    import torch

    facts = machine.gpu()
    assert facts.name == torch.cuda.get_device_name()
    assert facts.total_bytes == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.01)
    assert machine.device_name() in NAMES


def test_the_table_holds_the_cards_of_the_contract():
    assert [gpu.name for gpu in gpus.GPUS] == NAMES
    assert gpus.DEFAULT in NAMES
    for gpu in gpus.GPUS:
        assert gpus.find(gpu.name) is gpu and gpus.find(gpu.name.upper()) is gpu
        assert gpu.memory_source and gpu.datasheet
        assert gpu.compute_capability >= (8, 0) or gpu.bf16_flops_per_second is None
        assert (gpu.context_bytes is None) == (gpu.context_source is None)


@pytest.mark.parametrize(
    ("name", "sold_as_gb"),
    list(zip(NAMES, (16, 24, 24, 12, 24, 48, 40, 80, 80, 141), strict=True)),
)
def test_cuda_sees_somewhat_less_than_the_chips_hold(name, sold_as_gb):
    """The GB a card is sold by are GiB of chips; ECC in GDDR6 takes a sixteenth of them, the driver some more."""
    assert 0.9 * sold_as_gb * GIB < gpus.find(name).memory_bytes < sold_as_gb * GIB


def test_an_unknown_card_lists_the_known_ones():
    with pytest.raises(RequestError, match=r"'h300' is not known.*t4, l4, .*h200"):
        gpus.find("h300")


@pytest.mark.parametrize(
    ("driver_name", "name"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA GeForce RTX 3060", "rtx3060-12gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40", None),
        ("NVIDIA A10", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GeForce RTX 3060 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_the_driver_names_are_recognised(driver_name, name):
    found = gpus.match(driver_name)
    assert (found and found.name) == name


def test_a_smaller_card_of_the_same_name_is_not_taken_for_the_larger():
    assert gpus.match("NVIDIA GeForce RTX 3060", 8 * GIB) is None
    assert gpus.match("NVIDIA GeForce RTX 3060", 12 * GIB).name == "rtx3060-12gb"


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from labkit.machine import gpu_lock
with gpu_lock("t4", Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(ROOT), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_lock_waits_says_for_whom_and_survives_a_killed_holder(holder, tmp_path, capsys):
    threading.Timer(0.5, holder.kill).start()
    started = time.monotonic()
    with machine.gpu_lock("t4", tmp_path):
        assert time.monotonic() - started > 0.4
    assert f"Waiting for t4: process {holder.pid}" in capsys.readouterr().err
    with machine.gpu_lock("t4", tmp_path):
        pass
    assert capsys.readouterr().err == ""


def test_other_devices_do_not_wait(holder, tmp_path, capsys):
    with machine.gpu_lock("cpu", tmp_path):
        assert capsys.readouterr().err == ""


LIBRARIES = {"torch": "2.13.0", "cuda_build": "13.0", "cuda": True, "quantised_error": 0.09}


@pytest.fixture
def examined(monkeypatch):
    """The checks by name, with the libraries' answers put in place of asking them."""

    def examine(**libraries):
        answers = {name: value for name, value in (LIBRARIES | libraries).items() if value is not None}
        monkeypatch.setattr(doctor, "_asked_apart", lambda _function: answers)
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
    check = doctor._kernel()
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
    facts = doctor._asked_apart(doctor.library_facts)
    assert 0.01 < facts["quantised_error"] < 0.2 and facts["torch"] == machine.versions()["torch"]
