"""A raw IP socket for TCP segments: they come and go beside the kernel's own TCP.

In      segments and whom to send them to; a batch to fill
Out     what the filter lets through, one segment at a time
Knows   sockets of Linux, the IP header. Not: connections
Wire    docs/protocol.md, "Fake TCP"
Cost    3 us for a segment received, 5 us for one sent

It needs CAP_NET_RAW. No segment is ever cut on its way (DF): a box that cuts TCP is no box to rely on.
"""

import errno
import socket
from contextlib import suppress

from kcptun_lite.core.batch.packets import Address, Local, PacketBatch
from kcptun_lite.core.wire import MTU_MAX
from kcptun_lite.errors import ConfigError
from kcptun_lite.net.udp.sockopt import (
    IP_FREEBIND,
    ON_LINUX,
    SO_RCVBUFFORCE,
    SO_SNDBUFFORCE,
    hold_to_device,
    set_buffer_size,
    set_dscp,
    set_timeout,
)
from kcptun_lite.net.udp.udp_socket import RECEIVE_TIMEOUT_MS, SEND_TIMEOUT_MS, UdpOptions

IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23
PMTUDISC_PROBE = 3  # DF, whatever the kernel believes the path to carry: the session finds out (net/ends/path_sizes)
IPV6_CHECKSUM, IPV6_FREEBIND = 7, 78
CHECKSUM_AT = 16  # in the TCP header
HEADERS_MAX = 60 + 60  # bytes of an IPv4 and a TCP header with all options
ROOM = HEADERS_MAX + MTU_MAX + 1  # bytes that a batch must have for a segment: one more than allowed, to tell

NEEDED = "it needs CAP_NET_RAW: run it as root, or give it that capability (AmbientCapabilities= of systemd)"


class RawSocket:
    """One of one family. Closed when nobody holds it any more: no number is ever another descriptor's meanwhile."""

    def __init__(self, family: socket.AddressFamily, options: UdpOptions) -> None:
        """Raises: OSError, PermissionError without CAP_NET_RAW."""
        self.inner = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self.family = family
        if options.device:
            hold_to_device(self.inner, options.device)
        set_timeout(self.inner, socket.SO_RCVTIMEO, RECEIVE_TIMEOUT_MS)
        set_timeout(self.inner, socket.SO_SNDTIMEO, SEND_TIMEOUT_MS)
        set_buffer_size(self.inner, "rmem_max", socket.SO_RCVBUF, SO_RCVBUFFORCE, options.sockbuf)
        set_buffer_size(self.inner, "wmem_max", socket.SO_SNDBUF, SO_SNDBUFFORCE, options.sockbuf)
        if options.dscp:
            set_dscp(self.inner, options.dscp)
        if family == socket.AF_INET:
            self.inner.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
        else:
            self.inner.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
            self.inner.setsockopt(socket.IPPROTO_IPV6, IPV6_CHECKSUM, CHECKSUM_AT)

    def __del__(self) -> None:
        if inner := getattr(self, "inner", None):
            inner.close()

    def hear_only(self, address: Address) -> None:
        """Hear what is sent to this one of our addresses alone, which no interface may have yet. Raises: OSError."""
        if self.family == socket.AF_INET:
            self.inner.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        else:
            self.inner.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        self.inner.bind((address[0], 0, *address[2:]))

    def forget_all(self) -> None:
        """Drop what has come. Raises: OSError.

        Before it had its filter a raw socket heard every connection of this machine, resets among them.
        """
        with suppress(BlockingIOError):
            while True:
                self.inner.recv(1, socket.MSG_DONTWAIT)

    def fileno(self) -> int:
        return self.inner.fileno()

    def read(self, batch: PacketBatch, flags: int) -> tuple[memoryview, str]:
        """The next segment, in the batch's free room, and the host it came from. Raises: OSError, BlockingIOError."""
        at = batch.end
        size, address = self.inner.recvfrom_into(batch.arena[at:], ROOM, flags)
        if self.family == socket.AF_INET:
            return batch.arena[at + (batch.arena[at] & 0xF) * 4 : at + size], address[0]
        return batch.arena[at : at + size], address[0]

    def send(self, header: bytes, payload: memoryview, peer: Address, control: list[Local]) -> None:
        """`control`: from which of our addresses. Raises: OSError; BlockingIOError if there is no room in time."""
        self.inner.sendmsg([header, payload], control, 0, peer)


def take(batch: PacketBatch, payload: memoryview, address: Address) -> None:
    """Make a payload, which lies somewhere behind the end of a batch, its next packet; one that is too long is none."""
    size = len(payload)
    if 0 < size <= MTU_MAX:
        at = batch.end
        batch.arena[at : at + size] = payload
        batch.commit(size)
        batch.addresses.append(address)


def check(option: str) -> None:
    """Raises: ConfigError that says why this machine has no raw sockets for us, who want them for this option."""
    if not ON_LINUX:
        raise ConfigError(f"{option}: it needs Linux")
    try:
        RawSocket(socket.AF_INET, UdpOptions())
    except PermissionError as exc:
        raise ConfigError(f"{option}: {NEEDED}") from exc
    except OSError as exc:
        reason = exc.strerror or errno.errorcode.get(exc.errno or 0, repr(exc))
        raise ConfigError(f"{option}: no raw socket: {reason}") from exc
