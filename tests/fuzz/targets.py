"""What no input may do to us, said once for every room that takes bytes from outside.

In      bytes: a little program of records, each an operation and its payload; any bytes are a program
Out     nothing; AssertionError, or whatever else escapes, is a finding
Knows   the rooms and their promises. Not: who makes the bytes (hypothesis in tests/fuzz, atheris in tools/fuzz)

Promises: packets never raise; ordered bytes raise RemoteProtocolError and nothing else; memory has a bound; how
bytes are cut into pieces changes nothing; what a room keeps does not point into its caller's buffers.
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from threading import Lock
from typing import Any, cast

from kcptun_lite.app import values
from kcptun_lite.app.config import describe
from kcptun_lite.app.parsing import Program, parse
from kcptun_lite.core.batch.packets import Address, PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES, POISON, BufferPool
from kcptun_lite.core.batch.rows import PacketList
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.crypt import METHODS, PacketCrypt, derive_key, make_crypt
from kcptun_lite.core.fec.decoder import HELD_BYTES_MAX, FecDecoder
from kcptun_lite.core.glance import bring_news
from kcptun_lite.core.kcp.kcp import Flush, Kcp, KcpParams
from kcptun_lite.core.mux.smux import SmuxSession
from kcptun_lite.core.mux.snappy import SnappyDecoder, SnappyEncoder
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.core.wire import KCP_HEADER_SIZE, KCP_PUSH, KCP_SEGMENT, MTU_MAX, diff32, fec_type, first_segment
from kcptun_lite.errors import ConfigError, KcptunError, RemoteProtocolError, SmuxError, SnappyError, StreamError
from kcptun_lite.net.ends.listener import Listener
from kcptun_lite.net.ends.session_table import SessionTable
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.udp import udp_socket as peer_socket
from kcptun_lite.net.udp.peer_sockets import PeerSockets
from tests.net.fakes import FakeUdp, make_context

_RECORD = struct.Struct("<BH")  # operation, length of the payload
CONV = 0x11223344
RCV_WND = 32  # segments; small, so that its end is within reach
BATCH_PACKETS = 64  # more are dropped
SMUX_BUFFER = 16_384
STREAMS_MAX = 8
KEY = bytes(range(32))
FUZZ_METHODS = tuple(METHODS)


def record(operation: int, payload: bytes = b"") -> bytes:
    """One step of a program; `records` is the way back."""
    return _RECORD.pack(operation, len(payload)) + payload


def records(program: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while len(program) - at >= _RECORD.size:
        operation, length = _RECORD.unpack_from(program, at)
        at += _RECORD.size
        yield operation, program[at : at + length]
        at += length


class Arrivals:
    """Packets in a buffer that is overwritten when their receiver is done with them.

    Every other batch they are close together, as packets of a flood are.
    """

    def __init__(self) -> None:
        self._batch = PacketBatch(memoryview(bytearray(BATCH_PACKETS * 1504)))
        self._is_grid = True

    def put(self, packet: bytes) -> None:
        """Add a packet, if there is room and it is not empty."""
        batch = self._batch
        if self._is_grid:
            batch.begin_grid(MTU_MAX)
        if packet and batch.has_room(MTU_MAX + 4):
            batch.arena[batch.end : batch.end + len(packet)] = packet
            batch.commit(len(packet))

    def views(self) -> Sequence[memoryview]:
        return self._batch.packets()

    def stretches(self) -> list[Sequence[memoryview]]:
        packets = self._batch.packets()
        return list(packets.stretches()) if isinstance(packets, PacketList) else [packets]

    def clear(self) -> None:
        self._batch.arena[: self._batch.end] = bytes([POISON]) * self._batch.end
        self._batch.clear()
        self._is_grid = not self._is_grid


# -- packets ---------------------------------------------------------------------------------------------------


def fec(data: bytes) -> None:
    """Operations: 0 a packet; else the last packet of a batch."""
    decoder = FecDecoder(Counters())
    incoming = Arrivals()
    for operation, packet in records(data):
        incoming.put(packet[:MTU_MAX])
        if not operation:
            continue
        for packets in incoming.stretches():
            datagrams, recovered = decoder.receive(packets)
            assert len(datagrams) <= len(packets)
            assert sum(map(len, datagrams)) <= sum(map(len, packets))
            assert all(len(datagram) < MTU_MAX for datagram in recovered)
        incoming.clear()
        groups = [group for group in decoder._groups.values() if group is not None]
        kept = [shard for group in groups for shard in group.shards.values()]
        kept += [packet for _, _, packets in decoder._early for packet in packets]
        assert all(isinstance(shard, bytes) for shard in kept), "a view outlives its packet"
        assert decoder.held_bytes == sum(map(len, kept)) <= HELD_BYTES_MAX
        assert len(decoder._groups) <= decoder._groups_kept


def kcp(data: bytes) -> None:
    """Operations: 0 a datagram; 1 one recovered from parity; 2 time and a flush; 3 read; 4 send.

    The conversation is that of the first datagram, so that recorded ones are at home here.
    """
    params = KcpParams(rcv_wnd=RCV_WND, snd_wnd=RCV_WND)
    end = Kcp(_first_conv(data), params, Counters(), headroom=0, tailroom=0)
    batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
    incoming = Arrivals()
    now = sent = 0
    for operation, payload in records(data):
        if operation in (0, 1):
            incoming.put(payload[:MTU_MAX])
            if operation == 0 and payload[-1:] < b"\x40":
                continue  # more will come in the same batch
            for packets in incoming.stretches():
                end.receive(packets, now, recovered=operation == 1)
            end.received.detach()
            incoming.clear()
        elif operation == 2:
            now += int.from_bytes(payload[:2], "little")
            for _ in range(100):
                if not end.flush(batch, now, 8):
                    break
                batch.clear()
            else:
                raise AssertionError("a flush without end")
            batch.clear()
            assert end.flush_wanted is Flush.NOTHING
            deadline = end.next_deadline()
            assert deadline is None or deadline > now, "a deadline that doing the work does not move"
        elif operation == 3:
            for part in end.read():
                assert bytes([POISON]) * 64 not in bytes(part) or b"\xdd" in data
            end.received.detach()
        elif operation == 4 and payload and end.send_room > 0:
            end.send(payload)
            sent += len(payload)
        window = end.window
        in_flight = sum(len(segment.payload) for segment in window.segments)
        assert end.send_bytes == in_flight + end.sender.queue.size <= sent
        assert window.snd_nxt - window.snd_una == len(window.segments) <= RCV_WND
        assert end.received.count <= RCV_WND and len(end.received._early) <= RCV_WND
        assert end.received.early_bytes == sum(map(len, end.received._early.values()))
        assert 0 < end.rtt.rto <= 60_000
        end.has_peer_restarted(now)


def _first_conv(program: bytes) -> int:
    """The conversation of a program's first packet that tells one."""
    for operation, packet in records(program):
        if operation == 0 and (found := first_segment(packet)):
            return found[0]
    return CONV


