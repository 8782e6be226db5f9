"""The listener: who gets a session, who is sent away, who has moved."""

import time
from collections.abc import Iterator, Sequence
from threading import Lock
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kcptun_lite import log
from kcptun_lite.core.batch.packets import Address, PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES, BufferPool
from kcptun_lite.core.budget import HEADROOM, SESSION_COST, Budget
from kcptun_lite.core.kcp.restart import RESTART_AFTER
from kcptun_lite.core.wire import (
    FEC_DATA,
    FEC_HEADER,
    FEC_PARITY,
    KCP_ACK,
    KCP_HEADER_SIZE,
    KCP_PUSH,
    KCP_REFUSAL_TS,
    KCP_SEGMENT,
    KCP_WASK,
    KCP_WINS,
    SMUX_HEADER,
    SMUX_PSH,
    SMUX_SYN,
)
from kcptun_lite.errors import SessionClosed, SessionError
from kcptun_lite.net.ends.listener import ANSWERS, HALF_OPEN_TIME, UNVALIDATED_TIME, Listener
from kcptun_lite.net.ends.session_table import (
    EARLY_MAX,
    EARLY_PER_SECOND,
    ENDED_MAX,
    IDLE_BEFORE,
    MOST_OF_ONE_HOST,
    SHARE_OF_UNVALIDATED,
    SessionTable,
    host_of,
)
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket
from tests.net.fakes import FakeUdp, make_context, segment, small_params, wait_until

SYN = SMUX_HEADER.pack(1, SMUX_SYN, 0, 3)
HERE: Address = ("10.0.0.1", 1000)
THERE: Address = ("10.0.0.2", 2000)
MAX_SESSIONS = 64


class FakePeerSockets(set[Address]):
    """Remembers for whom there are peer sockets, and how often unknown sources were to wait."""

    rests = 0
    waiting: Address | None = None
    shut = set.discard

    def open(self, peer: Address, local: object) -> None:
        self.add(peer)

    def has_waiting(self, peer: Address) -> bool:
        return peer == self.waiting

    def rest_unknown(self) -> None:
        self.rests += 1


class Room:
    """A listener without a network; the second port of the same server, if it is given another one's table."""

    def __init__(self, table: SessionTable | None = None, **changes: Any) -> None:
        self.udp = FakeUdp()
        self.table = table or SessionTable(MAX_SESSIONS)
        self.validated: list[Session] = []
        self.streams: list[Stream] = []
        self.begun: list[Session] = []
        self.ended: list[tuple[Session, SessionError]] = []
        self.listener = Listener(
            make_context(small_params(**changes)),
            cast(Any, self.udp),
            self.table,
            on_stream=lambda session, stream: self.streams.append(stream),
            on_session=self.begun.append,
            on_validated=self.validated.append,
            on_closed=lambda session, reason: self.ended.append((session, reason)),
        )
        self.peer_sockets = FakePeerSockets()
        self.listener._peer_sockets = cast(Any, self.peer_sockets)

    def deliver(self, *packets: tuple[Address, memoryview]) -> None:
        """One batch."""
        batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
        for address, packet in packets:
            batch.arena[batch.end : batch.end + len(packet)] = packet
            batch.commit(len(packet))
            batch.addresses.append(address)
        self.listener._deliver(batch, monotonic_ms())

    def open(self, address: Address, conv: int) -> Session:
        """What a client sends first."""
        self.deliver((address, segment(conv=conv, data=SYN)))
        return self.begun[-1]

    def at(self, address: Address) -> Session | None:
        return self.table.at((self.listener, address))

    def prove(self, session: Session) -> None:
        """The client acknowledges what the server has sent first, its hello, and repeats its timestamp."""
        una = session.conversation.kcp.window.snd_nxt
        own = session.conversation.conv
        (ts, *_) = [ts for conv, cmd, _, _, ts, *_ in headers(sent(session)) if (conv, cmd) == (own, KCP_PUSH)]
        ack = segment(conv=session.conversation.conv, cmd=KCP_ACK, sn=una - 1, una=una, ts=ts)
        self.deliver((session.remote, ack))
        assert session.is_validated and self.validated[-1] is session

    def sent_to(self, address: Address) -> list[bytes]:
        return [packet for packet, to in self.udp.sent if to == address]


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    for session in room.table:
        session.close()
    assert is_empty(room.table)
    assert not room.peer_sockets


