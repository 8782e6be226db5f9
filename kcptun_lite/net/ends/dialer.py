"""The client's sessions: made, and moved to another path when theirs is dead.

In      a route to the servers
Out     sessions, each with a socket of its own
Knows   who may answer. Not: when a path is dead
Wire    docs/protocol.md, "Client sessions"
"""

import os
from collections.abc import Callable
from contextlib import closing
from functools import partial

from kcptun_lite.core.batch.packets import Address, PacketBatch
from kcptun_lite.core.batch.pool import borrow_batch
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.mux.dialect import Dialect
from kcptun_lite.core.wire import KCP_SEGMENT, KCP_WASK, first_segment
from kcptun_lite.errors import SessionError, TransportError
from kcptun_lite.net.ends.context import SessionContext
from kcptun_lite.net.ends.dialects import Dialects, Search
from kcptun_lite.net.ends.receiver import Receiver
from kcptun_lite.net.ends.route import Route
from kcptun_lite.net.packet_socket import DialedSocket
from kcptun_lite.net.session.path_probe import PathProbe
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import monotonic_ms

FIRST_WAY_QUESTIONS = 3  # a second apart, as packets may be lost


class Dialer:
    """Makes sessions and gives them new paths."""

    def __init__(self, context: SessionContext, route: Route, dialects: Dialects | None = None) -> None:
        """`dialects`: what may be spoken, if that is not what `context` says."""
        self._context = context
        self._route = route
        params = context.params
        self._dialects = dialects or Dialects([Dialect(params.smux_version, params.compress)])

    def dial(
        self, on_trouble: Callable[[Session], None], on_closed: Callable[[Session, SessionError], None]
    ) -> Session:
        """A new session; nothing is sent before its first stream is opened. Raises: TransportError."""
        udp, remote = self._route.open()
        search = Search(self._dialects, remote, self._begin_again)
        session = self._context.make_session(
            _new_conv(),
            self._context.params.in_dialect(search.dialect, is_guess=search.is_guess),
            udp,
            remote,
            is_client=True,
            now=monotonic_ms(),
            on_stream=_refuse_stream,
            on_trouble=on_trouble,
            on_closed=on_closed,
            on_verdict=search.on_verdict,
        )
        self._receive(session, session.conversation.conv, udp, remote)
        session.start()
        return session

    def _begin_again(self, session: Session, dialect: Dialect) -> bool:
        """From a fresh socket: a server of 2017 keeps to the first `conv` of an address (docs/protocol.md)."""
        try:
            udp, remote = self._route.open_again(session.remote)
        except TransportError:
            return False
        conv = _new_conv()
        self._receive(session, conv, udp, remote)
        session.begin_again(conv, dialect, udp, remote)
        return True

    def redial(self, session: Session) -> None:
        """Move a session to a fresh socket, and to what the route now holds for the way. Raises: TransportError."""
        session.change_path(*self._path_probe(session, keeps_port=True))

    def path_probe(self, session: Session, *, keeps_port: bool) -> Address:
        """Try a fresh socket beside the session's own; returns where to. Raises: TransportError.

        `keeps_port`: to the session's own port. A port of its server's range knows what the others know only with ours.
        """
        path_probe = self._path_probe(session, keeps_port=keeps_port)
        session.start_path_probe(path_probe)
        return path_probe.remote

    def is_heard_first_way(self, session: Session) -> bool:
        """Whether the server, one of ours, answers the way that is preferred, while its session goes another one.

        It is asked for its window, which it tells whoever knows the number of a session, and moves nothing.
        Takes a second for each question. Raises: TransportError.
        """
        udp, remote = self._route.open_first_way(session.remote)
        crypt = self._context.make_crypt()
        with closing(udp), borrow_batch(self._context.pool) as batch:
            for _ in range(FIRST_WAY_QUESTIONS):
                batch.clear()
                KCP_SEGMENT.pack_into(batch.arena, crypt.headroom, session.conversation.conv, KCP_WASK, *[0] * 6)
                batch.commit(crypt.headroom + KCP_SEGMENT.size + crypt.tailroom)
                crypt.seal(batch)
                udp.send(batch.views(), remote)
                batch.clear()
                if udp.receive(batch, wait=True):  # for a second
                    crypt.open(batch, Counters())
                    if any(first_segment(packet) for packet in batch.packets()):
                        return True
        return False

    def _path_probe(self, session: Session, *, keeps_port: bool) -> PathProbe:
        path_probe = PathProbe(*self._route.open(session.remote[1] if keeps_port else None, session.remote))
        self._receive(session, session.conversation.conv, *path_probe)
        return path_probe

    def _receive(self, session: Session, conv: int, udp: DialedSocket, remote: Address) -> None:
        """Have what comes to a socket given to the session, until the socket is closed."""
        counters = session.counters
        source: Address | None = None

        def on_batch(batch: PacketBatch, now: int) -> None:
            nonlocal source
            for address, packets in batch.by_source():
                if address not in (remote, source):
                    # A server with several addresses may answer from another one than we send to: the first
                    # that answers for our conversation is the one.
                    if source is not None or not any(
                        (first_segment(packet) or (None,))[0] == conv for packet in packets
                    ):
                        counters.in_errors += len(packets)
                        continue
                    source = address
                session.receive_through(udp, packets, now)

        receiver = Receiver(udp, self._context, counters, on_batch, partial(udp.receive, wait=False))
        udp.watch(self._context.loop, receiver.receive_ready)


def _new_conv() -> int:
    return int.from_bytes(os.urandom(4), "little")


def _refuse_stream(session: Session, stream: Stream) -> None:
    """Only clients open streams in kcptun (docs/protocol.md, "Streams"): somebody sends us what we have sent."""
    session.close(SessionError("what answers is no server: it opens streams, or sends back what it is sent"))
