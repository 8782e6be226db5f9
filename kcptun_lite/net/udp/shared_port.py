"""The UDP sockets of a server with several workers: opened by their parent, and kept while workers come and go.

In      an address with a port or a range of ports, the number of workers
Out     bound sockets; for each worker which of them it has, and which of these it reads
Knows   SO_REUSEPORT, classic BPF (bpf(4) of BSD, Linux's Documentation/networking/filter.rst). Not: workers, what is
        received
Cost    one run of some twenty instructions for each datagram from somebody who has no socket of his own

Sockets that share a port are a group, numbered in the order in which they were bound. By itself the kernel chooses by a
hash and the size of the group: sockets that come and go, such as those of peers (net/udp/peer_sockets), would move the
packets of others. So the group gets a program that computes the number from the sender's address and port: always the
same worker for the same sender. Those beyond the workers' it never chooses; they are connected to a peer, and have what
comes from there.
"""

import socket
import struct
from array import array
from typing import NamedTuple

from kcptun_lite.errors import TransportError
from kcptun_lite.net.udp.address import resolve
from kcptun_lite.net.udp.sockopt import bind, may_come, try_option

SO_ATTACH_REUSEPORT_CBPF = 51  # Linux 4.5; the same number on all its machines that we know

# Instructions of struct sock_filter: code, jump if true, jump if false, constant (linux/bpf_common.h).
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_LOAD_HALF_AT_X, _X_IS_HEADER_SIZE = 0x48, 0xB1
_STORE, _RECALL, _X_IS_A, _RETURN_A = 0x02, 0x60, 0x07, 0x16
_ADD_X, _XOR_X, _MULTIPLY, _MODULO, _SHIFT_RIGHT = 0x0C, 0xAC, 0x24, 0x94, 0x74
_JUMP, _JUMP_IF_EQUAL = 0x05, 0x15
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF: offsets from here are from the start of the IP header
_IPV4_SOURCE, _IPV6_SOURCE, _IPV6_SIZE = 12, 8, 40
_MIX = 0x9E3779B1  # 2^32 / golden ratio (Knuth, TAOCP 6.4), and a second one
_MIX_AGAIN = 0x85EBCA6B

Instruction = tuple[int, int, int, int]


class Port(NamedTuple):
    """One UDP port as a worker has it."""

    descriptor: int
    is_read: bool
    "by this worker; else it sends there only, for peers that have moved"


class SharedPorts:
    """All sockets of a server with workers."""

    def __init__(self, sockets: list[socket.socket], workers: int, *, is_steered: bool) -> None:
        self.sockets = sockets
        self.is_steered = is_steered
        "what comes from one address always comes to one worker, whatever other sockets there are"
        self._workers = workers

    @classmethod
    def open(cls, host: str, port_min: int, port_max: int, workers: int) -> "SharedPorts":
        """One socket for each worker on a single port, else one on each port. Raises: TransportError."""
        addresses = resolve(host, port_min, socket.SOCK_DGRAM, to_listen=True)
        failures: list[OSError] = []
        for is_absent in False, True:
            for family, address in addresses:
                ports = [(address[0], port, *address[2:]) for port in range(port_min, port_max + 1)]
                sockets: list[socket.socket] = []
                try:
                    for at in ports:
                        # Alone, so that a second server learns that the port is taken; shared from then on.
                        sockets.append(bind(family, at, is_absent=is_absent))
                        sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    if len(ports) > 1:
                        return cls(sockets, workers, is_steered=True)
                    own = sockets[0].getsockname()  # the port may have been 0
                    while len(sockets) < workers:
                        sockets.append(bind(family, own, shares_port=True, is_absent=is_absent))
                except OSError as exc:
                    failures.append(exc)
                    for bound in sockets:
                        bound.close()
                    continue
                return cls(sockets, workers, is_steered=_steer(sockets[0], workers))
            if not may_come(failures):
                break
        raise TransportError(f"cannot listen on {host}:{port_min} (UDP): {failures[-1].strerror}") from failures[-1]

    def of_worker(self, index: int) -> list[Port]:
        """What worker `index` gets: of a single port its own socket, of a range all, of which it reads its part."""
        if self.is_range:
            return [Port(one.fileno(), number % self._workers == index) for number, one in enumerate(self.sockets)]
        return [Port(self.sockets[index].fileno(), True)]

    @property
    def is_range(self) -> bool:
        return len({one.getsockname()[1] for one in self.sockets}) > 1


def _steer(member: socket.socket, workers: int) -> bool:
    """Have the group choose by the sender alone; False if the system cannot."""
    program = array("B", b"".join(struct.pack("=HBBI", *line) for line in steering_program(workers)))
    address, size = program.buffer_info()
    layout = struct.pack("@HP", size // 8, address)  # struct sock_fprog
    return try_option(member, socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, layout) is None


def steering_program(workers: int) -> list[Instruction]:
    """A classic BPF program that returns a number below `workers` for each sender, of IPv4 or IPv6."""
    header = _NETWORK_HEADER
    ipv4 = [
        (_X_IS_HEADER_SIZE, 0, 0, header),
        (_LOAD_HALF_AT_X, 0, 0, header),  # the UDP source port
        (_STORE, 0, 0, 0),
        (_LOAD_WORD, 0, 0, header + _IPV4_SOURCE),
    ]
    ipv6 = [
        (_LOAD_HALF, 0, 0, header + _IPV6_SIZE),
        (_STORE, 0, 0, 0),
        (_LOAD_WORD, 0, 0, header + _IPV6_SOURCE),
    ]
    for offset in range(4, 16, 4):
        ipv6 += [(_X_IS_A, 0, 0, 0), (_LOAD_WORD, 0, 0, header + _IPV6_SOURCE + offset), (_XOR_X, 0, 0, 0)]
    ipv4.append((_JUMP, 0, 0, len(ipv6)))
    mix = [
        (_MULTIPLY, 0, 0, _MIX),
        (_X_IS_A, 0, 0, 0),
        (_RECALL, 0, 0, 0),
        (_ADD_X, 0, 0, 0),
        (_MULTIPLY, 0, 0, _MIX_AGAIN),
        (_SHIFT_RIGHT, 0, 0, 16),
        (_MODULO, 0, 0, workers),
        (_RETURN_A, 0, 0, 0),
    ]
    version = [(_LOAD_BYTE, 0, 0, header), (_SHIFT_RIGHT, 0, 0, 4), (_JUMP_IF_EQUAL, len(ipv4), 0, 6)]
    return [*version, *ipv4, *ipv6, *mix]
