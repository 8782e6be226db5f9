"""Packets at equal distances: what bulk traffic looks like, and sequences of views that need not be made.

In      an arena, where packets are in it and how long they are
Out     the packets one by one; a field of many at once
Knows   grids. Not: what is in a packet
Cost    a view 0.1 us; a field 3 ns per packet and 2 us per call
"""

from collections.abc import Iterator, Sequence
from typing import overload

from kcptun_lite.core.strided import MANY, gather, grid_places


class PacketRow(Sequence[memoryview]):
    """Equally long packets, or the same part of each, at places of a grid."""

    __slots__ = ("_arena", "_first", "_places", "_stride", "size")

    def __init__(self, arena: memoryview, first: int, stride: int, size: int, places: Sequence[int]) -> None:
        """`first`: where the packet at place 0 of the grid is or would be; `places`: where there are packets."""
        self._arena = arena
        self._first = first
        self._stride = stride
        self._places = places
        self.size = size
        "bytes of each"

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> "PacketRow": ...
    def __getitem__(self, index: int | slice) -> "memoryview | PacketRow":
        if isinstance(index, slice):
            return PacketRow(self._arena, self._first, self._stride, self.size, self._places[index])
        at = self._first + int(self._places[index]) * self._stride
        return self._arena[at : at + self.size]

    def behind(self, offset: int, indexes: list[int]) -> "PacketRow":
        """What comes from `offset` on in some of the packets, in their order."""
        places = grid_places([self._places[index] for index in indexes])
        return PacketRow(self._arena, self._first + offset, self._stride, self.size - offset, places)

    def field(self, at: int, size: int) -> bytes:
        """The bytes [at : at + size] of all packets, side by side."""
        return gather(self._arena, self._first + at, self._stride, size, self._places)


class PacketGrid(Sequence[memoryview]):
    """Packets of any lengths, one at each place of a grid, in order."""

    __slots__ = ("_arena", "_lengths", "_starts", "_stride")

    def __init__(self, arena: memoryview, starts: list[int], lengths: list[int], stride: int) -> None:
        self._arena = arena
        self._starts = starts
        self._lengths = lengths
        self._stride = stride

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> "PacketGrid": ...
    def __getitem__(self, index: int | slice) -> "memoryview | PacketGrid":
        if isinstance(index, slice):
            return PacketGrid(self._arena, self._starts[index], self._lengths[index], self._stride)
        start = self._starts[index]
        return self._arena[start : start + self._lengths[index]]

    def stretches(self) -> Iterator[Sequence[memoryview]]:
        """The same packets in the same order: rows where enough of them are equally long, and what is between."""
        usual = max(self._lengths)
        begin = 0
        others = [index for index, length in enumerate(self._lengths) if length != usual]
        if len(others) * MANY > len(self):
            yield self
            return
        for index in [*others, len(self)]:
            if index - begin >= MANY:
                yield PacketRow(self._arena, self._starts[begin], self._stride, usual, range(index - begin))
            elif begin < index:
                yield self[begin:index]
            if index < len(self):
                yield self[index : index + 1]
            begin = index + 1
