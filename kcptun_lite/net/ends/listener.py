"""One port of a server: who may come in, who has moved, who must wait.

In      opened packets with their sources
Out     sessions; each session's packets, once per batch
Knows   addresses and conversations. Not: who gives way (net/ends/session_table), options
Wire    docs/protocol.md, "Server sessions", stricter: only the first segment of a conversation makes a session
Cost    one look-up per batch and peer
"""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING

from kcptun_lite import log
from kcptun_lite.core.batch.packets import Address, Local, PacketBatch
from kcptun_lite.core.batch.pool import BufferPool, borrow_batch
from kcptun_lite.core.budget import SESSION_COST
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.crypt import PacketCrypt
from kcptun_lite.core.glance import bring_news
from kcptun_lite.core.wire import (
    FEC_DATA,
    FEC_HEADER_SIZE,
    KCP_HEADER_SIZE,
    KCP_PUSH,
    KCP_REFUSAL_TS,
    KCP_SEGMENT,
    KCP_WASK,
    KCP_WINS,
    KCP_WND_INITIAL,
    MASK32,
    fec_type,
)
from kcptun_lite.errors import SessionClosed, SessionError, SessionMoved, TransportError, describe_exception
from kcptun_lite.net.ends.context import SessionContext
from kcptun_lite.net.ends.failed_packets import Sample
from kcptun_lite.net.ends.receiver import Receiver
from kcptun_lite.net.ends.session_table import Place, SessionTable
from kcptun_lite.net.packet_socket import PacketSocket, PeerDoors
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.udp.address import format_address, format_host

if TYPE_CHECKING:
    from kcptun_lite.net.ends.siblings import Siblings

HALF_OPEN_TIME = 10_000  # ms in which a new session must show that its peer is where it seems ...
UNVALIDATED_TIME = 35_000  # ms ... if it has a stream: should all be lost, a keep-alive of 30 s asks once more
ANSWERS = 1000  # to unknown sources, a second


