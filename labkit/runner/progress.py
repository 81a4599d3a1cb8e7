"""How far the labs are, on standard error: a line when one starts and ends, on a terminal also the cell it is at."""

import shutil
import threading
import time
from typing import TextIO

from labkit.units import format_seconds


class Progress:
    """Reports to a stream, or to nobody when it is None. Several threads may report at once."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream
        self._is_terminal = stream is not None and stream.isatty()
        self._lock = threading.Lock()
        self._running: dict[str, tuple[float, str]] = {}

    def started(self, name: str) -> None:
        """The lab starts."""
        self._running[name] = (time.monotonic(), "starting")
        self._say(f"{name}: started")

    def at_cell(self, name: str, index: int, count: int) -> None:
        """The lab runs cell `index` (from 0) of `count`."""
        self._running[name] = (self._running[name][0], f"cell {index + 1} of {count}")
        self.tick()

    def ended(self, name: str, text: str) -> None:
        """The lab is over; `text` says how it went."""
        self._running.pop(name, None)
        self._say(f"{name}: {text}")

    def tick(self) -> None:
        """Redraw the status line, for the seconds in it."""
        if self._is_terminal:
            now = time.monotonic()
            parts = [f"{name}: {at}, {format_seconds(now - start)}" for name, (start, at) in [*self._running.items()]]
            with self._lock:
                self._stream.write("\r\033[K" + "  ".join(parts)[: shutil.get_terminal_size().columns - 1])
                self._stream.flush()

    def _say(self, line: str) -> None:
        if self._stream is not None:
            with self._lock:
                self._stream.write(("\r\033[K" if self._is_terminal else "") + line + "\n")
                self._stream.flush()
