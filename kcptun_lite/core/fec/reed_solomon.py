"""Reed-Solomon over GF(2^8): sums of shards that can replace any lost ones.

In      shards lying at a constant distance in a buffer
Out     `parity_sums` and its `write`: parity shards; `reconstruct`: lost data shards
Knows   the field, Lagrange, numpy (optional). Not: packets, groups, seqids
Wire    docs/protocol.md, "Reed-Solomon code"
Cost    10/3, shards of 1324 bytes, per data shard: 2.2 us with numpy, 6 us without; tables 10 KiB,
        scratch 90 KiB while a session is busy

Every shard, data or parity, is the value at its own index of one polynomial of degree < data_shards (for each
byte column). That is what "Vandermonde matrix made systematic" (docs/protocol.md, "Reed-Solomon code") amounts to, and
why no matrix is built or inverted here: parity and recovery are the same thing, interpolation from the shards one has
to the indexes one wants.
"""

import sys
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Protocol

from kcptun_lite.core.lazy_imports import loaded_numpy
from kcptun_lite.core.wire import MTU_MAX, Buffer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POLYNOMIAL = 0x11D  # x^8 + x^4 + x^3 + x^2 + 1, generator 2
ORDER = 255  # of the multiplicative group
GATHER_ROWS = 5  # shards looked up by one numpy call; bounds the scratch to about 90 KiB
PACKED_FROM = 2  # sums; a single one is as fast without numpy

Rows = tuple[bytes, ...]
"one row of coefficients per wanted shard, one coefficient per known shard"


def _powers() -> bytes:
    powers = bytearray()
    power = 1
    for _ in range(ORDER):
        powers.append(power)
        power <<= 1
        if power > 0xFF:
            power ^= POLYNOMIAL
    return bytes(powers)


EXP = _powers()
LOG = bytes([0] + [EXP.index(value) for value in range(1, 256)])
"LOG[0] is 0, so that a factor (k - k) drops out of a product of differences"


@cache
def multiples(factor: int) -> bytes:
    """The products of `factor` with 0..255, a table for `bytes.translate`."""
    if factor == 0:
        return bytes(256)
    shifted = EXP[LOG[factor] :] + EXP[: LOG[factor]]
    return b"\0" + LOG[1:].translate(shifted + b"\0")


@cache
def _log_distances(x: int) -> bytes:
    """The logarithms of x - v for v in 0..255."""
    return bytes(LOG[x ^ v] for v in range(256))


@lru_cache(maxsize=64)  # the usual patterns of loss come back: one lost of ten, and the first parity shard
def interpolation(known: bytes, wanted: bytes) -> Rows:
    """Coefficients that turn the shards at indexes `known` into those at indexes `wanted`.

    wanted[r] = sum over k of rows[r][k] * known[k]. The Lagrange basis, in logarithms; no index may be in both.
    """
    weights = [sum(known.translate(_log_distances(k))) for k in known]
    rows = []
    for x in wanted:
        distances = known.translate(_log_distances(x))
        whole = sum(distances)
        rows.append(bytes([EXP[(whole - d - w) % ORDER] for d, w in zip(distances, weights, strict=True)]))
    return tuple(rows)


def parity_rows(data_shards: int, parity_shards: int) -> Rows:
    """The rows of the code's matrix below the identity."""
    return interpolation(bytes(range(data_shards)), bytes(range(data_shards, data_shards + parity_shards)))


class ShardSums(Protocol):
    """Weighted sums of the shards of one group, growing as shards come; shorter shards count as zero padded."""

    filled: int
    "shards added so far"
    longest: int
    "bytes of the longest of them, and of each sum"

    def add(self, buffer: Buffer, start: int, stride: int, count: int, length: int) -> None:
        """Add the next `count` shards, each `length` bytes, the first at `start`, `stride` bytes apart."""

    def write(self, buffer: memoryview, start: int, stride: int) -> None:
        """Put the sums, `longest` bytes each, `stride` bytes apart from `start`."""

    def clear(self) -> None:
        """Begin the next group."""

    def rest(self) -> None:
        """Give scratch memory back; it comes again when needed."""


class PlainSums:
    """`ShardSums` of plain Python: `bytes.translate` multiplies, integers as long as a shard add up."""

    def __init__(self, rows: Rows) -> None:
        self._columns = [tuple(map(multiples, column)) for column in zip(*rows, strict=True)]
        self._sums = [0] * len(rows)
        self.filled = 0
        self.longest = 0

    def add(self, buffer: Buffer, start: int, stride: int, count: int, length: int) -> None:
        sums = self._sums
        for column in self._columns[self.filled : self.filled + count]:
            shard = bytes(buffer[start : start + length])
            start += stride
            for row, table in enumerate(column):
                sums[row] ^= int.from_bytes(shard.translate(table), "little")  # little: padding costs nothing
        self.filled += count
        self.longest = max(self.longest, length)

    def write(self, buffer: memoryview, start: int, stride: int) -> None:
        for value in self._sums:
            buffer[start : start + self.longest] = value.to_bytes(self.longest, "little")
            start += stride

    def clear(self) -> None:
        self._sums = [0] * len(self._sums)
        self.filled = 0
        self.longest = 0

    def rest(self) -> None:
        pass


