"""Packs KCP segments into datagrams, and datagrams into a batch.

In      header fields and payloads, in the order they are to travel
Out     packets in the batch: headroom, one datagram of whole segments, tailroom
Knows   the size of things. Not: why a segment is sent
Wire    docs/protocol.md, "Segment", "Flush"
Cost    0.8 us per segment that fills a datagram, 1.9 us for others
"""

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.strided import scatter, stamp
from kcptun_lite.core.wire import KCP_ACK, KCP_HEADER_SIZE, KCP_PUSH, KCP_SEGMENT, KCP_SN_AT, MASK32


class DatagramWriter:
    """Packs segments into datagrams behind the headroom of a batch's packets, for one flush.

    wnd and una are those of the flush's beginning in every segment (docs/protocol.md, "Flush").
    """

    __slots__ = (
        "_arena",
        "_at",
        "_base",
        "_batch",
        "_capacity",
        "_conv",
        "_headroom",
        "_packets_left",
        "_tailroom",
        "_una",
        "_wnd",
        "segments",
        "wants_answer",
    )

    def __init__(
        self,
        batch: PacketBatch,
        max_packets: int,
        conv: int,
        wnd: int,
        una: int,
        mss: int,
        headroom: int,
        tailroom: int,
    ) -> None:
        """Writes at most `max_packets` packets behind those already in the batch."""
        self.segments = 0
        "written so far"
        self.wants_answer = False
        "something other than acknowledgements was written"
        self._batch = batch
        self._arena = batch.arena
        self._headroom = headroom
        self._tailroom = tailroom
        self._capacity = mss + KCP_HEADER_SIZE
        self._conv = conv
        self._wnd = wnd
        self._una = una & MASK32
        self._packets_left = max_packets
        batch.begin_grid(headroom + self._capacity + tailroom)
        self._base = batch.end + headroom
        self._at = 0

    def has_room(self, payload_size: int) -> bool:
        """Whether a segment of that size fits in the open datagram or in one more."""
        if not self._at:
            return self._packets_left > 0
        return self._at + KCP_HEADER_SIZE + payload_size <= self._capacity or self._packets_left > 1

    def write(self, cmd: int, ts: int, sn: int, payload: bytes) -> bool:
        """Write a segment; False if the batch is full."""
        length = len(payload)
        self.wants_answer = self.wants_answer or cmd != KCP_ACK
        if self._at + KCP_HEADER_SIZE + length > self._capacity:
            self.close()
        if not self._at:
            if not self._packets_left:
                return False
            self._base = self._batch.end + self._headroom
        at = self._base + self._at
        KCP_SEGMENT.pack_into(
            self._arena, at, self._conv, cmd, 0, self._wnd, ts & MASK32, sn & MASK32, self._una, length
        )
        if length:
            at += KCP_HEADER_SIZE
            self._arena[at : at + length] = payload
        self._at += KCP_HEADER_SIZE + length
        self.segments += 1
        return True

    def packets_left(self) -> int:
        """Whole packets that still fit behind the open one."""
        return self._packets_left - (self._at > 0)

    def write_full(self, sn: int, now: int, payload: memoryview) -> None:
        """Write `payload` as PUSH segments of mss bytes, each a datagram of its own, at most `packets_left`.

        The short path of bulk traffic: 0.1 us per segment with numpy, 0.9 without; `write` and `close` take 1.9.
        """
        self.close()
        mss = self._capacity - KCP_HEADER_SIZE
        batch, count = self._batch, len(payload) // mss
        packet_size = self._headroom + self._capacity + self._tailroom
        stride, first = batch.stride_for(packet_size), batch.end
        header = KCP_SEGMENT.pack(self._conv, KCP_PUSH, 0, self._wnd, now & MASK32, 0, self._una, mss)
        numbers = [number & MASK32 for number in range(sn, sn + count)]
        stamp(self._arena, first + self._headroom, stride, header, KCP_SN_AT, numbers)
        scatter(self._arena, first + self._headroom + KCP_HEADER_SIZE, stride, mss, payload)
        batch.commit(packet_size, count)
        self._packets_left -= count
        self.segments += count
        self.wants_answer = True

    def close(self) -> None:
        """Commit the open datagram, if there is one."""
        if self._at:
            self._batch.commit(self._headroom + self._at + self._tailroom)
            self._packets_left -= 1
            self._at = 0
