"""Forward error correction on the way out: FEC headers and parity packets.

In      a PacketBatch with datagrams behind the headroom
Out     the same batch, parity packets among the data
Knows   groups, seqids, Reed-Solomon. Not: KCP, keys, sessions
Wire    docs/protocol.md, "Error correction"
Cost    10/3, 1350 B, per data packet: 2.9 us (7 without numpy)
"""

from contextlib import suppress

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.strided import stamp
from kcptun_lite.core.fec.batched_parity import LARGEST_CODE, LEAST_GROUPS, BatchedParity
from kcptun_lite.core.fec.reed_solomon import PlainSums, ShardSums, parity_rows, parity_sums
from kcptun_lite.core.fec.shards import seqid_end
from kcptun_lite.core.lazy_imports import load_numpy, loaded_numpy
from kcptun_lite.core.wire import (
    FEC_DATA,
    FEC_HEADER,
    FEC_MAX_SHARDS,
    FEC_PARITY,
    FEC_PROTECTED_AT,
)
from kcptun_lite.errors import LocalProtocolError

FEW = 2  # packets that come alone: small ones are summed up without numpy in a third of the time, see reed_solomon
REST_AFTER = 1000  # ms without a packet after which the encoder keeps no scratch memory
MAX_GAP = 500  # ms between a group's last two packets; above it parity is skipped (sess.go maxFECEncodeLatency)


class UncodedFec:
    """FEC headers and no parity, as long as it is not known which shards the peer can read.

    A Go program that takes packets for parity where they are none "recovers" what nobody has sent
    (docs/protocol.md, "Finding the sender's shards"), and one of 2017 never learns any numbers but its own. Seqid 0 is
    data for all of them, and the same seqid once more is a duplicate to error correction, though no less a datagram to
    KCP.
    """

    def __init__(self, headroom: int) -> None:
        self._headroom = headroom

    def protect(self, batch: PacketBatch, first: int, now: int) -> None:
        """Write headers on the packets [first:], as `FecEncoder.protect` does."""
        for start in batch.starts[first:]:
            FEC_HEADER.pack_into(batch.arena, start + self._headroom, 0, FEC_DATA, 0)

    def rest(self, now: int) -> None:
        """Nothing is kept."""


def speed_up(data_shards: int, parity_shards: int) -> None:
    """Load numpy and make what encoders of a code share, where it is installed; takes seconds on a router.

    Encoders take to it between two groups. Whatever fails costs only speed.
    """
    with suppress(ImportError):
        load_numpy()
        FecEncoder(data_shards, parity_shards, 0, 0)


