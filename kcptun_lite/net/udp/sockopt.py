"""Binding a socket, and the options that the socket module leaves to its callers to lay out.

In      a socket; times, sizes, marks, a device
Out     nothing, but for one warning where the system does not grant what the options ask for
Knows   the layouts and numbers of Linux. Not: who sends
"""

import errno
import os
import socket
import struct
import sys
from functools import cache

from kcptun_lite import log
from kcptun_lite.core.batch.packets import Address

ON_LINUX = sys.platform == "linux"
IS_MIPS = socket.SOL_SOCKET == 0xFFFF  # has socket options of its own; Linux has no other such target of ours
SO_SNDBUFFORCE = 31 if IS_MIPS else 32
SO_RCVBUFFORCE = 33
IP_FREEBIND = 15
IP_MTU_DISCOVER = 10
IP_PMTUDISC_DONT = 0


def set_timeout(sock: socket.socket, option: int, timeout_ms: int) -> None:
    """SO_RCVTIMEO or SO_SNDTIMEO; unlike `settimeout` they add no poll to each call. Raises: OSError."""
    # 32-bit systems have timeval in 8 or in 16 bytes, depending on the C library; the kernel tells.
    layout = "=qq" if len(sock.getsockopt(socket.SOL_SOCKET, option, 16)) == 16 else "=ii"
    seconds, ms = divmod(timeout_ms, 1000)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack(layout, seconds, ms * 1000))


def bind(
    family: int,
    address: Address,
    *,
    kind: socket.SocketKind = socket.SOCK_DGRAM,
    shares_port: bool = False,
    device: str = "",
    is_absent: bool = False,
) -> socket.socket:
    """A bound socket, one for both families if `family` is IPv6.

    `device`: the only one it sends and receives through. `is_absent`: no interface has the address yet.
    Raises: OSError.
    """
    bound = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM and address[1]:  # connections of before would keep the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if device:
            hold_to_device(bound, device)
        if shares_port:  # with sockets of the same user only
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if is_absent:
            expect_address(bound, address, "--listen")
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def may_come(failures: list[OSError]) -> bool:
    """Whether what could not be bound to is an address that an interface may get later: at boot, from PPP or a VPN."""
    numbers = {failure.errno for failure in failures}
    return ON_LINUX and errno.EADDRNOTAVAIL in numbers <= {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def expect_address(sock: socket.socket, address: Address, option: str) -> None:
    """Have `bind` take an address that no interface has yet (IP_FREEBIND, ip(7)), and say so. Raises: OSError."""
    sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)  # IPv6 sockets heed it as well
    _warn_once(
        f"{option}: no interface of this machine has {address[0]} now; it is listened on, and works once one has"
    )


def hold_to_device(sock: socket.socket, device: str) -> None:
    """Send and receive through one network device, whatever the routes prefer (SO_BINDTODEVICE, socket(7)).

    The kernel remembers its number, not its name: a PPPoE device that is made anew needs a fresh socket.
    Raises: OSError that names the option: ENODEV if there is none now, EPERM from Linux before 5.7 to who is not root.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(device))
    except OSError as exc:
        raise OSError(exc.errno, f"--interface {device}: {exc.strerror}") from exc


def device_error(device: str) -> OSError | None:
    """Why no socket can be held to a device now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            hold_to_device(trial, device)
        except OSError as exc:
            return exc
    return None


def let_be_cut(bound: socket.socket) -> None:
    """Have routers cut what is too large for their next link; what they say of what they lose rarely arrives."""
    if ON_LINUX:
        try_option(bound, socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)


def is_known(bound: socket.socket, level: int, option: int) -> bool:
    try:
        bound.getsockopt(level, option, 4)
    except OSError:
        return False
    return True


def try_option(bound: socket.socket, level: int, option: int, value: int | bytes) -> OSError | None:
    """Set an option that is nice to have; returns what was wrong with it."""
    try:
        bound.setsockopt(level, option, value)
    except OSError as exc:
        return exc
    return None


def set_buffer_size(bound: socket.socket, sysctl: str, option: int, force: int, wish: int) -> None:
    """SO_RCVBUF or SO_SNDBUF, past the system's limit if we may; says so if the limit holds."""
    if not ON_LINUX or try_option(bound, socket.SOL_SOCKET, force, wish) is not None:  # needs CAP_NET_ADMIN
        error = try_option(bound, socket.SOL_SOCKET, option, wish)
        if error is not None:
            _warn_once(f"--sockbuf {wish}: {error.strerror}")
            return
    granted = bound.getsockopt(socket.SOL_SOCKET, option)
    if ON_LINUX:
        granted //= 2  # Linux doubles the number for its own bookkeeping, socket(7)
        if granted < wish:
            _warn_once(
                f"--sockbuf {wish}: the system allows {granted}; for full speed: sysctl -w net.core.{sysctl}={wish}"
            )


def set_dscp(bound: socket.socket, dscp: int) -> None:
    """Mark outgoing packets; a dual-stack socket has one mark for each family."""
    # The mark is the upper six bits of the field (RFC 2474); kcptun forgets the shift for IPv6.
    errors = [try_option(bound, socket.IPPROTO_IP, socket.IP_TOS, dscp << 2)]
    if bound.family == socket.AF_INET6:
        errors.append(try_option(bound, socket.IPPROTO_IPV6, socket.IPV6_TCLASS, dscp << 2))
    for error in errors:
        if error is not None:
            _warn_once(f"--dscp {dscp}: {error.strerror}")


@cache
def _warn_once(text: str) -> None:
    """A warning about the system, not about one socket: said once."""
    log.warning(text)
