"""The sockets of a server's port: the listening socket, and one connected socket for each validated peer.

In      a UDP socket; the addresses of peers that are validated
Out     batches of what has come in, from peers and from unknown sources in turn
Knows   which sockets have something, and whose turn it is. Not: sessions, what is in a packet
Cost    one system call more for a batch (epoll_wait), a descriptor for each peer

Linux puts a datagram into the queue of the socket that is connected to its source, if there is one (before 5.4, now
and then into another one of these). So a flood from unknown sources fills only the listening socket's queue, and the
receiver spends no more time on it than it wants to.

Nothing depends on it: a peer is told by its source address, whichever socket its packet came through. Packets of a
peer come through the listening socket if it has no socket of its own (no descriptors, no epoll, too many peers).
"""

import select
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from kcptun_lite.core.batch.packets import Address, Local, PacketBatch
from kcptun_lite.errors import TransportError
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.udp.sockopt import ON_LINUX
from kcptun_lite.net.udp.udp_socket import GRO_ROOM, UdpSocket

UNKNOWN_TURN = 128  # reads at the listening socket before the others are looked at again
UNKNOWN_REST = 0.002  # s
REFUSED_FOR = 1.0  # s after which a socket is tried again, when the system would not have it
PEER_SOCKETS_MAX = 128  # Linux looks at one after the other when a datagram comes


class PeerSockets:
    """The sockets of one port.

    `receive` and `rest_unknown` are for the event loop's thread, the others are called under a lock of the caller's.
    """

    def __init__(self, listening: UdpSocket, loop: EventLoop, *, may_open: bool = True) -> None:
        """`listening` stays the caller's, who closes it first, to end `receive`. `may_open` False: no others."""
        self._may_open = may_open
        self._loop = loop
        self._listening = listening
        self._by_peer: dict[Address, UdpSocket] = {}
        self._by_number: dict[int, UdpSocket] = {}
        self._refused_until = 0.0  # s
        self._turn = 0
        self._was_unknown_turn = False
        self._is_resting = False  # unknown sources are not heard for a moment
        self._is_listening = True
        self._on_ready: Callable[[], None] | None = None
        self._epoll: select.epoll | None = None
        if ON_LINUX:
            with suppress(OSError):  # no descriptor left: then there is the listening one only
                self._epoll = select.epoll()
                self._epoll.register(listening.fileno(), select.EPOLLIN)

    def __contains__(self, peer: Address) -> bool:
        return peer in self._by_peer

    def has_waiting(self, peer: Address) -> bool:
        """Whether something has come from a peer that was not received yet."""
        peer_socket = self._by_peer.get(peer)
        return peer_socket is not None and peer_socket.has_waiting()

    def open(self, peer: Address, local: Local | None = None) -> None:
        """Give a peer that has none a socket of its own, for what it sends to our address `local`, if possible."""
        if not (self._epoll and self._may_open) or monotonic() < self._refused_until:
            return
        if len(self._by_peer) >= PEER_SOCKETS_MAX:
            return
        try:
            peer_socket = self._listening.for_peer(peer, local)
            try:
                self._epoll.register(peer_socket.fileno(), select.EPOLLIN)
            except OSError:
                peer_socket.close()
                raise
        except OSError:  # no descriptor left, or no right to bind this port again
            self._refused_until = monotonic() + REFUSED_FOR
            return
        self._by_peer[peer] = self._by_number[peer_socket.fileno()] = peer_socket

    def shut(self, peer: Address) -> None:
        """The peer has gone."""
        peer_socket = self._by_peer.pop(peer, None)
        if peer_socket and self._epoll:
            del self._by_number[peer_socket.fileno()]
            self._epoll.unregister(peer_socket.fileno())
            peer_socket.close()

    def listen(self, wanted: bool) -> None:
        """Hear unknown sources or leave them to another process that has the listening socket; peers are heard."""
        self._is_listening = wanted
        if self._epoll:
            self._hear_unknown()
        elif self._on_ready:
            self.watch(self._on_ready)

    def every_second(self, has_session: Callable[[Address], bool]) -> None:
        """Nothing: a peer's socket is shut with its session."""

    def watch(self, on_ready: Callable[[], None]) -> None:
        """Have the event loop call `on_ready` when something has come to any of them, until `close`."""
        self._on_ready = on_ready
        if self._epoll:
            self._loop.watch(self._epoll.fileno(), on_ready)
        elif self._is_listening:
            self._listening.watch(self._loop, on_ready)
        else:
            self._loop.forget(self._listening.fileno())

    def close(self) -> None:
        """Shut all sockets but the listening one; nobody opens any more."""
        for peer in list(self._by_peer):
            self.shut(peer)
        if self._epoll and not self._epoll.closed:
            self._loop.forget(self._epoll.fileno())
            self._loop.call(self._epoll.close)  # the loop's thread may be about to ask it

    def receive(self, batch: PacketBatch) -> int:
        """Take what has come from peers, or from unknown sources, in turn; see `UdpSocket.receive`.

        Raises: TransportError once the listening socket is closed.
        """
        listening = self._listening
        if not self._epoll:
            return listening.receive(batch, wait=False)
        if self._epoll.closed:
            raise TransportError("the port is closed")
        ready = [number for number, _ in self._epoll.poll(0, len(self._by_peer) + 1)]
        peer_sockets = [peer_socket for peer_socket in map(self._by_number.get, ready) if peer_socket]
        is_unknown_turn = len(peer_sockets) < len(ready) and not (peer_sockets and self._was_unknown_turn)
        self._was_unknown_turn = is_unknown_turn
        if is_unknown_turn:
            received = listening.receive(batch, wait=False, reads=UNKNOWN_TURN)
            if not received:
                self.rest_unknown()
            return received
        self._turn += 1
        for index in range(len(peer_sockets)):
            peer_socket = peer_sockets[(self._turn + index) % len(peer_sockets)]
            if batch.has_room(GRO_ROOM):  # else epoll tells of it again, and another one is the first
                with suppress(TransportError):  # shut meanwhile
                    peer_socket.receive(batch, wait=False)
        if len(batch):
            listening.last_error = None  # of sending, which all do through the listening socket
        return len(batch)

    def rest_unknown(self) -> None:
        """What came last was good for nothing: see to the peers, and all else, before any more of it."""
        if self._epoll and not self._is_resting:
            self._is_resting = True
            self._hear_unknown()
            self._loop.call_later(UNKNOWN_REST, self._end_rest)

    def _end_rest(self) -> None:
        self._is_resting = False
        self._hear_unknown()

    def _hear_unknown(self) -> None:
        is_wanted = self._is_listening and not self._is_resting
        if self._epoll and not self._epoll.closed:
            with suppress(OSError):  # the listening socket is closed
                self._epoll.modify(self._listening.fileno(), select.EPOLLIN if is_wanted else 0)
