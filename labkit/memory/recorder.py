"""What an allocator is asked for while the step runs, written down in order.

The recorder is a ledger over fake tensors that also keeps the sequence: a phase begins, a storage is born, a storage
dies. What a GPU's kernels allocate and free inside themselves, and no operation's outputs show, is added here. Played
back through a simulated allocator (`replay`), the events give what torch's counters would say.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from labkit.memory.ledger import Entry, Ledger

PHASE, BORN, DIED, EMPTY_CACHE = "phase", "born", "died", "empty cache"
MATRIX_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
FROM_PYTHON = {"aten::lift_fresh", "aten::lift_fresh_copy"}  # torch.tensor(...): made on the host


class Event(NamedTuple):
    """`number` names a storage, `size_bytes` what its birth asks for; `name` is the phase that begins."""

    action: str
    number: int = 0
    size_bytes: int = 0
    name: str = ""


class Recorder(Ledger):
    """A ledger of fake host tensors that stand for a GPU's: `events` in order, `kinds` by storage as they were last.

    `workspace_bytes`: cuBLAS's, taken from the allocator at the first matrix product of either thread that has some,
    that of the forward and that of the backward pass (`CublasHandlePool.cpp`). `hidden`: operation -> bytes that its
    CUDA kernel takes and gives back, from the operation's arguments.
    """

    def __init__(self, workspace_bytes: int = 0, hidden: Mapping[str, Callable[..., int]] | None = None) -> None:
        super().__init__("cpu")
        self.events: list[Event] = []
        self.kinds: dict[int, str] = {}
        self._workspace_bytes, self._hidden = workspace_bytes, hidden or {}
        self._threads: set[bool] = set()

    def __call__(self, phase: str) -> None:
        super().__call__(phase)
        self.events.append(Event(PHASE, name=phase))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name in FROM_PYTHON:
            return function(*args, **(kwargs or {}))
        if name in MATRIX_PRODUCTS and self._workspace_bytes:
            self._take_workspace()
        out = super().__torch_dispatch__(function, types, args, kwargs)
        if size_bytes := self._hidden.get(name, _nothing)(*args):
            self.died(self.entered(size_bytes, "temporaries"))
        return out

    def entered(self, size_bytes: int, kind: str) -> Entry:
        """Enter a storage that no tensor of this process stands for."""
        self._count += 1
        entry = Entry(self._count, size_bytes, kind)
        self.born(entry)
        return entry

    def born(self, entry: Entry) -> None:
        super().born(entry)
        self.kinds[entry.number] = entry.kind
        self.events.append(Event(BORN, entry.number, entry.size_bytes))

    def died(self, entry: Entry) -> None:
        super().died(entry)
        self.events.append(Event(DIED, entry.number))

    def moved(self, entry: Entry, kind: str) -> None:
        super().moved(entry, kind)
        self.kinds[entry.number] = kind

    def empty_cache(self) -> None:
        """The step calls torch.cuda.empty_cache here."""
        self.events.append(Event(EMPTY_CACHE))

    def _take_workspace(self) -> None:
        backward = torch._C._current_graph_task_id() != -1  # on a GPU autograd has a thread of its own
        if backward not in self._threads:
            self._threads.add(backward)
            self.entered(self._workspace_bytes, "workspaces")


def _nothing(*_args) -> int:
    return 0
