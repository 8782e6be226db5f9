"""KCP, the reliable stream over datagrams: segments, acknowledgements, windows, retransmission.

In      datagrams from the peer, bytes from above, `now`
Out     bytes in order; datagrams written behind the headroom of a batch's packets
Knows   one conversation. Not: FEC, keys, sockets, the clock
Wire    docs/protocol.md, "KCP" (the 2021 rules; the newest generation's triggers for acknowledgements)
Cost    about 1.1 us per segment sent, 0.6 us per segment received in order
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.rows import PacketRow
from kcptun_lite.core.batch.strided import split_numbers
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.acks import AckList
from kcptun_lite.core.kcp.congestion import CongestionControl, FixedWindow, KcpCongestionWindow
from kcptun_lite.core.kcp.datagrams import DatagramWriter
from kcptun_lite.core.kcp.line_model import LineModel
from kcptun_lite.core.kcp.receive_window import ReceiveWindow
from kcptun_lite.core.kcp.restart import RestartDetector
from kcptun_lite.core.kcp.rtt import RttEstimator
from kcptun_lite.core.kcp.send_window import SendWindow
from kcptun_lite.core.kcp.sender import Sender, earliest
from kcptun_lite.core.validation import AddressValidation
from kcptun_lite.core.wire import (
    HALF32,
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
    diff32,
)

READ_SEGMENTS = 32  # read at once: they are copied five times on their way up, and may become 22 times as much
# What comes thick at the start of a conversation is acknowledged at once, so that its sender learns the round trip.
QUICK_ACKS = 256  # segments
QUICK_COUNT = 4
RCV_WND_START = 1024  # segments; where nothing is set, until it has shown what the line needs


class KcpParams(NamedTuple):
    """The knobs of one end; windows in segments, interval in ms, mtu in bytes of UDP payload."""

    nodelay: int = 0
    interval: int = 30
    resend: int = 2
    nc: int = 1
    snd_wnd: int = 128
    rcv_wnd: int = 512
    mtu: int = 1350
    acknodelay: bool = False
    rcv_wnd_max: int = 0
    "what `rcv_wnd` may grow to as the peer needs it; 0: it is what it is"
    follows_line: bool = False
    "`snd_wnd` is what memory allows, and the window what the line needs"

    def control(self, mss: int) -> CongestionControl:
        """What decides how much may be in flight."""
        if self.follows_line:
            return LineModel(self.snd_wnd)
        return FixedWindow(self.snd_wnd) if self.nc else KcpCongestionWindow(self.snd_wnd, mss, self.resend)


class Flush(IntEnum):
    """What should be sent without waiting for the timer."""

    NOTHING = 0
    ACKS = 1
    EVERYTHING = 2


class Kcp:
    """One end of one conversation, in stream mode."""

    def __init__(
        self,
        conv: int,
        params: KcpParams,
        counters: Counters,
        *,
        headroom: int,
        tailroom: int,
        first_sn: int = 0,
        ts_offset: int = 0,
        validation: AddressValidation | None = None,
    ) -> None:
        """`headroom` and `tailroom` are what other layers add around a datagram; `first_sn` is 0 but in tests.

        `ts_offset`: ms that timestamps on the wire are ahead of `now`; `validation` is told what goes and comes back.
        """
        self.conv = conv
        self.mtu = params.mtu
        self.mss = params.mtu - headroom - tailroom - KCP_HEADER_SIZE
        self.received = ReceiveWindow(max(params.rcv_wnd, params.rcv_wnd_max), first_sn)
        self.received.advertised = params.rcv_wnd
        self.rmt_wnd = KCP_WND_INITIAL
        self.rtt = RttEstimator(KCP_RTO_MIN_NODELAY if params.nodelay else KCP_RTO_MIN, params.interval)
        self.window = SendWindow(params.resend, first_sn)
        self.control = params.control(self.mss)
        self._ts_offset = ts_offset
        self._validation = validation or AddressValidation(is_validated=True)
        self.sender = Sender(
            self.control, self.window, self.rtt, counters, mss=self.mss, nodelay=params.nodelay, clock=self._ts
        )
        self.flush_wanted = Flush.NOTHING
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
        self._acks = AckList()
        # window probes
        self._ask = 0  # times
        self._tell = False
        self._probe_wait = self._probe_at = 0
        self.windows_told = self.windows_told_from_zero = 0
        "times that the peer has told its window, and acknowledged something with it; or nothing, where it had before"

    # -- above ---------------------------------------------------------------------------------

    def send(self, data: bytes, *, is_ahead: bool = False) -> None:
        """Queue bytes of the stream; they go out with the next flush as far as the window allows.

        `is_ahead`: before all that waits, but for a chunk that has been begun.
        """
        self.sender.push(data, is_ahead=is_ahead)
        self._counters.bytes_sent += len(data)
        self.flush_wanted = Flush.EVERYTHING

    @property
    def send_room(self) -> int:
        """Segments that may still be queued; 0 or less is "wait"."""
        return self.sender.room

    @property
    def send_bytes(self) -> int:
        """Bytes queued or in flight."""
        return self.sender.held_bytes

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for room in the windows."""
        return self.sender.queue.size

    def read(self, most: int = READ_SEGMENTS) -> list[Buffer]:
        """The next bytes in order, of at most `most` segments; views into the received datagrams until `detach`."""
        received = self.received
        if not received.count:
            return []
        was_shut = not received.free
        payloads = received.take(most)
        if was_shut and payloads:  # say that it is open again
            self._tell_window()
        self._counters.bytes_received += sum(map(len, payloads))
        return payloads

    def resize_window(self, segments: int) -> None:
        """Receive no more than this many segments that nobody reads; the peer is told when the window opens."""
        if self.received.resize(segments):
            self._tell_window()

    def advertise(self, segments: int) -> None:
        """Tell the peer of a window of so many segments from now on, if there is room."""
        was_shut = not self.received.free
        self.received.advertised = segments
        if was_shut and self.received.free:
            self._tell_window()

    def _tell_window(self) -> None:
        self._tell = True
        self.flush_wanted = Flush.EVERYTHING

    @property
    def is_quiet(self) -> bool:
        """Whether everything sent has been acknowledged and nothing waits."""
        return self.sender.is_quiet

    @property
    def is_resting(self) -> bool:
        """Whether nothing is under way, either way, and nothing waits to be read or to be acknowledged."""
        return self.is_quiet and not (self.flush_wanted or self._acks.count or self.received.unread_count)

    def go_on(self, una: int, next_sn: int, rmt_wnd: int, peer_ts: int) -> None:
        """Take the place of one that rests: `progress` of its, its window and time of the peer."""
        self.window.snd_una = self.window.snd_nxt = una
        self.received.next_sn = next_sn
        self.rmt_wnd, self.peer_ts = rmt_wnd, peer_ts

    def progress(self) -> tuple[int, int, int]:
        """What new data and new acknowledgements move, and old ones do not: una, rcv_nxt, early segments so far."""
        return self.window.snd_una, self.received.next_sn, self.received.early_count

    # -- below: receiving ----------------------------------------------------------------------

    def receive(self, datagrams: Sequence[memoryview], now: int, *, recovered: bool = False) -> None:
        """Take datagrams of the peer; what is bad in them is counted and dropped.

        `recovered`: they come from parity, late and out of order, so their window field and
        timestamps say nothing.
        """
        una_before, wnd_before, had_gap = self.window.snd_una, self.rmt_wnd, self.received.has_gap
        index = 0
        while index < len(datagrams):
            if not recovered:
                index = self._receive_in_order(datagrams, index, now)
                if index == len(datagrams):
                    break
            if not self._receive_one(datagrams[index], now, recovered):
                self._counters.kcp_in_errors += 1
            index += 1
        self.sender.end_batch(now)
        # There is a hole, or what waits has more room. Acknowledgements alone wait for company.
        has_room = self.queued_bytes and (self.window.snd_una != una_before or self.rmt_wnd > wnd_before)
        is_loss = self.received.has_gap and not had_gap  # its sender is to know at once (RFC 5681, 4.2)
        if self.window.has_fast or has_room or is_loss or (self._probe_wait and self.rmt_wnd):
            self.flush_wanted = Flush.EVERYTHING
        acks = self._acks
        if acks.count:
            self.peer_ts = acks.latest_ts
            if acks.due_at is None:
                # kcp-go's timer runs free, so an ACK waits half an interval on average: we wait just that.
                acks.due_at = now + self._params.interval // 2
            is_fresh = acks.count >= QUICK_COUNT and self.received.next_sn - self._first_sn < QUICK_ACKS
            if self._params.acknodelay or is_fresh or acks.count >= self._acks_in_datagram:
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
        self._acks.in_order((self.received.next_sn - 1) & MASK32, ts, count)
        self._counters.in_segments += count
        self.rmt_wnd = wnd
        self.unanswered_since = None
        self._restart.note(is_from_zero=False, now=now)

    def _receive_one(self, datagram: memoryview, now: int, recovered: bool) -> bool:
        unpack = KCP_SEGMENT.unpack_from
        received = self.received
        size = len(datagram)
        at = 0
        acks: list[tuple[int, int]] = []
        segments = una = 0
        wnd = self.rmt_wnd
        is_good = size >= KCP_HEADER_SIZE
        while size - at >= KCP_HEADER_SIZE:
            conv, cmd, _, wnd_field, ts, sn, una_field, length = unpack(datagram, at)
            at += KCP_HEADER_SIZE
            if conv != self.conv or length > size - at or not KCP_PUSH <= cmd <= KCP_WINS:
                is_good = False
                break
            segments += 1
            wnd = wnd_field
            if segments == 1 or diff32(una_field, una) > 0:
                una = una_field
            if cmd == KCP_PUSH:
                offset = (sn - received.next_sn) & MASK32
                if offset == 0 and received.count < received.limit:
                    received.append(datagram[at : at + length])
                    self._acks.in_order(sn, ts)
                else:
                    self._receive_out_of_order(offset, sn, ts, datagram[at : at + length], recovered)
                at += length
            elif cmd == KCP_ACK:
                acks.append((sn, ts))
            elif cmd == KCP_WASK:
                self._tell = True
                self.flush_wanted = Flush.EVERYTHING
            else:  # WINS answers what was small
                self.window.note_small_passed()
                if self._is_zero(una_field):
                    self.windows_told_from_zero += 1
                else:
                    self.windows_told += 1
        self._counters.in_segments += segments
        if segments:
            is_news = bool(acks) and self.window.is_news(acks[-1])
            self.sender.acknowledge(una, acks, wnd, now)
            self.unanswered_since = None
            if not recovered:
                self.rmt_wnd = wnd
                self._note_una(una, now)
                if acks and is_good:
                    self._note_echoes(acks, is_news, now)
        return is_good

    def _ts(self, now: int) -> int:
        """The timestamp of what is sent now, 32 bits."""
        ts = (now + self._ts_offset) & MASK32
        self._validation.on_sent(ts)
        return ts

    def _note_echoes(self, acks: list[tuple[int, int]], is_news: bool, now: int) -> None:
        """The peer has repeated our timestamps; `is_news`: the last one for the first time."""
        if not self._validation.is_validated:
            any(self._validation.on_echo(ts) for _, ts in acks)
        rtt = (now + self._ts_offset - acks[-1][1]) & MASK32
        if rtt < HALF32 and (is_news or not self._acks.says_twice):
            self.rtt.sample(rtt)
            self.control.on_rtt(rtt, now)

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
            self._acks.again(sn, ts)
        elif self.received.is_within(self.received.next_sn + offset):
            self._acks.early(sn, ts)
            if self.received.keep_early(self.received.next_sn + offset, payload):
                return
        # else it is beyond our window: not even acknowledged
        self._counters.repeated += not recovered

    # -- below: sending ------------------------------------------------------------------------

    def know_ours(self) -> None:
        """The peer is of our kind: neither end counts an ACK that comes twice as two."""
        self._acks.says_twice = self.window.acks_come_twice = True

    def drop_headroom(self, size: int) -> None:
        """So many bytes fewer are added before a datagram from now on."""
        self._headroom -= size

    def probe(self, *, is_large: bool = False) -> None:
        """Ask the peer for its window: any living peer answers. `is_large`: with a packet of the full size."""
        self._ask = max(self._ask, self._acks_in_datagram if is_large else 1)
        self.flush_wanted = Flush.EVERYTHING

    def resend_all(self, now: int) -> None:
        """Take what is in flight for lost: the path has changed."""
        self.window.give_up(now)
        self.probe()

    def resume(self, now: int) -> None:
        """The peer is heard again after a silence: what is older than an RTO is lost, however long its timer runs."""
        self.window.give_up(now, age=self.rtt.rto)
        self.flush_wanted = Flush.EVERYTHING

    def next_deadline(self) -> int | None:
        """ms at which a flush is due though nothing happens before; None if nothing is under way."""
        probe_at = self._probe_at if self._probe_wait and self.queued_bytes else None
        return earliest(self.sender.next_deadline(), self._acks.due_at, self._restart.ask_at, probe_at)

    def flush(self, batch: PacketBatch, now: int, max_packets: int) -> bool:
        """Write what is due into at most `max_packets` new packets; True if more is due.

        Each packet is `headroom` bytes of room, a datagram, `tailroom` bytes of room.
        """
        acks = self._acks
        if self.is_terse and acks.count and not self.is_quiet:
            acks.clear()
            self.window.give_up(now)
        acks_only = self.flush_wanted is Flush.ACKS and (acks.due_at is None or now < acks.due_at)
        wnd = self.received.free
        writer = DatagramWriter(
            batch, max_packets, self.conv, wnd, self.received.next_sn, self.mss, self._headroom, self._tailroom
        )
        is_complete = self._write_acks(writer)
        if is_complete and not acks_only:
            is_complete = self._write_probes(writer, now) and self.sender.write(writer, now, self.rmt_wnd)
        writer.close()
        self._counters.out_segments += writer.segments
        if writer.wants_answer and self.unanswered_since is None:
            self.unanswered_since = now
        if is_complete:
            self.flush_wanted = Flush.NOTHING
        return not is_complete

    def _write_acks(self, writer: DatagramWriter) -> bool:
        written: list[int] = []
        for sn, ts in self._acks.pending(self.received.next_sn & MASK32):
            if not writer.write(KCP_ACK, ts, sn, b""):
                self._acks.written(written)
                return False
            written.append(sn)
        self._acks.clear()
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
            self._ask = max(self._ask, 1)
        if self._restart.wants_question(now):
            self._ask = max(self._ask, 1)
        while self._ask:
            if not writer.write(KCP_WASK, 0, 0, b""):
                return False
            self._ask -= 1
        if self._tell and not writer.write(KCP_WINS, 0, 0, b""):
            return False
        self._tell = False
        return True
