"""What this machine can and cannot show, worked out from facts about it, and what the labs show instead.

`facts_here` asks the machine; everything else is a function of the facts, so that any machine can be imagined.
"""

from dataclasses import dataclass, replace

from labkit import machine
from labkit.case import AVAILABLE_METHODS, Case
from labkit.lab.reveal import show
from labkit.memory.estimate import estimate, largest_architecture
from labkit.memory.shape import shape_of
from labkit.models.architectures import ARCHITECTURES
from labkit.record import Record
from labkit.units import format_bytes

USABLE_SHARE = 0.8
"""Of the memory: the rest is for what no formula has (CUDA context, workspaces, fragmentation, the process itself)."""
AMPERE = (8, 0)
"""Compute capability from which tensor cores know bf16 (NVIDIA's CUDA programming guide, "Compute Capabilities") and
PyTorch has a flash kernel (`aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`)."""
ASKED = (machine.CAPABILITY_MAJOR, machine.CAPABILITY_MINOR, machine.CONCURRENT_MANAGED_ACCESS)


@dataclass(frozen=True)
class Facts:
    """`device` is what the labs run on: `cpu`, or the GPU's short name as in Records; `name` is that for people.

    `memory_bytes`: free on the GPU, or all of the host's.

    `compute_capability` and `pages_on_demand` are a GPU's, `avx512_bf16` the processor's; None is unknown.
    """

    device: str
    name: str
    memory_bytes: int
    compute_capability: tuple[int, int] | None = None
    pages_on_demand: bool | None = None
    avx512_bf16: bool | None = None

    @property
    def device_type(self) -> str:
        """`cpu` or `cuda`, as torch and the meters say."""
        return "cpu" if self.device == "cpu" else "cuda"

    @property
    def usable_bytes(self) -> int:
        """What a step may take."""
        return int(USABLE_SHARE * self.memory_bytes)


@dataclass(frozen=True)
class Ability:
    """`can`: True, False, or None for "in part". `instead`: what the labs do where they cannot."""

    what: str
    can: bool | None
    because: str
    instead: str = ""


def facts_here() -> Facts:
    """The facts of this machine; a GPU that torch cannot use counts as none."""
    import torch

    cpu, gpu = machine.processor(), machine.gpu()
    if gpu is None or not torch.cuda.is_available():
        return Facts("cpu", cpu.name, cpu.memory_bytes, avx512_bf16=cpu.avx512_bf16)
    major, minor, paging = map(machine.driver_attribute, ASKED)
    capability = (major, minor) if major is not None and minor is not None else None
    pages = None if paging is None else bool(paging)
    return Facts(machine.device_name(), gpu.name, gpu.free_bytes, capability, pages, cpu.avx512_bf16)


def abilities(facts: Facts) -> list[Ability]:
    """What the labs ask of a machine, in the order in which they ask it."""
    return [_step(facts), _allocator(facts), _bf16(facts), _flash(facts), _paging(facts)]


def _step(facts: Facts) -> Ability:
    where = f"on {facts.name}" if facts.device_type == "cuda" else "on CPU tensors"
    return Ability("measure the memory of a training step", True, where)


def _allocator(facts: Facts) -> Ability:
    what = "measure what only a GPU has: its allocator, its kernels, its speed"
    if facts.device_type == "cuda":
        return Ability(what, True, f"{format_bytes(facts.memory_bytes)} free")
    return Ability(what, False, "no GPU that torch can use", "a GPU's bytes are estimated; its seconds are not shown")


def _bf16(facts: Facts) -> Ability:
    what = "compute fast in bf16"
    if facts.device_type == "cuda":
        return _from_ampere(what, facts, "the bytes are right, the seconds are not; fp16 is fast")
    if facts.avx512_bf16:
        return Ability(what, True, "the processor has AVX512-BF16")
    known = "no AVX512-BF16" if facts.avx512_bf16 is False else "the processor's instructions are unknown"
    return Ability(what, False, known, "CPU labs compute in fp32")


def _flash(facts: Facts) -> Ability:
    what = "run flash attention"
    if facts.device_type == "cpu":
        return Ability(what, True, "PyTorch's kernel for CPUs")
    return _from_ampere(what, facts, "the memory-efficient kernel, which does not store the scores either")


def _from_ampere(what: str, facts: Facts, instead: str) -> Ability:
    if facts.compute_capability is None:
        return Ability(what, None, "the driver does not tell the compute capability", instead)
    has, asked = ".".join(map(str, facts.compute_capability)), ".".join(map(str, AMPERE))
    can = facts.compute_capability >= AMPERE
    return Ability(what, can, f"compute capability {has}, {asked} is needed", "" if can else instead)


def _paging(facts: Facts) -> Ability:
    what, instead = "let a paged optimizer spill into host memory", "the size of its states is estimated"
    if facts.device_type == "cpu":
        return Ability(what, False, "there is no GPU memory to spill from", instead)
    if facts.pages_on_demand is None:
        return Ability(what, None, "the driver does not say whether managed memory pages on demand", instead)
    if facts.pages_on_demand:
        return Ability(what, True, "managed memory pages on demand (concurrentManagedAccess)")
    return Ability(what, False, "no concurrentManagedAccess, as on Windows and WSL2", instead)


@dataclass(frozen=True)
class Reach:
    """One method's largest architecture that fits, and the next larger one, which does not; None: there is none."""

    method: str
    fits: Record | None
    next: Record | None


def reaches(facts: Facts, case: Case) -> list[Reach]:
    """For each method, how large a named architecture may be for one step with `case`'s other settings (estimated)."""
    by_size = sorted(ARCHITECTURES, key=lambda name: shape_of(name).parameters)
    found = []
    for method in AVAILABLE_METHODS:
        asked = replace(case, method=method)
        best = largest_architecture(asked, facts.usable_bytes, facts.device_type)
        larger = by_size[by_size.index(best) + 1 :] if best else by_size
        records = [estimate(replace(asked, model=name), facts.device_type) if name else None for name in
                   (best, larger[0] if larger else None)]  # fmt: skip
        found.append(Reach(method, *records))
    return found


def verdict(peak_bytes: int, memory_bytes: int) -> str:
    """Whether a step of that estimated peak fits into that memory, in words."""
    if peak_bytes <= USABLE_SHARE * memory_bytes:
        return "fits"
    return "may just fit" if peak_bytes <= memory_bytes else "does not fit"


def show_abilities(facts: Facts) -> None:
    """Display `abilities` as a table."""
    words = {True: "yes", False: "**no**", None: "unknown"}
    rows = [(f"{one.what}?", words[one.can], one.because, one.instead or "-") for one in abilities(facts)]
    show(_table(("Can it ...", "", "because", "what labs show instead"), rows))


def show_reaches(facts: Facts, case: Case) -> None:
    """Display `reaches` as a table."""
    rows = [(one.method, _named(one.fits), _named(one.next)) for one in reaches(facts, case)]
    precision = case.on(facts.device_type).precision
    show(
        f"**Estimated** for one step of {case.batch_size} x {case.sequence_length} tokens in {precision}, against "
        f"{USABLE_SHARE:.0%} of {format_bytes(facts.memory_bytes)}:\n\n"
        + _table(("method", "largest that fits", "next larger, too large"), rows)
    )


def _named(record: Record | None) -> str:
    return f"`{record.case.model}`, {format_bytes(record.peak_allocated_bytes)}" if record else "none of those known"


def _table(columns, rows) -> str:
    """Markdown, all columns to the left."""
    lines = [columns, [":---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