def is_empty(table: SessionTable) -> bool:
    kept = [table._places, table._by_place, table._by_conv, table._unvalidated, table._early]
    return not any([*kept, table._per_host, table._unvalidated_per_host])


def sent(session: Session) -> list[bytes]:
    udp = cast(FakeUdp, session._udp)
    return [packet for packet, to in udp.sent if to == session.remote]


def headers(packets: Sequence[bytes]) -> list[tuple[int, ...]]:
    return [KCP_SEGMENT.unpack_from(packet) for packet in packets]


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


# -- replay --------------------------------------------------------------------------------------------------


def test_a_conversation_begins_once(room: Room) -> None:
    session = room.open(HERE, conv=7)
    room.prove(session)
    session.close()
    room.deliver((THERE, segment(conv=7, data=SYN)), (HERE, segment(conv=7, data=SYN)))
    assert len(room.begun) == len(room.streams) == 1
    assert {answer[6] for answer in headers(room.sent_to(THERE))} == {0}
    unproven = room.open(HERE, conv=8)
    unproven.close()
    assert room.open(HERE, conv=8) is not unproven, "whoever may have begun it"


class StandIn:
    """As much of a session as the table looks at."""

    def __init__(self, conv: int, *, streams: int = 0, idle_since: int = 0) -> None:
        self.conversation = SimpleNamespace(conv=conv)
        self.stream_count = streams
        self.idle_since = idle_since


def test_the_memory_of_conversations_is_bounded() -> None:
    table = SessionTable(4)
    for conv in range(ENDED_MAX + 10):
        session = cast(Session, StandIn(conv))
        table.add(session, (None, HERE))
        table.validate(session)
        table.forget(session)
    assert len(table._ended) == ENDED_MAX
    assert table.has_ended(ENDED_MAX + 9) and not table.has_ended(9)
    assert is_empty(table)


