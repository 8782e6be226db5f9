"""The listener: who gets a session, who is sent away, who has moved."""

import time
from typing import cast

import pytest

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.core.kcp.restart import RESTART_AFTER
from kcptun_lite.core.wire import (
    FEC_DATA,
    FEC_HEADER,
    FEC_PARITY,
    KCP_ACK,
    KCP_HEADER_SIZE,
    KCP_PUSH,
    KCP_SEGMENT,
    KCP_WASK,
    KCP_WINS,
    SMUX_HEADER,
    SMUX_PSH,
)
from kcptun_lite.errors import SessionClosed
from kcptun_lite.net.ends.listener import ANSWERS, Listener
from kcptun_lite.net.ends.session_table import (
    SessionTable,
)
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.peer_sockets import PeerSockets
from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket
from tests.net.ends.rooms import HERE, MAX_SESSIONS, SYN, THERE, Room, headers, is_empty
from tests.net.fakes import make_context, segment, wait_until

# -- who comes in --------------------------------------------------------------------------------------------


def test_the_first_segment_of_a_conversation_makes_a_session(room: Room) -> None:
    session = room.open(HERE, conv=7)
    assert room.listener.sessions() == [session] == room.begun
    assert [stream.sid for stream in room.streams] == [3]
    assert session.remote == HERE and not session.is_validated
    assert session.counters.passive_opens == 1


def test_packets_of_one_batch_go_to_their_sessions(room: Room) -> None:
    first, second = room.open(HERE, conv=7), room.open(THERE, conv=8)
    data = SMUX_HEADER.pack(1, SMUX_PSH, 3, 3)
    room.deliver(
        (HERE, segment(conv=7, sn=1, data=data + b"one")),
        (THERE, segment(conv=8, sn=1, data=data + b"two")),
        (HERE, segment(conv=7, sn=2, data=data + b"and")),
    )
    assert [b"".join(stream.read_chunks(timeout_s=0) or []) for stream in room.streams] == [b"oneand", b"two"]
    assert first is not second


@pytest.mark.parametrize(
    "packet",
    [
        segment(conv=7, cmd=KCP_PUSH, sn=1, data=SYN),
        segment(conv=7, cmd=KCP_ACK),
        segment(conv=7, cmd=KCP_WASK),
        segment(conv=7, cmd=KCP_WINS),
        memoryview(FEC_HEADER.pack(13, FEC_PARITY, 0) + bytes(60)),
        memoryview(FEC_HEADER.pack(0, FEC_DATA, 20) + bytes(18)),
    ],
    ids=["later push", "ack", "wask", "wins", "parity", "short"],
)
def test_nothing_else_does(room: Room, packet: memoryview) -> None:
    room.deliver((HERE, packet))
    assert not room.begun


def test_a_server_that_adapts_answers_with_or_without_fec_as_it_is_asked() -> None:
    room = Room(data_shards=10, parity_shards=3, adapts=True)
    bare = room.open(HERE, conv=7)
    packed = FEC_HEADER.pack(0, FEC_DATA, 2 + KCP_HEADER_SIZE + len(SYN)) + bytes(segment(conv=8, data=SYN))
    room.deliver((THERE, memoryview(packed)))
    fec = room.begun[1]
    assert not bare.conversation.params.has_fec and fec.conversation.params.has_fec
    bare.close()
    fec.close()


# -- unknown sources -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cmd", [KCP_PUSH, KCP_WASK])
def test_who_continues_an_unknown_conversation_hears_that_it_is_over(room: Room, cmd: int) -> None:
    question = segment(conv=7, cmd=cmd, sn=5, una=9)
    room.deliver((HERE, question))
    (answer,) = room.sent_to(HERE)
    assert len(answer) == KCP_HEADER_SIZE <= len(question)
    conv, kind, _, wnd, _, _, una, length = KCP_SEGMENT.unpack(answer)
    assert (conv, kind, una, length) == (7, KCP_WINS, 0, 0) and wnd
    assert room.listener.counters.kcp_in_errors == 1
    assert room.listener.counters.out_packets == 1


