"""What is in flight: the send window, and which of it is believed lost.

In      segments as they are sent, acknowledgements as they come, `now`
Out     which segments to send again and why
Knows   sequence numbers and times. Not: headers, datagrams, how much may be in flight
Wire    WIRE.md 4.5, 4.7 (kcp-go's rules)
Cost    an acknowledged batch walks nothing but its own segments; only holes and timeouts walk the window
"""

from collections.abc import Sequence
from enum import Enum

from kcptun_lite.core.wire import (
    KCP_RTO_INITIAL,
    KCP_RTO_MAX,
    MASK32,
)

HALF32 = 0x80000000
HEAD = 32  # segments at the head of the window whose timeouts are believed at once, whatever else is silent


class Cause(Enum):
    """Why a segment is sent again."""

    FAST = "fast"
    EARLY = "early"
    TIMEOUT = "timeout"


class Segment:
    """One numbered piece of the stream, from its first sending until `una` passes it."""

    __slots__ = ("acked", "fastack", "payload", "resend_at", "rto", "sn", "ts")

    def __init__(self, sn: int, payload: bytes, ts: int, rto: int, resend_at: int) -> None:
        self.sn = sn
        self.payload = payload
        self.ts = ts
        self.rto = rto
        self.resend_at = resend_at
        self.fastack = 0
        self.acked = False


