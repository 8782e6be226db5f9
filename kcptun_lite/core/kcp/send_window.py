"""What is in flight: the send window, and which of it is believed lost.

In      segments as they are sent, acknowledgements as they come, `now`
Out     which segments to send again and why; how many were acknowledged, and when the newest of them was sent
Knows   sequence numbers and times. Not: headers, datagrams, how much may be in flight
Wire    docs/protocol.md, "KCP": acknowledgement and retransmission (kcp-go's rules)
Cost    an acknowledged batch walks its own segments and the holes; only timeouts walk the window
"""

from collections import deque
from collections.abc import Sequence
from enum import Enum

from kcptun_lite.core.kcp.congestion import Flight
from kcptun_lite.core.wire import KCP_RTO_INITIAL, KCP_RTO_MAX, MASK32, diff32

NEVER = 1 << 62  # ms
RUN = 6  # segments; losses by chance seldom come so many in a row ...
DOUBT = 2  # ... so we wait for so many loss delays, while `una` has not come that far
LARGE = 560  # bytes of payload; every path carries packets for less (RFC 791: 576 with all headers)
LARGE_LOSSES = 4  # sendings of a large segment, one after the other, that a path loses for its size
HEAD = 32  # segments at the head of the window whose timeouts are believed at once, whatever else is silent


class Cause(Enum):
    """Why a segment is sent again."""

    FAST = "fast"
    EARLY = "early"
    TIMEOUT = "timeout"


