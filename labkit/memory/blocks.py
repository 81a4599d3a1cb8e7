"""Blocks of memory in an address space: cut, joined, and kept by size, as the caching allocator does it."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Block:
    """A part of a segment. `mapped` is False for address space of an expandable segment that has no memory yet."""

    address: int
    size_bytes: int
    small: bool
    free: bool = True
    mapped: bool = True
    requested_bytes: int = 0
    previous: "Block | None" = None
    next: "Block | None" = None

    @property
    def end(self) -> int:
        return self.address + self.size_bytes

    def split(self, size_bytes: int) -> "Block":
        """Keep the first `size_bytes`; return the rest, a free block in the same state."""
        rest = Block(self.address + size_bytes, self.size_bytes - size_bytes, self.small, mapped=self.mapped)
        rest.previous, rest.next = self, self.next
        if rest.next:
            rest.next.previous = rest
        self.size_bytes, self.next = size_bytes, rest
        return rest


@dataclass
class Pool:
    """The free blocks of one size class: mapped ones by size, then address; unmapped ones by address."""

    small: bool
    keys: list[tuple[int, int]] = field(default_factory=list)
    blocks: dict[int, Block] = field(default_factory=dict)
    unmapped: list[Block] = field(default_factory=list)

    def insert(self, block: Block) -> Block:
        """Add a free block that is in no pool. It is joined with free neighbours; what they became is returned."""
        for neighbour in (block.previous, block.next):
            if neighbour and neighbour.free and neighbour.mapped == block.mapped:
                self.remove(neighbour)
                block = _joined(*sorted((block, neighbour), key=address_of))
        if block.mapped:
            insort(self.keys, (block.size_bytes, block.address))
            self.blocks[block.address] = block
        else:
            insort(self.unmapped, block, key=address_of)
        return block

    def remove(self, block: Block) -> None:
        """Take a block out."""
        if block.mapped:
            del self.keys[bisect_left(self.keys, (block.size_bytes, block.address))]
            del self.blocks[block.address]
        else:
            self.unmapped.remove(block)

    def at_least(self, size_bytes: int) -> Iterator[Block]:
        """The mapped blocks of that size and more, the smallest first, of equals the one of the lowest address."""
        for at in range(bisect_left(self.keys, (size_bytes, 0)), len(self.keys)):
            yield self.blocks[self.keys[at][1]]


def address_of(block: Block) -> int:
    """Where the block starts."""
    return block.address


def _joined(low: Block, high: Block) -> Block:
    low.size_bytes += high.size_bytes
    low.next = high.next
    if high.next:
        high.next.previous = low
    return low
