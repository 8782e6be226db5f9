"""The relay: both directions, each to its own end; resets and stops."""

import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from random import Random

import pytest

from kcptun_lite.core.wire import Buffer
from kcptun_lite.errors import StreamClosed, StreamReset, TransportError
from kcptun_lite.net.ends.context import SessionContext
from kcptun_lite.net.event_loop import SCRATCH_BYTES, EventLoop
from kcptun_lite.net.session.stream import READ_LIMIT, Stream
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.tcp import relay as relay_module
from kcptun_lite.net.tcp import sockets
from kcptun_lite.net.tcp.relay import Relay, _Up
from kcptun_lite.net.tcp.sockets import tune
from tests.net.fakes import (
    PATIENCE_S,
    Wire,
    in_background,
    make_context,
    noise,
    small_params,
    wait_until,
    wait_until_listening,
    wait_until_waiting,
    write_and_finish,
)


class Line:
    """An application's connection, a relay, a stream, and the stream's other end."""

    def __init__(self, wire: Wire, context: SessionContext, *, closewait_s: float = PATIENCE_S) -> None:
        self.tcp, self._relays_end = tcp_pair()
        self.stream = wire.client.session.open_stream()
        self.closed: list[Relay] = []
        self.relay = Relay(
            self.stream,
            context.pool,
            context.loop,
            closewait_s=closewait_s,
            on_closed=lambda relay: self.closed.append(relay),
        )
        self.may_open = threading.Event()
        self.may_open.set()
        self._wire = wire

    def open_tcp(self) -> socket.socket:
        self.may_open.wait()
        tune(self._relays_end)
        return self._relays_end

    def start(self) -> None:
        self.relay.dial(lambda: None, self.open_tcp)

    def has_thread(self, name: str) -> bool:
        """Whether the relay has a thread for a direction."""
        return f"{name}-{self.stream.sid}" in [thread.name for thread in threading.enumerate()]

    @property
    def peer(self) -> Stream:
        """The stream at the other end of the tunnel."""
        opened = self._wire.server.opened
        wait_until(lambda: self.stream.sid in [stream.sid for stream in opened])
        return next(stream for stream in opened if stream.sid == self.stream.sid)

    def received(self) -> bytes:
        """All that comes out of the tunnel until its end."""
        data = b""
        while chunks := self.peer.read_chunks(timeout_s=PATIENCE_S):
            data += b"".join(chunks)
        assert chunks is not None
        return data

    def wait_for_end(self) -> None:
        wait_until(lambda: self.closed == [self.relay])


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname(), timeout=PATIENCE_S)
        theirs, _ = server.accept()
    return ours, theirs


def send_and_finish(tcp: socket.socket, data: bytes) -> None:
    tcp.sendall(data)
    tcp.shutdown(socket.SHUT_WR)


def read_to_end(tcp: socket.socket) -> bytes:
    data = b""
    while piece := tcp.recv(65_536):
        data += piece
    return data


def is_reset(tcp: socket.socket) -> bool:
    try:
        read_to_end(tcp)
    except ConnectionResetError:
        return True
    return False


class Relays:
    """Makes lines through one tunnel and cleans up behind them."""

    def __init__(self) -> None:
        self.context = make_context(small_params(snd_wnd=256, rcv_wnd=256), loop=EventLoop())
        self.context.loop.start()
        self.wire = Wire(self.context, monotonic_ms)
        self.lines: list[Line] = []

    def start(self, *, closewait_s: float = PATIENCE_S) -> Line:
        self.lines.append(Line(self.wire, self.context, closewait_s=closewait_s))
        self.lines[-1].start()
        return self.lines[-1]


@pytest.fixture
def relays() -> Iterator[Relays]:
    relays = Relays()
    with relays.wire, relays.wire.carrying():
        yield relays
        for line in relays.lines:
            line.relay.stop()
            line.tcp.close()
            wait_until(lambda line=line: bool(line.closed))  # type: ignore[misc]
    relays.context.loop.stop()
    assert relays.context.pool.usage().in_use_bytes == 0


# -- both directions -----------------------------------------------------------------------------------------


def test_bytes_go_both_ways_and_the_end_of_each_is_passed_on(relays: Relays) -> None:
    line = relays.start()
    up, down = noise(300_000, seed=1), noise(300_000, seed=2)
    sender = in_background(send_and_finish, line.tcp, up)
    answer = in_background(write_and_finish, line.peer, down)
    reader = in_background(read_to_end, line.tcp)
    assert line.received() == up
    assert reader.result() == down
    sender.result()
    answer.result()
    line.wait_for_end()
    assert line.relay.failure is None