@pytest.mark.parametrize("cmd", [KCP_ACK, KCP_WINS, 0, 99])
def test_answers_and_noise_get_no_answer(room: Room, cmd: int) -> None:
    room.deliver((HERE, segment(conv=7, cmd=cmd, sn=5)))
    assert not room.udp.sent


def test_a_batch_of_strange_packets_gets_one_answer(room: Room) -> None:
    room.deliver(*[(HERE, segment(conv=7, sn=sn)) for sn in range(1, 50)])
    assert len(room.udp.sent) == 1


def test_answers_to_unknown_sources_have_a_limit_per_second(room: Room) -> None:
    for _ in range(ANSWERS + 10):
        room.deliver((HERE, segment(conv=7, sn=5)))
    assert len(room.udp.sent) == ANSWERS
    room.listener.every_second(monotonic_ms())
    room.deliver((HERE, segment(conv=7, sn=5)))
    assert len(room.udp.sent) == ANSWERS + 1


def test_a_stale_packet_before_a_good_one_costs_nothing_but_itself(room: Room) -> None:
    session = room.open(HERE, conv=7)
    data = SMUX_HEADER.pack(1, SMUX_PSH, 4, 3) + b"good"
    room.deliver((HERE, segment(conv=6, sn=50)), (HERE, segment(conv=7, sn=1, data=data)))
    assert room.streams[0].read_chunks(timeout_s=0) == [b"good"]
    assert room.at(HERE) is session
    assert not [header for header in headers(room.sent_to(HERE)) if header[0] == 6]


# -- who takes whose place -----------------------------------------------------------------------------------


def test_a_new_conversation_from_the_same_address_replaces_the_old_one(room: Room) -> None:
    """As soon as it is validated: a recorded first packet ends nothing."""
    old = room.open(HERE, conv=7)
    room.prove(old)
    new = room.open(HERE, conv=8)
    assert room.listener.sessions() == [old, new] and room.at(HERE) is old
    good = SMUX_HEADER.pack(1, SMUX_PSH, 4, 3) + b"good"
    room.deliver((HERE, segment(conv=7, sn=1, data=good)), (HERE, segment(conv=8, sn=1, data=good)))
    room.deliver((HERE, segment(conv=8, sn=1, data=good)))
    assert [b"".join(stream.read_chunks(timeout_s=0) or []) for stream in room.streams] == [b"good", b"good"]
    room.prove(new)
    assert room.listener.sessions() == [new] and room.at(HERE) is new
    assert room.ended[0][0] is old and isinstance(room.ended[0][1], SessionClosed)
    assert room.peer_sockets == {HERE}


def test_a_client_with_a_new_address_is_followed(room: Room) -> None:
    session = room.open(HERE, conv=7)
    room.prove(session)
    room.deliver((THERE, segment(conv=7, sn=1, data=SMUX_HEADER.pack(1, SMUX_PSH, 4, 3) + b"here")))
    assert session.remote == THERE and room.at(THERE) is session and room.at(HERE) is None
    assert room.streams[0].read_chunks(timeout_s=0) == [b"here"]
    assert room.table._per_host == {THERE[0]: 1}


def test_a_replay_from_another_address_changes_nothing(room: Room) -> None:
    session = room.open(HERE, conv=7)
    room.prove(session)
    room.deliver((THERE, segment(conv=7, sn=0, data=SYN)))
    assert room.listener.sessions() == [session] and session.remote == HERE
    (answer,) = headers(room.sent_to(THERE))
    assert (answer[1], answer[6], answer[7]) == (KCP_WINS, 1, 0), "it hears what we have, and no data"


def test_replayed_packets_that_acknowledge_from_zero_end_no_session(room: Room) -> None:
    session = room.open(HERE, conv=7)
    early = segment(conv=7, sn=1, una=0, data=SMUX_HEADER.pack(1, SMUX_PSH, 0, 3))
    room.deliver((HERE, early))
    room.prove(session)
    for source in (HERE, THERE) * 5:
        room.deliver((source, early))
        time.sleep(RESTART_AFTER / 1000 / 5)
    assert not session.is_closed and session.remote == HERE


