"""The server's sessions on one UDP port: who is who, who may come in, who has moved.

In      opened packets with their sources
Out     sessions; each session's packets, once per batch
Knows   addresses and conversations. Not: streams, options
Wire    WIRE.md 5.2, stricter: only the first segment of a conversation makes a session
Cost    one thread per port; one look-up per batch and peer
"""

from collections.abc import Callable, Sequence
from threading import Lock

from kcptun_lite import log
from kcptun_lite.core.batch.packets import Address, PacketBatch
from kcptun_lite.core.batch.pool import BufferPool, borrow_batch
from kcptun_lite.core.budget import SESSION_COST
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.crypt import PacketCrypt
from kcptun_lite.core.wire import (
    FEC_DATA,
    FEC_HEADER_SIZE,
    KCP_HEADER_SIZE,
    KCP_PUSH,
    KCP_SEGMENT,
    KCP_WASK,
    KCP_WINS,
    KCP_WND_INITIAL,
    MASK32,
    fec_type,
)
from kcptun_lite.errors import SessionClosed, SessionError, TransportError
from kcptun_lite.net.ends.context import SessionContext
from kcptun_lite.net.ends.failed_packets import Sample
from kcptun_lite.net.ends.receiver import ReceiverThread
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.udp.address import format_address
from kcptun_lite.net.udp.peer_sockets import PeerSockets
from kcptun_lite.net.udp.udp_socket import UdpSocket

HALF_OPEN_TIME = 10_000  # ms in which a new session must acknowledge something ...
UNVALIDATED_TIME = (
    15_000  # ms ... if it has a stream: kcptun's keep-alive takes 10 s to ask, should that have been lost
)
ANSWERS = 1000  # to unknown sources, a second
SHARE_OF_ONE_HOST = 4  # one address may have a quarter of --maxsessions