class FecEncoder:
    """Writes FEC headers and parity packets; one per session."""

    def __init__(
        self,
        data_shards: int,
        parity_shards: int,
        headroom: int,
        tailroom: int,
        *,
        is_thrifty: bool = False,
        first_group: int = 0,
    ) -> None:
        """`headroom`, `tailroom`: bytes that encryption needs around each packet.

        `is_thrifty`: no scratch for many groups at once, which no memory limit counts.
        `first_group`: 1 behind an `UncodedFec`, which has used group 0.
        Raises LocalProtocolError on a code that does not exist.
        """
        if data_shards < 1 or parity_shards < 1 or data_shards + parity_shards > FEC_MAX_SHARDS:
            raise LocalProtocolError(f"no Reed-Solomon code with {data_shards}/{parity_shards} shards")
        self.data_shards = data_shards
        self.parity_shards = parity_shards
        self._headroom = headroom
        self._tailroom = tailroom
        self._is_thrifty = is_thrifty
        self._groups: BatchedParity | None = None
        self._choose_arithmetic()
        self._seqid = first_group * (data_shards + parity_shards)
        self._seqid_end = seqid_end(data_shards, parity_shards)
        self._last_packet: int | None = None
        "ms"

    @property
    def next_group(self) -> int:
        """`first_group` of an encoder that goes on where this one ends."""
        size = self.data_shards + self.parity_shards
        return -(-self._seqid // size) % (self._seqid_end // size)

    def _choose_arithmetic(self) -> None:
        """The fastest there is now: numpy may be loaded later, or never."""
        data, parity = self.data_shards, self.parity_shards
        self._has_numpy = loaded_numpy() is not None
        self._many_sums, self._few_sums = parity_sums(data, parity), PlainSums(parity_rows(data, parity))
        self._sums: ShardSums = self._few_sums
        if self._has_numpy and not self._is_thrifty and data > 1 and data * parity <= LARGEST_CODE:
            self._groups = BatchedParity(data, parity)

    def protect(self, batch: PacketBatch, first: int, now: int) -> None:
        """Write headers on the packets [first:] and put parity behind the last packet of each full group.

        Args:
            batch: the new packets hold their datagram at `headroom + FEC_HEADER_SIZE`; their lengths count
                headroom, header and tailroom. Parity lies at the end of the arena, in the lists in wire order.
            now: ms; a gap of MAX_GAP before a group's last packet skips its parity.

        A group whose parity finds no room in the batch goes without; seqids advance as if it had been sent.
        """
        starts, lengths = batch.starts[first:], batch.lengths[first:]
        del batch.starts[first:], batch.lengths[first:]
        if not self._has_numpy and not self._sums.filled and loaded_numpy():
            self._choose_arithmetic()
        begin = 0
        while begin < len(starts):
            if count := self._count_equal_groups(batch, starts, lengths, begin):
                end = begin + count * self.data_shards
                self._protect_groups(batch, starts[begin:end], lengths[begin:end], count)
                self._last_packet = now
                begin = end
                continue
            if not self._sums.filled:
                self._sums = self._few_sums if len(starts) - begin <= FEW else self._many_sums
            sums = self._sums
            end = min(begin + self.data_shards - sums.filled, len(starts))
            piece_starts, piece_lengths = starts[begin:end], lengths[begin:end]
            self._add_piece(batch.arena, piece_starts, piece_lengths)
            batch.starts += piece_starts
            batch.lengths += piece_lengths
            if sums.filled == self.data_shards:
                before_last = now if end - begin > 1 else self._last_packet
                if before_last is not None and now - before_last < MAX_GAP:
                    self._append_parity(batch)
                self._seqid = (self._seqid + self.parity_shards) % self._seqid_end
                sums.clear()
            self._last_packet = now
            begin = end

    def rest(self, now: int) -> None:
        """Give scratch memory back if nothing has come for a while; many idle sessions must not add up."""
        if self._last_packet is not None and now - self._last_packet >= REST_AFTER:
            self._many_sums.rest()
            if self._groups:
                self._groups.rest()

    def _count_equal_groups(self, batch: PacketBatch, starts: list[int], lengths: list[int], begin: int) -> int:
        """Whole groups of packets [begin:], alike and side by side, that are worth to be dealt with together."""
        count = 0 if self._sums.filled else (len(starts) - begin) // self.data_shards
        length = lengths[begin]
        stride = batch.stride_for(length)
        while self._groups and count >= LEAST_GROUPS:
            end = begin + count * self.data_shards
            if lengths[begin:end].count(length) == end - begin:
                first, last = starts[begin], starts[begin] + stride * (end - begin)
                is_dense = starts[begin:end] == list(range(first, last, stride))
                has_room = batch.has_room(stride * self.parity_shards * count)
                has_seqids = self._seqid + count * (self.data_shards + self.parity_shards) <= self._seqid_end
                return count if is_dense and has_room and has_seqids else 0
            count //= 2
        return 0

    def _protect_groups(self, batch: PacketBatch, starts: list[int], lengths: list[int], count: int) -> None:
        """What `protect` does, for `count` whole groups that `_count_equal_groups` has found."""
        assert self._groups is not None
        data, parity, first, headroom = self.data_shards, self.parity_shards, starts[0], self._headroom
        around = headroom + FEC_PROTECTED_AT + self._tailroom
        stride = starts[1] - first
        shard = lengths[0] - around
        groups = [self._seqid + group * (data + parity) for group in range(count)]
        header = FEC_HEADER.pack(0, FEC_DATA, shard)
        seqids = [seqid for group in groups for seqid in range(group, group + data)]
        stamp(batch.arena, first + headroom, stride, header, 0, seqids)
        parity_first = batch.end
        header = FEC_HEADER.pack(0, FEC_PARITY, 0)
        seqids = [seqid for group in groups for seqid in range(group + data, group + data + parity)]
        stamp(batch.arena, parity_first + headroom, stride, header, 0, seqids)
        protected_at = headroom + FEC_PROTECTED_AT
        self._groups.write(batch.arena, first + protected_at, parity_first + protected_at, stride, shard, count)
        begin = len(batch)
        batch.commit(lengths[0], count * parity)
        parity_starts = batch.starts[begin:]
        del batch.starts[begin:]
        for group in range(count):
            batch.starts += starts[group * data : group * data + data]
            batch.starts += parity_starts[group * parity : group * parity + parity]
        batch.lengths += lengths
        self._seqid = (self._seqid + count * (data + parity)) % self._seqid_end

    def _add_piece(self, arena: memoryview, starts: list[int], lengths: list[int]) -> None:
        """Head and sum up packets of one group; those that look alike go to Reed-Solomon together."""
        pack_into, headroom, count = FEC_HEADER.pack_into, self._headroom, len(starts)
        around = headroom + FEC_PROTECTED_AT + self._tailroom
        seqids = range(self._seqid, self._seqid + count)
        for seqid, start, length in zip(seqids, starts, lengths, strict=True):
            pack_into(arena, start + headroom, seqid, FEC_DATA, length - around)
        self._seqid += count
        at = 0
        while at < count:
            start, length = starts[at], lengths[at]
            stride = starts[at + 1] - start if at + 1 < count else 0
            end = at + 1
            while end < count and lengths[end] == length and starts[end] == start + stride * (end - at):
                end += 1
            self._sums.add(arena, start + headroom + FEC_PROTECTED_AT, stride, end - at, length - around)
            at = end

    def _append_parity(self, batch: PacketBatch) -> None:
        """Put the group's parity packets at the end of the arena, if they all fit."""
        length = self._headroom + FEC_PROTECTED_AT + self._sums.longest + self._tailroom
        stride = batch.stride_for(length)
        if not batch.has_room(stride * self.parity_shards):
            return
        body = batch.end + self._headroom
        for seqid in range(self._seqid, self._seqid + self.parity_shards):
            FEC_HEADER.pack_into(batch.arena, batch.end + self._headroom, seqid, FEC_PARITY, 0)
            batch.commit(length)
        self._sums.write(batch.arena, body + FEC_PROTECTED_AT, stride)
