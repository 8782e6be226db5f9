"""Parity of many whole groups at once, by additions alone.

In      data shards of several groups at a constant distance, all of one length
Out     their parity shards
Knows   the code's coefficients, numpy. Not: packets, groups that are not complete
Wire    docs/protocol.md, "Reed-Solomon code"
Cost    10/3, shards of 1322 bytes, per data shard: 0.7 us for 29 groups together, 0.9 for 14, 1.3 for 7, 1.9 for 4,
        where `PackedSums` takes 2.3 to 3.4; scratch 46 KiB a group

A coefficient c is a polynomial in x of degree 7, so a parity shard, the sum of c[i] * data[i], is the value at x of a
polynomial whose coefficients are plain XORs of data shards: for each bit k, the sum of those data[i] with bit k set in
c[i]. Horner's rule then takes 7 multiplications by x for each parity shard, whatever the number of data shards. The
XORs share their parts (`share_pairs`): 59 for 10/3 instead of 115. All of it runs over whole groups of bytes, which
numpy does 32 or 64 at a time, where a look-up takes each byte by itself.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from kcptun_lite.core.fec.reed_solomon import POLYNOMIAL, parity_rows
from kcptun_lite.core.lazy_imports import loaded_numpy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_GROUPS = 4  # at once; below that PackedSums is as fast
LARGEST_CODE = 64  # data * parity shards: above, looking for shared sums takes longer than a second on a router
LINE = 64  # bytes; shards lie at multiples of it in the scratch, so that all of it is read in whole words

Pair = tuple[int, int]


class Schedule(NamedTuple):
    """The additions that a code takes. Operands below `data_shards` are data, those from there on are `pairs`."""

    pairs: list[Pair]
    "sums of two operands each, which several of `sums` have in common"
    sums: list[list[int]]
    "8 * parity_shards: the operands whose sum is bit k of parity shard r, at [k * parity_shards + r]"


def share_pairs(wanted: Sequence[frozenset[int]], inputs: int) -> Schedule:
    """A schedule for the sums of `wanted`: as long as two operands stand together in several sums, add them once.

    Greedy, after C. Paar, "Optimized arithmetic for Reed-Solomon encoders" (ISIT 1997).
    """
    sums = [set(operands) for operands in wanted]
    pairs: list[Pair] = []
    while True:
        together: Counter[Pair] = Counter()
        for operands in sums:
            together.update(combinations(sorted(operands), 2))
        ((one, other), count) = together.most_common(1)[0] if together else ((0, 0), 0)
        if count < 2:
            return Schedule(pairs, [sorted(operands) for operands in sums])
        for operands in sums:
            if one in operands and other in operands:
                operands -= {one, other}
                operands.add(inputs + len(pairs))
        pairs.append((one, other))


@lru_cache(maxsize=2)
def _schedule(data_shards: int, parity_shards: int) -> Schedule:
    rows = parity_rows(data_shards, parity_shards)
    wanted = [frozenset(i for i, c in enumerate(row) if c >> bit & 1) for bit in range(8) for row in rows]
    return share_pairs(wanted, data_shards)


class BatchedParity:
    """The parity of whole groups of one code. Raises: RuntimeError where numpy is not loaded."""

    def __init__(self, data_shards: int, parity_shards: int) -> None:
        if loaded_numpy() is None:
            raise RuntimeError("numpy is not loaded")
        import numpy

        self._np = numpy
        self._data_shards = data_shards
        self._parity_shards = parity_shards
        self._schedule = _schedule(data_shards, parity_shards)
        self._scratch: NDArray[np.uint8] = numpy.empty(0, numpy.uint8)

    def write(self, buffer: memoryview, start: int, parity_start: int, stride: int, length: int, groups: int) -> None:
        """Compute the parity shards of `groups` groups.

        Data shards of `length` bytes lie `stride` bytes apart from `start` on, group after group, and parity shards
        are put the same way from `parity_start` on.
        """
        np, data_shards, parity_shards = self._np, self._data_shards, self._parity_shards
        pairs, sums = self._schedule
        room = -(-length // LINE) * LINE
        size = groups * room
        rows = data_shards + len(pairs) + 2 * parity_shards
        if len(self._scratch) < rows * size:
            self._scratch = np.empty(rows * size, np.uint8)  # what lies between shards is never looked at
        lines = self._scratch[: rows * size].reshape(rows, size)
        data = np.ndarray((groups, data_shards, length), np.uint8, buffer, start, (data_shards * stride, stride, 1))
        lines[:data_shards].reshape(data_shards, groups, room)[:, :, :length] = data.transpose(1, 0, 2)

        xor, operands = np.bitwise_xor, list(lines)
        for at, (one, other) in enumerate(pairs, data_shards):
            xor(operands[one], operands[other], out=operands[at])
        parity, carry = lines[-2 * parity_shards : -parity_shards], lines[-parity_shards:]
        has_carry, signed = carry.view(np.bool_), parity.view(np.int8)
        parity[...] = 0
        for bit in range(7, -1, -1):
            if bit < 7:  # parity = parity * x
                np.less(signed, 0, out=has_carry)
                np.multiply(carry, POLYNOMIAL & 0xFF, out=carry)
                np.add(parity, parity, out=parity)
                xor(parity, carry, out=parity)
            for row, terms in zip(parity, sums[bit * parity_shards : (bit + 1) * parity_shards], strict=True):
                for term in terms:
                    xor(row, operands[term], out=row)
        target = np.ndarray(
            (groups, parity_shards, length), np.uint8, buffer, parity_start, (parity_shards * stride, stride, 1)
        )
        target[...] = parity.reshape(parity_shards, groups, room)[:, :, :length].transpose(1, 0, 2)

    def rest(self) -> None:
        """Give scratch memory back; it comes again when needed."""
        if len(self._scratch):
            self._scratch = self._np.empty(0, self._np.uint8)