class PackedSums:
    """`ShardSums` of numpy: one look-up per byte gives its products for up to eight sums, packed in one word.

    The bytes of a word are only ever moved and XORed, so the machine's byte order does not matter.
    """

    def __init__(self, tables: "NDArray[np.unsignedinteger]", sums: int, width: int) -> None:
        """`tables` as `packed_tables` makes them; `width`: bytes of the longest shard to come."""
        import numpy

        self._np = numpy
        self._tables = tables
        self._sums = sums
        self._width = width
        self._words = numpy.zeros((len(tables), 0), tables.dtype)
        self._prepare(0, 0)
        self.filled = 0
        self.longest = 0

    def _prepare(self, rows: int, length: int) -> None:
        """Scratch for `rows` shards of `length` bytes: look-up indexes, of which only the low byte changes."""
        np = self._np
        index = np.empty((rows, length), np.intp)
        index[...] = np.arange(0, rows * 256, 256).reshape(rows, 1)
        low = 0 if sys.byteorder == "little" else index.itemsize - 1
        self._index = index
        self._index_low = index.view(np.uint8)[:, low :: index.itemsize]
        self._found = np.empty((rows, length), self._tables.dtype)

    def add(self, buffer: Buffer, start: int, stride: int, count: int, length: int) -> None:
        np = self._np
        self.longest = max(self.longest, length)
        if not self._words.shape[1]:
            self._words = np.zeros((len(self._tables), self._width), self._tables.dtype)
        while count:
            rows = min(count, GATHER_ROWS)
            if rows == 1:  # an odd one among others: not worth a change of scratch
                shard = np.ndarray(length, np.uint8, buffer, start)
                for table, words in zip(self._tables, self._words[:, :length], strict=True):
                    words ^= table[self.filled * 256 : self.filled * 256 + 256].take(shard, mode="clip")
                self.filled += 1
                return
            if self._index.shape[1] != length or len(self._index) < rows:
                self._prepare(rows, length)
            self._index_low[:rows] = np.ndarray((rows, length), np.uint8, buffer, start, (stride, 1))
            index, found = self._index[:rows], self._found[:rows]
            for table, words in zip(self._tables, self._words[:, :length], strict=True):
                table[self.filled * 256 :].take(index, out=found, mode="clip")  # mode: the unbuffered way; never clips
                np.bitwise_xor(words, np.bitwise_xor.reduce(found, axis=0), out=words)
            self.filled += rows
            start += rows * stride
            count -= rows

    def write(self, buffer: memoryview, start: int, stride: int) -> None:
        np = self._np
        target = np.ndarray((self._sums, self.longest), np.uint8, buffer, start, (stride, 1))
        size = self._words.itemsize
        for lane, words in enumerate(self._words[:, : self.longest]):
            part = target[lane * size : (lane + 1) * size]
            part[...] = words.view(np.uint8).reshape(self.longest, size).T[: len(part)]

    def clear(self) -> None:
        self._words[:, : self.longest] = 0
        self.filled = 0
        self.longest = 0

    def rest(self) -> None:
        if len(self._index):
            self._prepare(0, 0)
        if not self.filled:
            self._words = self._words[:, :0].copy()


def packed_tables(rows: Rows) -> "NDArray[np.unsignedinteger]":
    """Look-up tables, (lanes, 256 * known shards) words: word 256 * k + b holds b's products in column k.

    A lane serves as many rows as its word has bytes: 1, 2, 4 or 8. Numpy must be loaded.
    """
    import numpy as np

    size = next((size for size in (1, 2, 4) if size >= len(rows)), 8)
    lanes = -(-len(rows) // size)
    known = len(rows[0])
    tables = np.zeros((lanes, known * 256, size), np.uint8)
    for index, row in enumerate(rows):
        tables[index // size, :, index % size] = np.frombuffer(b"".join(map(multiples, row)), np.uint8)
    return tables.view(f"u{size}")[:, :, 0]


@lru_cache(maxsize=2)  # sessions of one program share their tables
def _parity_tables(data_shards: int, parity_shards: int) -> "NDArray[np.unsignedinteger]":
    return packed_tables(parity_rows(data_shards, parity_shards))


def parity_sums(data_shards: int, parity_shards: int) -> ShardSums:
    """Sums that are the parity shards of a group, for shards of up to MTU_MAX bytes; with numpy if that is loaded."""
    if parity_shards >= PACKED_FROM and loaded_numpy():
        return PackedSums(_parity_tables(data_shards, parity_shards), parity_shards, MTU_MAX)
    return PlainSums(parity_rows(data_shards, parity_shards))


def reconstruct(shards: Mapping[int, Buffer], data_shards: int) -> dict[int, memoryview]:
    """The missing data shards of a group: index -> bytes, as long as the longest shard used.

    `shards`: at least `data_shards` shards of one group by index. Present data shards are preferred, then the
    lowest parity. Numpy helps only if the program has it loaded already: no import in the middle of traffic.
    """
    known = bytes(sorted(shards)[:data_shards])
    lost = bytes(index for index in range(data_shards) if index not in shards)
    rows = interpolation(known, lost)
    length = max(len(shards[index]) for index in known)
    joined = b"".join([bytes(shards[index]).ljust(length, b"\0") for index in known])
    sums: ShardSums
    if len(lost) >= PACKED_FROM and loaded_numpy():
        sums = PackedSums(packed_tables(rows), len(lost), length)
    else:
        sums = PlainSums(rows)
    sums.add(joined, 0, length, data_shards, length)
    found = memoryview(bytearray(len(lost) * length))
    sums.write(found, 0, length)
    return {index: found[row * length : (row + 1) * length] for row, index in enumerate(lost)}
