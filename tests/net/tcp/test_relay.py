"""The relay: both directions, each to its own end; resets and stops."""

import socket
import threading
from contextlib import suppress

import pytest

from kcptun_lite.errors import StreamClosed, StreamReset, TransportError
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.tcp import relay as relay_module
from kcptun_lite.net.tcp import sockets
from kcptun_lite.net.tcp.relay import Relay
from tests.net.fakes import (
    PATIENCE_S,
    in_background,
    noise,
    wait_until,
    wait_until_listening,
    wait_until_waiting,
    write_and_finish,
)
from tests.net.tcp.lines import Line, Relays, is_reset, read_to_end, send_and_finish

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

    relay = Relay(
        line.stream,
        relays.context.pool,
        relays.context.loop,
        closewait_s=1,
        is_full=lambda: False,
        on_closed=closed.append,
    )
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


def test_where_the_other_end_may_have_gone_it_is_given_up_sooner_and_in_peace(
    relays: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "is_doubtful", property(lambda stream: True))
    monkeypatch.setattr(relay_module, "DOUBT_IDLE", 0.05)
    line = relays.start()
    line.tcp.shutdown(socket.SHUT_WR)
    line.wait_for_end()
    assert line.relay.failure is None


def test_where_others_wait_for_its_place_it_is_given_up_sooner(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "FULL_IDLE", 0.05)
    open_one, half_closed = relays.start(), relays.start()
    half_closed.tcp.shutdown(socket.SHUT_WR)
    for line in open_one, half_closed:
        line.is_tunnel_full = True
    half_closed.wait_for_end()
    assert is_reset(half_closed.tcp)
    assert str(half_closed.relay.failure) == "half-closed and idle for 0.05 s"
    assert not open_one.closed


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
    assert line.relay.failure is None


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
