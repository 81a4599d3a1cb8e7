"""Run a function in a fresh process that is used once, without waiting for the process to start.

`Spares` starts processes ahead of need: each imports the named modules, says it is ready, waits for one call, answers
and ends. Taking a spare starts the next one. Processes are started anew, never forked (a forked child could not use
CUDA), and not through `multiprocessing`, which would run the caller's script a second time.

The protocol is length-prefixed pickles over the child's standard input and output, which the child moves to private
descriptors before it imports anything: whatever the called code prints, from Python or from C, lands in a captured file
whose tail is shown when the call fails. When the parent ends for any reason the child reads end-of-file and ends too.

    with Spares(modules=("torch",)) as spares:
        value = spares.call(math.factorial, 20)

Functions and arguments travel by pickle: they must be importable, so nothing defined in a notebook or a script.
Exit handlers of the called code do not run: the process is gone when `call` returns, and so is its GPU memory.
"""

import faulthandler
import importlib
import math
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, RequestError

_BOOTSTRAP = "import sys; sys.path.insert(0, sys.argv[1]); from labkit.isolate import serve; serve()"
_HEADER = struct.Struct("<Q")
_TAIL_BYTES = 4096
_POLL_SECONDS = 0.2


class ChildFailed(LabkitError):
    """The process of a call did not return a value.

    `kind`: "raised" (the function or an import raised), "died" (the process ended by itself or was killed) or
    "timeout". `detail`: the traceback, or the last lines the process printed. `child_exit_code`: the process's return
    code (negative: the signal), None where it was still running.
    """

    def __init__(self, message: str, kind: str, detail: str = "", child_exit_code: int | None = None):
        super().__init__(message, kind, detail, child_exit_code)
        self.message, self.kind, self.detail, self.child_exit_code = message, kind, detail, child_exit_code

    def __str__(self) -> str:
        return f"{self.message}\n{self.detail.rstrip()}" if self.detail.strip() else self.message


class Spares:
    """Processes kept ready, each for one call. Safe to use from several threads.

    `modules`: imported by every spare before it is needed. `count`: how many to keep ready; with 0 every call
    starts its own and nothing else starts meanwhile. `environment`: variables set on top of this process's own.
    """

    def __init__(self, modules: tuple[str, ...] = (), count: int = 1, environment: dict[str, str] | None = None):
        self._modules, self._count, self._environment = tuple(modules), count, dict(environment or {})
        self._lock = threading.Lock()
        self._waiting: deque[_Child] = deque()
        self._closed = False
        self._finalizer = weakref.finalize(self, _end_all, self._waiting)
        self._fill()

    def call(self, function: Callable, *arguments: Any, timeout_seconds=None, seconds_left=None) -> Any:
        """`function(*arguments)`, computed in a fresh process.

        `timeout_seconds` bounds the whole call, what is left of the start included. `seconds_left` is a watch: asked
        several times a second while the function runs, it ends the call with 0 or less. Raises ChildFailed;
        RequestError where something cannot be pickled; and the function's own LabkitError as it is.
        """
        name = getattr(function, "__qualname__", repr(function))
        request = _pickled(name, function, arguments)
        child = self._take()
        try:
            return child.call(name, request, timeout_seconds, seconds_left)
        finally:
            child.end()

    def close(self) -> None:
        """End the waiting processes. Calls under way in other threads go on."""
        with self._lock:
            self._closed = True
            _end_all(self._waiting)
        self._finalizer.detach()

    def __enter__(self) -> "Spares":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()

    def _take(self) -> "_Child":
        with self._lock:
            if self._closed:
                raise RuntimeError("these spares are closed")
            while self._waiting and self._waiting[0].killed:  # while it waited: the system was short of memory
                self._waiting.popleft().end()
            child = self._waiting.popleft() if self._waiting else _Child(self._modules, self._environment)
            self._fill()
        return child

    def _fill(self) -> None:
        while len(self._waiting) < self._count:
            self._waiting.append(_Child(self._modules, self._environment))


def run(function: Callable, *arguments: Any, modules: tuple[str, ...] = (), environment=None, **limits):
    """One `Spares.call` in a process started for it."""
    with Spares(modules, count=0, environment=environment) as spares:
        return spares.call(function, *arguments, **limits)


