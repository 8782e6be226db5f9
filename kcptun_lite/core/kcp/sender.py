"""The sending half of KCP: what waits, what is in flight, what goes now.

In      bytes from above, acknowledgements of the peer, `now`
Out     PUSH segments in a DatagramWriter
Knows   the window, the congestion control, pacing, copies. Not: what the peer sends, headers
Wire    docs/protocol.md, "KCP": sending
Cost    about 1.1 us per segment
"""

from collections.abc import Callable, Sequence
from enum import Enum

from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.congestion import CongestionControl, Flight
from kcptun_lite.core.kcp.copies import Copies
from kcptun_lite.core.kcp.datagrams import DatagramWriter
from kcptun_lite.core.kcp.line_model import SHORT_RTT, LineModel
from kcptun_lite.core.kcp.pacing import Pacer
from kcptun_lite.core.kcp.rtt import RttEstimator
from kcptun_lite.core.kcp.send_queue import SendQueue
from kcptun_lite.core.kcp.send_window import NEVER, Cause, SendWindow
from kcptun_lite.core.wire import KCP_PUSH

# Bytes that may wait for the window besides what is in flight. Short, so that a quiet stream's request
# does not stand behind a bulk stream's backlog; long enough to fill a batch when acknowledgements come.
QUEUE_TARGET = 128 * 1024
QUEUE_TIME = 5  # ms of the line that may wait where its rate is known
QUEUE_LEAST = 16 * 1024  # bytes
PIECES, PIECE_LEAST = 4, 8 * 1024  # of that, and bytes, are taken at once

THIN = 8  # segments at once, with nothing behind them, of which copies go (core/kcp/copies.py)
LATE = 3  # ms too late, we have waited for a processor ourselves ...
GRACE = 4  # ms in which those who receive have their turn
DOUBT_MOST = 2.0  # round trips
NEEDLESS = 1  # percent of what is in flight, sent again for nothing, are no chance
REPEAT_DELAY = 4  # ms to the copy of what goes again for the second time


class Limit(Enum):
    """What kept an end from sending more."""

    APPLICATION = "application"
    LINE = "line"
    PEER = "peer's window"
    WINDOW = "own window"


def earliest(*times: int | None) -> int | None:
    """The first of some moments, where there may be none."""
    found = None
    for at in times:
        if at is not None and (found is None or at < found):
            found = at
    return found


