"""Facts of this machine, the GPU table, and the lock."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_nvml
import psutil
import pytest

from labkit import gpus, machine
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


@pytest.fixture
def nvml(monkeypatch):
    return fake_nvml.install(monkeypatch)


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
