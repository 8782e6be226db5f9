"""KCP, the reliable stream over datagrams: segments, acknowledgements, windows, retransmission.

In      datagrams from the peer, bytes from above, `now`
Out     bytes in order; datagrams written behind the headroom of a batch's packets
Knows   one conversation. Not: FEC, keys, sockets, the clock
Wire    WIRE.md section 4 (the 2021 rules; the newest generation's triggers for acknowledgements)
Cost    about 1.1 us per segment sent, 0.6 us per segment received in order
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.rows import PacketRow
from kcptun_lite.core.batch.strided import split_numbers
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.congestion import CongestionWindow
from kcptun_lite.core.kcp.datagrams import DatagramWriter
from kcptun_lite.core.kcp.pacing import Pacer
from kcptun_lite.core.kcp.receive_window import ReceiveWindow
from kcptun_lite.core.kcp.restart import RestartDetector
from kcptun_lite.core.kcp.rtt import RttEstimator
from kcptun_lite.core.kcp.send_queue import SendQueue
from kcptun_lite.core.kcp.send_window import Cause, SendWindow
from kcptun_lite.core.wire import (
    KCP_ACK,
    KCP_HEADER_SIZE,
    KCP_PROBE_INITIAL,
    KCP_PROBE_LIMIT,
    KCP_PUSH,
    KCP_RTO_MIN,
    KCP_RTO_MIN_NODELAY,
    KCP_SEGMENT,
    KCP_SN_AT,
    KCP_UNA_AT,
    KCP_WASK,
    KCP_WINS,
    KCP_WND_INITIAL,
    MASK32,
    Buffer,
)

# Bytes that may wait for the window besides what is in flight. Short, so that a quiet stream's request
# does not stand behind a bulk stream's backlog; long enough to fill a batch when acknowledgements come.
QUEUE_TARGET = 128 * 1024
READ_SEGMENTS = 32  # read at once: they are copied five times on their way up, and may become 22 times as much
HALF32 = 0x80000000


class KcpParams(NamedTuple):
    """The knobs of one end (WIRE.md 8.1, 8.2); windows in segments, interval in ms, mtu in bytes of UDP payload."""

    nodelay: int = 0
    interval: int = 30
    resend: int = 2
    nc: int = 1
    snd_wnd: int = 128
    rcv_wnd: int = 512
    mtu: int = 1350
    acknodelay: bool = False


class Flush(IntEnum):
    """What should be sent without waiting for the timer."""

    NOTHING = 0
    ACKS = 1
    EVERYTHING = 2


class Kcp:
    """One end of one conversation, in stream mode."""

    def __init__(
        self, conv: int, params: KcpParams, counters: Counters, *, headroom: int, tailroom: int, first_sn: int = 0
    ) -> None:
        """`headroom` and `tailroom` are what other layers add around a datagram; `first_sn` is 0 but in tests."""
        self.conv = conv
        self.mss = params.mtu - headroom - tailroom - KCP_HEADER_SIZE
        self.received = ReceiveWindow(params.rcv_wnd, first_sn)
        self.rmt_wnd = KCP_WND_INITIAL
        self.rtt = RttEstimator(KCP_RTO_MIN_NODELAY if params.nodelay else KCP_RTO_MIN, params.interval)
        self.window = SendWindow(params.resend, first_sn)
        self.flush_wanted = Flush.NOTHING
        self.send_bytes = 0
        "bytes queued or in flight"
        self.unanswered_since: int | None = None
        "ms; when the first segment was sent since the peer was last heard"
        self.peer_ts = 0  # when the segment that came last was sent, ms of the peer's clock
        self.is_terse = False  # no ACK while something of ours waits for one: that goes again, and its `una` says it
        self._first_sn = first_sn
        self._restart = RestartDetector()
        self._params = params
        self._counters = counters
        self._headroom = headroom
        self._tailroom = tailroom
        self._acks_in_datagram = (self.mss + KCP_HEADER_SIZE) // KCP_HEADER_SIZE
        self._congestion = None if params.nc else CongestionWindow(self.mss)
        self._pacer = Pacer()
        # sending: chunks not yet numbered, and how far the first one is used up
        self._queue = SendQueue(self.mss)
        # acknowledgements owed: of early segments, and of the newest segment if that came in order
        self._acks: list[tuple[int, int]] = []
        self._tail_ack: tuple[int, int] | None = None
        self._ack_count = 0
        self._ack_due: int | None = None
        # window probes
        self._ask = self._tell = False
        self._probe_wait = self._probe_at = 0

    # -- above ---------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Queue bytes of the stream; they go out with the next flush as far as the window allows."""
        self._queue.push(data)
        self.send_bytes += len(data)
        self._counters.bytes_sent += len(data)
        self.flush_wanted = Flush.EVERYTHING

    @property
    def send_room(self) -> int:
        """Segments that may still be queued; 0 or less is "wait" (WIRE.md 4.9).

        Half a window, QUEUE_TARGET at most, may wait beside a full one, so that acknowledgements find something to
        send at once instead of waking a writer first: 570 instead of 430 Mbit/s over loopback with windows of 128.
        """
        if self._queue.size >= QUEUE_TARGET:
            return 0
        queued = -(-self._queue.size // self.mss)
        backlog = min(self._params.snd_wnd // 2, QUEUE_TARGET // self.mss)
        return self._params.snd_wnd + backlog - queued - self.window.unacked

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for room in the windows."""
        return self._queue.size

    def read(self, most: int = READ_SEGMENTS) -> list[Buffer]:
        """The next bytes in order, of at most `most` segments; views into the received datagrams until `detach`."""
        received = self.received
        if not received.count:
            return []
        was_shut = not received.free
        payloads = received.take(most)
        if was_shut:  # say that it is open again
            self._tell_window()
        self._counters.bytes_received += sum(map(len, payloads))
        return payloads

    def resize_window(self, segments: int) -> None:
        """Receive no more than this many segments that nobody reads; the peer is told when the window opens."""
        if self.received.resize(segments):
            self._tell_window()

    def _tell_window(self) -> None:
        self._tell = True
        self.flush_wanted = Flush.EVERYTHING

    @property
    def is_quiet(self) -> bool:
        """Whether everything sent has been acknowledged and nothing waits."""
        return not self.window.segments and not self._queue.size

    def progress(self) -> tuple[int, int, int]:
        """What new data and new acknowledgements move, and old ones do not: una, rcv_nxt, early segments so far."""
        return self.window.snd_una, self.received.next_sn, self.received.early_count

    # -- below: receiving ----------------------------------------------------------------------

    def receive(self, datagrams: Sequence[memoryview], now: int, *, recovered: bool = False) -> None:
        """Take datagrams of the peer; what is bad in them is counted and dropped.

        `recovered`: they come from parity, late and out of order, so their window field and
        timestamps say nothing (WIRE.md 3.5).
        """
        una_before = self.window.snd_una
        index = 0
        while index < len(datagrams):
            if not recovered:
                index = self._receive_in_order(datagrams, index, now)
                if index == len(datagrams):
                    break
            if not self._receive_one(datagrams[index], now, recovered):
                self._counters.kcp_in_errors += 1
            index += 1
        if self.window.snd_una != una_before:
            if self._congestion is not None:
                self._congestion.on_progress(self.rmt_wnd)
            self.flush_wanted = Flush.EVERYTHING
        elif self.window.has_fast or (self._probe_wait and self.rmt_wnd):  # a hole, or the shut window is open
            self.flush_wanted = Flush.EVERYTHING
        if self._ack_count:
            self.peer_ts = (self._tail_ack or self._acks[-1])[1]
            if self._ack_due is None:
                # kcp-go's timer runs free, so an ACK waits half an interval on average: we wait just that.
                self._ack_due = now + self._params.interval // 2
            if self._params.acknodelay or self._ack_count >= self._acks_in_datagram:
                self.flush_wanted = max(self.flush_wanted, Flush.ACKS)

    def _receive_in_order(self, datagrams: Sequence[memoryview], index: int, now: int) -> int:
        """The short path for what bulk traffic is made of: datagrams that are the next segment and no more.

        Returns the index of the first datagram that is anything else. 0.7 us per segment where
        `_receive_one` takes 1.2.
        """
        unpack = KCP_SEGMENT.unpack_from
        conv = self.conv
        una_known = self.window.snd_una & MASK32
        received = self.received
        expected = received.next_sn & MASK32
        room = 0 if received.has_gap else received.limit - received.count
        first = index
        wnd = ts = 0
        if isinstance(datagrams, PacketRow) and (run := self._receive_row(datagrams[index:], room, now)):
            return index + run
        for datagram in datagrams[index : index + room]:
            size = len(datagram) - KCP_HEADER_SIZE
            if size < 0:
                break
            conv_field, cmd, _, wnd_field, ts_field, sn, una, length = unpack(datagram)
            if sn != expected or cmd != KCP_PUSH or length != size or una != una_known or conv_field != conv:
                break
            received.append(datagram[KCP_HEADER_SIZE:])
            expected = (expected + 1) & MASK32
            wnd, ts = wnd_field, ts_field
            index += 1
        if index > first:
            self._note_in_order(index - first, ts, wnd, now)
        return index

    def _receive_row(self, row: PacketRow, room: int, now: int) -> int:
        """The shortest path, for a row in which every datagram is the next segment; returns their number or 0.

        0.1 us per segment.
        """
        count, size = len(row), row.size - KCP_HEADER_SIZE
        if not 0 < count <= room or size < 0:
            return 0
        _, _, _, wnd, ts, _, _, _ = KCP_SEGMENT.unpack_from(row[-1])
        usual = KCP_SEGMENT.pack(self.conv, KCP_PUSH, 0, 0, 0, 0, self.window.snd_una & MASK32, size)
        is_usual = row.field(0, 5) == usual[:5] * count and row.field(KCP_UNA_AT, 8) == usual[KCP_UNA_AT:] * count
        first = self.received.next_sn & MASK32
        if not is_usual or split_numbers(row.field(KCP_SN_AT, 4)) != tuple(range(first, first + count)):
            return 0
        self.received.append(row.field(KCP_HEADER_SIZE, size), count)
        self._note_in_order(count, ts, wnd, now)
        return count

    def _note_in_order(self, count: int, ts: int, wnd: int, now: int) -> None:
        """`count` segments have come in order, the last with this timestamp and window."""
        self._tail_ack = ((self.received.next_sn - 1) & MASK32, ts)
        self._ack_count += count
        self._counters.in_segments += count
        self.rmt_wnd = wnd
        self.unanswered_since = None
        self._restart.note(is_from_zero=False, now=now)

    def _receive_one(self, datagram: memoryview, now: int, recovered: bool) -> bool:
        unpack = KCP_SEGMENT.unpack_from
        window, received = self.window, self.received
        size = len(datagram)
        at = 0
        acks: list[tuple[int, int]] = []
        segments = 0
        last_una = -1
        wnd = self.rmt_wnd
        is_good = size >= KCP_HEADER_SIZE
        while size - at >= KCP_HEADER_SIZE:
            conv, cmd, _, wnd_field, ts, sn, una, length = unpack(datagram, at)
            at += KCP_HEADER_SIZE
            if conv != self.conv or length > size - at or not KCP_PUSH <= cmd <= KCP_WINS:
                is_good = False
                break
            segments += 1
            wnd = wnd_field
            if una != last_una:
                last_una = una
                self.send_bytes -= window.acknowledge_until(una)
            if cmd == KCP_PUSH:
                offset = (sn - received.next_sn) & MASK32
                if offset == 0 and received.count < received.limit:
                    received.append(datagram[at : at + length])
                    self._tail_ack = (sn, ts)
                    self._ack_count += 1
                else:
                    self._receive_out_of_order(offset, sn, ts, datagram[at : at + length], recovered)
                at += length
            elif cmd == KCP_ACK:
                acks.append((sn, ts))
            elif cmd == KCP_WASK:
                self._tell = True
                self.flush_wanted = Flush.EVERYTHING
        self._counters.in_segments += segments
        if acks:
            self.send_bytes -= window.acknowledge(acks)
        if segments:
            self.unanswered_since = None
            if not recovered:
                self.rmt_wnd = wnd
                self._note_una(last_una, now)
                if acks and is_good:
                    rtt = (now - acks[-1][1]) & MASK32
                    if rtt < HALF32:
                        self.rtt.sample(rtt)
        return is_good

    def _note_una(self, una: int, now: int) -> None:
        # Whoever has once told a higher una never goes back to the first one, unless he has been restarted.
        self._restart.note(is_from_zero=self._is_zero(una), now=now)
        if self._restart.wants_question(now):
            self.probe()

    def _is_zero(self, una: int) -> bool:
        return una == self._first_sn & MASK32 and una != self.window.snd_una & MASK32

    def is_from_zero(self, datagram: memoryview) -> bool:
        """Whether a datagram is of our conversation and acknowledges from zero what was acknowledged before."""
        if len(datagram) < KCP_HEADER_SIZE:
            return False
        conv, _, _, _, _, _, una, _ = KCP_SEGMENT.unpack_from(datagram)
        return bool(conv == self.conv) and self._is_zero(una)

    def has_peer_restarted(self, now: int) -> bool:
        """Whether the peer has lost all memory of this conversation: it acknowledges from zero, and goes on to."""
        return self._restart.is_certain(now, self.rtt.rto)

    def _receive_out_of_order(self, offset: int, sn: int, ts: int, payload: memoryview, recovered: bool) -> None:
        if offset >= HALF32:  # an old one again: our acknowledgement was lost
            self._tail_ack = (sn, ts)
        elif self.received.is_within(self.received.next_sn + offset):
            full_sn = self.received.next_sn + offset
            self._acks.append((sn, ts))
            self._tail_ack = None
            if self.received.keep_early(full_sn, payload):
                self._ack_count += 1
                return
        else:  # beyond our window: not even acknowledged
            self._counters.repeated += not recovered
            return
        self._ack_count += 1
        self._counters.repeated += not recovered

    # -- below: sending ------------------------------------------------------------------------

    def probe(self) -> None:
        """Ask the peer for its window: any living peer answers."""
        self._ask = True
        self.flush_wanted = Flush.EVERYTHING

    def resend_all(self, now: int) -> None:
        """Take what is in flight for lost: the path has changed."""
        self.window.expire(now)
        self.probe()

    def resume(self, now: int) -> None:
        """The peer is heard again after a silence: what is older than an RTO is lost, however long its timer runs."""
        self.window.expire(now, age=self.rtt.rto)
        self.flush_wanted = Flush.EVERYTHING

    def next_deadline(self) -> int | None:
        """ms at which a flush is due though nothing happens before; None if nothing is under way."""
        deadlines = [at for at in (self._ack_due, self.window.next_resend, self._restart.ask_at) if at is not None]
        if self._queue.size and self._pacer.resume_at is not None:
            deadlines.append(self._pacer.resume_at)
        if self._queue.size and self._probe_wait:
            deadlines.append(self._probe_at)
        return min(deadlines) if deadlines else None

    def flush(self, batch: PacketBatch, now: int, max_packets: int) -> bool:
        """Write what is due into at most `max_packets` new packets; True if more is due.

        Each packet is `headroom` bytes of room, a datagram, `tailroom` bytes of room.
        """
        if self.is_terse and self._ack_count and not self.is_quiet:
            self._acks, self._tail_ack = [], None
            self.window.expire(now)
        acks_only = self.flush_wanted is Flush.ACKS and (self._ack_due is None or now < self._ack_due)
        wnd = self.received.free
        writer = DatagramWriter(
            batch, max_packets, self.conv, wnd, self.received.next_sn, self.mss, self._headroom, self._tailroom
        )
        is_complete = self._write_acks(writer)
        if is_complete and not acks_only:
            is_complete = self._write_probes(writer, now) and self._write_data(writer, now)
        writer.close()
        self._counters.out_segments += writer.segments
        if writer.wants_answer and self.unanswered_since is None:
            self.unanswered_since = now
        if is_complete:
            self.flush_wanted = Flush.NOTHING
        return not is_complete

    def _write_acks(self, writer: DatagramWriter) -> bool:
        rcv_nxt = self.received.next_sn
        acks = self._acks
        written = 0
        for sn, ts in acks:
            # What lies before rcv_nxt is told by una; only the last entry always goes (WIRE.md 4.7).
            if (sn - rcv_nxt) & MASK32 < HALF32 or (self._tail_ack is None and written == len(acks) - 1):
                if not writer.write(KCP_ACK, ts, sn, b""):
                    del acks[:written]
                    return False
            written += 1
        acks.clear()
        if self._tail_ack is not None:
            sn, ts = self._tail_ack
            if not writer.write(KCP_ACK, ts, sn, b""):
                return False
            self._tail_ack = None
        self._ack_count = 0
        self._ack_due = None
        return True

    def _write_probes(self, writer: DatagramWriter, now: int) -> bool:
        if self.rmt_wnd:
            self._probe_wait = 0
        elif not self._probe_wait:
            self._probe_wait = KCP_PROBE_INITIAL
            self._probe_at = now + self._probe_wait
        elif now >= self._probe_at:
            self._probe_wait = min(self._probe_wait * 3 // 2, KCP_PROBE_LIMIT)
            self._probe_at = now + self._probe_wait
            self._ask = True
        if self._restart.wants_question(now):
            self._ask = True
        if self._ask and not writer.write(KCP_WASK, 0, 0, b""):
            return False
        self._ask = False
        if self._tell and not writer.write(KCP_WINS, 0, 0, b""):
            return False
        self._tell = False
        return True

    def _write_data(self, writer: DatagramWriter, now: int) -> bool:
        window = self.window
        limit = min(self._params.snd_wnd, self.rmt_wnd)
        if self._congestion is not None:
            limit = min(limit, self._congestion.cwnd)
        # Our own window counts what may be on the path, so what is acknowledged behind a hole takes no place in it;
        # the peer's counts from the hole on.
        last = min(window.snd_nxt + self._params.snd_wnd - window.unacked, window.snd_una + self.rmt_wnd)
        if self._congestion is not None:
            last = min(last, window.snd_una + self._congestion.cwnd)
        has_fresh = self._queue.size > 0 and window.snd_nxt < last
        if not self._write_again(writer, now, limit, early=not has_fresh):
            return False
        wanted = min(last - window.snd_nxt, -(-self._queue.size // self.mss))
        first = window.snd_nxt
        last = min(last, first + self._pacer.room(now, wanted, limit, self.rtt.srtt))
        is_complete = self._write_new(writer, now, last)
        self._pacer.spend(window.snd_nxt - first)
        return is_complete

    def _write_new(self, writer: DatagramWriter, now: int, last: int) -> bool:
        window = self.window
        rto = self.rtt.rto
        while self._queue.size and window.snd_nxt < last:
            pieces, payload = self._queue.cut_full(min(last - window.snd_nxt, writer.packets_left()))
            if pieces:
                writer.write_full(window.push(pieces, now, rto), now, payload)
                continue
            if not writer.has_room(min(self.mss, self._queue.size)):
                return False
            piece = self._queue.cut()
            writer.write(KCP_PUSH, now, window.push([piece], now, rto), piece)
        return True

    def _write_again(self, writer: DatagramWriter, now: int, limit: int, *, early: bool) -> bool:
        window = self.window
        counters = self._counters
        rto = self.rtt.rto
        skipped = timed_out = False
        for segment, cause in window.due(now, self.rtt.loss_delay, early=early):
            if not writer.write(KCP_PUSH, now, segment.sn, segment.payload):
                return False
            window.resent(segment, cause, now, rto, self._params.nodelay)
            counters.retransmitted += 1
            if cause is Cause.TIMEOUT:
                counters.lost += 1
                timed_out = True
            else:
                counters.fast_retransmitted += cause is Cause.FAST
                counters.early_retransmitted += cause is Cause.EARLY
                skipped = True
        if timed_out or skipped:
            # One more walk, so that the next deadline and the flags are exact again.
            window.due(now, self.rtt.loss_delay, early=False)
        if self._congestion is not None:
            if skipped:
                self._congestion.on_fast_retransmit(window.snd_nxt - window.snd_una, self._params.resend)
            if timed_out:
                self._congestion.on_timeout(limit)
        return True
