"""Where sessions come from: the client's dialer and the server's listener, each with its receiver thread.

In      packets of a UDP socket
Out     sessions; each session's packets, opened, once per tray
Knows   addresses and conversations (WIRE.md 5). Not: streams, options
Cost    one thread per socket; one look-up per tray and peer
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock, Thread

from kcptun_lite import log
from kcptun_lite.core.buffers import Address, BufferPool, PacketBatch, borrow_batch
from kcptun_lite.core.conversation import Conversation, ConversationParams
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt import PacketCrypt, make_crypt
from kcptun_lite.core.wire import first_segment
from kcptun_lite.errors import SessionClosed, SessionError, TransportError
from kcptun_lite.net.session import Session
from kcptun_lite.net.stream import Stream
from kcptun_lite.net.ticker import UpdateThread, monotonic_ms
from kcptun_lite.net.udp import UdpSocket


@dataclass(frozen=True, slots=True)
class Plant:
    """What all sessions of a program share."""

    params: ConversationParams
    crypt: str
    key: bytes
    "derived, 32 bytes"
    pool: BufferPool
    ticker: UpdateThread

    def make_crypt(self) -> PacketCrypt:
        return make_crypt(self.crypt, self.key, os.urandom, self.pool)


class ReceiverThread(Thread):
    """Receives trays of packets, opens them, and hands them on until the socket is closed."""

    def __init__(
        self, udp: UdpSocket, plant: Plant, counters: Counters, deliver: Callable[[PacketBatch, int], None]
    ) -> None:
        super().__init__(name=f"rx-{udp.address[1]}")
        self._udp = udp
        self._crypt = plant.make_crypt()
        self._pool = plant.pool
        self._counters = counters
        self._deliver = deliver

    def run(self) -> None:
        with borrow_batch(self._pool) as batch:
            while True:
                try:
                    received = self._udp.receive(batch)
                except TransportError:
                    return  # closed
                if received:
                    self._crypt.open(batch, self._counters)
                    try:
                        self._deliver(batch, monotonic_ms())
                    except Exception as exc:  # a bug must not stop the tunnel
                        log.limited("rx", f"receiver: {exc!r}", log.Level.ERROR)
                    batch.clear()


class Dialer:
    """Makes the client's sessions, each with a socket and a receiver thread of its own."""

    def __init__(self, plant: Plant, open_socket: Callable[[], tuple[UdpSocket, Address]]) -> None:
        """`open_socket` gives a fresh socket and the server's address; it may raise TransportError."""
        self._plant = plant
        self._open_socket = open_socket

    def dial(self, on_closed: Callable[[Session, SessionError], None]) -> Session:
        """A new session; nothing is sent before its first stream is opened. Raises: TransportError."""
        plant = self._plant
        udp, remote = self._open_socket()
        counters = Counters(active_opens=1)
        crypt = plant.make_crypt()
        conversation = Conversation(
            int.from_bytes(os.urandom(4), "little"),
            plant.params,
            counters,
            is_client=True,
            headroom=crypt.headroom,
            tailroom=crypt.tailroom,
            now=monotonic_ms(),
        )

        def close(session: Session, reason: SessionError) -> None:
            udp.close()
            on_closed(session, reason)

        session = Session(
            conversation,
            crypt,
            udp,
            remote,
            pool=plant.pool,
            ticker=plant.ticker,
            counters=counters,
            on_stream=_refuse_stream,
            on_closed=close,
        )
        source: Address | None = None

        def deliver(batch: PacketBatch, now: int) -> None:
            nonlocal source
            packets = []
            for packet, address in batch.live():
                # A server with several addresses may answer from another one: the first counts (WIRE.md 5.1).
                if address != source:
                    if source is not None:
                        counters.in_errors += 1
                        continue
                    source = address
                packets.append(packet)
            session.receive(packets, now)

        session.receiver = ReceiverThread(udp, plant, counters, deliver)
        session.start()
        session.receiver.start()
        return session


def _refuse_stream(session: Session, stream: Stream) -> None:
    stream.close()  # only clients open streams in kcptun (WIRE.md 7.2)


class Listener:
    """One UDP port of the server and the sessions on it."""

    def __init__(
        self,
        plant: Plant,
        udp: UdpSocket,
        *,
        max_sessions: int,
        on_stream: Callable[[Session, Stream], None],
        on_session: Callable[[Session], None],
        on_closed: Callable[[Session, SessionError], None],
    ) -> None:
        self.counters = Counters()
        "of the packets that belong to no session yet"
        self._plant = plant
        self._udp = udp
        self._max_sessions = max_sessions
        self._on_stream = on_stream
        self._on_session = on_session
        self._on_closed = on_closed
        self._lock = Lock()
        self._sessions: dict[Address, Session] = {}
        self._is_closing = False
        self._receiver = ReceiverThread(udp, plant, self.counters, self._deliver)

    def start(self) -> None:
        self._receiver.start()

    @property
    def address(self) -> Address:
        return self._udp.address

    def sessions(self) -> list[Session]:
        with self._lock:
            return list(self._sessions.values())

    def close(self, reason: SessionError | None = None) -> None:
        """Close all sessions, then the socket; returns when the receiver thread is gone."""
        with self._lock:
            self._is_closing = True
        for session in self.sessions():
            session.close(reason or SessionClosed("the server stops"))
        self._udp.close()
        self._receiver.join()

    # -- receiver thread -----------------------------------------------------------------------

    def _deliver(self, batch: PacketBatch, now: int) -> None:
        by_address: dict[Address, list[memoryview]] = {}
        for packet, address in batch.live():
            by_address.setdefault(address, []).append(packet)
        for address, packets in by_address.items():
            self._route(address, packets, now)

    def _route(self, address: Address, packets: list[memoryview], now: int) -> None:
        """Give packets of one address to its session; a first segment of another conversation makes a new one."""
        session = self._sessions.get(address)
        for index, packet in enumerate(packets):
            segment = first_segment(packet)
            if segment is None:
                continue  # parity tells nothing of its conversation
            conv, sn = segment
            if session and session.conversation.conv == conv:
                break
            if session and sn != 0:
                self.counters.kcp_in_errors += 1
                packets[index] = packet[:0]
                continue
            if session:
                session.close(SessionClosed("replaced by a new conversation from the same address"))
            session = self._create(conv, address, now)
            break
        if session:
            session.receive([packet for packet in packets if packet], now)

    def _create(self, conv: int, address: Address, now: int) -> Session | None:
        with self._lock:
            if self._is_closing:
                return None
            is_full = len(self._sessions) >= self._max_sessions
        if is_full:
            log.limited("sessions", f"no session for {address[0]}: --maxsessions {self._max_sessions} are open")
            return None
        plant = self._plant
        counters = Counters(passive_opens=1)
        crypt = plant.make_crypt()
        conversation = Conversation(
            conv,
            plant.params,
            counters,
            is_client=False,
            headroom=crypt.headroom,
            tailroom=crypt.tailroom,
            now=now,
        )
        session = Session(
            conversation,
            crypt,
            self._udp,
            address,
            pool=plant.pool,
            ticker=plant.ticker,
            counters=counters,
            on_stream=self._on_stream,
            on_closed=self._forget,
        )
        with self._lock:
            self._sessions[address] = session
        session.start()
        self._on_session(session)
        return session

    def _forget(self, session: Session, reason: SessionError) -> None:
        with self._lock:
            if self._sessions.get(session.remote) is session:
                del self._sessions[session.remote]
        self._on_closed(session, reason)
