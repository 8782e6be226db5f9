"""Another way to the peer, tried beside a session's own.

In      packets
Out     the same packets, through a socket that may have been closed
Knows   sockets, what tells that there is no way. Not: when another is wanted (net/session/session)
Cost    a socket while it is tried
"""

import errno
from typing import NamedTuple

from kcptun_lite.core.batch.packets import Address, Local
from kcptun_lite.errors import TransportError
from kcptun_lite.net.packet_socket import DialedSocket, PacketSocket

PROBE_RESETS = 3  # times that a peer who is reached another way must say that it knows nothing of us ...
PROBE_RESET_AFTER = 2500  # ms ... and for so long, while the old way stays silent, until we believe it
NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ECONNRESET)


class PathProbe(NamedTuple):
    """Another way to the peer, tried while the session's own is silent."""

    udp: DialedSocket
    remote: Address


class Verdict:
    """How often a peer that is reached another way has said that it knows nothing of the session."""

    def __init__(self) -> None:
        self._resets = self._since = 0

    def add(self, now: int) -> bool:
        """It has said so once more; whether it is believed now."""
        self._resets += 1
        self._since = self._since or now
        return self._resets >= PROBE_RESETS and now - self._since >= PROBE_RESET_AFTER

    def is_pending(self, now: int) -> bool:
        """Whether it is given time to go on saying so."""
        return self._resets > 0 and now - self._since < 2 * PROBE_RESET_AFTER


def send_all(udp: PacketSocket, packets: list[memoryview], remote: Address, local: Local | None = None) -> int:
    """Packets that the kernel took; none if the socket was closed meanwhile."""
    try:
        return udp.send(packets, remote, local)
    except TransportError:
        return 0  # closed while we were at it


def is_cut_off(udp: PacketSocket) -> bool:
    """Whether the kernel itself says that there is no way from this socket."""
    error = udp.last_error
    return error is not None and error.errno in NO_WAY


def is_refused(udp: PacketSocket) -> bool:
    """Whether the peer's host says that nobody listens."""
    return isinstance(udp.last_error, ConnectionRefusedError)
