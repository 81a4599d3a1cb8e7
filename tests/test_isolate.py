"""Fresh processes: values, every way to fail, and nothing left behind when the parent goes."""

import functools
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from labkit.errors import RequestError
from labkit.isolate import ChildFailed, Spares, run

ROOT = Path(__file__).resolve().parents[1]
posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and process groups are POSIX")
linux_only = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


def add(left, right):
    return left + right


def describe():
    return os.getpid(), os.getppid(), "json.tool" in sys.modules, os.environ.get("LABKIT_TEST_WORD")


def print_then(action, *arguments):
    os.write(1, b"from C\n")
    print("from Python")
    print("to stderr", file=sys.stderr, flush=True)
    return action(*arguments)


def refuse():
    raise RequestError("rank=0 is not possible.")


def explode():
    raise ZeroDivisionError("the cause")


def start_a_sleeper(path):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(path).write_text(str(sleeper.pid))
    time.sleep(600)


def fork_and_die():
    """Leave a process behind that holds the answer pipe open."""
    if os.fork() == 0:
        time.sleep(600)
    os.kill(os.getpid(), 9)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, timeout_seconds=10):
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def test_the_value_comes_back_from_a_process_used_once():
    with Spares(modules=("json.tool",), environment={"LABKIT_TEST_WORD": "seen"}) as spares:
        first, second = spares.call(describe), spares.call(describe)
    assert first[0] != second[0] != os.getpid()
    assert first[1:] == second[1:] == (os.getpid(), True, "seen")


def test_large_values_travel_both_ways():
    payload = os.urandom(3_000_000)
    assert run(add, payload, b"!") == payload + b"!"


def test_what_the_call_prints_never_reaches_the_protocol_or_the_parent(capfd):
    assert run(print_then, add, 2, 3) == 5
    assert capfd.readouterr() == ("", "")


def test_an_exception_brings_its_traceback():
    with pytest.raises(ChildFailed, match=r"explode raised in its own process: ZeroDivisionError: the cause") as caught:
        run(explode)
    assert caught.value.kind == "raised"
    assert "in explode" in caught.value.detail


def test_an_error_meant_for_the_reader_comes_back_as_itself():
    with pytest.raises(RequestError, match=r"^rank=0 is not possible\.$"):
        run(refuse)


def test_a_failed_call_inside_a_call_comes_back_as_itself():
    with pytest.raises(ChildFailed) as caught:
        run(run, explode)
    assert caught.value.kind == "raised" and "in explode" in caught.value.detail


def test_an_import_that_fails_is_reported_with_the_module():
    with (
        Spares(modules=("no_such_module_here",)) as spares,
        pytest.raises(ChildFailed, match="while importing no_such_module_here") as caught,
    ):
        spares.call(add, 1, 2)
    assert caught.value.kind == "raised" and "ModuleNotFoundError" in caught.value.detail


@posix_only
def test_a_killed_process_is_named_promptly_with_the_tail_of_its_output():
    started = time.monotonic()
    with pytest.raises(ChildFailed, match="killed by signal SIGKILL") as caught:
        run(print_then, os.kill, 0, 9)  # 0: its whole process group
    assert time.monotonic() - started < 5
    assert caught.value.kind == "died" and caught.value.child_exit_code == -9
    assert "from C" in caught.value.detail and "to stderr" in caught.value.detail


@posix_only
def test_a_crash_in_c_shows_where():
    with pytest.raises(ChildFailed, match="SIGABRT") as caught:
        run(os.abort)
    assert "Fatal Python error" in caught.value.detail


@posix_only
def test_a_death_is_noticed_although_something_it_started_lives_on():
    started = time.monotonic()
    with pytest.raises(ChildFailed, match="SIGKILL"):
        run(fork_and_die)
    assert time.monotonic() - started < 5


def test_an_exit_is_a_death_with_its_code():
    with pytest.raises(ChildFailed, match="exit code 7") as caught:
        run(os._exit, 7)
    assert caught.value.child_exit_code == 7


@linux_only
def test_a_timeout_ends_the_process_and_all_it_started(tmp_path):
    note = tmp_path / "pid"
    with pytest.raises(ChildFailed) as caught:
        run(start_a_sleeper, str(note), timeout_seconds=2)
    assert caught.value.kind == "timeout"
    wait_until(lambda: not alive(int(note.read_text())))


def test_a_watch_ends_a_call_when_it_says_so():
    assert run(add, 2, 3, seconds_left=lambda: 60.0) == 5
    left = iter((0.3, 0.2, 0.1))
    started = time.monotonic()
    with pytest.raises(ChildFailed) as caught:
        run(time.sleep, 60, seconds_left=lambda: next(left, -1.0))
    assert caught.value.kind == "timeout" and time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(lambda: 1, ()), (add, (1, lambda: 2)), (functools.partial(add, threading.Lock()), (1,)), (open, (os.devnull,))],
)
def test_what_cannot_be_pickled_is_a_clear_error(function, arguments):
    with pytest.raises(RequestError, match=r"cannot be (sent to a fresh process|pickled)"):
        run(function, *arguments)


def test_a_function_of_main_is_a_clear_error():
    function = functools.partial(add, 1)
    function.__module__ = "__main__"
    with pytest.raises(RequestError, match="defined in __main__"):
        run(function, 2)


def test_two_threads_call_at_once():
    answers = {}
    with Spares(count=2) as spares:

        def work(name):
            answers[name] = [spares.call(add, name, number) for number in range(4)]

        threads = [threading.Thread(target=work, args=(name,)) for name in (10, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert answers == {name: [name + number for number in range(4)] for name in (10, 20)}


@posix_only
def test_a_spare_killed_while_it_waited_is_replaced():
    with Spares() as spares:
        waiting = spares._waiting[0]
        os.kill(waiting._process.pid, 9)
        wait_until(lambda: waiting.killed)
        assert spares.call(add, 1, 2) == 3


def test_closing_ends_the_waiting_processes():
    spares = Spares(count=2)
    processes = [child._process for child in spares._waiting]
    spares.close()
    assert all(process.returncode is not None for process in processes)
    with pytest.raises(RuntimeError, match="closed"):
        spares.call(add, 1, 2)


@linux_only
def test_when_the_parent_is_killed_its_processes_end(tmp_path):
    """One child waits and one works; the parent is a script without a __main__ guard, with labkit not installed."""
    script = tmp_path / "reader.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, threading, time
        sys.path[:0] = [{str(ROOT)!r}]
        from labkit.isolate import Spares
        spares = Spares()
        pids = [spares._waiting[0]._process.pid]
        threading.Thread(target=spares.call, args=(time.sleep, 600), daemon=True).start()
        time.sleep(1)
        print(*pids, spares._waiting[0]._process.pid, flush=True)
        time.sleep(600)
        """)
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    with parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(set(pids)) == 2 and all(alive(pid) for pid in pids)
        parent.kill()
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_a_script_that_forgets_to_close_ends_cleanly(tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\nimport operator\nfrom labkit.isolate import Spares\n"
        "spares = Spares(count=2)\nprint(spares.call(operator.add, 1, 2))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
