"""One TCP connection that the kernel has made, as the boxes on the way see it: its numbers.

In      the kernel's socket; segments that came; payloads to send
Out     segments, through a raw socket
Knows   sequence and acknowledgement numbers, timestamps. Not: who is connected, sessions
Wire    docs/protocol.md, "Fake TCP"

Nothing is sent again, and nothing is missed: `seq` grows by what is sent, `ack` follows the furthest that came. A
firewall that looks at both finds a connection that loses nothing. What comes is read whatever its numbers are, as
kcptun goes back with them.
"""

import errno
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock

from kcptun_lite.core.batch.packets import Address, Local
from kcptun_lite.net.fake_tcp.raw_socket import RawSocket
from kcptun_lite.net.fake_tcp.segment import (
    ACK,
    MASK32,
    PSH,
    RST,
    SYN,
    WINDOW,
    Segment,
    before,
    make_headers,
    timestamp,
)
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.address import MAPPED
from kcptun_lite.net.udp.pktinfo import IN6_PKTINFO, IN_PKTINFO, IP_PKTINFO

# The kernel's socket drops whatever has a smaller TTL, which is all that we and others send, without a look: it answers
# nothing, and believes no reset (RFC 5082 has it for routing protocols, whose senders begin with 255).
IP_MINTTL, IPV6_MINHOPCOUNT = 21, 73
DEAF = 255
TCP_TIMESTAMP = 24  # what the kernel would write into a segment of this connection now; tcp(7)
ROOM_LEAST = 128  # bytes; no path has less, but whoever says so would have us send headers alone, or nothing
LINGER_NOT = struct.pack("ii", 1, 0)  # SO_LINGER: a reset at once, and nothing is left of the connection


class Flow:
    """The numbers of one connection; thread-safe."""

    def __init__(self, kernels: socket.socket, peer: Address) -> None:
        """`kernels` is connected, or will be; it is the flow's from now on. Raises: OSError."""
        self.peer = peer
        self.used_at = monotonic_ms()
        "when a session was known to use it (ms)"
        self.kernels = kernels
        # Also when this process is killed: what comes later is then answered by a reset, so that the peer knows.
        kernels.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self._lock = Lock()
        self._seq: int | None = None
        "of the next segment we send; None until the peer has told"
        self._ack = 0
        "up to where what came is acknowledged"
        self._peer_timestamp: int | None = None
        "the latest; None where they are not spoken of"
        self._clock = 0

    @property
    def is_open(self) -> bool:
        """Whether both ends know where the other one's numbers begin."""
        return self._seq is not None

    def begin(self) -> None:
        """The kernel has made the connection: silence it, and find out what it says of itself. Raises: OSError."""
        self.kernels.setsockopt(socket.IPPROTO_IP, IP_MINTTL, DEAF)
        if self.kernels.family == socket.AF_INET6:
            self.kernels.setsockopt(socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT, DEAF)
        here, there = self.kernels.getsockname(), self.kernels.getpeername()
        self._ports = here[1], there[1]
        self.host = there[0].removeprefix(MAPPED)
        self._pseudo_header_sum: int | None
        if ":" in self.host:
            address, scope = socket.inet_pton(socket.AF_INET6, here[0].partition("%")[0]), here[3]
            self.control: list[Local] = [
                (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, IN6_PKTINFO.pack(address, scope)),
            ]
            self._pseudo_header_sum = None  # the kernel fills the checksum in (IPV6_CHECKSUM)
            self.to: Address = (self.host, 0, 0, scope)
        else:
            addresses = [socket.inet_aton(host.removeprefix(MAPPED)) for host in (here[0], self.host)]
            self.control = [(socket.IPPROTO_IP, IP_PKTINFO, IN_PKTINFO.pack(0, addresses[0], bytes(4)))]
            self._pseudo_header_sum = int.from_bytes(b"".join(addresses), "big") + socket.IPPROTO_TCP
            self.to = (self.host, 0)
        self.room: int = max(self.kernels.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), ROOM_LEAST)
        clock: int = self.kernels.getsockopt(socket.IPPROTO_TCP, TCP_TIMESTAMP)
        self._clock = clock - monotonic_ms()

    def heard(self, segment: Segment, options: memoryview, size: int) -> None:
        """A segment of the peer has come, with `size` bytes of payload."""
        end = segment.seq + size + (1 if segment.flags & SYN else 0) & MASK32
        told = timestamp(options) if len(options) else None
        with self._lock:
            if self._seq is None:
                self._seq, self._ack = segment.ack, end
            elif before(self._ack, end):
                self._ack = end
            if told is not None and (self._peer_timestamp is None or before(self._peer_timestamp, told)):
                self._peer_timestamp = told

    def may_be_reset(self, segment: Segment) -> bool:
        """Whether a reset fits what was said last; it is a hint, for boxes on the way and others send them as well."""
        return not self.is_open or (segment.seq - self._ack) & MASK32 <= WINDOW

    def send(self, raw: RawSocket, packets: Sequence[memoryview]) -> tuple[int, OSError | None]:
        """Send packets in order, each as a segment. The flow is open.

        Returns how many the kernel took, and why it has not taken the last one of the others.
        """
        taken, error = 0, None
        for header, packet in zip(self._headers(packets), packets, strict=True) if packets else ():
            try:
                raw.send(header, packet, self.to, self.control)
                taken += 1
            except BlockingIOError as exc:  # SO_SNDTIMEO is over
                return taken, exc
            except OSError as exc:
                # The kernel's word for a source address that no interface has any more (ip(7)).
                error = OSError(errno.EADDRNOTAVAIL, "our address is gone") if exc.errno == errno.EINVAL else exc
        return taken, error

    def _headers(self, packets: Sequence[memoryview], flags: int = PSH | ACK) -> list[bytes]:
        """What goes before each packet."""
        size = sum([len(packet) for packet in packets])
        with self._lock:
            seq, ack, peer_timestamp = self._seq or 0, self._ack, self._peer_timestamp
            self._seq = seq + size & MASK32
        timestamps = None if peer_timestamp is None else (self._now(), peer_timestamp)
        return make_headers(self._ports, (seq, ack), flags, timestamps, packets, self._pseudo_header_sum)

    def _now(self) -> int:
        return monotonic_ms() + self._clock & MASK32

    def close(self, raw: RawSocket | None) -> None:
        """End the kernel's connection, and tell the boxes on the way; nothing is left of it. Idempotent."""
        with self._lock:
            if self.kernels.fileno() < 0:
                return
            self.kernels.close()
        if raw and self._seq is not None:
            nothing = memoryview(b"")
            with suppress(OSError):
                raw.send(self._headers([nothing], RST | ACK)[0], nothing, self.to, self.control)
