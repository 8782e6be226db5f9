"""Bytes through smux streams: whole and in order, within budgets and windows, between two ends of any pace."""

import random
import struct

import pytest

from kcptun_lite.core.mux.smux import StreamFinished, StreamOpened, StreamReadable, StreamWritable
from kcptun_lite.core.wire import SMUX_FIN, SMUX_NOP, SMUX_PEER_WINDOW_INITIAL, SMUX_PSH, SMUX_UPD
from kcptun_lite.errors import SmuxError
from tests.core.mux.smux_frames import frame, make, sent, sent_bytes, take_all


def update(sid: int, consumed: int, window: int) -> bytes:
    return frame(SMUX_UPD, sid, struct.pack("<II", consumed, window), version=2)


# Payload


def test_payload_of_a_frame_is_there_before_its_end() -> None:
    session = make()
    sid = session.open_stream()
    data = random.Random(3).randbytes(65_535)
    stream = frame(SMUX_PSH, sid, data)
    assert session.feed(stream[:7]) == []
    assert session.held_bytes == 8 + 7  # our SYN and the start of the header
    assert session.feed(stream[7:5008]) == [StreamReadable(sid)]
    assert session.take(sid, 1 << 20) == [data[:5000]]
    assert session.feed(stream[5008:] + frame(SMUX_FIN, sid)) == [StreamReadable(sid), StreamFinished(sid)]
    assert take_all(session, sid) == data[5000:]


def test_payload_for_a_stream_closed_in_the_middle_of_a_frame_is_dropped() -> None:
    session = make()
    first, second = session.open_stream(), session.open_stream()
    stream = frame(SMUX_PSH, first, bytes(1000)) + frame(SMUX_PSH, second, b"goes on")
    session.feed(stream[:500])
    session.close(first)
    assert session.feed(stream[500:]) == [StreamReadable(second)]
    assert take_all(session, second) == b"goes on"
    assert session.receive_budget == 4_194_304


def test_payload_is_independent_of_what_was_fed() -> None:
    session = make()
    sid = session.open_stream()
    data = bytearray(frame(SMUX_PSH, sid, b"payload") * 2)
    session.feed(memoryview(data))
    data[:] = bytes(len(data))
    (chunk,) = session.take(sid, 100)
    assert chunk == b"payloadpayload"
    assert type(chunk) is bytes


def test_take_keeps_the_order_and_the_limit() -> None:
    session = make()
    sid = session.open_stream()
    chunks = [bytes([n]) * 2000 for n in range(5)]
    session.feed(b"".join(frame(SMUX_PSH, sid, chunk) for chunk in chunks))
    assert session.take(sid, 3999) == chunks[:1]
    assert session.take(sid, 4000) == chunks[1:3]
    assert session.take(sid, 1) == chunks[3:4]  # a chunk is never cut
    assert session.take(sid, 1 << 20) == chunks[4:]
    assert session.take(sid, 1 << 20) == []


def test_tiny_payloads_do_not_become_many_chunks() -> None:
    session = make()
    sid = session.open_stream()
    session.feed(frame(SMUX_PSH, sid, b"ab") * 5000)
    chunks = session.take(sid, 1 << 20)
    assert b"".join(chunks) == b"ab" * 5000
    assert len(chunks) <= 10


def test_empty_payload_is_ignored() -> None:
    session = make()
    sid = session.open_stream()
    assert session.feed(frame(SMUX_PSH, sid) + frame(SMUX_PSH, 99) + frame(SMUX_NOP, 0)) == []
    assert session.feed(frame(SMUX_PSH, sid, b"x")) == [StreamReadable(sid)]


def test_events_tell_of_changes_only() -> None:
    session = make()
    sid = session.open_stream()
    assert session.feed(frame(SMUX_PSH, sid, bytes(2000)) * 3) == [StreamReadable(sid)]
    assert session.feed(frame(SMUX_PSH, sid, bytes(2000))) == []
    session.take(sid, 2000)
    assert session.feed(frame(SMUX_PSH, sid, bytes(2000))) == []
    take_all(session, sid)
    assert session.feed(frame(SMUX_PSH, sid, bytes(2000))) == [StreamReadable(sid)]


# Budget and windows


def test_budget_goes_down_with_payload_and_comes_back_with_reading_and_closing() -> None:
    session = make(receive_buffer=10_000)
    first, second = session.open_stream(), session.open_stream()
    session.frames_to_send()
    session.feed(frame(SMUX_PSH, first, bytes(6000)) + frame(SMUX_PSH, second, bytes(3000)))
    assert session.receive_budget == 1000
    session.feed(frame(SMUX_PSH, 77, bytes(5000)))
    assert session.receive_budget == 1000
    session.feed(frame(SMUX_PSH, second, bytes(3000)))  # one call's worth too much is accepted
    assert (session.receive_budget, session.held_bytes) == (-2000, 12_000)
    session.take(first, 1 << 20)
    assert session.receive_budget == 4000
    session.close(second)
    assert (session.receive_budget, session.held_bytes) == (10_000, 16)  # 16: the mark and our FIN