class Listener:
    """One port and the sessions that come in there."""

    def __init__(
        self,
        context: SessionContext,
        udp: PacketSocket,
        doors: PeerDoors,
        table: SessionTable,
        *,
        on_stream: Callable[[Session, Stream], None],
        on_session: Callable[[Session], None],
        on_validated: Callable[[Session], None],
        on_closed: Callable[[Session, SessionError], None],
        siblings: "Siblings | None" = None,
    ) -> None:
        """`doors` are those of `udp`, and close with the listener.

        `table` is the same for all ports of a server: a client may move from one to another.
        `siblings`: other processes that serve the same port.
        `on_stream` is called when a stream may be served, which for many sessions that begin at once is when they are
        validated; `on_session` for each session, `on_validated` when its peer has shown where it is.
        """
        self.counters = Counters()
        "of the packets that belong to no session"
        self._context = context
        self._udp = udp
        self._table = table
        self._crypt: PacketCrypt = context.make_crypt()
        self._on_stream = on_stream
        self._on_session = on_session
        self._on_validated = on_validated
        self._on_closed = on_closed
        self._lock = Lock()
        self._waiting: dict[Session, list[Stream]] = {}
        "streams of sessions that must be validated before they reach the target"
        self._answers_left = ANSWERS
        self._is_closing = False
        self._siblings = siblings
        self._doors = doors
        self._receiver = Receiver(udp, context, self.counters, self._on_batch, self._doors.receive)

    def start(self) -> None:
        self._doors.watch(self._receiver.receive_ready)

    def listen(self, wanted: bool) -> None:
        """Hear unknown sources at this port, or leave them to siblings; what peers' own sockets bring is heard."""
        self._doors.listen(wanted)

    @property
    def address(self) -> Address:
        return self._udp.address

    def sessions(self) -> list[Session]:
        """Those that are reached through this port now."""
        return [session for session in self._table if self._has(session)]

    def close(self) -> None:
        """Close all sessions, then the sockets."""
        with self._lock:
            self._is_closing = True
        for session in self.sessions():
            session.close(SessionClosed("the server stops"))
        self._udp.close()
        with self._lock:
            self._doors.close()

    def every_second(self, now: int) -> None:
        """Close sessions that somebody has opened and never shown to be there; answer unknown sources again."""
        self._answers_left = ANSWERS
        for session in self.sessions():
            limit = UNVALIDATED_TIME if session.stream_count else HALF_OPEN_TIME
            if not session.is_validated and now - session.opened_at >= limit:
                session.close(SessionClosed("half-open"))
        self._doors.every_second(lambda address: self._table.at((self, address)) is not None)

    # -- the network's thread ------------------------------------------------------------------

    def _on_batch(self, batch: PacketBatch, now: int) -> None:
        is_any_use = False
        for address, packets in batch.by_source():
            try:
                is_any_use |= self._route(address, batch.asked.get(address), packets, now)
            except Exception as exc:  # a bug, or no memory left: it concerns this source alone
                log.limited(
                    "listener", f"packets of {format_host(address)}: {describe_exception(exc)}", log.Level.ERROR
                )
        if not is_any_use:
            self._doors.rest_unknown()

    def go_on(self, conv: int, address: Address, local: Local | None, *, fec: bool, now: int) -> Session | None:
        """A session of a validated peer that another process has served; its conversation is still to be told."""
        session = self._create(conv, address, local, fec=fec, now=now)
        if session:
            session.counters.passive_opens = 0  # which was counted there
            self._table.validate(session)
        return session

    def receive_handed(self, address: Address, local: Local | None, packets: Sequence[memoryview], now: int) -> None:
        """Take opened packets of a conversation of ours that a sibling has received at this port."""
        self._route(address, local, packets, now, is_handed=True)

    def _route(
        self,
        address: Address,
        local: Local | None,
        packets: Sequence[memoryview],
        now: int,
        *,
        is_handed: bool = False,
    ) -> bool:
        """Give packets of one address, sent to `local` of ours, to the session they are of; whether that was of use."""
        session = self._table.at((self, address))
        strays: list[int] = []
        for index, packet in enumerate(packets):
            kind = fec_type(packet)
            at = FEC_HEADER_SIZE if kind == FEC_DATA else 0
            if len(packet) < at + KCP_HEADER_SIZE or kind > FEC_DATA:
                continue  # parity tells nothing of its conversation
            conv, cmd, _, _, _, sn, _, _ = KCP_SEGMENT.unpack_from(packet, at)
            if session and session.conversation.conv == conv:
                break  # the usual case; a stray packet behind it bounces in KCP
            if known := self._table.find(conv):
                if self._table.place_of(known) == (self, address):
                    session = known  # which is not validated: then the address still belongs to another one
                    break
                return self._receive_from_elsewhere(known, address, local, packets[index:], now)
            siblings = None if is_handed else self._siblings  # what was handed on is not handed back
            if siblings and siblings.hand_on(conv, self, address, local, packets[index:]):
                return False  # whether it was of use the sibling finds out; it may be replayed
            is_first = cmd == KCP_PUSH and sn == 0
            if is_first and not self._table.has_ended(conv):
                session = self._create(conv, address, local, fec=at > 0, now=now)
                break
            self.counters.kcp_in_errors += 1
            strays.append(index)
            if not session and cmd in (KCP_PUSH, KCP_WASK):
                self._answer_unknown(conv, address, local)
                return False
        if strays:
            packets = [packet for index, packet in enumerate(packets) if index not in strays]
        if not session or not packets:
            return False
        if (
            local
            and local != session.local
            and (not session.is_validated or bring_news(session.conversation.kcp, packets))
        ):
            session.local = local
        session.receive(packets, now)
        if session.is_validated:
            self._note_validated(session, address)
        return session.is_validated  # a recorded first packet makes a session, too

    def _receive_from_elsewhere(
        self, session: Session, address: Address, local: Local | None, packets: Sequence[memoryview], now: int
    ) -> bool:
        """A known conversation from a new address: if it brings anything new, that is where the client is now.

        Its first segment once more is nothing new: recorded and replayed it makes no second session, which
        would bring the target the same request again. Returns whether the packets were of use.
        """
        before, conversation = session.remote, session.conversation
        place = self._table.place_of(session)
        if session.is_validated and (_has_waiting(place) or not bring_news(conversation.kcp, packets)):
            # Replayed, and what was sent first may be in the queue of the peer's own socket still; or all the client
            # has to say is what we know, because our answers went to where it was.
            kcp = conversation.kcp
            self._answer(conversation.conv, address, local, wnd=kcp.received.free, una=kcp.progress()[1])
            return False
        if session.receive(packets, now, address, self._udp, local):
            stale = self._table.move(session, (self, address))
            _shut_door(place)
            if stale:
                stale.close(SessionClosed("its address is another client's now"))
            if session.is_validated:  # others move as anybody likes who repeats their first packet
                text = f"moved from {format_address(before)} to {format_address(address)}"
                log.limited("moved", f"session {conversation.conv:08x} {text}", log.Level.INFO)
        if session.is_validated:
            self._note_validated(session, address)
        return session.is_validated

    def _note_validated(self, session: Session, address: Address) -> None:
        """Give the peer its place, its streams and a socket of its own, if it has them not."""
        if self._table.is_unvalidated(session):
            if stale := self._table.validate(session):
                stale.close(SessionClosed("replaced by a new conversation from the same address"))
            self._on_validated(session)
            with self._lock:
                waiting = self._waiting.pop(session, [])
            for stream in waiting:
                self._on_stream(session, stream)
        if address not in self._doors:
            with self._lock:
                if self._table.at((self, address)) is session and not self._is_closing:
                    self._doors.open(address, session.local)

    def _take_stream(self, session: Session, stream: Stream) -> None:
        """Serve a stream, at once or when it is known that its client is where it seems."""
        with self._lock:
            must_wait = not session.is_validated and not self._table.may_go_early(session)
            if session.is_closed:
                return
            if must_wait or session in self._waiting:
                self._waiting.setdefault(session, []).append(stream)
                return
        self._on_stream(session, stream)

    def _answer_unknown(self, conv: int, address: Address, local: Local | None) -> None:
        """Tell whoever continues a conversation we know nothing of that it is over: we acknowledge from zero.

        A client of ours takes two of these for the proof that they are (Kcp.has_peer_restarted). One of Go learns
        nothing from them, but is not kept waiting by a session that never delivers either
        (docs/protocol.md, "Server sessions"). The answer is a bare WINS, never longer than the question; ACK and WINS
        get none, so two unknown sources cannot keep each other talking.
        """
        self._answer(conv, address, local, wnd=KCP_WND_INITIAL, una=0)

    def _answer(self, conv: int, address: Address, local: Local | None, *, wnd: int, una: int, ts: int = 0) -> None:
        if self._answers_left:
            self._answers_left -= 1
            self.counters.out_packets += _send_wins(
                conv, self._context.pool, self._crypt, self._udp, address, local, wnd=wnd, una=una, ts=ts
            )

    def _create(self, conv: int, address: Address, local: Local | None, *, fec: bool, now: int) -> Session | None:
        if self._is_closing:
            return None
        why, gives_way = self._table.refusal(address, now)
        if why:
            why = f"--maxsessions: {why}"
        elif self._table.is_draining:
            why = "the server is about to end"
        elif self._context.pool.budget.free < SESSION_COST:
            why = "--memlimit is used up"
        if why:
            log.limited("sessions", f"no session for {format_host(address)}: {why}")
            self._answer(conv, address, local, wnd=KCP_WND_INITIAL, una=0, ts=KCP_REFUSAL_TS)
            return None
        if gives_way:
            gives_way.close(SessionClosed("gives way: it is not used, or its client has not shown where it is"))
        session = self._context.make_session(
            conv,
            self._context.params.answering(fec=fec),
            self._udp,
            address,
            is_client=False,
            now=now,
            on_stream=self._take_stream,
            on_trouble=_wait_for_client,
            on_closed=self._forget,
        )
        session.local = local
        self._table.add(session, (self, address))
        if self._siblings:
            self._siblings.have(conv)
        session.start()
        self._on_session(session)
        return session

    def _forget(self, session: Session, reason: SessionError) -> None:
        place = self._table.place_of(session)
        if self._siblings:
            may_begin = self._table.is_unvalidated(session) or isinstance(reason, SessionMoved)
            tell = self._siblings.gone if may_begin else self._siblings.ended
            tell(session.conversation.conv)
        self._table.forget(session)
        _shut_door(place)
        with self._lock:
            self._waiting.pop(session, None)
        self._on_closed(session, reason)

    def _has(self, session: Session) -> bool:
        place = self._table.place_of(session)
        return place is not None and place[0] is self