class SendWindow:
    """The segments snd_una <= sn < snd_nxt, acknowledged ones included until `una` passes them.

    `snd_una` and `snd_nxt` are full integers; on the wire they are cut to 32 bits.
    """

    def __init__(self, fast_limit: int, first_sn: int = 0) -> None:
        """`fast_limit` is kcp's `resend`: skips after which a segment is sent again, 0 for never."""
        self.segments: list[Segment] = []
        self.snd_una = self.snd_nxt = first_sn
        self.next_resend: int | None = None
        "ms; no timeout is due before it (it may be early, never late)"
        self.has_skipped = False
        "some segment may have fastack > 0"
        self.has_fast = False
        "some segment may have reached the fast limit"
        self.unacked = 0
        "segments that no ACK has named yet: the load on the path"
        self._fast_limit = fast_limit
        self._delivered_ts: int | None = None  # the newest sending that has been acknowledged, 32 bits

    def push(self, payloads: Sequence[bytes], now: int, rto: int) -> int:
        """Number new segments and start their clocks; returns the first sn. The caller sends them now."""
        first = self.snd_nxt
        ts = now & MASK32
        resend_at = now + rto
        self.segments += [Segment(sn, payload, ts, rto, resend_at) for sn, payload in enumerate(payloads, first)]
        self.snd_nxt = first + len(payloads)
        self.unacked += len(payloads)
        if self.next_resend is None or resend_at < self.next_resend:
            self.next_resend = resend_at
        return first

    def acknowledge_until(self, una: int) -> int:
        """Forget all segments before `una` (32 bits); returns their payload bytes.

        A `una` beyond snd_nxt is nonsense, one behind snd_una is old: both change nothing.
        """
        passed = (una - self.snd_una) & MASK32
        segments = self.segments
        if not 0 < passed <= len(segments):
            return 0
        freed = 0
        for segment in segments[:passed]:
            if not segment.acked:
                self.unacked -= 1
                freed += len(segment.payload)
        self._note_delivered(segments[passed - 1].ts)
        del segments[:passed]
        self.snd_una += passed
        if not segments:
            self.next_resend = None
            self.has_skipped = self.has_fast = False
        return freed

    def acknowledge(self, acks: Sequence[tuple[int, int]]) -> int:
        """Mark the segments that the ACKs of one datagram name, and count the skips of those below them.

        Returns the payload bytes of those marked: they are not needed any more.

        Each of `acks` is (sn, ts), 32 bits each. A segment is skipped by each ACK of a later one that
        was sent no earlier than itself (WIRE.md 4.5 step 4); counting stops at the limit.
        """
        segments = self.segments
        size = len(segments)
        una = self.snd_una
        highest = freed = 0
        live: list[tuple[int, int]] = []
        for sn, ts in acks:
            index = (sn - una) & MASK32
            if index < size:
                segment = segments[index]
                if not segment.acked:
                    segment.acked = True
                    self.unacked -= 1
                    freed += len(segment.payload)
                    segment.payload = b""
                live.append((index, ts))
                self._note_delivered(ts)
                if index > highest:
                    highest = index
        if not highest:
            return freed
        limit = max(self._fast_limit, 1)
        for index in range(highest):
            segment = segments[index]
            if segment.acked or segment.fastack >= limit:
                continue
            sent = segment.ts
            for acked, ts in live:
                if acked > index and (ts - sent) & MASK32 < HALF32:
                    segment.fastack += 1
                    self.has_skipped = True
                    if segment.fastack >= limit:
                        self.has_fast = self._fast_limit > 0
                        break
        return freed

    def _note_delivered(self, ts: int) -> None:
        if self._delivered_ts is None or 0 < (ts - self._delivered_ts) & MASK32 < HALF32:
            self._delivered_ts = ts

    def _is_tail(self, segment: Segment) -> bool:
        """Whether nothing sent as late as this or later has been acknowledged."""
        delivered = self._delivered_ts
        return delivered is None or 0 < (segment.ts - delivered) & MASK32 < HALF32

    def due(self, now: int, loss_delay: int, *, early: bool) -> list[tuple[Segment, Cause]]:
        """Segments to send again now, in order, and why.

        No timeout is believed before `loss_delay` ms since the sending (RFC 8985 in spirit). Where nothing sent
        later has been acknowledged either, the path or the peer may only be pausing, and a whole window would go
        again for nothing: behind the head of the window, which asks, such timeouts wait half as long again.
        `early`: nothing new is going out, so one skip is enough (RFC 5827 in spirit). The caller calls
        `resent` for each one it sends; what finds no room in the batch is simply due again.
        """
        timed_out = self.next_resend is not None and now >= self.next_resend
        if not (timed_out or self.has_fast or (early and self.has_skipped)):
            return []
        due: list[tuple[Segment, Cause]] = []
        earliest: int | None = None
        skipped = False
        for index, segment in enumerate(self.segments):
            if segment.acked:
                continue
            at = segment.resend_at
            fastack = segment.fastack
            if fastack and 0 < self._fast_limit <= fastack:
                due.append((segment, Cause.FAST))
            elif fastack and early:
                due.append((segment, Cause.EARLY))
            elif now >= at:
                waited = (now - segment.ts) & MASK32
                needed = loss_delay * 3 // 2 if index >= HEAD and self._is_tail(segment) else loss_delay
                if waited >= needed:
                    due.append((segment, Cause.TIMEOUT))
                else:
                    # The round trip has become longer since it was sent: a queue grows, nothing is lost.
                    at = now + needed - waited
            else:
                skipped = skipped or fastack > 0
            if earliest is None or at < earliest:
                earliest = at
        self.next_resend = earliest
        self.has_skipped = skipped or bool(due)
        self.has_fast = bool(due) and self.has_fast
        return due

    def expire(self, now: int, age: int = 0) -> None:
        """Make every segment in flight due when it is `age` ms old, which most are already, with a fresh clock each."""
        for segment in self.segments:
            wait = max(0, age - ((now - segment.ts) & MASK32))
            segment.resend_at = now + wait
            segment.rto = KCP_RTO_INITIAL
            if not wait:
                segment.ts = (now - KCP_RTO_MAX) & MASK32  # no loss_delay with it: what it was sent on is gone
        if self.segments:
            self.next_resend = min(segment.resend_at for segment in self.segments)
        self._delivered_ts = now & MASK32

    def resent(self, segment: Segment, cause: Cause, now: int, rto: int, nodelay: int) -> None:
        """Start the clock of a segment sent again; after a timeout it runs longer (linear back-off)."""
        if cause is Cause.TIMEOUT:
            segment.rto = min(segment.rto + (rto // 2 if nodelay else rto), KCP_RTO_MAX)
        else:
            segment.rto = rto
        segment.fastack = 0
        segment.ts = now & MASK32
        segment.resend_at = now + segment.rto
        if self.next_resend is None or segment.resend_at < self.next_resend:
            self.next_resend = segment.resend_at  # the RTO may have become shorter since the first sending
