"""A filter in the kernel (classic BPF, linux/filter.h): what a raw socket gets to see.

In      ports, flags, hosts
Out     raw sockets that see no other segments
Knows   the few instructions that are wanted. Not: why a segment is wanted
Cost    some 50 ns for each TCP packet to this machine, in the kernel; nothing for what it forwards
"""

import array
import socket
import struct
from collections.abc import Iterable

SO_ATTACH_FILTER = 26
EVERYTHING = 0xFFFF_FFFF  # bytes of the packet

INSTRUCTION = struct.Struct("=HBBI")  # what, jump if true, jump if false, number k
PROGRAM = struct.Struct("@HP")  # struct sock_fprog: how many instructions, where they are

# A is what is looked at, X where the TCP header begins.
X_IS_NUMBER = 0x01
X_IS_IP_HEADER_SIZE = 0xB1  # of the byte at k
A_IS_U8 = 0x50  # at X + k
A_IS_U16 = 0x48
A_IS_U32_AT = 0x20  # at k
IF_EQUAL = 0x15
IF_ANY_BIT = 0x45
RETURN = 0x06
NETWORK_HEADER = 0xFFF0_0000  # added to k: from the IP header on, whatever the socket shows (SKF_NET_OFF)

SOURCE_PORT, DESTINATION_PORT, FLAGS = 0, 2, 13  # in the TCP header
SOURCE_IPV4, SOURCE_IPV6_END = 12, 20  # in the IP header; of an IPv6 address its last 32 bits
HOSTS_MAX = 1500  # a program has 4096 instructions at most (BPF_MAXINSNS)

Step = tuple[int, int]
"what, k; a comparison that fails drops the packet"


def see_segments(
    raw: socket.socket, flags: int, local_port: int, peer_port: int | None = None, hosts: Iterable[str] | None = None
) -> None:
    """Have a raw socket see only segments with any of these flags to one port; from a port and hosts, if given.

    Linux shows the filter of a raw IPv4 socket the IP header first, of a raw IPv6 socket what follows it.
    Raises: OSError.
    """
    is_v4 = raw.family == socket.AF_INET
    steps = [(X_IS_IP_HEADER_SIZE, 0) if is_v4 else (X_IS_NUMBER, 0)]
    steps += [(A_IS_U16, DESTINATION_PORT), (IF_EQUAL, local_port)]
    if peer_port is not None:
        steps += [(A_IS_U16, SOURCE_PORT), (IF_EQUAL, peer_port)]
    steps += [(A_IS_U8, FLAGS), (IF_ANY_BIT, flags)]
    if hosts is None:
        _attach(raw, steps)
        return
    steps.append((A_IS_U32_AT, NETWORK_HEADER + (SOURCE_IPV4 if is_v4 else SOURCE_IPV6_END)))
    known = {int.from_bytes(socket.inet_pton(raw.family, host)[-4:], "big") for host in hosts}
    _attach(raw, steps, sorted(known)[:HOSTS_MAX])


def _attach(sock: socket.socket, steps: list[Step], any_of: list[int] | None = None) -> None:
    """Take a packet if all comparisons hold, and in the end A is one of some numbers; else nothing of it."""
    program = b""
    for what, number in steps:
        is_comparison = what in (IF_EQUAL, IF_ANY_BIT)
        program += INSTRUCTION.pack(what, int(is_comparison), 0, number)
        if is_comparison:  # which jumps over this
            program += INSTRUCTION.pack(RETURN, 0, 0, 0)
    for number in any_of or ():
        program += INSTRUCTION.pack(IF_EQUAL, 0, 1, number) + INSTRUCTION.pack(RETURN, 0, 0, EVERYTHING)
    program += INSTRUCTION.pack(RETURN, 0, 0, EVERYTHING if any_of is None else 0)
    held = array.array("B", program)
    sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, PROGRAM.pack(len(program) // INSTRUCTION.size, held.buffer_info()[0])
    )