class _Child:
    """The parent's end of one process. A thread turns its answers into a queue; None in the queue is end-of-file."""

    def __init__(self, modules: tuple[str, ...], environment: dict[str, str]):
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOTSTRAP, str(Path(__file__).resolve().parents[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            bufsize=0,
            env=os.environ | environment,
            start_new_session=True,  # an interrupt from the terminal or from Jupyter is the parent's to handle
        )
        self._answers = _listened(self._process.stdout.fileno(), self._process.stdout.close)
        self._modules = modules
        self._write(pickle.dumps(([path or os.getcwd() for path in sys.path], modules)))

    @property
    def killed(self) -> bool:
        return (self._process.poll() or 0) < 0

    def call(self, name: str, request: bytes, timeout_seconds: float | None, watch: Callable[[], float] | None) -> Any:
        deadline = time.monotonic() + (math.inf if timeout_seconds is None else timeout_seconds)
        left = lambda: deadline - time.monotonic()  # noqa: E731
        self._receive(f"{name} (while importing {', '.join(self._modules)})" if self._modules else name, left)
        self._write(request)
        return self._receive(name, (lambda: min(left(), watch())) if watch else left)

    def end(self) -> None:
        """Kill the process with all it started, and wait until it is gone."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._printed.close()

    def _write(self, message: bytes) -> None:
        with suppress(OSError):  # the process died: reading its answer tells how
            _send(self._process.stdin.fileno(), message)

    def _receive(self, name: str, left: Callable[[], float]) -> Any:
        try:
            message = self._next(left)
        except TimeoutError:
            self._process.kill()
            self._process.wait()
            text = f"{name} ran out of time in its own process and was stopped."
            raise ChildFailed(text, "timeout", self._tail()) from None
        if message is not None:
            return _opened(name, message)
        code = self._process.wait()
        raise ChildFailed(f"The process of {name} {_ending(code)} before it answered.", "died", self._tail(), code)

    def _next(self, left: Callable[[], float]) -> bytes | None:
        """The next message; None when the process ended. TimeoutError when no seconds were left first."""
        while (seconds := min(_POLL_SECONDS, left())) > 0:
            ended = self._process.poll() is not None  # before looking: a last answer may still lie in the pipe
            with suppress(queue.Empty):
                return self._answers.get(timeout=seconds)
            if ended:  # and something it started holds the pipe open
                return None
        raise TimeoutError

    def _tail(self) -> str:
        """The end of what the ended process printed."""
        size = self._printed.seek(0, os.SEEK_END)
        self._printed.seek(max(0, size - _TAIL_BYTES))
        return self._printed.read().decode(errors="replace").strip()


def serve() -> None:
    """The child's main function: import what is asked, answer one call, end."""
    source, answers = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    faulthandler.enable()
    requests = _listened(source, _end_group)
    sys.path[:], modules = pickle.loads(requests.get())
    _send(answers, _answer(lambda: [importlib.import_module(module).__name__ for module in modules]))
    _send(answers, _answer(lambda: _call(requests.get())))
    sys.stdout.flush()
    os._exit(0)


def _call(request: bytes) -> Any:
    try:
        function, arguments = pickle.loads(request)
    except Exception as error:
        raise RequestError(f"A fresh process cannot load the function or its arguments: {error}.") from error
    return function(*arguments)


def _answer(action: Callable[[], Any]) -> bytes:
    """A pickled (kind, payload): "value" and its pickle, "error" and a LabkitError, or "raised" and a traceback."""
    try:
        value = action()
    except BaseException as error:
        with suppress(Exception):
            if isinstance(error, LabkitError) and pickle.loads(answer := pickle.dumps(("error", error))):
                return answer
        return pickle.dumps(("raised", traceback.format_exc()))
    try:
        return pickle.dumps(("value", pickle.dumps(value)))
    except Exception as error:
        return pickle.dumps(("error", RequestError(f"The result ({type(value).__name__}) cannot be pickled: {error}.")))


def _opened(name: str, message: bytes) -> Any:
    kind, payload = pickle.loads(message)
    if kind == "raised":
        last_line = payload.strip().splitlines()[-1]
        raise ChildFailed(f"{name} raised in its own process: {last_line}", "raised", payload)
    if kind == "error":
        raise payload
    return pickle.loads(payload)


def _pickled(name: str, function: Callable, arguments: tuple) -> bytes:
    if getattr(function, "__module__", None) == "__main__":
        raise RequestError(f"{name} cannot run in a fresh process: it is defined in __main__; move it into a module.")
    try:
        return pickle.dumps((function, arguments))
    except Exception as error:  # pickle raises PicklingError, AttributeError, TypeError, ...
        raise RequestError(f"{name} or its arguments cannot be sent to a fresh process: {error}.") from error


def _listened(descriptor: int, at_end: Callable[[], None]) -> queue.SimpleQueue:
    """A queue that a thread fills with the messages read from the descriptor, then None; then it calls `at_end`."""
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def listen() -> None:
        with suppress(OSError, EOFError):
            while True:
                messages.put(_read(descriptor, _HEADER.unpack(_read(descriptor, _HEADER.size))[0]))
        messages.put(None)
        at_end()

    threading.Thread(target=listen, daemon=True).start()
    return messages


def _read(descriptor: int, count_bytes: int) -> bytes:
    parts = bytearray()
    while len(parts) < count_bytes:
        part = os.read(descriptor, min(count_bytes - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _send(descriptor: int, body: bytes) -> None:
    left = memoryview(_HEADER.pack(len(body)) + body)
    while left:
        left = left[os.write(descriptor, left) :]


def _end_group() -> None:
    """End this process at once, and on POSIX whatever it started: the parent is gone or wants it gone."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _end_all(children: deque[_Child]) -> None:
    while children:
        children.popleft().end()


def _ending(code: int) -> str:
    names = {number.value: number.name for number in signal.Signals}
    return f"ended with exit code {code}" if code >= 0 else f"was killed by signal {names.get(-code, -code)}"