def _has_waiting(place: Place | None) -> bool:
    return place is not None and isinstance(place[0], Listener) and place[0]._doors.has_waiting(place[1])


def _shut_door(place: Place | None) -> None:
    """No session is reached there any more; or another one is, which gets a new socket."""
    if place is not None and isinstance(place[0], Listener):
        with place[0]._lock:
            place[0]._doors.shut(place[1])


def _wait_for_client(session: Session) -> None:
    """Only the client can find another way."""


def hint(context: SessionContext, unknown: Sample) -> None:
    """Send an unknown source one packet in our own encryption: one of ours finds out from it which --crypt we use.

    For unknown sources who have our key; never longer than what came from there.
    """
    crypt = context.make_crypt()
    if len(unknown.packet) >= crypt.headroom + KCP_HEADER_SIZE + crypt.tailroom:
        _send_wins(0, context.pool, crypt, unknown.udp, unknown.source, unknown.local, wnd=KCP_WND_INITIAL, una=0)


def _send_wins(
    conv: int,
    pool: BufferPool,
    crypt: PacketCrypt,
    udp: PacketSocket,
    address: Address,
    local: Local | None,
    *,
    wnd: int,
    una: int,
    ts: int = 0,
) -> int:
    """Send a packet that tells a window and what has come in order; returns the number sent, 0 or 1."""
    with borrow_batch(pool) as batch:
        KCP_SEGMENT.pack_into(batch.arena, crypt.headroom, conv, KCP_WINS, 0, wnd, ts, 0, una & MASK32, 0)
        batch.commit(crypt.headroom + KCP_HEADER_SIZE + crypt.tailroom)
        crypt.seal(batch)
        try:
            return udp.send(batch.views(), address, local)
        except TransportError:
            return 0  # closed
