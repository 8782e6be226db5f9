"""Where a server's streams go: connections to the target.

In      host and port, or the path of a unix socket
Out     connections, made or under way
Knows   what the target's name has meant last. Not: streams
Cost    a name is resolved once in NAME_KEPT, in the thread of the stream that comes first
"""

import errno
import os
import select
import socket
from collections.abc import Callable

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.errors import TransportError, describe_os_error
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.tcp.sockets import STOP_LATENCY, tune, unix_address
from kcptun_lite.net.udp.address import format_address, resolve

CONNECT_TIMEOUT = 10_000  # ms for the server to reach its target
NAME_KEPT = 5_000  # ms that a name means what it has meant, as far as nobody is refused there
BACKLOG_PAUSE = 50  # ms between attempts to connect to a unix socket that has more to accept than it can

Place = tuple[socket.AddressFamily, Address | str]


class Target:
    """One target; its methods may be called from any thread."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._host, self._port, self._path = host, port, path
        self._places: list[Place] = [(socket.AF_UNIX, unix_address(path))] if path else _numeric(host, port)
        "where it is, as known last; the place that has answered before is the first"
        self._is_name = not self._places
        self._known_until = 0

    def begin(self) -> socket.socket | None:
        """A connection under way to the target's first address; None if it takes more than that: `connect`."""
        if self._is_name and monotonic_ms() >= self._known_until:
            return None
        family, address = self._places[0]
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            return None
        try:
            tune(sock)
            sock.setblocking(False)
            if sock.connect_ex(address) in (0, errno.EINPROGRESS):
                return sock
        except OSError:
            pass
        sock.close()
        return None

    def connect(self, is_stopping: Callable[[], bool] = lambda: False) -> socket.socket:
        """A connection to the first of the target's addresses that answers.

        Raises: TransportError, also when `is_stopping` becomes true meanwhile.
        """
        failure: OSError | None = None
        for place in self._look_up():
            family, address = place
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as exc:  # no descriptor left, or no such family
                failure = exc
                continue
            try:
                tune(sock)
                _connect(sock, address, is_stopping)
                self._prefer(place)
                return sock
            except OSError as exc:
                sock.close()
                failure = exc
                if is_stopping():
                    break
        assert failure is not None
        where = self._path or format_address((self._host, self._port))
        raise TransportError(f"cannot connect to {where}: {describe_os_error(failure)}") from failure

    def _look_up(self) -> list[Place]:
        """Where the target is now, or if its name cannot be resolved where it was last. Raises: TransportError."""
        if self._is_name:
            try:
                found = resolve(self._host, self._port, socket.SOCK_STREAM)
            except TransportError:
                if not self._places:
                    raise
            else:
                preferred = self._places[:1]
                self._places = sorted(found, key=lambda place: place not in preferred)
                self._known_until = monotonic_ms() + NAME_KEPT
        return self._places

    def _prefer(self, place: Place) -> None:
        self._places = sorted(self._places, key=lambda other: other != place)


def is_connected(sock: socket.socket) -> bool:
    """Whether a connection that was begun is there now; it blocks from now on."""
    try:
        sock.getpeername()
        sock.setblocking(True)
    except OSError:
        return False
    return True


def _numeric(host: str, port: int) -> list[Place]:
    """The place that an address names; none for a name."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError):
        return []
    return [(family, (host, port))]


def _connect(sock: socket.socket, address: Address | str, is_stopping: Callable[[], bool]) -> None:
    sock.setblocking(False)
    error = sock.connect_ex(address)
    answered = select.poll()
    answered.register(sock, select.POLLOUT)
    patience = CONNECT_TIMEOUT
    while error == errno.EAGAIN and sock.family == socket.AF_UNIX and patience > 0 and not is_stopping():
        select.poll().poll(BACKLOG_PAUSE)  # its backlog is full; a TCP connection would just wait
        patience -= BACKLOG_PAUSE
        error = sock.connect_ex(address)
    while error == errno.EINPROGRESS:
        if answered.poll(STOP_LATENCY):
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            break
        patience -= STOP_LATENCY
        if patience <= 0 or is_stopping():
            error = errno.ETIMEDOUT
    if error:
        raise OSError(error, os.strerror(error))
    sock.setblocking(True)
