"""What a session, a dialer and a listener need of whatever carries their packets.

In      packets and an address; a batch to fill
Out     `PacketSocket` and `DialedSocket`, the face of net/udp and net/fake_tcp; `PeerDoors`, that of a listener's peers
Knows   nothing of either
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from kcptun_lite.core.batch.packets import Address, Local, PacketBatch
from kcptun_lite.net.event_loop import EventLoop


class PacketSocket(Protocol):
    """Sends and receives datagrams; any thread may send or close."""

    address: Address
    "where it is bound"
    last_error: OSError | None
    "why nothing gets through, if the kernel or the network has said so; None again once a datagram came in"

    @property
    def transport(self) -> str:
        """`UDP` or `TCP`, for sentences."""

    @property
    def is_answered(self) -> bool:
        """Whether the peer's kernel has answered; True where it is not asked (UDP)."""

    def room(self, address: Address) -> int:
        """Bytes of a packet to an address that fit, as far as it is known."""

    def send(self, packets: Sequence[memoryview], address: Address, local: Local | None = None) -> int:
        """Send packets in order; returns how many were taken. Raises: TransportError once it is closed."""

    def close(self) -> None:
        """Idempotent."""


class DialedSocket(PacketSocket, Protocol):
    """A client's: what it receives is its own."""

    def receive(self, batch: PacketBatch, *, wait: bool) -> int:
        """Put what has come into a batch; returns how many packets. Raises: TransportError once it is closed."""

    def watch(self, loop: EventLoop, on_ready: Callable[[], None]) -> None:
        """Have `on_ready` called when something has come, until it is closed."""


class PeerDoors(Protocol):
    """How a listener hears its peers."""

    def __contains__(self, peer: Address) -> bool:
        """Whether a peer has a door of its own."""

    def has_waiting(self, peer: Address) -> bool:
        """Whether something has come from a peer that was not received yet."""

    def open(self, peer: Address, local: Local | None = None) -> None:
        """A peer is validated."""

    def shut(self, peer: Address) -> None:
        """A peer has gone."""

    def watch(self, on_ready: Callable[[], None]) -> None:
        """Have the event loop call `on_ready` when something has come to any of them, until `close`."""

    def close(self) -> None:
        """Nobody opens any more."""

    def receive(self, batch: PacketBatch) -> int:
        """Take what has come; returns the number of packets."""

    def listen(self, wanted: bool) -> None:
        """Hear unknown sources, or leave them to another process that has the port."""

    def rest_unknown(self) -> None:
        """What came last was good for nothing."""

    def every_second(self, has_session: Callable[[Address], bool]) -> None:
        """Look after peers without a session."""
