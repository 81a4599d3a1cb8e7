"""PyTorch's CUDA caching allocator, simulated for one stream without a GPU.

The rules are those of `c10/cuda/CUDACachingAllocator.cpp`, torch 2.11 to 2.13.

Requests are rounded up to 512 bytes and served from the smallest free block that is large enough; a block that is much
larger is split, and neighbours that become free are merged again. What no block can serve becomes a new segment. So
two numbers come out: *allocated*, the blocks in use, and *reserved*, the segments held.

Not simulated: several streams, `max_split_size_mb`, power-of-two rounding, garbage collection (all off by default).
`expandable` has the allocator with expandable segments.
"""

from dataclasses import dataclass

from labkit.errors import LabkitError
from labkit.memory.blocks import Block, Pool
from labkit.units import MIB, format_bytes

# c10/core/AllocatorConfig.h
GRANULE_BYTES = 512  # kMinBlockSize
SMALL_REQUEST_BYTES = MIB  # kSmallSize: up to here a request goes to the pool of small blocks
SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer
LARGE_REQUEST_BYTES = 10 * MIB  # kMinLargeAlloc: from here on a segment is as large as the request
LARGE_SEGMENT_BYTES = 20 * MIB  # kLargeBuffer
SEGMENT_GRANULE_BYTES = 2 * MIB  # kRoundLarge


class OutOfMemory(LabkitError):
    """A request found no room under the capacity, even after all cached segments were given back."""


@dataclass
class Statistics:
    """torch.cuda.memory_stats' bytes, current and peak, and how often cached segments were given back to find room."""

    allocated_bytes: int = 0
    reserved_bytes: int = 0
    requested_bytes: int = 0
    peak_allocated_bytes: int = 0
    peak_reserved_bytes: int = 0
    peak_requested_bytes: int = 0
    retries: int = 0

    def add(self, allocated_bytes: int = 0, reserved_bytes: int = 0, requested_bytes: int = 0) -> None:
        """Move the counters; peaks follow."""
        self.allocated_bytes += allocated_bytes
        self.reserved_bytes += reserved_bytes
        self.requested_bytes += requested_bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        self.peak_requested_bytes = max(self.peak_requested_bytes, self.requested_bytes)

    def forget_peaks(self) -> None:
        """As torch.cuda.reset_peak_memory_stats."""
        self.peak_allocated_bytes, self.peak_reserved_bytes = self.allocated_bytes, self.reserved_bytes
        self.peak_requested_bytes = self.requested_bytes


def rounded(size_bytes: int, granule_bytes: int) -> int:
    """`size_bytes` rounded up to whole granules."""
    return -(-size_bytes // granule_bytes) * granule_bytes


def segment_bytes(size_bytes: int) -> int:
    """The size of a new segment for a rounded request (`get_allocation_size`)."""
    if size_bytes <= SMALL_REQUEST_BYTES:
        return SMALL_SEGMENT_BYTES
    if size_bytes < LARGE_REQUEST_BYTES:
        return LARGE_SEGMENT_BYTES
    return rounded(size_bytes, SEGMENT_GRANULE_BYTES)


class CachingAllocator:
    """Allocate and free as torch does on one CUDA stream; read `statistics`.

    `capacity_bytes`: what can be reserved at most, the card's memory or a fraction set by
    `torch.cuda.set_per_process_memory_fraction`; None: no end.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.statistics = Statistics()
        self.pools = {small: Pool(small) for small in (True, False)}
        self._next_address = 0

    def allocate(self, requested_bytes: int) -> Block | None:
        """A block of at least `requested_bytes`, None for none at all (torch allocates nothing for 0 bytes).

        Raises OutOfMemory where it does not fit under the capacity; then nothing has changed but the cache.
        """
        if requested_bytes == 0:
            return None
        size_bytes = rounded(requested_bytes, GRANULE_BYTES)
        pool = self.pools[size_bytes <= SMALL_REQUEST_BYTES]
        block = self._best_fit(pool, size_bytes) or self._new(pool, size_bytes)
        block = block or self._new_after_retry(pool, size_bytes, requested_bytes)
        pool.remove(block)
        block.free, block.requested_bytes = False, requested_bytes
        if self._is_split(block, size_bytes):
            pool.insert(block.split(size_bytes))
        self.statistics.add(allocated_bytes=block.size_bytes, requested_bytes=requested_bytes)
        return block

    def free(self, block: Block | None) -> None:
        """Give a block back; it is joined with free neighbours."""
        if block is None:
            return
        self.statistics.add(allocated_bytes=-block.size_bytes, requested_bytes=-block.requested_bytes)
        block.free, block.requested_bytes = True, 0
        self.pools[block.small].insert(block)

    def empty_cache(self) -> None:
        """Give back what is cached and whole (torch.cuda.empty_cache)."""
        for pool in self.pools.values():
            for block in list(pool.blocks.values()):
                self._give_back(block, pool)

    def _best_fit(self, pool: Pool, size_bytes: int) -> Block | None:
        return next(pool.at_least(size_bytes), None)

    def _new(self, pool: Pool, size_bytes: int) -> Block | None:
        """A new segment as one free block of the pool; None where the capacity is reached."""
        size_bytes = segment_bytes(size_bytes)
        if not self._has_room(size_bytes):
            return None
        self.statistics.add(reserved_bytes=size_bytes)
        return pool.insert(Block(self._new_address(size_bytes), size_bytes, pool.small))

    def _new_after_retry(self, pool: Pool, size_bytes: int, requested_bytes: int) -> Block:
        self.empty_cache()
        self.statistics.retries += 1
        if block := self._new(pool, size_bytes):
            return block
        raise OutOfMemory(
            f"{format_bytes(requested_bytes)} do not fit: {format_bytes(self.statistics.reserved_bytes)} of "
            f"{format_bytes(self.capacity_bytes)} are reserved, {format_bytes(self.statistics.allocated_bytes)} in use."
        )

    def _has_room(self, more_bytes: int) -> bool:
        return self.capacity_bytes is None or self.statistics.reserved_bytes + more_bytes <= self.capacity_bytes

    def _new_address(self, size_bytes: int) -> int:
        """Segments never touch one another: a gap keeps their blocks apart."""
        address = self._next_address
        self._next_address += size_bytes + SEGMENT_GRANULE_BYTES
        return address

    def _is_split(self, block: Block, size_bytes: int) -> bool:
        """`should_split`: a large block keeps a remainder of up to 1 MiB, which counts as allocated."""
        rest_bytes = block.size_bytes - size_bytes
        return rest_bytes >= GRANULE_BYTES if block.small else rest_bytes > SMALL_REQUEST_BYTES

    def _give_back(self, block: Block, pool: Pool) -> None:
        """A free block that is a whole segment."""
        if block.previous is None and block.next is None:
            pool.remove(block)
            self.statistics.add(reserved_bytes=-block.size_bytes)