class Listener:
    """One UDP port and the sessions on it."""

    def __init__(
        self,
        context: SessionContext,
        udp: UdpSocket,
        *,
        max_sessions: int,
        on_stream: Callable[[Session, Stream], None],
        on_session: Callable[[Session], None],
        on_closed: Callable[[Session, SessionError], None],
    ) -> None:
        self.counters = Counters()
        "of the packets that belong to no session"
        self._context = context
        self._udp = udp
        self._crypt: PacketCrypt = context.make_crypt()
        self._max_sessions = max_sessions
        self._max_per_host = max(1, max_sessions // SHARE_OF_ONE_HOST)
        self._on_stream = on_stream
        self._on_session = on_session
        self._on_closed = on_closed
        self._lock = Lock()
        self._by_address: dict[Address, Session] = {}
        self._by_conv: dict[int, Session] = {}
        self._per_host: dict[str, int] = {}
        self._answers_left = ANSWERS
        self._is_closing = False
        self._peer_sockets = PeerSockets(udp)
        self._receiver = ReceiverThread(udp, context, self.counters, self._deliver, self._peer_sockets.receive)

    def start(self) -> None:
        self._receiver.start()

    @property
    def address(self) -> Address:
        return self._udp.address

    def sessions(self) -> list[Session]:
        with self._lock:
            return list(self._by_address.values())

    def close(self) -> None:
        """Close all sessions, then the socket; returns when the receiver thread is gone."""
        with self._lock:
            self._is_closing = True
        for session in self.sessions():
            session.close(SessionClosed("the server stops"))
        self._udp.close()
        if self._receiver.ident is not None:
            self._receiver.join()
        with self._lock:
            self._peer_sockets.close()

    def drop_half_open(self, now: int) -> None:
        """Close sessions that somebody has opened and never shown to be there; called once a second."""
        self._answers_left = ANSWERS
        for session in self.sessions():
            limit = UNVALIDATED_TIME if session.stream_count else HALF_OPEN_TIME
            if not session.is_validated and now - session.opened_at >= limit:
                session.close(SessionClosed("half-open"))

    # -- receiver thread -----------------------------------------------------------------------

    def _deliver(self, batch: PacketBatch, now: int) -> None:
        is_any_use = False
        for address, packets in batch.by_source():
            is_any_use |= self._route(address, packets, now)
        if not is_any_use:
            self._peer_sockets.rest_unknown()

    def _route(self, address: Address, packets: Sequence[memoryview], now: int) -> bool:
        """Give packets of one address to the session they are of; whether that was of use."""
        session = self._by_address.get(address)
        strays: list[int] = []
        for index, packet in enumerate(packets):
            at = FEC_HEADER_SIZE if fec_type(packet) == FEC_DATA else 0
            if len(packet) < at + KCP_HEADER_SIZE or fec_type(packet) > FEC_DATA:
                continue  # parity tells nothing of its conversation
            conv, cmd, _, _, _, sn, _, _ = KCP_SEGMENT.unpack_from(packet, at)
            if session and session.conversation.conv == conv:
                break  # the usual case; a stray packet behind it bounces in KCP
            if known := self._by_conv.get(conv):
                return self._receive_from_elsewhere(known, address, packets[index:], now)
            if cmd == KCP_PUSH and sn == 0:
                if session:
                    session.close(SessionClosed("replaced by a new conversation from the same address"))
                session = self._create(conv, address, fec=at > 0, now=now)
                break
            self.counters.kcp_in_errors += 1
            strays.append(index)
            if not session and cmd in (KCP_PUSH, KCP_WASK):
                self._answer_unknown(conv, address)
                return False
        if strays:
            packets = [packet for index, packet in enumerate(packets) if index not in strays]
        if not session or not packets:
            return False
        session.receive(packets, now)
        if session.is_validated and address not in self._peer_sockets:
            with self._lock:
                if self._by_address.get(address) is session and not self._is_closing:
                    self._peer_sockets.open(address)
        return session.is_validated  # a recorded first packet makes a session, too

    def _receive_from_elsewhere(
        self, session: Session, address: Address, packets: Sequence[memoryview], now: int
    ) -> bool:
        """A known conversation from a new address: if it brings anything new, that is where the client is now.

        Its first segment once more is nothing new: recorded and replayed it makes no second session, which
        would bring the target the same request again. Returns whether the packets were of use.
        """
        before = session.remote
        conversation = session.conversation
        if session.is_validated and not conversation.bring_news(packets):
            # Replayed; or all the client has to say is what we know, because our answers went to where it was.
            kcp = conversation.kcp
            self._answer(conversation.conv, address, wnd=kcp.received.free, una=kcp.progress()[1])
            return False
        if session.receive(packets, now, address):
            with self._lock:
                stale = self._by_address.get(address)
                if self._by_address.get(before) is session:
                    del self._by_address[before]
                    self._peer_sockets.shut(before)
                    self._count_host_locked(before, -1)
                if not session.is_closed:  # or it could not be found when it was to be forgotten
                    self._by_address[address] = session
                    self._count_host_locked(address, 0 if stale else 1)  # whose place it takes was counted
            if stale and stale is not session:
                stale.close(SessionClosed("its address is another client's now"))
            if session.is_validated:  # others move as anybody likes who repeats their first packet
                log.info(
                    f"session {session.conversation.conv:08x} moved from {format_address(before)} "
                    f"to {format_address(address)}"
                )
        return session.is_validated

    def _answer_unknown(self, conv: int, address: Address) -> None:
        """Tell whoever continues a conversation we know nothing of that it is over: we acknowledge from zero.

        A client of ours takes two of these for the proof that they are (Kcp.has_peer_restarted). One of Go learns
        nothing from them, but is not kept waiting by a session that never delivers either (WIRE.md 5.2).
        The answer is a bare WINS, never longer than the question; ACK and WINS get none, so two unknown sources
        cannot keep each other talking.
        """
        self._answer(conv, address, wnd=KCP_WND_INITIAL, una=0)

    def _answer(self, conv: int, address: Address, *, wnd: int, una: int) -> None:
        if self._answers_left:
            self._answers_left -= 1
            self.counters.out_packets += _send_wins(
                conv, self._context.pool, self._crypt, self._udp, address, wnd=wnd, una=una
            )

    def _create(self, conv: int, address: Address, *, fec: bool, now: int) -> Session | None:
        with self._lock:
            if self._is_closing:
                return None
            is_full = len(self._by_address) >= self._max_sessions
            is_greedy = self._per_host.get(address[0], 0) >= self._max_per_host
        if is_full or is_greedy:
            which = "are open" if is_full else f"allow {self._max_per_host} from one address"
            log.limited("sessions", f"no session for {address[0]}: --maxsessions {self._max_sessions} {which}")
            return None
        if self._context.pool.budget.free < SESSION_COST:
            log.limited("sessions", f"no session for {address[0]}: --memlimit is used up")
            return None
        session = self._context.make_session(
            conv,
            self._context.params.answering(fec=fec),
            self._udp,
            address,
            is_client=False,
            now=now,
            on_stream=self._on_stream,
            on_trouble=_wait_for_client,
            on_closed=self._forget,
        )
        with self._lock:
            stale = self._by_address.get(address)  # which another thread is closing just now
            self._by_address[address] = session
            self._by_conv[conv] = session
            self._count_host_locked(address, 0 if stale else 1)  # whose place it takes was counted
        session.start()
        self._on_session(session)
        return session

    def _forget(self, session: Session, reason: SessionError) -> None:
        with self._lock:
            if self._by_address.get(session.remote) is session:
                del self._by_address[session.remote]
                self._peer_sockets.shut(session.remote)
                self._count_host_locked(session.remote, -1)
            if self._by_conv.get(session.conversation.conv) is session:
                del self._by_conv[session.conversation.conv]
        self._on_closed(session, reason)

    def _count_host_locked(self, address: Address, change: int) -> None:
        count = self._per_host.get(address[0], 0) + change
        if count > 0:
            self._per_host[address[0]] = count
        else:
            self._per_host.pop(address[0], None)


def _wait_for_client(session: Session) -> None:
    """Only the client can find another way."""


def hint(context: SessionContext, unknown: Sample) -> None:
    """Send an unknown source one packet in our own encryption: one of ours finds out from it which --crypt we use.

    For unknown sources who have our key; never longer than what came from there.
    """
    crypt = context.make_crypt()
    if len(unknown.packet) >= crypt.headroom + KCP_HEADER_SIZE + crypt.tailroom:
        _send_wins(0, context.pool, crypt, unknown.udp, unknown.source, wnd=KCP_WND_INITIAL, una=0)


def _send_wins(
    conv: int, pool: BufferPool, crypt: PacketCrypt, udp: UdpSocket, address: Address, *, wnd: int, una: int
) -> int:
    """Send a packet that tells a window and what has come in order; returns the number sent, 0 or 1."""
    with borrow_batch(pool) as batch:
        KCP_SEGMENT.pack_into(batch.arena, crypt.headroom, conv, KCP_WINS, 0, wnd, 0, 0, una & MASK32, 0)
        batch.commit(crypt.headroom + KCP_HEADER_SIZE + crypt.tailroom)
        crypt.seal(batch)
        try:
            return udp.send(batch.views(), address)
        except TransportError:
            return 0  # closed