def test_the_applications_end_leaves_the_other_direction_open(relays: Relays) -> None:
    line = relays.start()
    line.tcp.sendall(b"question")
    line.tcp.shutdown(socket.SHUT_WR)
    assert line.received() == b"question"
    for part in (b"long ", b"answer"):
        line.peer.write(memoryview(part))
        assert line.tcp.recv(100) == part
    line.peer.close_write()
    assert read_to_end(line.tcp) == b""
    line.wait_for_end()
    assert line.relay.failure is None


def test_the_peers_end_leaves_the_other_direction_open(relays: Relays) -> None:
    line = relays.start()
    line.peer.write(memoryview(b"greeting"))
    line.peer.close_write()
    assert read_to_end(line.tcp) == b"greeting"
    line.tcp.sendall(b"and still listening")
    line.tcp.shutdown(socket.SHUT_WR)
    assert line.received() == b"and still listening"
    line.wait_for_end()
    assert line.relay.failure is None


def test_an_idle_relay_holds_no_buffer(relays: Relays) -> None:
    line = relays.start()
    line.tcp.sendall(b"something")
    assert line.peer.read_chunks() == [b"something"]
    wait_until_listening(line.stream)
    wait_until(lambda: relays.context.pool.usage().in_use_bytes == 0)


# -- in the thread that brings it ----------------------------------------------------------------------------


def small_buffers(line: Line) -> None:
    """The connection takes little that is not read."""
    line.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    line._relays_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)


