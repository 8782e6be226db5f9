"""The sender's shards: the cycle of its seqids, and how its parameters are found beyond doubt.

In      runs of data and parity packets
Out     (data shards, parity shards)
Knows   seqids. Not: what is in a packet
Wire    docs/protocol.md, "Parity at the sender"

A packet tells two things for certain, its seqid and whether it is data. A sender of every generation numbers all its
packets from 0 on, also parity that it skips, and starts again at a multiple of its group. So with d data and p parity
shards a packet is data if, and only if, seqid % (d + p) < d. Each packet that arrives rules out all pairs (d, p) for
which that is not so. The sender's own pair is never ruled out, whatever is lost, doubled or out of order; so when one
pair is left, it is the sender's. Nothing is guessed, and neither our own parameters nor the order of arrival matter.
"""

from kcptun_lite.core.wire import (
    FEC_MAX_SHARDS,
    MASK32,
)


def seqid_end(data_shards: int, parity_shards: int) -> int:
    """The seqid (`paws`) at which the count starts again at 0 (docs/protocol.md, "Parity at the sender")."""
    group = data_shards + parity_shards
    return MASK32 // group * group


class ShardFinder:
    """The pairs (data, parity) that explain every packet of a sender so far.

    Cost: 80 us for each of the first runs, less with each pair of numbers that is ruled out; 14 packets of a sender
    with 10/3 suffice if none is lost.
    """

    def __init__(self) -> None:
        self._sizes = list(range(2, FEC_MAX_SHARDS + 1))
        "of groups that are possible still"
        self._least = bytearray([1]) * (FEC_MAX_SHARDS + 1)
        "data shards of a group of this size, at the least ..."
        self._most = bytearray(max(size - 1, 0) for size in range(FEC_MAX_SHARDS + 1))
        "... and at the most"

    @property
    def is_contradictory(self) -> bool:
        """Whether nothing explains what has come: it is not of one sender."""
        return not self._sizes

    def sample(self, first: int, end: int, is_data: bool) -> None:
        """Packets with the seqids first..end-1 have come, all of them data, or all parity."""
        if end == 1 and is_data:
            return  # seqid 0, which is data for everybody
        least, most = self._least, self._most
        possible = []
        for size in self._sizes:
            index, last = first % size, (end - 1) % size
            if end - first >= size or last < index:  # it has both the last shard of a group and the first of the next
                continue
            if is_data:
                if last >= most[size]:
                    continue
                least[size] = max(least[size], last + 1)
            else:
                if index < least[size]:
                    continue
                most[size] = min(most[size], index)
            possible.append(size)
        self._sizes = possible

    def find(self) -> tuple[int, int] | None:
        """(data shards, parity shards) if only one pair explains all."""
        if len(self._sizes) != 1:
            return None
        size = self._sizes[0]
        data = self._least[size]
        return (data, size - data) if data == self._most[size] else None
