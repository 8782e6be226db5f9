"""The doors of a server's port: the front door for strangers, and one more for each peer who is known.

In      a UDP socket; the addresses of peers who have shown that they are real
Out     trays of what has come in, from peers and from strangers in turn
Knows   which sockets have something, and whose turn it is. Not: sessions, what is in a packet
Cost    one system call more for a tray (epoll_wait), a descriptor for each peer

Linux puts a datagram into the queue of the socket that is connected to its source, if there is one (before 5.4, now and
then into another one of these). So a flood of strangers fills their own queue, not the peers', and the receiver spends
no more time on it than it wants to.

Nothing depends on it: whoever comes is told by his source address, through whichever door. A peer comes in through the
front if there is no door of his own, for want of descriptors or epoll or because there are too many; and always, if he
sends to another address of this host than Linux would answer from.
"""

import select
from contextlib import suppress
from time import monotonic

from kcptun_lite.core.batch.buffers import Address, PacketBatch
from kcptun_lite.errors import TransportError
from kcptun_lite.net.udp.udp_socket import GRO_ROOM, ON_LINUX, RECEIVE_TIMEOUT_MS, UdpSocket

STRANGERS_TURN = 128  # reads at the front door before the others are looked at again
STRANGERS_REST = 0.002  # s
REFUSED_FOR = 1.0  # s after which a door is tried again, when the system would not have it
DOORS_MAX = 128  # Linux looks at one after the other when a datagram comes


class Doors:
    """The sockets of one port. One thread receives; the others are called under a lock of the caller's."""

    def __init__(self, front: UdpSocket) -> None:
        """`front` stays the caller's, who closes it first, to end `receive`."""
        self._front = front
        self._by_peer: dict[Address, UdpSocket] = {}
        self._by_number: dict[int, UdpSocket] = {}
        self._refused_until = 0.0  # s
        self._turn = 0
        self._was_strangers_turn = False
        self._rest_until = 0.0  # s; when strangers are heard again
        self._is_resting = False
        self._epoll: select.epoll | None = None
        if ON_LINUX:
            with suppress(OSError):  # no descriptor left: then there is the front only
                self._epoll = select.epoll()
                self._epoll.register(front.fileno(), select.EPOLLIN)

    def __contains__(self, peer: Address) -> bool:
        return peer in self._by_peer

    def open(self, peer: Address) -> None:
        """Give a peer who has none a door of his own, if that is possible."""
        if not self._epoll or len(self._by_peer) >= DOORS_MAX or monotonic() < self._refused_until:
            return
        try:
            door = self._front.for_peer(peer)
            try:
                self._epoll.register(door.fileno(), select.EPOLLIN)
            except OSError:
                door.close()
                raise
        except OSError:  # no descriptor left, or no right to bind this port again
            self._refused_until = monotonic() + REFUSED_FOR
            return
        self._by_peer[peer] = self._by_number[door.fileno()] = door

    def shut(self, peer: Address) -> None:
        """The peer has gone."""
        door = self._by_peer.pop(peer, None)
        if door and self._epoll:
            del self._by_number[door.fileno()]
            self._epoll.unregister(door.fileno())
            door.close()

    def close(self) -> None:
        """Shut all doors but the front; called when `receive` has ended and nobody opens any more."""
        for peer in list(self._by_peer):
            self.shut(peer)
        if self._epoll:
            self._epoll.close()

    def receive(self, batch: PacketBatch) -> int:
        """Wait, then take what has come from peers, or from strangers, in turn; see `UdpSocket.receive`.

        Raises: TransportError once the front door is closed.
        """
        front = self._front
        if not self._epoll:
            return front.receive(batch)
        with front.kept_open():
            rest = self._rest_until - monotonic()
            if (rest > 0) != self._is_resting:
                self._is_resting = rest > 0
                self._epoll.modify(front.fileno(), 0 if self._is_resting else select.EPOLLIN)
            timeout = rest if rest > 0 else RECEIVE_TIMEOUT_MS / 1000
            ready = [number for number, _ in self._epoll.poll(timeout, len(self._by_peer) + 1)]
        doors = [door for door in map(self._by_number.get, ready) if door]
        is_strangers_turn = len(doors) < len(ready) and not (doors and self._was_strangers_turn)
        self._was_strangers_turn = is_strangers_turn
        if is_strangers_turn:
            received = front.receive(batch, wait=False, reads=STRANGERS_TURN)
            if not received:
                self.let_strangers_wait()
            return received
        self._turn += 1
        for index in range(len(doors)):
            door = doors[(self._turn + index) % len(doors)]
            if batch.has_room(GRO_ROOM):  # else epoll tells of it again, and another one is the first
                with suppress(TransportError):  # shut meanwhile
                    door.receive(batch, wait=False)
        if len(batch):
            front.last_error = None  # of sending, which all do through the front
        return len(batch)

    def let_strangers_wait(self) -> None:
        """What came last was good for nothing: see to the peers, or let other threads do so, before any more of it."""
        self._rest_until = monotonic() + STRANGERS_REST