def crypt(data: bytes) -> None:
    """First byte: the method. Operations: 0 a packet from outside; 1 a body for a packet of our own."""
    if not data:
        return
    method = FUZZ_METHODS[data[0] % len(FUZZ_METHODS)]
    ours = _crypt(method)
    batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
    bodies: dict[int, bytes] = {}
    for operation, payload in records(data[1:]):
        packet = payload[:MTU_MAX]
        if operation == 1 and 24 <= len(payload):
            body = payload[: MTU_MAX - ours.headroom - ours.tailroom]
            packet = _sealed(ours, body)
            bodies[len(batch)] = body
        if not packet or not batch.has_room(len(packet)):
            continue
        batch.arena[batch.end : batch.end + len(packet)] = packet
        batch.commit(len(packet))
    size, end = len(batch), batch.end
    counters = Counters()
    ours.open(batch, counters)
    assert len(batch) == size and batch.end == end
    for index, body in bodies.items():
        assert bytes(batch.packet(index)) == body, method
    good = [length for length in batch.lengths if length]
    assert all(start + length <= batch.capacity for start, length in zip(batch.starts, batch.lengths, strict=True))
    assert all(length >= 24 for length in good)
    assert (counters.in_packets, counters.in_bytes) == (len(good), sum(good))
    assert counters.in_checksum_errors + counters.kcp_in_errors == size - len(good)