def filled(*sessions: StandIn, address: Address) -> SessionTable:
    """A table for four thirds as many, all of which are of one host and validated."""
    table = SessionTable(len(sessions) * 4 // 3)
    for one in sessions:
        table.add(cast(Session, one), (None, address))
        table.validate(cast(Session, one))
    return table


def test_the_longest_idle_session_of_a_host_gives_way_to_its_next_one() -> None:
    """A client of kcptun keeps expired sessions alive for ten minutes, and never uses them again."""
    now = 100_000
    busy, young = StandIn(1, streams=1), StandIn(3, idle_since=now - IDLE_BEFORE + 1)
    table = filled(busy, StandIn(2, idle_since=now - IDLE_BEFORE), young, address=HERE)
    assert table.refusal(HERE, now - 1) == ("allow 3 from one address", None)
    why, gives_way = table.refusal(HERE, now)
    assert not why and gives_way is table.find(2)
    assert table.refusal(HERE, now + 1)[1] is table.find(2), "not the younger one"


def test_sessions_of_other_hosts_do_not_give_way() -> None:
    table = filled(*(StandIn(conv) for conv in range(3)), address=HERE)
    table.add(cast(Session, StandIn(9)), (None, ("10.9.9.9", 1)))
    table.validate(cast(Session, table.find(9)))
    assert table.refusal(("10.8.8.8", 1), 100_000) == ("are open", None)
    assert table.refusal(("10.9.9.9", 1), 100_000) == ("", table.find(9))


def test_a_session_is_idle_from_the_end_of_its_last_stream(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    session = room.open(HERE, conv=7)
    room.prove(session)
    monkeypatch.setattr("kcptun_lite.net.session.session.monotonic_ms", lambda: session.opened_at + 5_000)
    assert session.idle_since == session.opened_at
    room.streams[0].close()
    assert session.idle_since == session.opened_at + 5_000


def test_a_copy_that_overtakes_what_it_was_made_of_moves_no_session(room: Room) -> None:
    """What was sent first may lie in the queue of the peer's own socket while the copy comes in by the common one."""
    session = room.open(HERE, conv=7)
    room.prove(session)
    copied = segment(conv=7, sn=1, data=SMUX_HEADER.pack(1, SMUX_PSH, 1, 3) + b"x")
    room.peer_sockets.waiting = HERE
    room.deliver((THERE, copied))
    assert session.remote == HERE
    room.peer_sockets.waiting = None
    room.deliver((HERE, copied))
    room.deliver((THERE, copied))
    assert session.remote == HERE
    assert room.streams[0].read_chunks(timeout_s=0) == [b"x"]


def test_of_many_sessions_at_once_most_must_be_validated_before_they_reach_the_target(room: Room) -> None:
    hosts: list[Address] = [(f"10.1.0.{number}", 1) for number in range(EARLY_MAX + 5)]
    sessions = [room.open(host, conv=number) for number, host in enumerate(hosts)]
    assert len(room.streams) == EARLY_MAX
    room.prove(sessions[-1])
    assert len(room.streams) == EARLY_MAX + 1
    data = SMUX_HEADER.pack(1, SMUX_SYN, 0, 5)
    room.deliver((hosts[-1], segment(conv=EARLY_MAX + 4, sn=1, data=data)))
    assert len(room.streams) == EARLY_MAX + 2, "who is validated waits for nothing"
    sessions[-2].close()
    assert not room.listener._waiting.get(sessions[-2])


def test_sessions_that_come_and_go_reach_the_target_only_so_often(room: Room) -> None:
    for number in range(3 * EARLY_MAX):
        room.open(HERE, conv=number).close()
    assert len(room.streams) == EARLY_MAX
    room.table.every_second()
    for number in range(3 * EARLY_MAX):
        room.open(HERE, conv=1000 + number).close()
    assert len(room.streams) == EARLY_MAX + EARLY_PER_SECOND


# -- limits --------------------------------------------------------------------------------------------------


def test_who_has_not_shown_where_it_is_gives_way(room: Room) -> None:
    """The oldest first, and only those."""
    hosts: list[Address] = [(f"10.1.0.{number}", 1) for number in range(MAX_SESSIONS)]
    sessions = [room.open(host, conv=number) for number, host in enumerate(hosts)]
    room.prove(sessions[0])
    new = room.open(HERE, conv=1000)
    assert len(room.listener.sessions()) == MAX_SESSIONS
    assert sessions[1].is_closed and not any(one.is_closed for one in (sessions[0], sessions[2], new))


def test_there_are_at_most_so_many_sessions_and_who_is_one_too_many_hears_it(room: Room) -> None:
    hosts: list[Address] = [(f"10.1.0.{number}", 1) for number in range(MAX_SESSIONS)]
    for number, host in enumerate(hosts):
        room.prove(room.open(host, conv=number))
    room.deliver((HERE, segment(conv=1000, data=SYN)))
    assert len(room.begun) == len(room.listener.sessions()) == MAX_SESSIONS
    (answer,) = headers(room.sent_to(HERE))
    assert (answer[0], answer[1], answer[4], answer[6]) == (1000, KCP_WINS, KCP_REFUSAL_TS, 0)
    room.begun[0].close()
    room.prove(room.open(HERE, conv=1001))
    assert len(room.listener.sessions()) == MAX_SESSIONS


def test_one_host_may_have_most_of_them_if_it_shows_that_it_is_there(room: Room) -> None:
    """Behind an address there may be an office; but a flood of first packets seems to come from one as well."""
    tight, generous = MAX_SESSIONS // SHARE_OF_UNVALIDATED, int(MAX_SESSIONS * MOST_OF_ONE_HOST)
    for port in range(1, 3 * tight):
        room.deliver((("10.0.0.1", port), segment(conv=port, data=SYN)))
    assert len(room.listener.sessions()) == tight
    for session in room.listener.sessions():
        session.close()
    for port in range(generous):
        room.prove(room.open(("10.0.0.1", port), conv=5000 + port))
    begun = len(room.begun)
    room.deliver((("10.0.0.1", 9999), segment(conv=9999, data=SYN)))
    assert len(room.begun) == begun
    room.open(THERE, conv=100)
    assert len(room.begun) == begun + 1, "others still come in"


def test_a_network_of_ipv6_is_one_host() -> None:
    assert host_of(("2001:db8:0:1::1", 5, 0, 0)) == host_of(("2001:db8:0:1:ffff::2", 6, 0, 0))
    assert host_of(("2001:db8:0:1::1", 5, 0, 0)) != host_of(("2001:db8:0:2::1", 5, 0, 0))
    assert host_of(("::ffff:10.0.0.1", 5, 0, 0)) != host_of(("::ffff:10.0.0.2", 5, 0, 0))
    assert host_of(("fe80::1%eth0", 5, 0, 2)) == host_of(("fe80::2%eth0", 5, 0, 2))


def test_a_half_open_session_is_dropped_and_a_validated_one_is_not(room: Room) -> None:
    half, whole = room.open(HERE, conv=7), room.open(THERE, conv=8)
    room.prove(whole)
    room.deliver((("10.0.0.9", 9), segment(conv=9, data=SYN[:1])))  # has no stream yet
    silent = room.begun[-1]
    room.listener.every_second(half.opened_at + HALF_OPEN_TIME - 1)
    assert len(room.listener.sessions()) == 3
    room.listener.every_second(silent.opened_at + HALF_OPEN_TIME)
    assert room.listener.sessions() == [half, whole]
    room.listener.every_second(half.opened_at + UNVALIDATED_TIME)
    assert room.listener.sessions() == [whole]


def limited_room(limit: int) -> Room:
    room = Room()
    context = make_context(small_params())
    pool = BufferPool(Lock(), budget=Budget(Lock(), limit), poison=True)
    room.listener._context = context._replace(pool=pool)
    return room


def test_what_sessions_have_held_is_given_back() -> None:
    room = limited_room(64 << 20)
    budget = room.listener._context.pool.budget
    room.open(HERE, conv=1).close()
    used = budget.used
    for conv in range(2, 52):
        session = room.open(HERE, conv=conv)
        room.prove(session)
        room.deliver((HERE, segment(conv=conv, sn=3, data=b"early")))
        assert budget.used >= used + SESSION_COST
        session.close()
        assert budget.used == used


def test_without_memory_no_session_is_made_and_who_asks_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "limited", lambda key, text, level=None: lines.append(text))
    room = limited_room(HEADROOM + SESSION_COST)
    room.listener._context.pool.budget.update(1)
    room.deliver((HERE, segment(conv=7, data=SYN)))
    assert not room.begun and lines == ["no session for 10.0.0.1: --memlimit is used up"]
    assert headers(room.sent_to(HERE))[0][4] == KCP_REFUSAL_TS


def test_a_bug_at_one_source_s_packets_costs_no_other_one_its_own(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = room.open(HERE, conv=7), room.open(THERE, conv=8)
    lines: list[str] = []
    monkeypatch.setattr(log, "limited", lambda key, text, level=None: lines.append(text))

    def fail(*_: object, **__: object) -> None:
        raise IndexError("a bug")

    data = SMUX_HEADER.pack(1, SMUX_PSH, 4, 3) + b"good"
    monkeypatch.setattr(first, "receive", fail)
    room.deliver((HERE, segment(conv=7, sn=1, data=data)), (THERE, segment(conv=8, sn=1, data=data)))
    assert room.streams[1].read_chunks(timeout_s=0) == [b"good"] and len(lines) == 1
    monkeypatch.setattr(second.conversation, "receive_packets", fail)
    room.deliver((THERE, segment(conv=8, sn=2, data=data)))
    assert second.is_closed and len(lines) == 2, "what was being done is half done"


# -- the end -------------------------------------------------------------------------------------------------


def listen(room: Room, loop: EventLoop | None = None) -> Listener:
    return Listener(
        make_context(loop=loop),
        UdpSocket.listen("127.0.0.1", 0, UdpOptions()),
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
    assert listener._udp.is_closed
