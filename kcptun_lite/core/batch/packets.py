"""A batch: many packets side by side in one buffer.

In      an arena
Out     `PacketBatch`: where each packet is, how long, and where it came from
Knows   the layout of the arena. Not: what is in a packet
"""

from collections.abc import Iterator, Sequence

from kcptun_lite.core.batch.rows import PacketList
from kcptun_lite.core.batch.strided import MANY, PACKET_ALIGNMENT

Address = tuple[str, int] | tuple[str, int, int, int]
Local = tuple[int, int, bytes]
"which of our addresses to send from, as `sendmsg` takes it: level, type, data"


class PacketBatch:
    """Packets side by side in one arena, each at a multiple of 16; one owner at any time.

    The order of the lists is the order on the wire; the order in the arena is the order of reservation.
    Layers with a loop over many packets write `arena[end:]` themselves and then `commit`.

    As long as no packet needs more room than `begin_grid` was told, all have that much, so that many of them can be
    read or written at once (core/batch/strided). It is bulk traffic that looks so.
    """

    __slots__ = ("addresses", "arena", "asked", "capacity", "end", "lengths", "starts", "stride")

    def __init__(self, arena: memoryview) -> None:
        self.arena = arena
        self.capacity = len(arena)
        self.starts: list[int] = []
        self.lengths: list[int] = []
        "0 marks a dropped packet; later layers skip it"
        self.addresses: list[Address] = []
        "where each packet came from; empty on the way out"
        self.asked: dict[Address, Local] = {}
        "which of our addresses a peer has sent to, where there are several"
        self.end = 0
        "where the next packet starts"
        self.stride = 0
        "the distance of all packets in the arena; 0: they are no grid"

    def __len__(self) -> int:
        return len(self.starts)

    def has_room(self, size: int) -> bool:
        """Whether one more packet of `size` bytes fits."""
        return self.end + size <= self.capacity

    def begin_grid(self, length: int) -> None:
        """Lay packets that are no longer than this at equal distances, if the batch is empty."""
        if not self.starts:
            self.stride = -(-length // PACKET_ALIGNMENT) * PACKET_ALIGNMENT

    def stride_for(self, length: int) -> int:
        """The room that packets of this length are to be given."""
        return max(self.stride, -(-length // PACKET_ALIGNMENT) * PACKET_ALIGNMENT)

    def commit(self, length: int, count: int = 1) -> int:
        """Make the next `count` packets, `length` bytes each at `stride_for(length)`; returns the first one's index."""
        stride = self.stride_for(length)
        if stride > self.stride:
            self.stride = 0
        if count == 1:
            self.starts.append(self.end)
            self.lengths.append(length)
            self.end += stride
        else:
            first, self.end = self.end, self.end + count * stride
            self.starts += range(first, self.end, stride)
            self.lengths += [length] * count
        return len(self.starts) - count

    def packet(self, index: int) -> memoryview:
        start = self.starts[index]
        return self.arena[start : start + self.lengths[index]]

    def drop(self, index: int) -> None:
        self.lengths[index] = 0

    def views(self) -> list[memoryview]:
        """The packets that were not dropped, in wire order."""
        arena = self.arena
        return [
            arena[start : start + length] for start, length in zip(self.starts, self.lengths, strict=True) if length
        ]

    def packets(self) -> Sequence[memoryview]:
        """The packets that were not dropped, in wire order; if they are many, views are made only when needed."""
        if 0 in self.lengths:
            return self._select([index for index, length in enumerate(self.lengths) if length])
        return PacketList(self.arena, self.starts, self.lengths) if len(self) >= MANY else self.views()

    def by_source(self) -> Iterator[tuple[Address, Sequence[memoryview]]]:
        """`packets`, by the address they came from."""
        addresses = self.addresses
        if addresses and addresses.count(addresses[0]) == len(addresses):
            if packets := self.packets():
                yield addresses[0], packets
            return
        found: dict[Address, list[int]] = {}
        for index, length in enumerate(self.lengths):
            if length:
                found.setdefault(addresses[index], []).append(index)
        for address, indexes in found.items():
            yield address, self._select(indexes)

    def _select(self, indexes: list[int]) -> Sequence[memoryview]:
        if len(indexes) < MANY:
            return [self.packet(index) for index in indexes]
        starts, lengths = self.starts, self.lengths
        return PacketList(self.arena, [starts[index] for index in indexes], [lengths[index] for index in indexes])

    def clear(self) -> None:
        self.starts.clear()
        self.lengths.clear()
        self.addresses.clear()
        self.asked.clear()
        self.end = self.stride = 0
