"""Play recorded events back through a simulated allocator: peaks by phase, and who held the bytes at the highest."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from labkit.memory.allocator import CachingAllocator
from labkit.memory.recorder import BORN, EMPTY_CACHE, PHASE, Event
from labkit.record import PHASES


@dataclass
class Replayed:
    """What torch's counters would say. `phases`: peak allocated bytes by phase; `breakdown` sums to the highest peak of
    the steps; `timeline`: allocated bytes after every event; `marks`: (index into it, phase that begins there).
    """

    phases: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    breakdown: Counter = field(default_factory=Counter)
    after_load_bytes: int = 0
    peak_allocated_bytes: int = 0
    peak_reserved_bytes: int = 0
    timeline: list[int] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)


def replay(events: Iterable[Event], kinds: Mapping[int, str], allocator: CachingAllocator) -> Replayed:
    """Ask `allocator` for what `events` ask for. Raises OutOfMemory where its capacity does not suffice.

    Peaks are those of the steps: loading is a phase of its own and has no part in the reserved peak.
    """
    result, blocks, by_kind, statistics = Replayed(), {}, Counter(), allocator.statistics
    phase = PHASES[0]
    for event in events:
        if event.action == PHASE:
            if phase == PHASES[0] and event.name != phase:
                result.after_load_bytes = statistics.allocated_bytes
                statistics.forget_peaks()
            phase = event.name
            result.marks.append((len(result.timeline), phase))
        elif event.action == EMPTY_CACHE:
            allocator.empty_cache()
        elif event.action == BORN:
            blocks[event.number] = block = allocator.allocate(event.size_bytes)
            _count(by_kind, kinds[event.number], block, 1)
        elif block := blocks.pop(event.number, None):
            _count(by_kind, kinds[event.number], block, -1)
            allocator.free(block)
        allocated_bytes = statistics.allocated_bytes
        result.timeline.append(allocated_bytes)
        result.phases[phase] = max(result.phases[phase], allocated_bytes)
        if phase != PHASES[0] and allocated_bytes > result.peak_allocated_bytes:
            result.peak_allocated_bytes, result.breakdown = allocated_bytes, +by_kind
    result.peak_reserved_bytes = statistics.peak_reserved_bytes
    return result


def _count(by_kind: Counter, kind: str, block, sign: int) -> None:
    """What was asked for goes to its kind; what the allocator gave beyond that is slack."""
    if block:
        by_kind[kind] += sign * block.requested_bytes
        by_kind["allocator_slack"] += sign * (block.size_bytes - block.requested_bytes)
