"""Who holds which bytes: a ledger of live tensor storages while the step runs.

A dispatch mode sees every operation; each new storage is entered with the phase and kind it was born in and struck out
when Python frees it. Storages are tracked, not tensors: views share one. What an operation allocates and frees inside
itself is not seen here. Bytes by kind are copied whenever a phase reaches a new peak.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from labkit.methods.counts import is_adapter
from labkit.record import PHASES


@dataclass
class Peak:
    """The largest sum of live bytes seen, and its split by kind."""

    total_bytes: int = 0
    by_kind: Counter = field(default_factory=Counter)


@dataclass(slots=True)
class Entry:
    """A live storage. `number` counts the storages of a ledger from 1, in the order of their birth."""

    number: int
    size_bytes: int
    kind: str


class Ledger(TorchDispatchMode):
    """Track the storages on `device_type`. Call the ledger with a phase's name to announce it."""

    def __init__(self, device_type: str, granule_bytes: int = 1) -> None:
        super().__init__()
        self.device_type = device_type
        self.granule_bytes = granule_bytes  # the allocator rounds every request up to this; the rest is slack
        self.phase = "load"
        self.in_loss = False
        self.live_bytes = 0
        self.by_kind: Counter = Counter()
        self.peaks = {phase: Peak() for phase in PHASES}
        self._entries: dict[int, Entry] = {}
        self._count = 0

    def __call__(self, phase: str) -> None:
        self.phase, self.in_loss = phase, phase == "backward"  # backward starts with the loss
        self._note_peak()

    def enter_loss(self, inside: bool) -> None:
        """Say whether what is born from now on belongs to logits and loss."""
        self.in_loss = inside

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.enter(tensor, self._kind_at_birth())
        return out

    def _kind_at_birth(self) -> str:
        if self.in_loss:
            return "logits_and_loss"
        if self.phase == "load":
            return "weights"
        # Gradient mode is on in the backward phase only where checkpointing computes a forward again.
        forward = self.phase == "forward" or (self.phase == "backward" and torch.is_grad_enabled())
        return "activations" if forward else "temporaries"

    def enter(self, tensor: torch.Tensor, kind: str) -> None:
        """Count `tensor`'s storage, unless it is counted already or lies on another device."""
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._entries:
            return
        self._count += 1
        self._entries[key] = entry = Entry(self._count, storage.nbytes(), kind)
        weakref.finalize(storage, lambda: self.died(self._entries.pop(key))).atexit = False
        self.born(entry)

    def born(self, entry: Entry) -> None:
        """A storage was entered."""
        self._add(entry.kind, entry.size_bytes)
        self._note_peak()

    def died(self, entry: Entry) -> None:
        """A storage was freed."""
        self._add(entry.kind, -entry.size_bytes)

    def moved(self, entry: Entry, kind: str) -> None:
        """A storage turned out to be of another kind."""
        self._add(entry.kind, -entry.size_bytes)
        entry.kind = kind
        self._add(kind, entry.size_bytes)

    def _add(self, kind: str, size_bytes: int) -> None:
        slack_bytes = -abs(size_bytes) % self.granule_bytes * (1 if size_bytes > 0 else -1)
        self.live_bytes += size_bytes + slack_bytes
        self.by_kind[kind] += size_bytes
        self.by_kind["allocator_slack"] += slack_bytes

    def relabel(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Move the storages of `tensors` to `kind`, entering those not yet seen."""
        for tensor in tensors:
            self.enter(tensor, kind)
            if tensor.device.type == self.device_type:
                self.moved(self._entries[tensor.untyped_storage()._cdata], kind)

    def relabel_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the optimizer's state tensors as such, and the code tables that bitsandbytes' optimizers share."""
        kept = [*optimizer.state.values(), getattr(optimizer, "name2qmap", None)]
        self.relabel([leaf for leaf in tree_leaves(kept) if isinstance(leaf, torch.Tensor)], "optimizer_states")

    def _note_peak(self) -> None:
        peak = self.peaks[self.phase]
        if self.live_bytes > peak.total_bytes:
            peak.total_bytes, peak.by_kind = self.live_bytes, +self.by_kind

    def forget_peaks(self) -> None:
        """Start the peaks of all phases but `load` again from nothing."""
        for phase in PHASES[1:]:
            self.peaks[phase] = Peak()

    def step_peak(self) -> Peak:
        """The highest peak of the phases of a step."""
        return max((self.peaks[phase] for phase in PHASES[1:]), key=lambda peak: peak.total_bytes)


def watch(ledger: Ledger, training) -> None:
    """Tell gradients, optimizer states, logits and loss apart. `training` is a `labkit.train.step.Training`."""
    for parameter in training.parameters:
        parameter.register_post_accumulate_grad_hook(lambda p: ledger.relabel([p.grad], "gradients"))
    training.optimizer.register_step_post_hook(lambda optimizer, *_: ledger.relabel_state(optimizer))
    head = training.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda *_: ledger.enter_loss(True))
    head.register_forward_hook(lambda _module, _inputs, logits: _when_gradient_is_ready(logits, ledger))


def _when_gradient_is_ready(logits: torch.Tensor, ledger: Ledger) -> None:
    """What backward makes after the logits' gradient belongs to the layers, not to the loss."""
    if logits.requires_grad:
        logits.register_hook(lambda _gradient: ledger.enter_loss(False))


def label_model(ledger: Ledger, model: nn.Module, upcast: bool) -> None:
    """Give every storage of the model its kind: weights, packed weights, statistics, upcast weights, adapters."""
    int8 = {id(module.weight): module for module in model.modules() if hasattr(getattr(module, "state", None), "SCB")}
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            ledger.relabel([parameter.data], "packed_weights")
            ledger.relabel(statistics_of(state), "quantisation_statistics")
        elif parameter.dtype == torch.int8:
            ledger.relabel([parameter.data], "packed_weights")
            scales = (parameter.SCB, int8[id(parameter)].state.SCB)  # the first forward moves it to the layer's state
            ledger.relabel([scale for scale in scales if scale is not None], "quantisation_statistics")
        elif is_adapter(name):
            ledger.relabel([parameter.data], "adapters")
        else:
            ledger.relabel([parameter.data], "upcast_weights" if upcast else "weights")
    ledger.relabel(model.buffers(), "weights")


def statistics_of(state) -> Iterator[torch.Tensor]:
    """The tensors of a bitsandbytes QuantState: block maxima, code tables, offset, and the nested ones."""
    for tensor in (state.absmax, state.code, state.offset):
        if isinstance(tensor, torch.Tensor):
            yield tensor
    if state.state2 is not None:
        yield from statistics_of(state.state2)
