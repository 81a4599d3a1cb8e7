"""The caching allocator with expandable segments (`PYTORCH_ALLOC_CONF=expandable_segments:True`), simulated.

One segment for small blocks and one for large ones hold address space without end; pages of memory are mapped into it
as it fills, and unmapped again by `empty_cache`. Every remainder is split off, so allocated bytes are the rounded
requests. Rules: `try_allocate_expandable_block`, `find_expandable_block`, `map_block` and `unmap_block` of
`c10/cuda/CUDACachingAllocator.cpp`.
"""

from labkit.memory.allocator import (
    GRANULE_BYTES,
    LARGE_SEGMENT_BYTES,
    SMALL_SEGMENT_BYTES,
    CachingAllocator,
    rounded,
)
from labkit.memory.blocks import Block, Pool

ADDRESS_SPACE_BYTES = 1 << 48  # of a segment: more than any card has


class ExpandableAllocator(CachingAllocator):
    """A CachingAllocator whose segments grow page by page."""

    def _best_fit(self, pool: Pool, size_bytes: int) -> Block | None:
        """`get_free_block`: of large enough blocks, one that could grow counts with what it could grow to."""
        blocks = pool.at_least(size_bytes)
        best = next(blocks, None)
        for following in blocks:
            if _can_grow_to(following) >= _can_grow_to(best):
                break
            best = following
        return best

    def _new(self, pool: Pool, size_bytes: int) -> Block | None:
        """Map pages until a free block is large enough."""
        if not pool.unmapped:
            address = self._new_address(ADDRESS_SPACE_BYTES)
            pool.insert(Block(address, ADDRESS_SPACE_BYTES, pool.small, mapped=False))
        block = _room_to_grow(pool, size_bytes)
        if not block.mapped:
            block = self._map(block, min(block.size_bytes, size_bytes), pool)
        while block and block.size_bytes < size_bytes:
            missing_bytes = min(size_bytes - block.size_bytes, block.next.size_bytes)
            block = self._map(block.next, missing_bytes, pool)
        return block

    def _map(self, block: Block, size_bytes: int, pool: Pool) -> Block | None:
        """Give the start of an unmapped block memory, in whole pages; the free block it became part of, or None."""
        size_bytes = min(rounded(size_bytes, page_bytes(pool)), block.size_bytes)
        if not self._has_room(size_bytes):
            return None
        pool.remove(block)
        if size_bytes < block.size_bytes:
            rest = block.split(size_bytes)
            block.mapped = True
            pool.insert(rest)
        block.mapped = True
        self.statistics.add(reserved_bytes=size_bytes)
        return pool.insert(block)

    def _is_split(self, block: Block, size_bytes: int) -> bool:
        return block.size_bytes - size_bytes >= GRANULE_BYTES

    def _give_back(self, block: Block, pool: Pool) -> None:
        """The whole pages inside a free block lose their memory and stay address space."""
        page, base = page_bytes(pool), _first(block).address
        start = base + rounded(block.address - base, page)
        end = base + (block.end - base) // page * page
        if start >= end:
            return
        pool.remove(block)
        pieces = [block]
        for cut in (start, end):
            if pieces[-1].address < cut < pieces[-1].end:
                pieces.append(pieces[-1].split(cut - pieces[-1].address))
        for piece in pieces:
            piece.mapped = not start <= piece.address < end
        for piece in pieces:
            pool.insert(piece)
        self.statistics.add(reserved_bytes=start - end)


def page_bytes(pool: Pool) -> int:
    """What a segment grows by."""
    return SMALL_SEGMENT_BYTES if pool.small else LARGE_SEGMENT_BYTES


def _can_grow_to(block: Block) -> int:
    following = block.next
    return block.size_bytes + (following.size_bytes if following and not following.mapped else 0)


def _room_to_grow(pool: Pool, size_bytes: int) -> Block:
    """Where the lowest free stretch begins, of memory and address space, that is large enough."""
    for unmapped in pool.unmapped:
        start = unmapped.previous if unmapped.previous and unmapped.previous.free else unmapped
        found_bytes, block = 0, start
        while block and block.free and found_bytes < size_bytes:
            found_bytes += block.size_bytes
            block = block.next
        if found_bytes >= size_bytes:
            return start
    raise AssertionError("address space without end")


def _first(block: Block) -> Block:
    while block.previous:
        block = block.previous
    return block
