"""Who is let in, who gives way, and what a replay brings: a listener and its table of sessions."""

from threading import Lock
from types import SimpleNamespace
from typing import cast

import pytest

from kcptun_lite import log
from kcptun_lite.core.batch.packets import Address
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.budget import HEADROOM, SESSION_COST, Budget
from kcptun_lite.core.wire import (
    KCP_REFUSAL_TS,
    KCP_WINS,
    SMUX_HEADER,
    SMUX_PSH,
    SMUX_SYN,
)
from kcptun_lite.net.ends.listener import HALF_OPEN_TIME, UNVALIDATED_TIME
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
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.udp.address import mapped
from tests.net.ends.rooms import HERE, MAX_SESSIONS, SYN, THERE, Room, headers, is_empty
from tests.net.fakes import make_context, segment, small_params

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
    room.deliver((mapped(HERE), segment(conv=8, data=SYN)))
    assert lines[1:] == lines[:1], "as all other lines have it, whatever family the port is of"


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


def test_streams_that_wait_keep_their_order(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one that might go early by now does not go before them."""
    monkeypatch.setattr(room.table, "may_go_early", lambda session: False)
    session = room.open(HERE, conv=7)
    assert not room.streams
    monkeypatch.setattr(room.table, "may_go_early", lambda session: True)
    second = SMUX_HEADER.pack(1, SMUX_SYN, 0, 5)
    room.deliver((HERE, segment(conv=7, sn=1, data=second)))
    assert not room.streams
    room.prove(session)
    assert [stream.sid for stream in room.streams] == [3, 5]