def test_a_client_that_moves_before_it_has_heard_anything_is_followed_and_asks_the_target_once(room: Room) -> None:
    session = room.open(HERE, conv=7)
    room.deliver((THERE, segment(conv=7, sn=0, data=SYN)))
    assert room.listener.sessions() == [session] and session.remote == THERE
    assert len(room.streams) == 1


def test_who_moves_to_an_address_in_use_takes_it_over(room: Room) -> None:
    session, stale = room.open(HERE, conv=7), room.open(THERE, conv=8)
    room.prove(session)
    room.deliver((THERE, segment(conv=7, sn=1, data=SMUX_HEADER.pack(1, SMUX_PSH, 0, 3))))
    assert room.listener.sessions() == [session] and room.at(THERE) is session
    assert stale.is_closed and room.ended[0][0] is stale
    assert room.table._per_host == {THERE[0]: 1}


def test_a_late_packet_from_the_old_address_does_not_bring_the_session_back(room: Room) -> None:
    session = room.open(HERE, conv=7)
    room.prove(session)

    def deliver(address: Address, sn: int, ts: int) -> None:
        data = SMUX_HEADER.pack(1, SMUX_PSH, 1, 3) + b"%d" % sn
        room.deliver((address, segment(conv=7, sn=sn, ts=ts, data=data)))

    deliver(THERE, sn=2, ts=200)
    assert session.remote == THERE
    deliver(HERE, sn=1, ts=100)
    assert session.remote == THERE, "it was sent before"
    deliver(THERE, sn=1, ts=300)
    assert room.streams[0].read_chunks(timeout_s=0) == [b"12"]
    deliver(HERE, sn=3, ts=400)
    assert session.remote == HERE, "the client has gone back"


def test_a_session_may_move_there_and_back(room: Room) -> None:
    session = room.open(HERE, conv=7)
    room.prove(session)
    for sn in range(1, 7):
        address = (HERE, THERE)[sn % 2]
        room.deliver((address, segment(conv=7, sn=sn, data=SMUX_HEADER.pack(1, SMUX_PSH, 0, 3))))
        assert session.remote == address
    assert room.table._per_host == {HERE[0]: 1}


def test_who_is_validated_has_a_peer_socket_of_its_own_wherever_it_is(room: Room) -> None:
    session = room.open(HERE, conv=7)
    assert not room.peer_sockets
    room.prove(session)
    for sn, address in enumerate((HERE, HERE, THERE, THERE, HERE, HERE), 1):
        room.deliver((address, segment(conv=7, sn=sn, data=SMUX_HEADER.pack(1, SMUX_PSH, 0, 3))))
        assert room.peer_sockets <= {address}
    assert room.peer_sockets == {HERE}
    session.close()
    assert not room.peer_sockets


def test_unknown_sources_wait_while_they_bring_nothing_of_use(room: Room) -> None:
    session = room.open(HERE, conv=7)
    room.deliver((THERE, segment(conv=7, sn=0, data=SYN)))  # recorded first packets move a session as they like
    room.deliver((HERE, segment(conv=7, sn=0, data=SYN)))
    assert room.peer_sockets.rests == 3
    room.prove(session)
    room.deliver()  # all of the batch have failed their check
    room.deliver((THERE, segment(conv=9, sn=5, data=b"unknown")))
    room.deliver((THERE, segment(conv=7, sn=0, data=SYN)))  # a replay
    assert room.peer_sockets.rests == 6
    good = segment(conv=7, sn=1, data=SMUX_HEADER.pack(1, SMUX_PSH, 0, 3))
    room.deliver((THERE, segment(conv=9, sn=5, data=b"unknown")), (HERE, good))
    assert room.peer_sockets.rests == 6


