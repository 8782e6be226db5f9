"""What is in flight: the send window, the round-trip estimate, the congestion window.

In      segments as they are sent, acknowledgements as they come, `now`
Out     which segments to send again and why, the RTO, how many segments may be in flight, who has lost his memory
Knows   sequence numbers and times. Not: headers, datagrams
Wire    WIRE.md 4.5 to 4.7 (kcp-go's rules); RFC 6298 for the RTO, RFC 5681 for the window
Cost    an acknowledged batch walks nothing but its own segments; only holes and timeouts walk the window
"""

from collections.abc import Sequence
from enum import Enum

from kcptun_lite.core.wire import (
    KCP_RTO_INITIAL,
    KCP_RTO_MAX,
    KCP_SSTHRESH_INITIAL,
    KCP_SSTHRESH_MIN,
    MASK32,
)

HALF32 = 0x80000000
HEAD = 32  # segments at the head of the window whose timeouts are believed at once, whatever else is silent
RESTART_DATAGRAMS = 2  # that acknowledge nothing after others had acknowledged something ...
RESTART_AFTER = 300  # ms, or two RTO ... and for so long
RESTART_ASK_AFTER = 100  # ms from the first question to the second; each further pause is twice the one before


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


class RttEstimator:
    """srtt, rttvar and rto in ms, by RFC 6298 with kcp-go's shifts (WIRE.md 4.6)."""

    def __init__(self, min_rto: int, interval: int) -> None:
        self.srtt = 0
        self.rttvar = 0
        self.latest = 0
        "ms; the newest measurement, which sees a queue grow before the averages do"
        self.rto = KCP_RTO_INITIAL
        self._min_rto = min_rto
        self._interval = interval

    def sample(self, rtt: int) -> None:
        """Take one measurement, ms >= 0."""
        self.latest = rtt
        if self.srtt == 0:
            self.srtt = rtt
            self.rttvar = rtt >> 1
        else:
            delta = rtt - self.srtt
            self.srtt += delta >> 3
            delta = abs(delta)
            # A sample far *below* the average says little about the next one: it weighs 1/32 (kcp-go).
            self.rttvar += (delta - self.rttvar) >> (5 if rtt < self.srtt - self.rttvar else 2)
        rto = self.srtt + max(self._interval, self.rttvar << 2)
        self.rto = min(max(self._min_rto, rto), KCP_RTO_MAX)

    @property
    def loss_delay(self) -> int:
        """ms after its sending before which no segment is taken for lost, however short the RTO was then."""
        return min(self.rto, self.latest + max(self._interval, self.latest >> 2)) if self.latest else self.rto


class CongestionWindow:
    """Segments that may be in flight when `nc` is 0; slow start and congestion avoidance of kcp-go."""

    def __init__(self, mss: int) -> None:
        self.cwnd = 1
        self.ssthresh = KCP_SSTHRESH_INITIAL
        self._increment = mss  # bytes; the fractional part of cwnd
        self._mss = mss

    def on_progress(self, rmt_wnd: int) -> None:
        """`una` has moved."""
        if self.cwnd >= rmt_wnd:
            return
        mss = self._mss
        if self.cwnd < self.ssthresh:
            self.cwnd += 1
            self._increment += mss
        else:
            self._increment = max(self._increment, mss)
            self._increment += mss * mss // self._increment + mss // 16
            if (self.cwnd + 1) * mss <= self._increment:
                self.cwnd = -(-self._increment // mss)
        if self.cwnd > rmt_wnd:
            self.cwnd = rmt_wnd
            self._increment = rmt_wnd * mss

    def on_fast_retransmit(self, in_flight: int, resend: int) -> None:
        self.ssthresh = max(in_flight // 2, KCP_SSTHRESH_MIN)
        self.cwnd = self.ssthresh + resend
        self._increment = self.cwnd * self._mss

    def on_timeout(self, limit: int) -> None:
        self.ssthresh = max(limit // 2, KCP_SSTHRESH_MIN)
        self.cwnd = 1
        self._increment = self._mss


class RestartDetector:
    """Tells whether the peer has lost all memory of the conversation: it acknowledges from zero, and goes on to.

    A packet that is late or was replayed acknowledges from zero as well. So the peer is asked again and again
    (WASK): one that remembers answers with its true `una`, and the suspicion is over.
    """

    def __init__(self) -> None:
        self.ask_at: int | None = None
        "ms of the next question; None without suspicion"
        self._pause = 0
        self._since = 0
        self._count = 0

    def note(self, *, is_from_zero: bool, now: int) -> None:
        """A datagram of the peer has been read."""
        if not is_from_zero:
            self.ask_at = None
            self._count = 0
            return
        if not self._count:
            self._since = self.ask_at = now
            self._pause = RESTART_ASK_AFTER
        self._count += 1

    def wants_question(self, now: int) -> bool:
        """Whether it is time to ask the peer; it is not again for a while after this was true."""
        if self.ask_at is None or now < self.ask_at:
            return False
        self.ask_at = now + self._pause
        self._pause *= 2
        return True

    def is_certain(self, now: int, rto: int) -> bool:
        return self._count >= RESTART_DATAGRAMS and now - self._since >= max(RESTART_AFTER, 2 * rto)
