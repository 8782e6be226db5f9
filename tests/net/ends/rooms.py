"""A listener without a network, for the tests of this folder."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from kcptun_lite.core.batch.packets import Address, PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES
from kcptun_lite.core.wire import (
    KCP_ACK,
    KCP_PUSH,
    KCP_SEGMENT,
    SMUX_HEADER,
    SMUX_SYN,
)
from kcptun_lite.errors import SessionError
from kcptun_lite.net.ends.listener import Listener
from kcptun_lite.net.ends.session_table import (
    SessionTable,
)
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import monotonic_ms
from tests.net.fakes import FakeUdp, make_context, segment, small_params

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

    def watch(self, on_ready: Callable[[], None]) -> None: ...

    def receive(self, batch: PacketBatch) -> int:
        return 0

    def close(self) -> None: ...

    def every_second(self, has_session: Callable[[Address], bool]) -> None: ...

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
        self.peer_sockets = FakePeerSockets()
        self.listener = Listener(
            make_context(small_params(**changes)),
            cast(Any, self.udp),
            cast(Any, self.peer_sockets),
            self.table,
            on_stream=lambda session, stream: self.streams.append(stream),
            on_session=self.begun.append,
            on_validated=self.validated.append,
            on_closed=lambda session, reason: self.ended.append((session, reason)),
        )

    def deliver(self, *packets: tuple[Address, memoryview]) -> None:
        """One batch."""
        batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
        for address, packet in packets:
            batch.arena[batch.end : batch.end + len(packet)] = packet
            batch.commit(len(packet))
            batch.addresses.append(address)
        self.listener._on_batch(batch, monotonic_ms())

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