def test_who_takes_the_place_of_a_session_that_is_being_closed_keeps_it(room: Room) -> None:
    old = room.open(HERE, conv=7)
    room.prove(old)
    new = room.open(HERE, conv=8)
    closed, old._closed = old._closed, SessionClosed("another thread is at it")
    room.prove(new)
    old._closed = closed
    room.listener._forget(old, SessionClosed("now it is done"))
    assert room.at(HERE) is new and room.table._per_host == {HERE[0]: 1}
    old.close()


# -- more than one port --------------------------------------------------------------------------------------


def test_a_session_moves_from_port_to_port(room: Room) -> None:
    """What it sends from then on leaves there, too."""
    other = Room(room.table)
    session = room.open(HERE, conv=7)
    room.prove(session)
    for sn, (door, left) in enumerate([(other, room), (room, other), (other, room)], 1):
        address = (HERE, THERE)[sn % 2]
        sent_before = len(door.udp.sent)
        door.deliver((address, segment(conv=7, sn=sn, data=SMUX_HEADER.pack(1, SMUX_PSH, 1, 3) + b"%d" % sn)))
        session.probe()
        assert len(door.udp.sent) > sent_before and door.udp.sent[-1][1] == address
        assert door.at(address) is session and left.at(address) is None
        assert door.listener.sessions() == [session] and not left.listener.sessions()
        assert door.peer_sockets == {address} and not left.peer_sockets
    assert room.streams[0].read_chunks(timeout_s=0) == [b"123"]
    other.listener.sessions()[0].close()
    assert is_empty(room.table) and not other.peer_sockets


def test_the_same_address_at_another_port_is_another_place(room: Room) -> None:
    other = Room(room.table)
    first = room.open(HERE, conv=7)
    room.prove(first)
    second = other.open(HERE, conv=8)
    other.prove(second)
    assert room.listener.sessions() == [first] and other.listener.sessions() == [second]
    other.deliver((HERE, segment(conv=7, sn=5)))
    assert (other.at(HERE), room.at(HERE)) == (first, None), "the client itself has moved"
    assert second.is_closed


def test_what_a_port_does_not_know_another_one_may(room: Room) -> None:
    """A session is not told to be over by a port that it has not used before."""
    other = Room(room.table)
    session = room.open(HERE, conv=7)
    room.prove(session)
    other.deliver((THERE, segment(conv=7, cmd=KCP_WASK, una=1)))
    (answer,) = headers(other.sent_to(THERE))
    assert (answer[0], answer[1], answer[6]) == (7, KCP_WINS, 1)


# -- the end -------------------------------------------------------------------------------------------------


def listen(room: Room, loop: EventLoop | None = None) -> Listener:
    context, udp = make_context(loop=loop), UdpSocket.listen("127.0.0.1", 0, UdpOptions())
    return Listener(
        context,
        udp,
        PeerSockets(udp, context.loop),
        SessionTable(MAX_SESSIONS),
        on_stream=lambda session, stream: room.streams.append(stream),
        on_session=room.begun.append,
        on_validated=room.validated.append,
        on_closed=lambda session, reason: room.ended.append((session, reason)),
    )


def test_close_ends_sessions_and_socket(room: Room) -> None:
    loop = EventLoop()
    listener = listen(room, loop)
    listener.start()
    loop.start()
    client = UdpSocket.dial("127.0.0.1", listener.address[1], UdpOptions())[0]
    client.send([segment(conv=7, data=SYN)], listener.address)
    wait_until(lambda: len(room.streams) == 1)
    listener.close()
    assert room.begun[0].is_closed and not listener.sessions()
    client.close()
    loop.stop()


def test_a_closing_listener_takes_nobody_in(room: Room) -> None:
    room.listener._is_closing = True
    room.deliver((HERE, segment(conv=7, data=SYN)))
    assert not room.begun


def test_a_listener_that_was_never_started_can_be_closed(room: Room) -> None:
    listener = listen(room)
    listener.close()
    assert cast(UdpSocket, listener._udp).is_closed
