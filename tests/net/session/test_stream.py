"""A stream: waiting, being woken, and taking turns."""

from collections.abc import Callable, Iterator

import pytest

from kcptun_lite.core.mux.smux import UNDER_WAY
from kcptun_lite.core.overtaking import SMALL
from kcptun_lite.core.wire import SMUX_HEADER, SMUX_UPD, SMUX_UPDATE
from kcptun_lite.errors import StreamClosed, StreamReset
from kcptun_lite.net.session.stream import DOUBT_BYTES, DOUBT_TIME, Stream
from kcptun_lite.net.session.update_thread import monotonic_ms
from tests.net.fakes import (
    Clock,
    Wire,
    in_background,
    is_waiting,
    make_context,
    noise,
    read_all,
    segment,
    set_clock,
    small_params,
    wait_until,
    wait_until_waiting,
    write_and_finish,
)

LARGE = SMALL + 1  # bytes; what overtakes nobody


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    clock = Clock()
    set_clock(monkeypatch, clock)
    with Wire(make_context(small_params(snd_wnd=8)), clock) as wire:
        yield wire


def read_everything(stream: Stream) -> bytes:
    received = b""
    while chunks := stream.read_chunks():
        received += b"".join(chunks)
    return received


def test_reading_waits_for_bytes(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    reader = in_background(stream.read_chunks)
    wait_until_waiting(stream, to_write=False)
    wire.server.opened[0].write(memoryview(b"at last"))
    wire.carry()
    assert reader.result() == [b"at last"]


def test_reading_with_a_limit_of_time_gives_none(wire: Wire) -> None:
    assert wire.client.session.open_stream().read_chunks(timeout_s=0) is None


def test_the_peers_end_comes_behind_its_bytes_and_stays(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    wire.server.opened[0].write(memoryview(b"last words"))
    wire.server.opened[0].close_write()
    wire.carry()
    assert stream.read_chunks() == [b"last words"]
    assert stream.read_chunks() == stream.read_chunks() == []
    stream.write(memoryview(b"our direction is still there"))
    wire.carry()
    assert wire.server.opened[0].read_chunks() == [b"our direction is still there"]


def test_nothing_is_written_behind_our_end(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    stream.close_write()
    stream.close_write()
    assert stream.write(memoryview(b"x")) is False
    wire.carry()
    assert wire.server.opened[0].read_chunks() == []


def test_a_closed_stream_is_closed_for_all_purposes(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    stream.close()
    stream.close()
    stream.close_write()
    with pytest.raises(StreamClosed):
        stream.read_chunks()
    with pytest.raises(StreamClosed):
        stream.write(memoryview(b"x"))
    assert wire.client.session.stream_count == 0


@pytest.mark.parametrize("to_write", [True, False], ids=["writer", "reader"])
def test_closing_wakes_the_thread_that_waits(wire: Wire, to_write: bool) -> None:
    stream = wire.client.session.open_stream()
    waiting = in_background(lambda: stream.write(memoryview(bytes(1 << 20))) if to_write else stream.read_chunks())
    wait_until_waiting(stream, to_write=to_write)
    stream.close()
    with pytest.raises(StreamClosed):
        waiting.result()
    assert not wire.client.session.writers


def test_a_stream_may_be_closed_when_its_session_is_over(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    wire.client.session.close()
    stream.close_write()
    with pytest.raises(StreamReset, match="closed"):
        stream.write(memoryview(b"x"))
    stream.close()


def test_a_write_that_waited_arrives_whole(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    data = noise(100_000)
    writer = in_background(write_and_finish, stream, data)
    wait_until_waiting(stream, to_write=True)
    received = b""
    while len(received) < len(data):
        wire.pass_time(10)
        if wire.server.opened:
            received += b"".join(wire.server.opened[0].read_chunks(timeout_s=0) or [])
    writer.result()
    assert received == data


def test_a_buffer_may_be_used_again_when_write_has_returned(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    buffer = bytearray(b"first")
    stream.write(memoryview(buffer))
    buffer[:] = b"other"
    wire.carry()
    assert wire.server.opened[0].read_chunks() == [b"first"]


# -- sinks ---------------------------------------------------------------------------------------------------


class Sink:
    """Reads all there is, and remembers it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.calls = 0
        self.chunks: list[bytes] = []
        self.failure: Exception | None = None
        self.to_do: Callable[[], object] = lambda: None

    def __call__(self) -> None:
        self.calls += 1
        self.to_do()
        try:
            while chunks := self.stream.read_ready():
                self.chunks += chunks
        except StreamReset as exc:
            self.failure = exc


def test_a_sink_takes_what_was_there_and_what_comes(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    stream.write(memoryview(b"before"))
    wire.carry()
    sink = Sink(wire.server.opened[0])
    sink.stream.attach(sink)
    assert sink.chunks == [b"before"]
    stream.write(memoryview(b"behind"))
    wire.carry()
    assert sink.chunks == [b"before", b"behind"] and sink.calls == 2


def test_a_sink_is_called_by_one_at_a_time(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    sink = Sink(wire.server.opened[0])
    sink.stream.attach(sink)

    def bring_more() -> None:
        sink.to_do = lambda: None
        stream.write(memoryview(b"second"))
        wire.carry()

    sink.to_do = bring_more
    stream.write(memoryview(b"first "))
    wire.carry()
    assert b"".join(sink.chunks) == b"first second" and sink.calls == 2


def test_the_death_of_the_session_calls_the_sinks(wire: Wire) -> None:
    streams = [wire.client.session.open_stream() for _ in range(3)]
    sinks = [Sink(stream) for stream in streams]
    for sink in sinks:
        sink.stream.attach(sink)
    wire.client.session.close()
    assert all("closed" in str(sink.failure) and sink.calls == 2 for sink in sinks)


def test_a_closed_stream_is_over_when_its_reader_has_left(wire: Wire) -> None:
    stream, other = wire.client.session.open_stream(), wire.client.session.open_stream()
    over: list[str] = []
    stream.on_over, other.on_over = lambda: over.append("read"), lambda: over.append("unread")
    stream.attach(lambda: None)  # a sink that has some thread do it
    stream.close()
    other.close()
    assert over == ["unread"]
    stream.release()
    stream.release()
    assert over == ["unread", "read"]


def test_what_one_reader_unblocks_for_others_is_left_to_the_update_thread() -> None:
    clock = Clock()
    with Wire(make_context(small_params(snd_wnd=64, smux_buffer=1000)), clock) as wire:
        full, other = wire.client.session.open_stream(), wire.client.session.open_stream()
        wire.carry()
        by_sid = {stream.sid: stream for stream in wire.server.opened}
        sink = Sink(by_sid[other.sid])
        sink.stream.attach(sink)
        full.write(memoryview(bytes(1000 * (1 + UNDER_WAY) + 500)))  # more than is taken for one who stops
        wire.carry()
        other.write(memoryview(b"behind it"))
        wire.carry()
        assert not sink.chunks
        taken = by_sid[full.sid].read_chunks() or []
        assert sum(map(len, taken)) and not sink.chunks
        wire.server.session.update(clock.now)
        assert sink.chunks == [b"behind it"]


# -- taking turns --------------------------------------------------------------------------------------------


def test_a_small_message_overtakes_those_who_wait_for_room(wire: Wire) -> None:
    session = wire.client.session
    bulk, quiet = session.open_stream(), session.open_stream()
    wire.carry()
    writer = in_background(bulk.write, memoryview(bytes(150_000)))
    wait_until_waiting(bulk, to_write=True)
    quiet.write(memoryview(b"short"))  # nothing has been carried: there is no room yet
    assert list(session.writers) == [bulk]
    session.close()
    with pytest.raises(StreamReset):
        writer.result()


def test_writers_stand_in_line_and_a_quiet_one_gets_its_turn(wire: Wire) -> None:
    session = wire.client.session
    bulk = [session.open_stream() for _ in range(3)]
    quiet = session.open_stream()
    data = bytes(150_000)
    writers = [in_background(stream.write, memoryview(data)) for stream in bulk]
    wait_until_waiting(*bulk, to_write=True)
    line = list(session.writers)
    assert sorted(stream.sid for stream in line) == [stream.sid for stream in bulk]
    request = in_background(lambda: quiet.write(memoryview(bytes(LARGE))))
    wait_until_waiting(quiet, to_write=True)
    assert list(session.writers) == [*line, quiet], "behind those who came first, before their next turns"
    while quiet in session.writers:
        wire.pass_time(10)
        for stream in wire.server.opened:
            stream.read_chunks(timeout_s=0)
    assert all(writer.is_alive() for writer in writers), "the bulk goes on"
    request.result()
    session.close()
    for writer in writers:
        with pytest.raises(StreamReset):
            writer.result()


def test_equal_writers_are_served_equally() -> None:
    params = small_params(snd_wnd=8, rcv_wnd=64)
    with Wire(make_context(params), monotonic_ms) as wire, wire.carrying():
        streams = [wire.client.session.open_stream() for _ in range(4)]
        wait_until(lambda: len(wire.server.opened) == 4)
        chunk = memoryview(bytes(4096))
        written = dict.fromkeys(streams, 0)

        def write_for_ever(stream: Stream) -> None:
            while True:
                stream.write(chunk)
                written[stream] += 1

        def read_for_ever(stream: Stream) -> None:
            while stream.read_chunks():
                pass

        readers = [in_background(read_for_ever, stream) for stream in wire.server.opened]
        writers = [in_background(write_for_ever, stream) for stream in streams]
        wait_until(lambda: sum(written.values()) > 400)
        counts = list(written.values())
        wire.client.session.close()
        wire.server.session.close()
        for thread in writers + readers:
            with pytest.raises(StreamReset):
                thread.result()
    assert min(counts) > max(counts) / 3, counts


def version2(**changes: int) -> Wire:
    return Wire(make_context(small_params(snd_wnd=64, rcv_wnd=256, smux_version=2, **changes)), monotonic_ms)


def test_a_slow_reader_stops_only_its_own_stream_under_version_2() -> None:
    with version2(stream_buffer=65_536) as wire, wire.carrying():
        slow, fast = wire.client.session.open_stream(), wire.client.session.open_stream()
        stuck = in_background(lambda: slow.write(memoryview(bytes(1 << 20))))
        wait_until(lambda: is_waiting(slow, to_write=True) and slow not in wire.client.session.writers)
        data = noise(500_000)
        writer = in_background(write_and_finish, fast, data)
        wait_until(lambda: len(wire.server.opened) == 2)
        by_sid = {stream.sid: stream for stream in wire.server.opened}
        assert read_everything(by_sid[fast.sid]) == data
        writer.result()
        assert stuck.is_alive()
        wire.client.session.close()
        with pytest.raises(StreamReset):
            stuck.result()


def test_a_window_that_shrinks_while_its_writer_is_in_line_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    set_clock(monkeypatch, clock)
    with Wire(make_context(small_params(snd_wnd=8, smux_version=2)), clock) as wire:
        session = wire.client.session
        shut, free = session.open_stream(), session.open_stream()
        wire.carry()
        first = in_background(lambda: shut.write(memoryview(bytes(100_000))))
        wait_until(lambda: list(session.writers) == [shut] and is_waiting(shut, to_write=True))
        second = in_background(lambda: free.write(memoryview(bytes(LARGE))))
        wait_until(lambda: list(session.writers) == [shut, free] and is_waiting(free, to_write=True))
        # The peer tells a window that is smaller than what is on its way to it, as one does whose --streambuf is
        # below the 256 KiB we begin with; and acknowledges all, so that the session has room.
        update = SMUX_HEADER.pack(2, SMUX_UPD, 8, shut.sid) + SMUX_UPDATE.pack(0, 1)
        una, sn, _ = session.conversation.kcp.progress()
        in_flight = len(session.conversation.kcp.window.segments)
        session.receive([segment(sn=sn, una=una + in_flight, data=update)], clock.now)
        second.result()
        assert first.is_alive() and shut not in session.writers
        session.close()
        with pytest.raises(StreamReset):
            first.result()


def test_who_reads_is_the_only_one_however_much_comes_meanwhile(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    calls: list[None] = []
    stream.attach(lambda: calls.append(None))  # and reads nothing yet
    for _ in range(3):
        wire.server.opened[0].write(memoryview(b"more"))
        wire.carry()
    assert len(calls) == 1


# -- written by the event loop -------------------------------------------------------------------------------


def test_what_is_written_now_goes_now(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    sent = len(wire.client.udp.sent)
    assert stream.write_now(memoryview(b"question"))
    assert len(wire.client.udp.sent) > sent


def test_who_may_have_gone_is_written_to_by_a_thread_that_can_wait(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = wire.client.session.open_stream()
    monkeypatch.setattr(wire.client.session.conversation, "is_doubtful", lambda sid: True)
    assert not stream.write_now(memoryview(b"question"))
    wire.carry()
    assert read_all(wire.server) == b""
    assert stream.write(memoryview(b""))
    wire.carry()
    assert read_all(wire.server) == b"question"


def test_what_has_no_room_now_goes_before_what_comes_later(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = wire.client.session.open_stream()
    conversation = wire.client.session.conversation
    send, rooms = conversation.send_stream_data, [3, 0]
    monkeypatch.setattr(
        conversation, "send_stream_data", lambda sid, data: send(sid, data[: rooms.pop(0)] if rooms else data)
    )
    assert not stream.write_now(memoryview(b"one"[:2] + b"two"))
    assert not stream.write_now(memoryview(b"three"))
    assert stream.write(memoryview(b"four"))
    wire.carry()
    assert read_all(wire.server) == b"ontwothreefour"


def test_who_may_have_gone_is_sent_a_reply_that_follows_at_once_and_no_endless_one(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    set_clock(monkeypatch, clock)
    stream = wire.client.session.open_stream()
    monkeypatch.setattr(wire.client.session.conversation, "is_doubtful", lambda sid: True)
    for _ in range(3):  # on a slow line
        assert stream.write(memoryview(b"a reply"))
        wire.carry()
        clock.now += DOUBT_TIME
    stream._doubted_bytes = DOUBT_BYTES + 1
    assert not stream.write(memoryview(b"more"))
