"""A reader that stops, in version 1 between two of ours: he alone waits, and nobody else is limited."""

import struct

import pytest

from kcptun_lite.core.mux.smux import HELLO_SID, UNREAD_LEAST, WINDOWS_SID, SmuxSession, StreamWritable
from kcptun_lite.core.mux.stream_state import OPEN_WINDOW
from kcptun_lite.core.wire import SMUX_NOP, SMUX_PSH, SMUX_SYN, SMUX_UPD
from tests.core.mux.smux_frames import Frame, frame, make, sent, sent_bytes, take_all

BUFFER = 400_000
LIMIT = BUFFER // 4


@pytest.fixture
def session() -> SmuxSession:
    """A server with one stream, 3, of a client that heeds windows."""
    session = make(is_client=False, receive_buffer=BUFFER)
    session.feed(frame(SMUX_NOP, HELLO_SID) + frame(SMUX_NOP, WINDOWS_SID) + frame(SMUX_SYN, 3))
    return session


def receive(session: SmuxSession, sid: int, size: int) -> list[Frame]:
    """What is sent when so much has come."""
    while size:
        piece = min(size, 10_000)
        session.feed(frame(SMUX_PSH, sid, bytes(piece)))
        size -= piece
    return sent(session)


def update(sid: int, consumed: int, window: int) -> Frame:
    return SMUX_UPD, sid, struct.pack("<II", consumed, window)


def test_both_ends_say_at_once_that_they_heed_windows() -> None:
    for version, told in ((1, [HELLO_SID, WINDOWS_SID]), (2, [HELLO_SID])):
        session = make(version=version)
        session.hello()
        assert [sid for _, sid, _ in sent(session)] == told


def test_who_reads_hears_nothing_of_windows(session: SmuxSession) -> None:
    for _ in range(50):
        assert receive(session, 3, 60_000) == []
        take_all(session, 3)
    assert sent(session) == []


def test_who_stops_is_told_to_wait_and_goes_on_in_steps(session: SmuxSession) -> None:
    told = receive(session, 3, 90_000)
    assert told == [update(3, 0, (BUFFER - 90_000) // 4)]
    (limit,) = (struct.unpack("<II", payload)[1] for _, _, payload in told)
    assert receive(session, 3, 50_000) == [], "what was under way; it is told once"
    assert session.take(3, 10_000) and sent(session) == []
    session.take(3, 10_000)
    assert sent(session) == [update(3, 20_000, limit)], "a quarter of the limit was read"
    take_all(session, 3)
    assert sent(session) == [update(3, 140_000, OPEN_WINDOW)]
    assert receive(session, 3, 60_000) == [], "as if nothing had been"


def test_many_may_stop_before_the_buffer_is_full(session: SmuxSession) -> None:
    stopped = 0
    for sid in range(5, 5 + 2 * 20, 2):
        session.feed(frame(SMUX_SYN, sid))
        limit = max(UNREAD_LEAST, session.receive_budget // 4)
        assert receive(session, sid, limit + 10_000), "each is told to wait"
        stopped += 1
        if session.receive_budget <= 0:
            break
    assert stopped >= 6


def test_a_kcptun_is_told_nothing() -> None:
    session = make(is_client=False, receive_buffer=BUFFER)
    session.feed(frame(SMUX_SYN, 3))
    assert receive(session, 3, BUFFER) == []
    take_all(session, 3)
    assert sent(session) == []


def test_a_sender_heeds_what_it_is_told_and_nothing_else() -> None:
    session = make()
    sid = session.open_stream()
    data = memoryview(bytes(300_000))
    session.feed(frame(SMUX_NOP, HELLO_SID) + frame(SMUX_NOP, WINDOWS_SID))
    for _ in range(10_000):
        assert session.send_data(sid, data) == len(data), "without limit until it is told of one, past 2 GiB as well"
        session.frames_to_send()
        if session._streams[sid].written > 0x90000000:
            break
    written = session._streams[sid].written
    consumed = (written - 100_000) & 0xFFFFFFFF
    assert session.feed(frame(SMUX_UPD, sid, struct.pack("<II", consumed, 50_000))) == []
    assert session.send_room(sid) == 0
    assert session.feed(frame(SMUX_UPD, sid, struct.pack("<II", consumed + 60_000, 50_000))) == [StreamWritable(sid)]
    assert session.send_room(sid) == 10_000
    session.send_data(sid, data)
    assert session.feed(frame(SMUX_UPD, sid, struct.pack("<II", consumed + 110_000, OPEN_WINDOW))) == [
        StreamWritable(sid)
    ]
    assert session.send_room(sid) == OPEN_WINDOW


def test_another_version_makes_windows_anew() -> None:
    session = make()
    sid = session.open_stream()
    session.send_data(sid, memoryview(bytes(1000)))
    sent_bytes(session)
    session.begin_again(2)
    assert session.send_room(sid) == 262_144 - 1000
    session.begin_again(1)
    assert session.send_room(sid) == OPEN_WINDOW
    session.finish(sid)
    session.begin_again(2)
    assert not session.is_listening(sid), "what had ended stays so"


def test_what_is_under_way_when_a_reader_stops_is_taken_beyond_the_buffer_within_a_bound(session: SmuxSession) -> None:
    receive(session, 3, 3 * BUFFER)
    assert session.has_room and not session.is_filling
    receive(session, 3, BUFFER)
    assert not session.has_room and session.is_filling
    session.take(3, BUFFER)
    assert session.has_room
