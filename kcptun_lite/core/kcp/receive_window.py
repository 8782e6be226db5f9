"""The receive window: what has come in order and nobody has read yet, and what came before its turn.

In      payloads of segments and their numbers
Out     payloads in order; how much room is left
Knows   sequence numbers. Not: headers, acknowledgements
Wire    docs/protocol.md, "Reading from KCP"
Cost    nothing per segment of a run received in order
"""

from kcptun_lite.core.wire import KCP_WND_MAX, Buffer


class ReceiveWindow:
    """Segments next_sn - count <= sn < next_sn wait to be read; later ones wait for those before them.

    `next_sn` (rcv_nxt) is a full integer; on the wire it is cut to 32 bits.
    """

    __slots__ = ("_early", "_edge", "_runs", "advertised", "count", "early_bytes", "limit", "next_sn")

    def __init__(self, limit: int, first_sn: int = 0) -> None:
        self.limit = limit
        "segments in order that nobody reads, and as many beyond a gap"
        self.advertised = limit
        "segments that the peer is told of at most, though there may be room for more"
        self.next_sn = first_sn
        self.count = 0
        "segments in order that wait to be read"
        self.early_bytes = 0
        "bytes received out of order"
        self._runs: list[tuple[Buffer, int]] = []
        "in order: payloads of so many equal segments, side by side"
        self._early: dict[int, bytes] = {}
        self._edge = 1 << 62

    @property
    def free(self) -> int:
        """Segments for which there is room, as the peer is told."""
        return min(max(0, min(self.limit, self.advertised) - self.count), KCP_WND_MAX)

    @property
    def has_gap(self) -> bool:
        """Whether later segments wait for the next one."""
        return bool(self._early)

    @property
    def early_count(self) -> int:
        return len(self._early)

    @property
    def unread_bytes(self) -> int:
        """Bytes received and not yet read, in order or not."""
        return self.early_bytes + sum(len(payloads) for payloads, _ in self._runs)

    @property
    def unread_count(self) -> int:
        """Segments received and not yet read, in order or not."""
        return len(self._early) + self.count

    def append(self, payloads: Buffer, count: int = 1) -> None:
        """Take the next segment, or a run of `count` equally long ones."""
        self._runs.append((payloads, count))
        self.count += count
        self.next_sn += count
        if self._early:
            self._close_gap()

    def is_within(self, sn: int) -> bool:
        """Whether there is a place for segment `sn`, later than `next_sn`."""
        return sn < self.next_sn + self.limit and sn < self._edge

    def keep_early(self, sn: int, payload: memoryview) -> bool:
        """Keep a segment until those before it have come; False if it is there already."""
        if sn in self._early:
            return False
        self._early[sn] = bytes(payload)
        self.early_bytes += len(payload)
        return True

    def take(self, most: int) -> list[Buffer]:
        """The payloads of the first `most` segments, or of all; views of the received datagrams until `detach`."""
        taken: list[Buffer] = []
        left = most
        for payloads, count in self._runs:
            if count > left:
                break
            taken.append(payloads)
            left -= count
        del self._runs[: len(taken)]
        if left and self._runs:
            payloads, count = self._runs[0]
            cut = len(payloads) // count * left
            view = memoryview(payloads)
            taken.append(view[:cut])
            self._runs[0] = (view[cut:], count - left)
            left = 0
        self.count -= most - left
        self._close_gap()
        return taken

    def detach(self) -> None:
        """Copy what has not been read, because the datagrams it points into are about to be overwritten."""
        self._runs = [(bytes(payloads), count) for payloads, count in self._runs]

    def resize(self, limit: int) -> bool:
        """Take no more than `limit` segments that nobody reads; whether that opens a window that was shut."""
        was_shut = self.limit <= self.count < limit
        self.limit, self._edge = limit, self.next_sn + limit - self.count
        return was_shut

    def _close_gap(self) -> None:
        early = self._early
        while early and self.next_sn in early and self.count < self.limit:
            payload = early.pop(self.next_sn)
            self.early_bytes -= len(payload)
            self._runs.append((payload, 1))
            self.count += 1
            self.next_sn += 1