class Segment:
    """One numbered piece of the stream, from its first sending until `una` passes it."""

    __slots__ = (
        "acked",
        "fastack",
        "flight",
        "hold_until",
        "is_given_up",
        "payload",
        "resend_at",
        "resends",
        "rto",
        "sn",
    )

    def __init__(self, sn: int, payload: bytes, flight: Flight, rto: int, resend_at: int) -> None:
        self.sn = sn
        self.payload = payload
        self.flight = flight
        "its latest sending"
        self.rto = rto
        self.resend_at = resend_at
        self.fastack = 0
        self.resends = 0
        self.hold_until = 0
        "ms before which it is not believed lost, unless `una` stops at it"
        self.acked = False
        self.is_given_up = False
        "lost without doubt: the path it was sent on is gone, so no loss delay applies"


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
        self.needless = 0
        "segments sent again although an earlier sending arrived"
        self.doubts_runs = False
        "whether a long run of missing segments is rather a lost datagram of ACKs"
        self.has_large_passed = False
        "a large segment has arrived, since the path was changed"
        self._resends_since: int | None = None
        "resends of the segment at `una` when something small arrived, the first since it is there"
        self._futile: tuple[int, int] | None = None
        "sn and ms: an ACK up to there, of what was sent until then, skips nothing that is not at the limit"
        self.acks_come_twice = False
        "the peer tells each ACK of an early segment in two datagrams"
        self._fast_limit = fast_limit
        self._edge = first_sn  # behind the highest sn that an ACK has named
        self._holes: list[Segment] = []
        "below the edge and not acknowledged, in order; some may have been since"
        self._newest: Flight | None = None
        "the newest sending acknowledged since `take_progress`"
        self._progress = 0
        self._delivered_at: int | None = None  # ms; when the newest acknowledged sending was made
        self._next_of_others: int | None = None
        self._others_skipped = False
        "of the segments that `due` has not named: the deadline and flag when the others have gone"
        self._repeats: deque[tuple[int, Segment, Flight]] = deque()
        self._copied: set[int] = set()
        "sn of segments of which copies went out, until one of them is acknowledged"

    def push(self, payloads: Sequence[bytes], flight: Flight, rto: int) -> int:
        """Number new segments and start their clocks; returns the first sn. The caller sends them now."""
        first = self.snd_nxt
        resend_at = flight.sent_at + rto
        self.segments += [Segment(sn, payload, flight, rto, resend_at) for sn, payload in enumerate(payloads, first)]
        self.snd_nxt = first + len(payloads)
        self.unacked += len(payloads)
        if self.next_resend is None or resend_at < self.next_resend:
            self.next_resend = resend_at
        return first

    # -- acknowledgements ----------------------------------------------------------------------

    def acknowledge_until(self, una: int, answers_since: int = NEVER, ts: int | None = None) -> int:
        """Forget all segments before `una` (32 bits); returns their payload bytes.

        `answers_since`: ms; what was sent later cannot have been answered yet, so an earlier sending has arrived.
        Nor can what was sent later than `ts` (32 bits), which is when that was sent what has come last.
        A `una` beyond snd_nxt is nonsense, one behind snd_una is old: both change nothing.
        """
        passed = (una - self.snd_una) & MASK32
        segments = self.segments
        if not 0 < passed <= len(segments):
            return 0
        freed, before = 0, self.unacked
        flight = segments[passed - 1].flight
        if ts is not None:
            answers_since = min(answers_since, flight.sent_at - max(diff32(flight.ts, ts), 0))
        self.has_large_passed = self.has_large_passed or any([len(one.payload) > LARGE for one in segments[:passed]])
        self._resends_since = None
        for segment in segments[:passed]:
            if not segment.acked:
                self.unacked -= 1
                freed += len(segment.payload)
                self.needless += segment.resends > 0 and segment.flight.sent_at > answers_since
        self._progress += before - self.unacked
        self._note_delivered(flight, flight.sent_at, is_known=not segments[passed - 1].resends)
        del segments[:passed]
        self.snd_una += passed
        if self._copied:
            self._copied = {sn for sn in self._copied if sn >= self.snd_una}
        if not segments:
            self.next_resend = None
            self.has_skipped = self.has_fast = False
        return freed

    def is_news(self, ack: tuple[int, int]) -> bool:
        """Whether the (sn, ts) of an ACK names a segment that nothing has acknowledged before."""
        index = (ack[0] - self.snd_una) & MASK32
        return index < len(self.segments) and not self.segments[index].acked

    def lost_first_sendings(self, acks: Sequence[tuple[int, int]]) -> list[tuple[Flight, int]]:
        """Sendings of which only a copy has arrived, and how many ms later that was sent, by the ACKs of one datagram.

        To be asked before `una` is passed.
        """
        if not self._copied:
            return []
        lost: list[tuple[Flight, int]] = []
        for sn, ts in acks:
            index = (sn - self.snd_una) & MASK32
            if index < len(self.segments) and (segment := self.segments[index]).sn in self._copied:
                self._copied.discard(segment.sn)
                if (later := diff32(ts, segment.flight.ts)) > 0:
                    lost.append((segment.flight, later))
        return lost

    def acknowledge(self, acks: Sequence[tuple[int, int]]) -> int:
        """Mark the segments that the ACKs of one datagram name, and count the skips of those below them.

        Returns the payload bytes of those marked: they are not needed any more.

        Each of `acks` is (sn, ts), 32 bits each. A segment is skipped by each ACK of a later one that
        was sent no earlier than itself; counting stops at the limit.
        """
        segments = self.segments
        size = len(segments)
        una = self.snd_una
        freed = 0
        live: list[tuple[int, int]] = []  # index, and ms when what is acknowledged was sent
        for sn, ts in acks:
            index = (sn - una) & MASK32
            if index < size:
                segment = segments[index]
                flight = segment.flight
                # A ts that was never sent, which an honest peer has not to tell, is no proof of anything later.
                sent_at = flight.sent_at - max(diff32(flight.ts, ts), 0)
                if not segment.acked:
                    segment.acked = True
                    self.unacked -= 1
                    self._progress += 1
                    freed += len(segment.payload)
                    self.has_large_passed = self.has_large_passed or len(segment.payload) > LARGE
                    self.note_small_passed()
                    segment.payload = b""
                    self.needless += segment.resends > 0 and sent_at < flight.sent_at
                    live.append((index, sent_at))
                elif not self.acks_come_twice:  # kcp-go counts one that does twice
                    live.append((index, sent_at))
                self._note_delivered(flight, sent_at, is_known=sent_at == flight.sent_at)
        if live:
            live.sort()
            self._move_edge(live[-1][0])
            self._count_skips(live)
        return freed

    def _move_edge(self, highest: int) -> None:
        """The segment at this index is acknowledged: those before it that are not are holes."""
        una = self.snd_una
        if una + highest >= self._edge:
            passed = self.segments[max(self._edge - una, 0) : highest]
            self._holes += [segment for segment in passed if not segment.acked]
            self._edge = una + highest + 1

    def _open_holes(self) -> list[Segment]:
        una = self.snd_una
        self._holes = [segment for segment in self._holes if not segment.acked and segment.sn >= una]
        return self._holes

    def _count_skips(self, live: list[tuple[int, int]]) -> None:
        """`live`: index in the window, and ms when it was sent, of what is acknowledged now; sorted, and used up."""
        limit = max(self._fast_limit, 1)
        # A walk through many holes, which the same ACK again and again must not have.
        highest = self.snd_una + live[-1][0], live[-1][1]
        if self._futile and highest[0] <= self._futile[0] and max([at for _, at in live]) <= self._futile[1]:
            return
        is_futile = True
        una = self.snd_una
        latest: list[int] = []  # when those above were sent: the `limit` latest ones, as no more are counted
        for segment in reversed(self._open_holes()):
            while live and una + live[-1][0] > segment.sn:
                latest.append(live.pop()[1])
                if len(latest) > limit:
                    latest.remove(min(latest))
            if latest and segment.fastack < limit:
                sent = segment.flight.sent_at
                skips = sum([sent_at >= sent for sent_at in latest])
                if skips:
                    is_futile = False
                    segment.fastack = min(segment.fastack + skips, limit)
                    self.has_skipped = True
                    if segment.fastack >= limit:
                        self.has_fast = self._fast_limit > 0
        if is_futile:
            self._futile = highest

    def _note_delivered(self, flight: Flight, sent_at: int, *, is_known: bool) -> None:
        """`is_known`: it was this sending that has arrived, and none before it."""
        if is_known and (self._newest is None or flight.sent_at > self._newest.sent_at):
            self._newest = flight
        if self._delivered_at is None or sent_at > self._delivered_at:
            self._delivered_at = sent_at

    def take_progress(self) -> tuple[int, Flight | None]:
        """Segments acknowledged since the last call, and the newest sending of those; none until one is known."""
        if self._newest is None:
            return 0, None
        progress, self._progress = self._progress, 0
        newest, self._newest = self._newest, None
        return progress, newest

    def note_small_passed(self) -> None:
        """Something small was sent, perhaps while the segment at `una` was under way, and has arrived."""
        if self.segments and self._resends_since is None:
            self._resends_since = self.segments[0].resends

    @property
    def loses_large(self) -> bool:
        """Whether the path seems to lose all that is large, and nothing else (a black hole: RFC 8899, 4.3)."""
        if self.has_large_passed or self._resends_since is None or not self.segments:
            return False
        head = self.segments[0]
        return head.resends - self._resends_since >= LARGE_LOSSES and len(head.payload) > LARGE

    # -- what to send again --------------------------------------------------------------------

    def _is_tail(self, segment: Segment) -> bool:
        """Whether nothing sent as late as this or later has been acknowledged."""
        return self._delivered_at is None or segment.flight.sent_at > self._delivered_at

    def due(self, now: int, loss_delay: int, *, early: bool, skip_delay: int = 0) -> list[tuple[Segment, Cause]]:
        """Segments to send again now, in order, and why.

        No timeout is believed before `loss_delay` ms since the sending (RFC 8985 in spirit). Where nothing sent
        later has been acknowledged either, the path or the peer may only be pausing, and a whole window would go
        again for nothing: behind the head of the window, which asks, such timeouts wait half as long again.
        `skip_delay`: ms since the sending before which skips are no losses: the path changes the order of packets.
        `early`: nothing new is going out, so one skip is enough (RFC 5827 in spirit). The caller calls
        `resent` for each one it sends, and `all_resent` if it sends them all; the others are due again.
        """
        timed_out = self.next_resend is not None and now >= self.next_resend
        if not (timed_out or self.has_fast or (early and self.has_skipped)):
            return []
        due: list[tuple[Segment, Cause]] = []
        run: list[tuple[Segment, Cause]] = []  # believed lost, with nothing acknowledged between them
        una = self.snd_una
        # What nothing has skipped can only have timed out.
        candidates = self._open_holes() + (self.segments[max(self._edge - una, 0) :] if timed_out else [])
        earliest = None if timed_out else self.next_resend
        is_head = True
        skipped = False
        before = una - 1
        for segment in candidates:
            if segment.sn != before + 1:
                if not is_head and self._hold(run, now, loss_delay):
                    return self.due(now, loss_delay, early=early, skip_delay=skip_delay)
                due += run
                run = []
                is_head = False
            before = segment.sn
            at, fastack = segment.resend_at, segment.fastack
            if now < segment.hold_until and not is_head:
                at = max(at, segment.hold_until)
            elif skip_delay and fastack and now < min(at, segment.flight.sent_at + skip_delay):
                at = min(at, segment.flight.sent_at + skip_delay)
            elif fastack and (early or 0 < self._fast_limit <= fastack):
                run.append((segment, Cause.FAST if 0 < self._fast_limit <= fastack else Cause.EARLY))
                continue
            elif now >= at:
                is_late = segment.sn - una >= HEAD and self._is_tail(segment)
                lost_at = segment.flight.sent_at + (loss_delay * 3 // 2 if is_late else loss_delay)
                if segment.is_given_up or now >= lost_at:
                    run.append((segment, Cause.TIMEOUT))
                    continue
                # The round trip has become longer since it was sent: a queue grows, nothing is lost.
                at = lost_at
            else:
                skipped = skipped or fastack > 0
            if earliest is None or at < earliest:
                earliest = at
        if before + 1 < self._edge and not is_head and self._hold(run, now, loss_delay):
            return self.due(now, loss_delay, early=early, skip_delay=skip_delay)
        due += run
        self._next_of_others, self._others_skipped = earliest, skipped
        if due:
            self.next_resend = min([segment.resend_at for segment, _ in due] + ([] if earliest is None else [earliest]))
        else:
            self.next_resend = earliest
        self.has_skipped = skipped or bool(due)
        self.has_fast = bool(due) and self.has_fast
        return due

    def all_resent(self) -> None:
        """All that `due` has named last has been sent again."""
        self.next_resend = self._next_of_others
        self.has_skipped, self.has_fast = self._others_skipped, False

    def _hold(self, run: list[tuple[Segment, Cause]], now: int, loss_delay: int) -> bool:
        """Doubt that a run is lost, if it is long, with others acknowledged before and behind it; whether any is held.

        It is rather their ACKs that were lost, all in one datagram, and are not sent again: `una` will tell of them
        when the holes before are closed, which takes a round trip more. If they are lost, `una`
        stops at the first of them.
        """
        if not self.doubts_runs or len(run) < RUN:
            return False
        is_any_held = False
        for segment, _ in run:
            until = segment.flight.sent_at + DOUBT * loss_delay
            if not segment.is_given_up and now < until:
                segment.hold_until = until
                is_any_held = True
        return is_any_held

    def give_up(self, now: int, age: int = 0) -> None:
        """Take every segment in flight for lost when it is `age` ms old, most are already; fresh clocks for all."""
        for segment in self.segments:
            wait = max(0, age - (now - segment.flight.sent_at))
            segment.resend_at = now + wait
            segment.rto = KCP_RTO_INITIAL
            segment.is_given_up = not wait
        if self.segments:
            self.next_resend = min(segment.resend_at for segment in self.segments)
        self._delivered_at = now
        self.has_large_passed = False

    def resent(self, segment: Segment, cause: Cause, flight: Flight, rto: int, nodelay: int) -> None:
        """Start the clock of a segment sent again; after a timeout it runs longer (linear back-off)."""
        if cause is Cause.TIMEOUT:
            segment.rto = min(segment.rto + (rto // 2 if nodelay else rto), KCP_RTO_MAX)
        else:
            segment.rto = rto
        segment.fastack = 0
        self._futile = None
        segment.resends += 1
        segment.is_given_up = False
        segment.flight = flight
        segment.resend_at = flight.sent_at + segment.rto
        # The RTO may have become shorter since the first sending.
        if self.next_resend is None or segment.resend_at < self.next_resend:
            self.next_resend = segment.resend_at
        if self._next_of_others is None or segment.resend_at < self._next_of_others:
            self._next_of_others = segment.resend_at

    # -- copies of thin traffic ----------------------------------------------------------------

    def plan_repeats(self, first_sn: int, delays: Sequence[int], count: int) -> None:
        """Have `count` segments from `first_sn` on go again so many ms after their sending, unless acknowledged."""
        first = first_sn - self.snd_una
        segments = self.segments[first : first + count]
        for delay in delays:
            for segment in segments:
                self._repeats.append((segment.flight.sent_at + delay, segment, segment.flight))

    @property
    def next_repeat(self) -> int | None:
        """ms of the next copy; None if there is none."""
        return min([at for at, _, _ in self._repeats]) if self._repeats else None

    def repeats(self, now: int) -> list[Segment]:
        """Segments of which a copy is to be sent now, in order."""
        if not self._repeats:
            return []
        due = [entry for entry in self._repeats if entry[0] <= now]
        if due:
            self._repeats = deque(entry for entry in self._repeats if entry[0] > now)
        # What was sent again since, or has arrived, needs no copy.
        copies = [
            segment
            for _, segment, flight in due
            if not segment.acked and segment.flight is flight and segment.sn >= self.snd_una
        ]
        self._copied.update(segment.sn for segment in copies)
        return copies
