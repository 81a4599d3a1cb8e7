"""The simulated caching allocator: hand-worked traces, a second allocator written the plain way, and invariants."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.memory.allocator import CachingAllocator, OutOfMemory, rounded, segment_bytes
from labkit.memory.expandable import ExpandableAllocator
from labkit.units import GIB, MIB

KIB = 1024
NATIVE, EXPANDABLE = CachingAllocator, ExpandableAllocator


def figures(allocator) -> tuple[int, int]:
    return allocator.statistics.allocated_bytes, allocator.statistics.reserved_bytes


@pytest.mark.parametrize(
    ("request_bytes", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the last small one
        (MIB + 1, MIB + 512, 20 * MIB),  # the first large one
        (10 * MIB - 1, 10 * MIB, 10 * MIB),  # rounded to 512 first, and so as large as a request of its own
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # the rest of almost 2 MiB is split off
        (11 * MIB, 12 * MIB, 12 * MIB),  # a rest of exactly 1 MiB is not
        (GIB + 3 * MIB, GIB + 4 * MIB, GIB + 4 * MIB),
    ],
)
def test_one_request(request_bytes, allocated, reserved):
    allocator = NATIVE()
    block = allocator.allocate(request_bytes)
    assert figures(allocator) == (allocated, reserved)
    assert allocator.statistics.requested_bytes == request_bytes
    allocator.free(block)
    assert figures(allocator) == (0, reserved)
    allocator.empty_cache()
    assert figures(allocator) == (0, 0)


def test_nothing_is_allocated_for_nothing():
    allocator = NATIVE()
    assert allocator.allocate(0) is None
    allocator.free(None)
    assert figures(allocator) == (0, 0)


def test_the_smallest_block_that_fits_is_taken_and_the_lowest_of_equals():
    allocator = NATIVE()
    blocks = [allocator.allocate(size * MIB) for size in (30, 24, 24, 28)]
    for block in blocks:
        allocator.free(block)
    taken = allocator.allocate(23 * MIB + 1)
    assert taken.address == blocks[1].address and taken.size_bytes == 24 * MIB  # the rest of under 1 MiB stays with it
    assert allocator.allocate(24 * MIB).address == blocks[2].address
    assert allocator.allocate(25 * MIB).address == blocks[3].address
    assert figures(allocator) == (24 * MIB + 24 * MIB + 25 * MIB, 106 * MIB)


def test_small_and_large_requests_never_share_a_segment():
    allocator = NATIVE()
    allocator.free(allocator.allocate(20 * MIB))
    allocator.allocate(512)
    assert figures(allocator) == (512, 22 * MIB)


def test_neighbours_join_in_any_order_of_freeing():
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)):
        allocator = NATIVE()
        blocks = [allocator.allocate(6 * MIB) for _ in range(3)]
        assert allocator.statistics.reserved_bytes == 20 * MIB
        for at in order:
            allocator.free(blocks[at])
        allocator.allocate(19 * MIB)
        assert figures(allocator) == (20 * MIB, 20 * MIB), order


def test_a_request_over_the_capacity_first_gives_back_what_is_cached():
    allocator = NATIVE(capacity_bytes=50 * MIB)
    kept, cached = allocator.allocate(20 * MIB), allocator.allocate(24 * MIB)
    allocator.free(cached)
    allocator.allocate(30 * MIB)
    assert figures(allocator) == (50 * MIB, 50 * MIB)
    assert allocator.statistics.retries == 1 and allocator.statistics.peak_reserved_bytes == 50 * MIB
    with pytest.raises(OutOfMemory, match="1.00 MiB do not fit: 50.0 MiB of 50.0 MiB are reserved"):
        allocator.allocate(MIB)
    allocator.free(kept)
    allocator.allocate(18 * MIB)  # 20 MiB are cached: no retry
    assert allocator.statistics.retries == 2


def test_what_is_in_part_in_use_cannot_be_given_back():
    allocator = NATIVE(capacity_bytes=40 * MIB)
    blocks = [allocator.allocate(9 * MIB) for _ in range(2)]
    allocator.free(blocks[0])
    with pytest.raises(OutOfMemory):
        allocator.allocate(30 * MIB)
    assert figures(allocator) == (9 * MIB, 20 * MIB)


def test_peaks_are_forgotten_down_to_the_present():
    allocator = NATIVE()
    kept = allocator.allocate(2 * MIB)
    allocator.free(allocator.allocate(40 * MIB))
    allocator.statistics.forget_peaks()
    assert allocator.statistics.peak_allocated_bytes == kept.size_bytes == 2 * MIB
    assert allocator.statistics.peak_reserved_bytes == 60 * MIB


def test_expandable_segments_grow_by_pages_and_split_every_rest():
    allocator = EXPANDABLE()
    first = allocator.allocate(11 * MIB)
    assert figures(allocator) == (11 * MIB, 20 * MIB)
    second = allocator.allocate(11 * MIB)  # 9 MiB are left of the page: one more page
    assert figures(allocator) == (22 * MIB, 40 * MIB) and second.address == first.address + 11 * MIB
    allocator.allocate(512)
    assert figures(allocator) == (22 * MIB + 512, 42 * MIB)
    allocator.free(first)
    allocator.allocate(25 * MIB)  # does not fit before `second`, grows from the 18 MiB behind it
    assert figures(allocator) == (36 * MIB + 512, 62 * MIB)


def test_of_free_expandable_blocks_the_one_at_the_end_counts_with_what_it_can_grow_to():
    allocator = EXPANDABLE()
    first, second = allocator.allocate(12 * MIB), allocator.allocate(24 * MIB)  # two pages, 4 MiB are left at the end
    allocator.free(first)
    assert allocator.allocate(3 * MIB).address == first.address, "the 12 MiB, not the smaller block that can grow"
    assert allocator.allocate(10 * MIB).address == second.end and figures(allocator) == (37 * MIB, 60 * MIB)


def test_pages_in_the_middle_of_an_expandable_segment_are_given_back_and_used_again():
    allocator = EXPANDABLE()
    blocks = [allocator.allocate(size * MIB) for size in (10, 45, 5)]
    assert figures(allocator) == (60 * MIB, 60 * MIB)
    allocator.free(blocks[1])
    allocator.empty_cache()  # 10 to 55 MiB are free: of the three pages only 20 to 40 is whole
    assert figures(allocator) == (15 * MIB, 40 * MIB)
    again = allocator.allocate(45 * MIB)
    assert again.address == blocks[1].address and figures(allocator) == (60 * MIB, 60 * MIB)


def test_an_expandable_allocator_keeps_to_its_capacity():
    allocator = EXPANDABLE(capacity_bytes=40 * MIB)
    allocator.free(allocator.allocate(30 * MIB))
    allocator.free(allocator.allocate(MIB))  # a page of the other segment: the pages of the first had to go
    assert allocator.statistics.retries == 1
    with pytest.raises(OutOfMemory):
        allocator.allocate(41 * MIB)


class Plain:
    """The native allocator once more, as lists of `[size, free]` per segment, searched from end to end."""

    def __init__(self):
        self.segments: list[tuple[bool, list]] = []

    def allocate(self, request_bytes):
        size = rounded(request_bytes, 512)
        small = size <= MIB
        fits = [
            (part[0], number, at)
            for number, (kind, parts) in enumerate(self.segments)
            for at, part in enumerate(parts)
            if kind == small and part[1] and part[0] >= size
        ]
        if not fits:
            self.segments.append((small, [[segment_bytes(size), True]]))
            fits = [(0, len(self.segments) - 1, 0)]
        _, number, at = min(fits)
        parts = self.segments[number][1]
        rest = parts[at][0] - size
        parts[at][1] = False
        if rest >= 512 if small else rest > MIB:
            parts[at][0] = size
            parts.insert(at + 1, [rest, True])
        return number, parts[at]

    def free(self, handle):
        number, part = handle
        part[1] = True
        joined = []
        for size, free in [(one[0], one) for one in self.segments[number][1]]:
            if joined and joined[-1][1] and free[1]:
                joined[-1][0] += size
            else:
                joined.append(free)
        self.segments[number][1][:] = joined

    def empty_cache(self):
        for _, parts in self.segments:
            if len(parts) == 1 and parts[0][1]:
                parts.clear()

    @property
    def figures(self):
        parts = [part for _, parts in self.segments for part in parts]
        return sum(size for size, free in parts if not free), sum(size for size, _ in parts)


SIZES = st.one_of(
    st.integers(1, 4 * KIB),
    st.integers(1, 3 * MIB),
    st.integers(1, 64 * MIB),
    st.sampled_from([512, MIB - 1, MIB, MIB + 1, 10 * MIB - 512, 10 * MIB, 20 * MIB, 19 * MIB, 21 * MIB]),
)
ACTIONS = st.lists(st.tuples(st.sampled_from(["allocate"] * 5 + ["free"] * 4 + ["empty"]), SIZES), max_size=120)


def follow(allocator, actions, after=lambda: None):
    """Do the actions; `free` gives back one of the live blocks, chosen by the number that came along."""
    live = []
    for action, number in actions:
        if action == "allocate":
            live.append(allocator.allocate(number))
        elif action == "empty":
            allocator.empty_cache()
        elif live:
            allocator.free(live.pop(number % len(live)))
        after()
    return live


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_two_allocators_written_differently_agree(actions):
    ours, plain, seen = NATIVE(), Plain(), []
    follow(ours, actions, lambda: seen.append(figures(ours)))
    expected = []
    follow(plain, actions, lambda: expected.append(plain.figures))
    assert seen == expected


def check(allocator):
    """No overlap, nothing lost, split and joined as it must be; the counters are what the blocks say."""
    pools, seen = allocator.pools.values(), {}
    for pool in pools:
        for block in [*pool.blocks.values(), *pool.unmapped]:
            assert block.free and block.mapped == (block.address in pool.blocks and pool.blocks[block.address] is block)
            while block.previous:
                block = block.previous
            while block:
                seen[block.address] = block
                assert block.next is None or (block.end == block.next.address and block.next.previous is block)
                assert not (block.next and block.free and block.next.free and block.mapped == block.next.mapped), (
                    "free neighbours are one block"
                )
                block = block.next
        assert pool.keys == sorted((block.size_bytes, block.address) for block in pool.blocks.values())
        assert len(pool.blocks) + len(pool.unmapped) == sum(b.free and b.small == pool.small for b in seen.values())
    ordered = sorted(seen.values(), key=lambda block: block.address)
    assert all(low.end <= high.address for low, high in pairwise(ordered)), "no overlap"
    return ordered


@pytest.mark.parametrize("kind", [NATIVE, EXPANDABLE])
@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_invariants(kind, actions):
    allocator, peaks = kind(), []

    def after():
        statistics = allocator.statistics
        blocks = check(allocator)
        whole = [block for block in blocks if not block.free]
        assert sum(block.size_bytes for block in whole) <= statistics.allocated_bytes
        assert statistics.requested_bytes <= statistics.allocated_bytes <= statistics.reserved_bytes
        assert sum(block.size_bytes for block in blocks if block.mapped) <= statistics.reserved_bytes
        peaks.append(figures(allocator))

    live = follow(allocator, actions, after)
    statistics = allocator.statistics
    assert statistics.allocated_bytes == sum(block.size_bytes for block in live)
    assert statistics.requested_bytes == sum(block.requested_bytes for block in live)
    if kind is EXPANDABLE:
        assert statistics.allocated_bytes == sum(rounded(block.requested_bytes, 512) for block in live)
    if peaks:
        assert statistics.peak_reserved_bytes == max(reserved for _, reserved in peaks)
        assert statistics.peak_allocated_bytes == max(allocated for allocated, _ in peaks)
    for block in live:
        allocator.free(block)
    check(allocator)
    allocator.empty_cache()
    assert figures(allocator) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(ACTIONS, st.integers(20, 300))
def test_a_capacity_is_never_passed_and_a_refusal_loses_nothing(actions, capacity_mib):
    allocator, live = NATIVE(capacity_bytes=capacity_mib * MIB), []
    for action, number in actions:
        if action == "allocate":
            before = allocator.statistics.allocated_bytes
            try:
                live.append(allocator.allocate(number))
            except OutOfMemory:
                assert allocator.statistics.allocated_bytes == before
        elif live:
            allocator.free(live.pop(number % len(live)))
        assert allocator.statistics.reserved_bytes <= capacity_mib * MIB
        check(allocator)