def test_version_1_has_no_window_and_no_updates() -> None:
    session = make()
    sid = session.open_stream()
    size = SMUX_PEER_WINDOW_INITIAL * 2
    assert session.send_room(sid) > size
    assert session.send_data(sid, memoryview(bytes(size))) == size
    session.feed(frame(SMUX_PSH, sid, bytes(40_000)))
    session.frames_to_send()
    take_all(session, sid)
    assert session.frames_to_send() == []
    assert session.feed(frame(SMUX_UPD, sid, struct.pack("<II", size + 1, 0))) == []  # smux of 2021 reads it, too
    assert session.send_room(sid) > size


def test_version_2_sender_stays_within_the_window() -> None:
    session = make(version=2)
    sid = session.open_stream()
    data = memoryview(bytes(300_000))
    assert session.send_room(sid) == SMUX_PEER_WINDOW_INITIAL
    assert session.send_data(sid, data[:1000]) == 1000
    assert session.send_data(sid, data) == SMUX_PEER_WINDOW_INITIAL - 1000
    assert session.send_data(sid, data) == session.send_room(sid) == 0
    assert sum(len(payload) for _, _, payload in sent(session)) == SMUX_PEER_WINDOW_INITIAL

    assert session.feed(update(sid, 1000, 200_000)) == []  # absolute, and smaller than what is under way
    assert session.send_room(sid) == 0
    assert session.feed(update(sid, 100_000, 200_000)) == [StreamWritable(sid)]
    assert session.send_data(sid, data) == 100_000 + 200_000 - SMUX_PEER_WINDOW_INITIAL
    assert session.feed(update(sid, 300_000, 0)) == []
    assert session.feed(update(sid, 300_000, 1)) == [StreamWritable(sid)]
    assert session.feed(update(sid, 300_000, 2)) == []
    assert session.feed(update(sid, 300_000, 0xFFFFFFFF)) == []
    assert session.send_room(sid) == 0x7FFFFFFF


def test_version_2_window_after_the_peers_fin() -> None:
    session = make(version=2)
    sid = session.open_stream()
    session.send_data(sid, memoryview(bytes(300_000)))
    assert session.feed(frame(SMUX_FIN, sid, version=2)) == [StreamFinished(sid)]
    assert session.send_data(sid, memoryview(b"x")) == 0
    assert session.feed(update(sid, 262_144, 65_536)) == [StreamWritable(sid)]
    assert session.send_data(sid, memoryview(b"x")) == 1


def test_version_2_window_of_a_stream_we_have_finished_interests_nobody() -> None:
    session = make(version=2)
    sid = session.open_stream()
    session.send_data(sid, memoryview(bytes(300_000)))
    session.finish(sid)
    assert session.feed(update(sid, 262_144, 65_536)) == []


@pytest.mark.parametrize("bad", [1, 1000, 0x7FFFFFFF])
def test_version_2_peer_that_consumed_too_much(bad: int) -> None:
    session = make(version=2)
    sid = session.open_stream()
    session.send_data(sid, memoryview(bytes(5000)))
    with pytest.raises(SmuxError, match=f"consumed {bad} bytes more"):
        session.feed(update(sid, 5000 + bad, 65_536))


def test_version_2_counters_wrap() -> None:
    session = make(version=2)
    sid = session.open_stream()
    stream = session._streams[sid]
    stream.written = stream.peer_consumed = 2**32 - 1000
    stream.consumed = stream.announced = 2**32 - 1000
    assert session.send_data(sid, memoryview(bytes(262_144))) == 262_144
    assert session.feed(update(sid, 2000, 16_384)) == []
    assert session.feed(update(sid, 262_144 - 1000, 16_384)) == [StreamWritable(sid)]
    assert session.send_room(sid) == 16_384
    session.frames_to_send()
    session.feed(frame(SMUX_PSH, sid, bytes(10_000), version=2))
    take_all(session, sid)
    assert sent(session) == [(SMUX_UPD, sid, struct.pack("<II", 9000, 16_384))]


def test_version_2_updates_come_first_and_then_by_halves() -> None:
    session = make(version=2, stream_buffer=16_384)
    sid = session.open_stream()
    session.frames_to_send()
    told = []
    for total in range(1000, 60_001, 1000):
        session.feed(frame(SMUX_PSH, sid, bytes(1000), version=2))
        take_all(session, sid)
        for command, _, payload in sent(session):
            consumed, window = struct.unpack("<II", payload)
            assert (command, consumed, window) == (SMUX_UPD, total, 16_384)
            told.append(consumed)
    assert told == [1000, 10_000, 19_000, 28_000, 37_000, 46_000, 55_000]


def test_no_update_for_a_stream_that_gets_no_more() -> None:
    session = make(version=2)
    sid = session.open_stream()
    session.frames_to_send()
    session.feed(frame(SMUX_PSH, sid, bytes(50_000), version=2) + frame(SMUX_FIN, sid, version=2))
    assert len(take_all(session, sid)) == 50_000
    assert session.frames_to_send() == []


# Two ends