@cache
def _crypt(method: str) -> PacketCrypt:
    return make_crypt(method, KEY, lambda size: bytes(size), BufferPool(Lock()))


def _sealed(ours: PacketCrypt, body: bytes) -> bytes:
    size = ours.headroom + len(body) + ours.tailroom
    incoming = PacketBatch(memoryview(bytearray(-(-size // 16) * 16)))
    incoming.arena[ours.headroom : ours.headroom + len(body)] = body
    incoming.commit(size)
    ours.seal(incoming)
    return bytes(incoming.packet(0))


def gro(data: bytes) -> None:
    """Two numbers and a control message: what the kernel says of a run of packets, and of its length."""
    if len(data) < 4:
        return
    start, total = (int.from_bytes(data[at : at + 2], "little") for at in (0, 2))
    batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
    batch.end = min(start, BATCH_BYTES - peer_socket.GRO_ROOM) // 16 * 16
    level, kind = (data[4:6] + b"\x11\x68")[:2]
    size = peer_socket._segment_size([(level, kind, data[6:])]) or total
    if not total or not 0 < size <= MTU_MAX:
        return
    content = bytes(index * 7 & 0xFF for index in range(total))
    batch.arena[batch.end : batch.end + total] = content
    peer_socket._lay_run(batch, size, total)
    packets = [bytes(packet) for packet in batch.views()]
    assert batch.end <= batch.capacity and all(at % 16 == 0 for at in batch.starts)
    assert content.startswith(b"".join(packets)), "the packets are those that came, in order"
    assert all(len(packet) == size for packet in packets[:-1])


# -- ordered bytes ---------------------------------------------------------------------------------------------


def snappy(data: bytes) -> None:
    """Each record's payload is a piece of the peer's stream."""
    pieces = [payload for _, payload in records(data)]
    cut, whole = SnappyDecoder(), SnappyDecoder()
    out: list[bytes] = []
    failure = None
    try:
        for piece in pieces:
            part = cut.feed(piece)
            assert len(part) <= 22 * len(piece) + 65_536
            assert cut.held_bytes <= 76_498
            out.append(part)
    except SnappyError as exc:
        failure = exc
    try:
        in_one = whole.feed(b"".join(pieces))
        assert failure is None and in_one == b"".join(out)
    except SnappyError:
        assert failure is not None


def smux(data: bytes) -> None:
    """First byte: version and side. Operations: 0 bytes of the peer; 6 time; others in `_use_stream`."""
    first = data[0] if data else 0
    ends = [_smux_end(first), _smux_end(first)]
    now = 0
    for operation, payload in records(data[1:]):
        sid = int.from_bytes(payload[:4], "little")
        now += (sid & 0xFFFF) * (operation == 6)
        failures = []
        for end, step in zip(ends, (len(payload) or 1, 1 + len(payload) // 64), strict=True):  # whole, and in bits
            try:
                if operation == 0:
                    for at in range(0, len(payload), step):
                        end.feed(payload[at : at + step])
                elif operation == 6:
                    end.tick(now)
                else:
                    _use_stream(end, operation, sid, payload)
            except KcptunError as exc:
                assert operation != 0 or isinstance(exc, SmuxError)
                failures.append(exc)
            _check_smux(end)
        assert len(failures) in (0, 2)
        assert [list(end._streams) for end in ends[:1]] == [list(end._streams) for end in ends[1:]]
        assert ends[0].receive_budget == ends[1].receive_budget
        if failures:
            return


def _smux_end(first: int) -> SmuxSession:
    return SmuxSession(
        is_client=bool(first & 2),
        version=1 + (first & 1),
        max_frame=256,
        receive_buffer=SMUX_BUFFER,
        stream_buffer=SMUX_BUFFER // 2,
        keepalive_ms=10_000,
        keepalive_timeout_ms=75_000,
        now=0,
        max_streams=STREAMS_MAX,
    )


def _use_stream(end: SmuxSession, operation: int, sid: int, payload: bytes) -> None:
    with suppress(StreamError):
        if operation == 1:
            end.take(sid, 1 << 30)  # all: how much a smaller limit gives depends on how the bytes came
        elif operation == 2 and end.stream_count < 2 * STREAMS_MAX:
            end.open_stream()
        elif operation == 3:
            assert end.send_data(sid, memoryview(payload)) <= len(payload)
        elif operation == 4:
            end.finish(sid)
        elif operation == 5:
            end.close(sid)
        elif operation == 7:
            end.frames_to_send()


def _check_smux(end: SmuxSession) -> None:
    unread = sum(stream.unread_bytes for stream in end._streams.values())
    assert end.receive_budget == SMUX_BUFFER - unread
    assert end._streams_from_peer == sum(stream.from_peer for stream in end._streams.values()) <= STREAMS_MAX
    assert end._to_send_bytes == sum(map(len, end._to_send))
    assert len(end._header) < 16


# -- whole sessions --------------------------------------------------------------------------------------------


def conversation(data: bytes) -> None:
    """First byte: settings. Operations: 0 a packet; 1 bytes in order; 2 the same, compressed; 3 time and a flush;
    4 take; 5 open; 6 send; 7 a packet that shares a batch with the next one."""
    first = data[0] if data else 0
    fec_on, compress, version, adapts, is_client = (bool(first & bit) for bit in (1, 2, 4, 8, 16))
    params = ConversationParams(
        KcpParams(rcv_wnd=RCV_WND, snd_wnd=RCV_WND),
        data_shards=3 if fec_on else 0,
        parity_shards=1 if fec_on else 0,
        compress=compress,
        smux_version=1 + version,
        smux_buffer=SMUX_BUFFER,
        stream_buffer=SMUX_BUFFER // 2,
        max_streams=STREAMS_MAX,
        adapts=adapts and not is_client,
    )
    conv = _first_conv(data[1:])
    end = Conversation(conv, params, Counters(), is_client=is_client, headroom=0, tailroom=0, now=0)
    batch = PacketBatch(memoryview(bytearray(end.params.batch_bytes)))
    peer = SnappyEncoder()
    incoming = Arrivals()
    now = sn = 0
    for operation, payload in records(data[1:]):
        try:
            if operation in (0, 7):
                incoming.put(payload[:MTU_MAX])
            if operation in (1, 2):
                ordered = peer.encode([payload]) if operation == 2 else payload
                for at in range(0, len(ordered), 1400):
                    piece = ordered[at : at + 1400]
                    incoming.put(KCP_SEGMENT.pack(conv, KCP_PUSH, 0, 64, now, sn, 0, len(piece)) + piece)
                    sn += 1
            if operation in (0, 1, 2):
                before = end.kcp.progress()
                is_news = any([bring_news(end.kcp, [view]) for view in incoming.views()])
                is_bare = not any(map(fec_type, incoming.views()))
                is_late = any(diff32(ts, end.kcp.peer_ts) < 0 for view in incoming.views() for ts in _timestamps(view))
                end.receive_packets(incoming.views(), now)
                assert is_news or is_late or not is_bare or end.kcp.progress() == before
                incoming.clear()
            elif operation == 3:
                now += int.from_bytes(payload[:2], "little")
                end.tick(now)
                while end.packets_to_send(batch, now):
                    batch.clear()
                batch.clear()
            elif end.smux_version and operation in (4, 5, 6):
                _use_conversation(end, operation, payload)
        except KcptunError as exc:
            assert operation == 3 or isinstance(exc, RemoteProtocolError), exc
            return
        end.take_events()
        assert end.held_bytes <= _HELD_MAX
        assert end.kcp.received.count <= RCV_WND


def _timestamps(datagram: memoryview) -> Iterator[int]:
    at = 0
    while at + KCP_HEADER_SIZE <= len(datagram):
        _, _, _, _, ts, _, _, length = KCP_SEGMENT.unpack_from(datagram, at)
        yield ts
        at += KCP_HEADER_SIZE + length


_HELD_MAX = 2 * RCV_WND * MTU_MAX + HELD_BYTES_MAX + 76_498 + SMUX_BUFFER + 22 * RCV_WND * MTU_MAX + 1_048_576


def _use_conversation(end: Conversation, operation: int, payload: bytes) -> None:
    sid = int.from_bytes(payload[:4], "little")
    with suppress(StreamError):
        if operation == 4:
            end.take_stream_data(sid, 4096)
        elif operation == 5 and end._streams.stream_count < 2 * STREAMS_MAX:
            end.open_stream()
        elif operation == 6:
            end.send_stream_data(sid, memoryview(payload))


ADDRESSES: tuple[Address, ...] = (("10.0.0.1", 1000), ("10.0.0.1", 1001), ("10.0.0.2", 1000), ("10.0.0.3", 1000))
MAX_SESSIONS = 32


def listener(data: bytes) -> None:
    """Operations 0 to 3: an opened packet from that address; +4: the last one of its batch; 8: time."""
    context = make_context()
    udp = FakeUdp()
    streams: list[Stream] = []
    room = Listener(
        context,
        cast(Any, udp),
        PeerSockets(cast(Any, udp), context.loop),
        table := SessionTable(MAX_SESSIONS),
        on_stream=lambda session, stream: streams.append(stream),
        on_session=lambda session: None,
        on_validated=lambda session: None,
        on_closed=lambda session, reason: None,
    )
    batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
    now = 0
    for operation, payload in records(data):
        packet = payload[:MTU_MAX]
        if operation == 8:
            now += int.from_bytes(payload[:2], "little")
            table.every_second()
            room.every_second(now)
            for session in room.sessions():
                session.update(now)
        elif len(packet) >= 24 and batch.has_room(len(packet)):
            batch.arena[batch.end : batch.end + len(packet)] = packet
            batch.commit(len(packet))
            batch.addresses.append(ADDRESSES[operation & 3])
        if operation & 4:
            room._on_batch(batch, now)
            batch.arena[: batch.end] = bytes([POISON]) * batch.end
            batch.clear()
        for stream in streams:
            with suppress(KcptunError):
                stream.read_chunks(timeout_s=0)
        _check_listener(room, table)
    assert all(len(packet) <= MTU_MAX for packet, _ in udp.sent)


def _check_listener(room: Listener, table: SessionTable) -> None:
    sessions = list(table)
    assert len(sessions) <= MAX_SESSIONS
    assert set(table._by_conv.values()) | set(table._by_place.values()) | set(table._unvalidated) <= set(sessions)
    assert all(table.place_of(session) == (room, session.remote) and not session.is_closed for session in sessions)
    assert table._per_host == Counter(session.remote[0] for session in sessions)
    unvalidated = [session for session in sessions if table.is_unvalidated(session)]
    assert table._unvalidated_per_host == Counter(session.remote[0] for session in unvalidated)
    assert max(table._per_host.values(), default=0) <= table._max_of_host
    assert max(table._unvalidated_per_host.values(), default=0) <= table._max_unvalidated


# -- settings --------------------------------------------------------------------------------------------------


def config(data: bytes) -> None:
    """First byte: which program. The rest: its -c file."""
    program: Program = "client" if data[:1] < b"\x80" else "server"
    try:
        found, _ = parse(program, ["-c", "file"], {}, lambda path: data[1:])
    except ConfigError as exc:
        str(exc).encode("utf-8", "backslashreplace")
        return
    assert type(found).unpack(found.pack()) == found
    if not found.key.isascii():
        derive_key(found.key)
    assert all(describe(found))


READERS: tuple[Callable[[str], Any], ...] = (
    values.remotes,
    values.listening,
    values.listening_range,
    values.listening_or_path,
    values.target,
)


def address(data: bytes) -> None:
    """One text for all readers of addresses and sizes."""
    text = data.decode("utf-8", "surrogateescape")
    for read in READERS:
        with suppress(ValueError):
            found = read(text)
            written = ",".join(map(str, found)) if read is values.remotes else str(found)
            assert read(written) == found, written
    for reader in (values.size, values.percent, values.switch, values.Number(0)):
        with suppress(ValueError):
            reader(text)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (fec, kcp, crypt, gro, snappy, smux, conversation, listener, config, address)
}
