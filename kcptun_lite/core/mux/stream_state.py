"""One stream as smux sees it: what was received and not taken, how it ends, how much may be under way.

In      sizes and windows, from frames and from who reads
Out     how much may be sent; what the peer is to be told
Knows   windows. Not: frames, versions
Wire    docs/protocol.md, "Flow control", "Readers that stop"
"""

from kcptun_lite.core.wire import SMUX_PEER_WINDOW_INITIAL

OPEN_WINDOW = 0x7FFFFFFF  # bytes: no limit; windows are reckoned on the 32-bit circle, half of it is the most


class StreamState:
    """State without rules; `SmuxSession` has those of ends."""

    __slots__ = (
        "announced",
        "chunks",
        "consumed",
        "fin_received",
        "fin_sent",
        "from_peer",
        "is_cut",
        "limit",
        "mark",
        "peer_consumed",
        "peer_is_gone",
        "peer_may_be_gone",
        "peer_window",
        "received",
        "written",
    )

    def __init__(self, *, from_peer: bool, has_window: bool) -> None:
        """`has_window`: from the start (version 2)."""
        self.from_peer = from_peer
        self.chunks: list[bytes] = []
        "received, not taken"
        self.fin_sent = False
        self.fin_received = False
        self.mark: int | None = None
        "SMUX_NOP or SMUX_PSH, if the peer has put one of our marks before the FIN that follows"
        self.is_cut = False
        "the peer's FIN was not the end of its data"
        self.peer_is_gone = False
        "the peer listens no more"
        self.peer_may_be_gone = False
        "its FIN may have meant both halves"

        # All in bytes since the start, but for the windows.
        self.written = 0
        self.peer_consumed = 0
        self.peer_window = SMUX_PEER_WINDOW_INITIAL if has_window else OPEN_WINDOW
        self.received = 0
        self.consumed = 0
        self.announced = 0
        "`consumed` as the peer was last told"
        self.limit = 0
        "the window that the peer was told because the reader has stopped; 0: none"

    @property
    def unread_bytes(self) -> int:
        return self.received - self.consumed

    def send_room(self) -> int:
        """Bytes that the peer's window lets through."""
        if self.peer_window >= OPEN_WINDOW:
            return OPEN_WINDOW
        return max(0, self.peer_window - (self.written - self.peer_consumed))

    def window_for_reader(self, buffer: int) -> int | None:
        """What to tell the peer when bytes were taken, in version 2 (smux stream.go, tryReadv2); None for nothing."""
        is_due = self.announced == 0 or self.consumed - self.announced >= buffer // 2
        return buffer if is_due else None

    def window_for_slow_reader(self) -> int | None:
        """What to tell a peer that was told of a stopped reader, now that this one reads again; None for nothing."""
        if not self.limit:
            return None
        if self.unread_bytes <= self.limit // 4:  # he keeps up
            self.limit = 0
            return OPEN_WINDOW
        return self.limit if self.consumed - self.announced >= self.limit // 4 else None