class Sender:
    """Everything of one end that has not been acknowledged yet."""

    def __init__(
        self,
        control: CongestionControl,
        window: SendWindow,
        rtt: RttEstimator,
        counters: Counters,
        *,
        mss: int,
        nodelay: int,
        clock: Callable[[int], int],
    ) -> None:
        """`clock` gives the timestamp on the wire, 32 bits, for what is sent at `now`."""
        self.control = control
        self.window = window
        self.queue = SendQueue(mss)
        self.held_bytes = 0
        "queued or in flight"
        self._rtt = rtt
        self._counters = counters
        self._mss = mss
        self._nodelay = nodelay
        self._clock = clock
        self._pacer = Pacer()
        self._model = control if isinstance(control, LineModel) else None
        window.doubts_runs = self._model is not None  # a window that is set may be too small to wait
        self._copies = Copies()
        self._limits = dict.fromkeys(Limit, 0)
        self._doubt = 0.0
        "of losses; round trips that are waited longer"
        self._needless = self._doubted_at = self._late_at = 0
        self._promised: int | None = None
        "ms; when we wanted to be asked again"
        self._resend_at: int | None = None
        "ms; when what is believed lost, and did not go, may go"

    # -- above ---------------------------------------------------------------------------------

    def push(self, data: bytes, *, is_ahead: bool) -> None:
        self.queue.push(data, is_ahead=is_ahead)
        self.held_bytes += len(data)

    @property
    def room(self) -> int:
        """Segments that may still be queued; 0 or less is "wait".

        Half a window, the target at most, may wait beside a full one, so that acknowledgements find something to
        send at once instead of waking a writer first: 570 instead of 430 Mbit/s over loopback with windows of 128.
        """
        target = self._queue_target()
        if self.queue.size >= target:
            return 0
        queued = -(-self.queue.size // self._mss)
        limit = self.control.window
        room = limit + min(limit // 2, target // self._mss) - queued - self.window.unacked
        if not self._model:
            return room
        free = target - self.queue.size
        if target < QUEUE_TARGET:  # what goes ahead waits for the end of the piece that has been begun
            free = min(free, max(target // PIECES, PIECE_LEAST))
        return min(room, -(-free // self._mss))

    def _queue_target(self) -> int:
        rate = self._model.pacing_rate(self._rtt.srtt) if self._model else 0.0
        return min(QUEUE_TARGET, max(QUEUE_LEAST, int(rate * self._mss * QUEUE_TIME))) if rate else QUEUE_TARGET

    @property
    def is_quiet(self) -> bool:
        """Whether everything sent has been acknowledged and nothing waits."""
        return not self.window.segments and not self.queue.size

    # -- acknowledgements ----------------------------------------------------------------------

    def acknowledge(self, una: int, acks: Sequence[tuple[int, int]], rmt_wnd: int, now: int) -> None:
        """What one datagram of the peer acknowledges; 32 bits each."""
        window = self.window
        if acks:
            for flight, later in window.lost_first_sendings(acks):
                self.control.on_lost(flight)
                self._copies.on_lost(later)
        before = window.snd_una
        newest_ts = acks[-1][1] if acks else None
        freed = window.acknowledge_until(una, now - self._model.min_rtt if self._model else NEVER, newest_ts)
        if window.snd_una != before:
            self.control.on_progress(rmt_wnd)
        if acks:
            freed += window.acknowledge(acks)
        self.held_bytes -= freed

    def end_batch(self, now: int) -> None:
        """All datagrams of a batch have been looked at."""
        count, newest = self.window.take_progress()
        if count and newest is not None:
            self.control.on_acknowledged(count, newest, self.window.unacked, now)

    # -- below ---------------------------------------------------------------------------------

    def next_deadline(self) -> int | None:
        """ms of what is due though nothing happens before."""
        window = self.window
        resend_at = window.next_resend if self._resend_at is None else self._resend_at
        self._promised = earliest(resend_at, window.next_repeat, self._pacer.resume_at if self.queue.size else None)
        return self._promised

    def write(self, writer: DatagramWriter, now: int, rmt_wnd: int) -> bool:
        """Write what is due; False if the batch is full."""
        window, control = self.window, self.control
        limit = min(control.window, rmt_wnd)
        # Our window counts only what is not acknowledged. The peer's begins at snd_una, so there what is acknowledged
        # behind a hole counts as well.
        last = min(window.snd_nxt + control.window - window.unacked, window.snd_una + rmt_wnd)
        if not control.is_loss_tolerant:
            last = min(last, window.snd_una + control.window)
        has_fresh = self.queue.size > 0 and window.snd_nxt < last
        if not (self._write_again(writer, now, limit, early=not has_fresh) and self._write_copies(writer, now)):
            return False
        wanted = min(last - window.snd_nxt, -(-self.queue.size // self._mss))
        first = window.snd_nxt
        rate = control.pacing_rate(self._rtt.srtt)
        is_complete = self._write_new(
            writer, now, min(last, first + self._pacer.room(now, wanted, rate, control.pacing_step))
        )
        sent = window.snd_nxt - first
        self._pacer.spend(sent)
        limit_now = self._note_limit(rmt_wnd)
        if limit_now in (Limit.APPLICATION, Limit.PEER):
            control.on_idle(now)
        if self._model and 0 < sent <= THIN and not self.queue.size:
            self._plan_copies(self._model, first, now)
        return is_complete

    def _note_limit(self, rmt_wnd: int) -> Limit:
        """Count what keeps us from sending more now."""
        window = self.window
        if not self.queue.size:
            limit = Limit.APPLICATION
        elif window.snd_nxt >= window.snd_una + rmt_wnd:
            limit = Limit.PEER
        else:
            limit = Limit.LINE if self._model else Limit.WINDOW
        self._limits[limit] += 1
        return limit

    def take_limit(self) -> Limit:
        """What has been the limit since the last call; where nothing waits it is the application."""
        found = max(self._limits, key=self._limits.__getitem__)
        self._limits = dict.fromkeys(Limit, 0)
        return found

    def _write_new(self, writer: DatagramWriter, now: int, last: int) -> bool:
        window, queue = self.window, self.queue
        rto = self._rtt.rto
        if not queue.size or window.snd_nxt >= last:
            return True
        flight = self._flight(now)
        first = window.snd_nxt
        is_complete = True
        while queue.size and window.snd_nxt < last and is_complete:
            pieces, payload = queue.cut_full(min(last - window.snd_nxt, writer.packets_left()))
            if pieces:
                writer.write_full(window.push(pieces, flight, rto), flight.ts, payload)
            elif writer.has_room(min(self._mss, queue.size)):
                piece = queue.cut()
                writer.write(KCP_PUSH, flight.ts, window.push([piece], flight, rto), piece)
            else:
                is_complete = False
        self.control.on_sent(window.snd_nxt - first, flight)
        return is_complete

    def _flight(self, now: int) -> Flight:
        return self.control.flight(self._clock(now), now)

    def _write_again(self, writer: DatagramWriter, now: int, limit: int, *, early: bool) -> bool:
        window, control, counters = self.window, self.control, self._counters
        if self._is_late(now):
            self._resend_at = now + GRACE
            return True
        self._note_needless(now)
        loss_delay = self._rtt.loss_delay + int(self._doubt * self._rtt.srtt)
        due = window.due(now, loss_delay, early=early, skip_delay=self._skip_delay)
        self._resend_at = None
        if not due:
            return True
        # An outage is repaired at the line's rate, too. A window that was set is not paced here: kcptun's is not.
        allowed = len(due)
        if self._model:
            rate = self._model.pacing_rate(self._rtt.srtt)
            allowed = self._pacer.room(now, len(due), rate, control.pacing_step)
            self._resend_at = self._pacer.resume_at
        rto, flight = self._rtt.rto, self._flight(now)
        skipped = timed_out = False
        sent = 0
        for segment, cause in due[:allowed]:
            if not writer.write(KCP_PUSH, flight.ts, segment.sn, segment.payload):
                break
            sent += 1
            control.on_lost(segment.flight)
            control.on_sent(1, flight)
            window.resent(segment, cause, flight, rto, self._nodelay)
            counters.retransmitted += 1
            if cause is Cause.TIMEOUT:
                counters.lost += 1
                timed_out = True
            else:
                counters.fast_retransmitted += cause is Cause.FAST
                counters.early_retransmitted += cause is Cause.EARLY
                skipped = True
            if self._model and segment.resends > 1 and self._model.min_rtt >= SHORT_RTT:
                # Everything behind it waits: what was lost twice goes twice.
                window.plan_repeats(segment.sn, (REPEAT_DELAY,), 1)
        self._pacer.spend(sent)
        if sent == len(due):
            window.all_resent()
        control.on_retransmission(window.snd_nxt - window.snd_una, limit, skipped=skipped, timed_out=timed_out)
        return sent == allowed

    def _is_late(self, now: int) -> bool:
        """Whether we are asked later than we wanted to be: then what the peer has said may not have been read, too.

        Once in a round trip: where everybody is always late, losses must be repaired all the same.
        """
        promised, self._promised = self._promised, None
        if self._model is None or promised is None or now - promised <= LATE or now - self._late_at < self._rtt.srtt:
            return False
        self._late_at = now
        return True

    def _note_needless(self, now: int) -> None:
        """Believe losses later after a round trip in which something was sent again for nothing, sooner after others.

        Packets come out of order (RFC 8985, 3.3.2), or acknowledgements late: whoever makes them waits for a processor.
        """
        if self._model and now - self._doubted_at >= max(self._rtt.srtt, 1):
            window = self.window
            has_grown = window.needless - self._needless > NEEDLESS * window.unacked / 100
            self._needless, self._doubted_at = window.needless, now
            self._doubt = (
                min(self._doubt + 1 / 4, DOUBT_MOST) if has_grown else max(self._doubt * 31 / 32 - 1 / 128, 0.0)
            )

    @property
    def _skip_delay(self) -> int:
        """ms after its sending before which no segment is lost because later ones have arrived."""
        return int(self._model.min_rtt * (1 + min(self._doubt, 1.0))) if self._model and self._doubt else 0

    # -- copies --------------------------------------------------------------------------------

    def _write_copies(self, writer: DatagramWriter, now: int) -> bool:
        for segment in self.window.repeats(now):
            ts = self._clock(now)
            if not writer.write(KCP_PUSH, ts, segment.sn, segment.payload):
                return False
            self._counters.copied += 1
        return True

    def _plan_copies(self, model: LineModel, first: int, now: int) -> None:
        """Have what stands alone go again soon, as often as losses ask for, while that is a small part of the line."""
        if model.min_rtt < SHORT_RTT:
            return
        size = sum(len(segment.payload) for segment in self.window.segments[first - self.window.snd_una :])
        if delays := self._copies.plan(model.loss, model.rate * self._mss, size, now):
            self.window.plan_repeats(first, delays, self.window.snd_nxt - first)
