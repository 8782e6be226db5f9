"""The relay: which thread reads and which one writes, and what becomes of the bytes when that changes."""

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from random import Random

import pytest

from kcptun_lite import log
from kcptun_lite.core.wire import Buffer
from kcptun_lite.errors import StreamClosed, StreamReset
from kcptun_lite.net.event_loop import SCRATCH_BYTES
from kcptun_lite.net.session.stream import READ_LIMIT, Stream
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.tcp import relay as relay_module
from kcptun_lite.net.tcp import sockets
from kcptun_lite.net.tcp.relay import _Up
from tests.net.fakes import (
    PATIENCE_S,
    in_background,
    noise,
    wait_until,
    wait_until_listening,
    write_and_finish,
)
from tests.net.tcp.lines import Line, Relays, is_reset, read_to_end, send_and_finish

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


# -- what the event loop reads -------------------------------------------------------------------------------


def note_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all threads that are started from now on."""
    started: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread.name), start(thread)))
    return started


def test_much_is_read_by_a_thread(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    line = relays.start()
    wait_until(lambda: line.relay._up is _Up.LOOP)
    started = note_threads(monkeypatch)
    data = noise(2 * SCRATCH_BYTES)
    send_and_finish(line.tcp, data)
    assert line.received() == data
    assert f"up-{line.stream.sid}" in started


def test_little_for_which_there_is_no_room_is_not_left_behind(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    line = relays.start()
    wait_until(lambda: line.relay._up is _Up.LOOP)
    conversation = line.stream._owner.conversation
    send, rooms = conversation.send_stream_data, [3]
    monkeypatch.setattr(
        conversation,
        "send_stream_data",
        lambda sid, data: send(sid, data[: rooms.pop()] if rooms else data),
    )
    line.tcp.sendall(b"question")
    received = b""
    while len(received) < 8 and (chunks := line.peer.read_chunks(timeout_s=PATIENCE_S)):
        received += b"".join(chunks)
    assert received == b"question"


def test_a_reset_that_another_thread_was_told_of_is_no_end_of_file(relays: Relays) -> None:
    """Linux tells of it once: whoever sends just then takes the error away."""
    line = relays.start()
    wait_until(lambda: line.relay._up is _Up.LOOP)
    ours, loop = line._relays_end, relays.context.loop
    loop.forget(ours.fileno())
    line.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, sockets.RESET)
    line.tcp.close()
    wait_until(lambda: ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET)
    loop.watch(ours.fileno(), line.relay._read_little)
    with pytest.raises(StreamReset):
        line.peer.read_chunks(timeout_s=PATIENCE_S)
    line.wait_for_end()


def test_the_last_word_to_a_kcptun_waits_in_a_thread(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until all has arrived; the event loop serves others meanwhile."""
    line = relays.start()
    wait_until(lambda: line.relay._up is _Up.LOOP)
    is_last_word, enders = [True], list[str]()
    close_write = line.stream.close_write

    def note() -> None:
        enders.append(threading.current_thread().name)
        close_write()

    monkeypatch.setattr(Stream, "is_last_word", property(lambda stream: is_last_word[0]))
    monkeypatch.setattr(Stream, "is_delivered", property(lambda stream: False))
    monkeypatch.setattr(line.stream, "close_write", note)
    line.tcp.shutdown(socket.SHUT_WR)
    wait_until(lambda: line.has_thread("up"))
    assert not enders
    is_last_word[0] = False
    assert line.received() == b""
    assert enders == [f"up-{line.stream.sid}"]


def test_what_the_event_loop_reads_counts_as_moving(relays: Relays) -> None:
    line = relays.start(closewait_s=0.2)
    line.peer.close_write()
    assert read_to_end(line.tcp) == b""
    began = monotonic_ms()
    while monotonic_ms() - began < 1500:  # a look each second
        line.tcp.sendall(b"x")
        assert line.peer.read_chunks() == [b"x"]
        threading.Event().wait(0.01)
    line.tcp.shutdown(socket.SHUT_WR)
    assert line.received() == b""
    line.wait_for_end()
    assert line.relay.failure is None


# -- while the connection is being made ----------------------------------------------------------------------


@pytest.fixture
def deaf() -> Iterator[Callable[[], socket.socket]]:
    """Begins connections to who does not answer: a full backlog."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))

        def begin() -> socket.socket:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
            return sock

        for _ in range(4):
            stack.enter_context(begin())
        yield begin


def test_a_target_that_takes_its_time_gets_a_thread(
    relays: Relays, monkeypatch: pytest.MonkeyPatch, deaf: Callable[[], socket.socket]
) -> None:
    monkeypatch.setattr(relay_module, "QUICK_CONNECT", 0.05)
    line = Line(relays.wire, relays.context)
    relays.lines.append(line)
    started = note_threads(monkeypatch)
    line.relay.dial(deaf, line.open_tcp)
    line.tcp.sendall(b"at last")
    assert line.peer.read_chunks() == [b"at last"]
    assert f"open-{line.stream.sid}" in started


def test_who_stops_while_the_target_takes_its_time_connects_no_more(
    relays: Relays, monkeypatch: pytest.MonkeyPatch, deaf: Callable[[], socket.socket]
) -> None:
    monkeypatch.setattr(relay_module, "QUICK_CONNECT", 0.05)
    line = Line(relays.wire, relays.context)
    relays.lines.append(line)
    started = note_threads(monkeypatch)
    line.relay.dial(deaf, line.open_tcp)
    line.relay.stop()
    line.wait_for_end()
    assert f"open-{line.stream.sid}" not in started
    line._relays_end.close()


def test_many_connections_without_a_thread_are_told_in_few_lines(
    relays: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(log, "limited", lambda key, text, level=log.Level.WARNING: told.append(key))
    monkeypatch.setattr(log, "error", lambda text: told.append(text))
    lines = [relays.start() for _ in range(3)]
    for line in lines:
        wait_until(lambda line=line: line.relay._up is _Up.LOOP)  # type: ignore[misc]

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", fail)
        for line in lines:
            with suppress(ConnectionError):
                line.tcp.sendall(bytes(SCRATCH_BYTES))
            line.wait_for_end()
    assert told == ["relay"] * 3
