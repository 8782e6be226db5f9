"""TCP and unix sockets: listening, and what is set on each.

In      host and port, or the path of a unix socket
Out     sockets
Knows   addresses, socket options. Not: streams
"""

import errno
import os
import socket
import stat
import struct

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.errors import TransportError, describe_os_error
from kcptun_lite.net.udp.address import format_address, resolve
from kcptun_lite.net.udp.sockopt import expect_address, may_come, set_timeout

TCP_KEEPALIVE = 15  # s; a peer that vanished without a word must not hold a stream for ever
STOP_LATENCY = 1000  # ms; how soon a thread blocked in a connect or a send looks whether to stop
BACKLOG = 1024  # connections that wait for `accept`, while --maxstreams are open
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST, also when it is the kernel that closes
NO_RESET = struct.pack("ii", 0, 0)


def listen(host: str, port: int, path: str) -> socket.socket:
    """A listening socket; an empty host and :: are all addresses of both families, if the system has both.

    An address that no interface has yet is listened on all the same, if there is no other (Linux).
    Raises: TransportError.
    """
    where = path or format_address((host, port))
    try:
        if path:
            return _listen_unix(path)
        addresses = resolve(host, port, socket.SOCK_STREAM, to_listen=True)
        failures: list[OSError] = []
        for is_absent in False, True:
            for family, address in addresses:
                try:
                    return _listen_tcp(family, address, to_both=host in ("", "::"), is_absent=is_absent)
                except OSError as exc:
                    if exc.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        raise
                    failures.append(exc)
            if not may_come(failures):
                break
        raise failures[-1]
    except OSError as exc:
        raise TransportError(f"cannot listen on {where}: {describe_os_error(exc)}") from exc


def _listen_tcp(family: socket.AddressFamily, address: Address, *, to_both: bool, is_absent: bool) -> socket.socket:
    is_dual = to_both and family == socket.AF_INET6
    if is_dual and not socket.has_dualstack_ipv6():
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tune(listening)  # what is accepted inherits it all
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_dual)
        if is_absent:
            expect_address(listening, address, "--localaddr")
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _listen_unix(path: str) -> socket.socket:
    if is_abandoned(path):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(unix_address(path))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def is_abandoned(path: str) -> bool:
    """Whether this is a socket file that nobody listens on any more, left by a process that was killed.

    Raises: OSError if it is no socket; a file of another kind is not ours to remove.
    """
    if path.startswith("@"):
        return False
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.ENOTSOCK, "what is there is no socket; remove it, or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED


def unix_address(path: str) -> str:
    return "\0" + path[1:] if path.startswith("@") else path


def tune(sock: socket.socket) -> None:
    """No delay, keep-alive, reset unless told otherwise, blocking; on unix sockets only the last."""
    sock.settimeout(None)
    set_timeout(sock, socket.SO_SNDTIMEO, STOP_LATENCY)
    # If this process is killed, the peer must not take what it has got so far for all there is.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), TCP_KEEPALIVE)
