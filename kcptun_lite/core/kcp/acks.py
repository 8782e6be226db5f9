"""The acknowledgements that an end owes.

In      segments as they come
Out     (sn, ts) of the ACKs to write, and when they are due
Knows   which of them `una` makes needless. Not: the receive window, datagrams
Wire    docs/protocol.md, "KCP": acknowledgements
Cost    one entry for each segment beyond a gap, however often it comes
"""

from kcptun_lite.core.wire import HALF32, MASK32


class AckList:
    """Owed ACKs: of early segments, and of the newest segment if that came in order (`una` tells of the others)."""

    __slots__ = ("_early", "_last", "_tail", "count", "due_at", "latest_ts", "says_twice")

    def __init__(self) -> None:
        self.says_twice = False
        "each ACK of an early segment goes in two datagrams: a lost one would have all it names sent again"
        self._last: dict[int, int] = {}
        "ACKs of early segments that the last datagrams had, and the next ones shall have again"
        self._early: dict[int, int] = {}
        self._tail: tuple[int, int] | None = None
        self.count = 0
        "segments that have come since the last ACK"
        self.due_at: int | None = None
        "ms"
        self.latest_ts = 0
        "of the segment that came last"

    def in_order(self, sn: int, ts: int, count: int = 1) -> None:
        """`count` segments have come in order, the last with this number and timestamp; or an old one again."""
        self._tail = (sn, ts)
        self.count += count
        self.latest_ts = ts

    def again(self, sn: int, ts: int) -> None:
        """An old segment has come again; if its ACK has not gone yet, it keeps the timestamp that came first."""
        if self._tail is None or self._tail[0] != sn:
            self._tail = (sn, ts)
        self.count += 1
        self.latest_ts = ts

    def early(self, sn: int, ts: int) -> None:
        """A segment has come before its turn."""
        first = self._early.pop(sn, ts)  # the newest entry is the last one, the timestamp that of what came first
        self._early[sn] = first
        self._tail = None
        self.count += 1
        self.latest_ts = ts

    def pending(self, rcv_nxt: int) -> list[tuple[int, int]]:
        """What to write: what lies before `rcv_nxt` is told by `una`, but the last one always goes, for its ts."""
        early = self._early
        owed = [entry for entry in self._last.items() if (entry[0] - rcv_nxt) & MASK32 < HALF32]
        owed += [(sn, ts) for sn, ts in early.items() if (sn - rcv_nxt) & MASK32 < HALF32]
        if self._tail is not None:
            owed.append(self._tail)
        elif early and not (owed and owed[-1][0] == next(reversed(early))):
            owed.append(next(reversed(early.items())))
        return owed

    def written(self, sns: list[int]) -> None:
        """These ACKs have gone; the others wait for the next packet."""
        for sn in sns:
            self._early.pop(sn, None)
            if self._tail is not None and self._tail[0] == sn:
                self._tail = None

    def clear(self) -> None:
        """All have gone, or something else says the same."""
        self._last.clear()
        if self.says_twice:
            self._last, self._early = self._early, self._last
        self._early.clear()
        self._tail = None
        self.count = 0
        self.due_at = None
