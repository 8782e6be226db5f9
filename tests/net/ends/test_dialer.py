"""The dialer: sessions with sockets of their own, who may answer them, and new paths for them."""

import threading
from collections.abc import Iterator

import pytest

from kcptun_lite.core.mux.smux import HELLO_SID, WINDOWS_SID
from kcptun_lite.core.wire import KCP_PUSH, KCP_SEGMENT, KCP_WASK, SMUX_HEADER, SMUX_NOP, SMUX_PSH, SMUX_SYN
from kcptun_lite.errors import SessionError
from kcptun_lite.net.ends.dialer import Dialer
from kcptun_lite.net.ends.route import Route, Server
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.udp.udp_socket import UdpOptions
from tests.net.fakes import Peer, make_context, segment, wait_until


class Room:
    """A dialer whose server is a socket in the test's hand."""

    def __init__(self) -> None:
        self.peer = Peer()
        self.context = make_context(loop=EventLoop())
        self.context.ticker.start()
        self.context.loop.start()
        servers = [Server("127.0.0.1", self.peer.address[1], self.peer.address[1])]
        self.route = Route(servers, UdpOptions(), threading.Event())
        self.dialer = Dialer(self.context, self.route)
        self.closed: list[tuple[Session, SessionError]] = []

    def dial(self) -> Session:
        return self.dialer.dial(lambda session: None, lambda session, reason: self.closed.append((session, reason)))


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    room.context.ticker.stop()
    room.context.loop.stop()
    room.peer.close()


@pytest.fixture
def session(room: Room) -> Iterator[Session]:
    session = room.dial()
    yield session
    session.close()


def psh(session: Session, sn: int, data: bytes) -> memoryview:
    return segment(conv=session.conversation.conv, sn=sn, data=SMUX_HEADER.pack(1, SMUX_PSH, len(data), 3) + data)


def test_nothing_is_sent_before_the_first_stream(room: Room, session: Session) -> None:
    stream = session.open_stream()
    packet, source = room.peer.receive()
    assert source[1] == session.local_address[1]
    conv, cmd, _, _, _, sn, _, _ = KCP_SEGMENT.unpack_from(packet)
    assert (conv, cmd, sn) == (session.conversation.conv, KCP_PUSH, 0)
    hello = b"".join(SMUX_HEADER.pack(1, SMUX_NOP, 0, sid) for sid in (HELLO_SID, WINDOWS_SID))
    assert packet[24:] == hello + SMUX_HEADER.pack(1, SMUX_SYN, 0, stream.sid)
    assert session.counters.active_opens == 1


def test_conversations_are_chosen_at_random(room: Room) -> None:
    sessions = [room.dial() for _ in range(5)]
    assert len({session.conversation.conv for session in sessions}) == 5
    assert len({session.local_address for session in sessions}) == 5
    for session in sessions:
        session.close()


def test_the_servers_answer_reaches_the_stream(room: Room, session: Session) -> None:
    stream = session.open_stream()
    _, client = room.peer.receive()
    room.peer.send(psh(session, 0, b"hello"), client)
    assert stream.read_chunks() == [b"hello"]


def test_a_server_may_answer_from_one_other_of_its_addresses(room: Room, session: Session) -> None:
    stream = session.open_stream()
    _, client = room.peer.receive()
    with Peer() as other, Peer() as unknown:
        other.send(psh(session, 0, b"from elsewhere"), client)
        assert stream.read_chunks() == [b"from elsewhere"]
        unknown.send(psh(session, 1, b"injected"), client)
        wait_until(lambda: session.counters.in_errors == 1)
        room.peer.send(psh(session, 1, b"from the first"), client)
        assert stream.read_chunks() == [b"from the first"]
        other.send(psh(session, 2, b"and again"), client)
        assert stream.read_chunks() == [b"and again"]


def test_who_answers_for_another_conversation_is_not_the_server(room: Room, session: Session) -> None:
    stream = session.open_stream()
    _, client = room.peer.receive()
    with Peer() as unknown, Peer() as other:
        unknown.send(segment(conv=session.conversation.conv ^ 1, data=b"x"), client)
        wait_until(lambda: session.counters.in_errors == 1)
        other.send(psh(session, 0, b"genuine"), client)
        assert stream.read_chunks() == [b"genuine"]


def test_what_opens_streams_or_sends_back_what_it_is_sent_is_no_server(room: Room, session: Session) -> None:
    session.open_stream()
    _, client = room.peer.receive()
    syn = SMUX_HEADER.pack(1, SMUX_SYN, 0, 2)
    room.peer.send(segment(conv=session.conversation.conv, data=syn), client)
    wait_until(lambda: session.is_closed)
    assert "what answers is no server" in repr(session)


def test_redial_goes_on_from_a_fresh_socket_with_all_that_was_lost(room: Room, session: Session) -> None:
    stream = session.open_stream()
    stream.write(memoryview(b"unheard"))
    _, old = room.peer.receive()
    room.dialer.redial(session)
    assert session.local_address[1] != old[1]
    received = b""
    while b"unheard" not in received:
        packet, source = room.peer.receive()
        if source[1] == session.local_address[1]:
            received += packet
    assert KCP_WASK in {KCP_SEGMENT.unpack_from(received)[1]}, "and asks at once whether anybody is there"
    room.peer.send(psh(session, 0, b"found you"), source)
    assert stream.read_chunks() == [b"found you"]


def test_a_session_keeps_its_port_of_a_range(room: Room, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    port = room.peer.address[1]
    servers = [Server("127.0.0.1", max(1, port - 5000), min(65535, port + 5000))]
    monkeypatch.setattr(room.dialer, "_route", Route(servers, UdpOptions(), threading.Event()))
    for _ in range(5):
        before = session.local_address
        room.dialer.redial(session)
        assert session.local_address != before and session.remote[1] == port
        assert room.dialer.path_probe(session, keeps_port=True)[1] == port
    ports = {room.dialer.path_probe(session, keeps_port=False)[1] for _ in range(5)}
    assert len(ports) > 1