def read_exactly(tcp: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = tcp.recv(size - len(data))
        assert piece
        data += piece
    return data


def test_a_connection_in_which_little_moves_needs_no_thread(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    line = relays.start()
    wait_until_listening(line.stream)
    threads: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (threads.append(thread.name), start(thread)))
    for number in range(50):
        question, answer = noise(1000, seed=number), noise(3000, seed=-number)
        line.tcp.sendall(question)
        assert b"".join(line.peer.read_chunks() or []) == question
        line.peer.write(memoryview(answer))
        assert read_exactly(line.tcp, 3000) == answer
    assert not threads


def test_what_comes_before_the_connection_waits_for_it(relays: Relays) -> None:
    line = Line(relays.wire, relays.context)
    relays.lines.append(line)
    line.may_open.clear()
    line.start()
    line.peer.write(memoryview(b"early"))
    line.peer.close_write()
    wait_until(lambda: line.stream._has_news)
    line.may_open.set()
    assert read_to_end(line.tcp) == b"early"


def test_a_slow_connection_has_a_thread_until_it_has_been_calm(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "CALM", 20)
    line = relays.start()
    small_buffers(line)
    first, second = noise(1_000_000, seed=1), noise(10_000, seed=2)
    writer = in_background(line.peer.write, memoryview(first))
    wait_until(lambda: line.has_thread("down"))
    assert read_exactly(line.tcp, len(first)) == first
    writer.result()
    wait_until_listening(line.stream)
    wait_until(lambda: not line.has_thread("down"))
    line.peer.write(memoryview(second[:100]))
    assert read_exactly(line.tcp, 100) == second[:100]
    assert not line.has_thread("down")
    writer = in_background(write_and_finish, line.peer, second[100:] + first)
    assert read_to_end(line.tcp) == second[100:] + first
    writer.result()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_changes_places_however_often_the_reader_changes(
    relays: Relays, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(relay_module, "CALM", 1)
    line = relays.start()
    small_buffers(line)
    random = Random(seed)
    data = noise(600_000, seed=seed)

    def write() -> None:
        at = 0
        while at < len(data):
            size = random.choice((10, 1000, 30_000))
            line.peer.write(memoryview(data)[at : at + size])
            at += size
            threading.Event().wait(random.choice((0, 0, 0.002)))
        line.peer.close_write()

    writer = in_background(write)
    wait_until(lambda: line.has_thread("down"))
    received = b""
    pauses = Random(seed + 100)
    while piece := line.tcp.recv(pauses.choice((100, 5000, 50_000))):
        received += piece
        if not pauses.randrange(20):
            threading.Event().wait(0.003)
    writer.result()
    assert received == data


def test_a_connection_that_does_not_read_holds_up_nobody_else(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "STOP_LATENCY", 20)
    stuck, other = relays.start(), relays.start()
    small_buffers(stuck)
    writer = in_background(stuck.peer.write, memoryview(bytes(1_000_000)))
    wait_until(lambda: stuck.has_thread("down"))
    answer = noise(200_000)
    in_background(write_and_finish, other.peer, answer)
    assert read_to_end(other.tcp) == answer
    stuck.relay.stop()
    with suppress(StreamClosed):
        writer.result()


def test_a_thread_that_cannot_be_had_costs_its_stream_and_nothing_else(
    relays: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, other = relays.start(), relays.start()
    small_buffers(line)
    wait_until_listening(line.stream, other.stream)
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name.startswith("down-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    writer = in_background(line.peer.write, memoryview(bytes(1_000_000)))
    line.wait_for_end()
    assert "can't start new thread" in str(line.relay.failure)
    assert is_reset(line.tcp)
    with suppress(StreamClosed):
        writer.result()
    other.peer.write(memoryview(b"alive"))
    assert other.tcp.recv(5) == b"alive"


def test_a_window_that_comes_at_once_is_left_to_a_thread_behind_a_limit(
    relays: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "READS_AT_ONCE", 0)
    line = relays.start()
    line.peer.write(memoryview(b"x"))
    assert line.tcp.recv(1) == b"x"
    wait_until(lambda: line.has_thread("down"))


def test_bytes_that_cost_much_each_are_left_to_a_thread(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    """--QPP takes 0.17 us for each: the thread that brings them serves all sessions."""
    line = relays.start()
    wait_until_listening(line.stream)
    deciphered: dict[str, int] = {}

    class Cipher:
        def encrypt(self, data: Buffer) -> bytes:
            return bytes(data)

        def decrypt(self, data: Buffer) -> bytes:
            name = threading.current_thread().name
            deciphered[name] = deciphered.get(name, 0) + len(data)
            return bytes(data)

    line.stream.cipher = Cipher()
    data = noise(1_000_000)
    writer = in_background(write_and_finish, line.peer, data)
    assert read_to_end(line.tcp) == data
    writer.result()
    assert deciphered.pop(f"down-{line.stream.sid}") > len(data) // 2
    assert sum(deciphered.values()) <= 2 * READ_LIMIT


# -- failures ------------------------------------------------------------------------------------------------


def test_a_reset_of_the_application_cuts_the_stream(relays: Relays) -> None:
    line = relays.start()
    line.tcp.sendall(b"x")
    assert line.peer.read_chunks() == [b"x"]
    line.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, sockets.RESET)
    line.tcp.close()
    with pytest.raises(StreamReset):
        line.peer.read_chunks(timeout_s=PATIENCE_S)
    line.wait_for_end()
    assert isinstance(line.relay.failure, TransportError)


def test_a_stream_cut_by_the_peer_resets_the_application(relays: Relays) -> None:
    line = relays.start()
    line.peer.close()
    assert is_reset(line.tcp)
    line.wait_for_end()
    assert isinstance(line.relay.failure, StreamReset)


def test_the_end_of_the_session_resets_the_application(relays: Relays) -> None:
    line = relays.start()
    wait_until_listening(line.stream)
    relays.wire.client.session.close()
    assert is_reset(line.tcp)
    line.wait_for_end()


def test_a_target_that_cannot_be_reached_cuts_the_stream(relays: Relays) -> None:
    line = Line(relays.wire, relays.context)
    closed: list[Relay] = []

    def refuse() -> socket.socket:
        raise TransportError("cannot connect to nowhere")

    relay = Relay(line.stream, relays.context.pool, relays.context.loop, closewait_s=1, on_closed=closed.append)
    relay.dial(lambda: None, refuse)
    with pytest.raises(StreamReset):
        line.peer.read_chunks(timeout_s=PATIENCE_S)
    wait_until(lambda: closed == [relay])
    assert isinstance(relay.failure, TransportError)
    line.tcp.close()
    line.open_tcp().close()


def test_a_bug_costs_its_stream_and_nothing_else(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    line, other = relays.start(), relays.start()
    wait_until_listening(line.stream)

    def broken(data: memoryview) -> bool:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(line.stream, "write_now", broken)
    line.tcp.sendall(b"x")
    assert is_reset(line.tcp)
    line.wait_for_end()
    assert "ZeroDivisionError" in str(line.relay.failure)
    other.tcp.sendall(b"alive")
    assert other.peer.read_chunks() == [b"alive"]


@pytest.mark.parametrize("is_under_way", [False, True])
def test_a_connection_that_cannot_be_watched_is_reset(
    relays: Relays, monkeypatch: pytest.MonkeyPatch, is_under_way: bool
) -> None:
    line = Line(relays.wire, relays.context)
    relays.lines.append(line)

    def refuse(number: int, callback: object, *, to_write: bool = False) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(relays.context.loop, "watch", refuse)
    line.relay.dial(line.open_tcp if is_under_way else lambda: None, line.open_tcp)
    assert is_reset(line.tcp)
    line.wait_for_end()
    assert "No space left" in str(line.relay.failure)


def test_a_relay_that_is_being_stopped_gets_no_thread_any_more(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the connection is closed under that thread, which goes on with whoever gets its number."""
    line = relays.start()
    wait_until(lambda: line.relay._up is _Up.LOOP)
    is_stopping, may_go_on = threading.Event(), threading.Event()
    close = line.stream.close

    def close_slowly() -> None:
        is_stopping.set()
        may_go_on.wait(PATIENCE_S)
        close()

    monkeypatch.setattr(line.stream, "close", close_slowly)
    stopper = in_background(line.relay.stop)
    assert is_stopping.wait(PATIENCE_S)
    started: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread.name), start(thread)))
    line.tcp.sendall(bytes(3 * SCRATCH_BYTES))
    wait_until(lambda: line.relay._up is not _Up.LOOP)
    may_go_on.set()
    stopper.result()
    line.wait_for_end()
    assert f"up-{line.stream.sid}" not in started


def test_a_relay_that_ends_both_ways_at_once_is_looked_after_no_more(relays: Relays) -> None:
    line = relays.start()
    wait_until_listening(line.stream)
    line.relay.stop()
    line.wait_for_end()
    line.relay._outlive()  # as by a thread that was just about to
    wait_until(lambda: not relays.context.loop._each_second)


# -- after a half-close --------------------------------------------------------------------------------------


def test_the_other_direction_is_given_up_when_it_does_not_move(relays: Relays) -> None:
    line = relays.start(closewait_s=0.05)
    line.tcp.shutdown(socket.SHUT_WR)
    line.wait_for_end()
    assert "half-closed and idle" in str(line.relay.failure)


def test_it_may_take_its_time_as_long_as_it_moves(relays: Relays) -> None:
    line = relays.start(closewait_s=0.1)
    line.tcp.shutdown(socket.SHUT_WR)
    assert line.received() == b""
    began = monotonic_ms()
    while monotonic_ms() - began < 300:
        line.peer.write(memoryview(b"x"))
        assert line.tcp.recv(1) == b"x"
        threading.Event().wait(0.01)
    line.peer.close_write()
    assert read_to_end(line.tcp) == b""
    line.wait_for_end()
    assert line.relay.failure is None


@pytest.mark.parametrize("who", ["application", "peer"])
def test_without_closewait_the_first_end_is_the_end_of_both(relays: Relays, who: str) -> None:
    line = relays.start(closewait_s=0)
    if who == "application":
        line.tcp.sendall(b"bye")
        line.tcp.shutdown(socket.SHUT_WR)
        assert line.received() == b"bye"
    else:
        line.peer.write(memoryview(b"bye"))
        line.peer.close_write()
        assert line.tcp.recv(3) == b"bye"
    assert not is_reset(line.tcp)
    line.wait_for_end()


# -- stopping ------------------------------------------------------------------------------------------------


def test_stop_ends_an_idle_relay_with_a_reset(relays: Relays) -> None:
    line = relays.start()
    wait_until_listening(line.stream)
    line.relay.stop()
    line.relay.stop()
    assert is_reset(line.tcp)
    line.wait_for_end()


def test_stop_ends_a_relay_whose_application_does_not_read(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "STOP_LATENCY", 20)
    line = relays.start()
    flood = in_background(lambda: line.peer.write(memoryview(bytes(64 << 20))))
    moved = -1

    def is_stuck() -> bool:
        nonlocal moved
        before, moved = moved, line.relay._moved
        threading.Event().wait(0.05)
        return moved == before > 0

    wait_until(is_stuck)
    line.relay.stop()
    line.wait_for_end()
    line.peer.close()
    with suppress(StreamClosed):  # if it is closed before it hears
        assert flood.result() is False, "nobody listens any more"


def test_stop_ends_a_relay_whose_peer_does_not_read(relays: Relays) -> None:
    relays.wire.is_cut = True
    line = relays.start()
    flood = in_background(lambda: line.tcp.sendall(bytes(64 << 20)))
    wait_until_waiting(line.stream, to_write=True)
    line.relay.stop()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        flood.result()
    line.wait_for_end()


def test_stop_while_connecting_ends_as_soon_as_there_is_an_answer(relays: Relays) -> None:
    line = Line(relays.wire, relays.context)
    line.may_open.clear()
    line.start()
    line.relay.stop()
    assert not line.closed
    line.may_open.set()
    line.wait_for_end()
    assert is_reset(line.tcp) or read_to_end(line.tcp) == b""
    line.tcp.close()