class Pair:
    """Two ends joined by two pipes of bytes that are cut anywhere."""

    def __init__(self, version: int, rng: random.Random) -> None:
        self.rng = rng
        sizes = {"max_frame": rng.choice([1, 100, 4096, 65_535]), "receive_buffer": 30_000, "stream_buffer": 5000}
        if sizes["max_frame"] == 1:
            sizes["max_frame"] = 7
        self.ends = [make(True, version, **sizes), make(False, version, **sizes)]
        self.pipes = [bytearray(), bytearray()]  # what end 0 and end 1 have sent
        self.sent: list[dict[int, bytearray]] = [{}, {}]
        self.got: list[dict[int, bytearray]] = [{}, {}]
        self.finished: list[set[int]] = [set(), set()]
        self.peer_finished: list[set[int]] = [set(), set()]
        self.may_take: list[set[int]] = [set(), set()]

    def open(self, end: int) -> None:
        sid = self.ends[end].open_stream()
        self._start(end, sid)

    def _start(self, end: int, sid: int) -> None:
        self.sent[end][sid], self.got[end][sid] = bytearray(), bytearray()

    def send(self, end: int) -> None:
        if sids := sorted(self.sent[end].keys() - self.finished[end]):
            sid = self.rng.choice(sids)
            data = self.rng.randbytes(self.rng.choice([1, 50, 3000, 20_000]))
            room = self.ends[end].send_room(sid)
            accepted = self.ends[end].send_data(sid, memoryview(data))
            assert accepted == min(room, len(data))
            self.sent[end][sid] += data[:accepted]

    def finish(self, end: int) -> None:
        if sids := sorted(self.sent[end].keys() - self.finished[end]):
            sid = self.rng.choice(sids)
            self.ends[end].finish(sid)
            self.finished[end].add(sid)

    def take(self, end: int) -> None:
        if self.may_take[end]:
            sid = self.rng.choice(sorted(self.may_take[end]))
            chunks = self.ends[end].take(sid, self.rng.choice([1, 1000, 100_000]))
            if not chunks:  # only now the next StreamReadable is due
                self.may_take[end].remove(sid)
            self.got[end][sid] += b"".join(chunks)

    def move(self, end: int) -> None:
        """Bring bytes from `end` to the other one, as far as that has a budget."""
        self.pipes[end] += b"".join(self.ends[end].frames_to_send())
        other = 1 - end
        if self.pipes[end] and self.ends[other].receive_budget > 0:
            cut = self.rng.choice([1, 5, 13, 1400, 40_000])
            data = bytes(self.pipes[end][:cut])
            del self.pipes[end][:cut]
            for event in self.ends[other].feed(data):
                if isinstance(event, StreamOpened):
                    self._start(other, event.sid)
                elif isinstance(event, StreamReadable):
                    self.may_take[other].add(event.sid)
                elif isinstance(event, StreamFinished):
                    self.peer_finished[other].add(event.sid)
            assert self.ends[other].receive_budget > -len(data)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_everything_arrives_and_budgets_return(version: int, seed: int) -> None:
    pair = Pair(version, random.Random(seed))
    for _ in range(600):
        action = pair.rng.choices([pair.open, pair.send, pair.finish, pair.take, pair.move], [1, 8, 0.5, 8, 16])[0]
        action(pair.rng.randrange(2))
    for end in (0, 1):
        while pair.sent[end].keys() - pair.finished[end]:
            pair.finish(end)
    for _ in range(100_000):
        for end in (0, 1):
            pair.move(end)
            pair.take(end)
            while pair.sent[end].keys() - pair.finished[end]:  # opened by the peer meanwhile
                pair.finish(end)
        if not any(pair.pipes) and not any(pair.may_take) and not any(session.held_bytes for session in pair.ends):
            break
    for end in (0, 1):
        assert pair.got[1 - end] == pair.sent[end]
        assert pair.peer_finished[1 - end] == pair.finished[end]
        assert pair.ends[end].receive_budget == 30_000
        for sid in pair.got[end].keys() | pair.sent[end].keys():
            pair.ends[end].close(sid)
        assert pair.ends[end].stream_count == 0 and not sent_bytes(pair.ends[end])
    assert sum(map(len, pair.sent[0].values())) > 10_000


def test_version_2_bulk_is_bounded_by_the_window_and_does_not_stall() -> None:
    client, server = make(version=2, stream_buffer=20_000), make(False, version=2, stream_buffer=20_000)
    sid = client.open_stream()
    data = random.Random(5).randbytes(1_000_000)
    sent_so_far, got = 0, b""
    rounds = 0
    while len(got) < len(data):
        sent_so_far += client.send_data(sid, memoryview(data)[sent_so_far:])
        window = SMUX_PEER_WINDOW_INITIAL if rounds == 0 else 20_000
        assert sent_so_far - len(got) <= window
        server.feed(sent_bytes(client))
        got += b"".join(server.take(sid, 9000))
        client.feed(sent_bytes(server))
        if client.send_room(sid) > 0:
            rounds += 1
    assert got == data
    assert rounds > (1_000_000 - SMUX_PEER_WINDOW_INITIAL) // 20_000
