"""Which of our addresses a datagram was sent to, so that the answer comes from there.

In      control messages of `recvmsg`
Out     `Local`, a control message for `sendmsg`
Knows   the layouts of ip(7) and ipv6(7). Not: who asks

A peer behind a NAT or a firewall takes an answer only from the address it has asked. On a dual-stack socket the
messages of IPv6 serve IPv4 as well, with mapped addresses.
"""

import socket
import struct

from kcptun_lite.core.batch.packets import Address, Local

IP_PKTINFO = 8
IN_PKTINFO = struct.Struct("=I4s4s")  # interface, the local address, the one in the header; ip(7)
IN6_PKTINFO = struct.Struct("=16sI")  # the address, interface; ipv6(7)
PKTINFO_SPACE = socket.CMSG_SPACE(IN6_PKTINFO.size)


def want(sock: socket.socket) -> None:
    """Have the message sent along with each datagram. Raises: OSError."""
    is_v6 = sock.family == socket.AF_INET6
    sock.setsockopt(*((socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO) if is_v6 else (socket.IPPROTO_IP, IP_PKTINFO)), 1)


def asked(control: list[tuple[int, int, bytes]]) -> Local | None:
    """Which of our addresses a datagram was sent to, as `sendmsg` wants it for the answer."""
    for level, kind, value in control:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO) and len(value) == IN_PKTINFO.size:
            _, local, _ = IN_PKTINFO.unpack(value)
            return level, kind, IN_PKTINFO.pack(0, local, bytes(4))  # the route says through which interface
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(value) == IN6_PKTINFO.size:
            host, interface = IN6_PKTINFO.unpack(value)
            is_link_local = host[0] == 0xFE and host[1] & 0xC0 == 0x80
            return level, kind, IN6_PKTINFO.pack(host, interface if is_link_local else 0)
    return None


def host_of(local: Local, listening: Address) -> Address:
    """The address of `local`, with the port of another one."""
    level, _, value = local
    if level == socket.IPPROTO_IP:
        return (socket.inet_ntop(socket.AF_INET, IN_PKTINFO.unpack(value)[1]), listening[1])
    host, interface = IN6_PKTINFO.unpack(value)
    return (socket.inet_ntop(socket.AF_INET6, host), listening[1], 0, interface)
