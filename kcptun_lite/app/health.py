"""Whether new sessions are welcome, for balancers that ask over HTTP.

In      an address or a listening socket, a function that says in one word why not, or nothing
Out     200 and "ok", or 503 and that word
Knows   as much of HTTP as an answer to GET and HEAD takes (RFC 9112). Not: why the server has no room
Cost    loaded with --health alone; a descriptor, and 0.1 ms of the network's thread for each question

Nothing that an asker does holds the tunnel up: the loop's thread never waits for one, keeps at most REQUEST_MAX bytes
of each of ASKERS, lets go of the oldest for one more, and of all after PATIENCE.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from time import sleep

from kcptun_lite import log
from kcptun_lite.app.config import Endpoint
from kcptun_lite.app.listening import cannot_listen
from kcptun_lite.errors import TransportError
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.tcp.acceptor import Acceptor, name_of
from kcptun_lite.net.tcp.sockets import NO_RESET, listen

ASKERS = 16  # at once
PATIENCE = 2000  # ms for a question ...
HAND_OVER = 200  # ms ... of which so many are left when another process goes on
LOOK = 0.01  # s
REQUEST_MAX = 4096  # bytes up to the empty line
METHODS = {b"GET", b"HEAD"}
ENDS = b"\r\n\r\n", b"\n\n"

OK, NO_METHOD, UNAVAILABLE = "200 OK", "405 Method Not Allowed", "503 Service Unavailable"


class _Asker:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.came_at = monotonic_ms()
        self.request = b""


class Health:
    """Answers whoever connects; `close` is for when the loop is over, all else happens in the loop's thread."""

    def __init__(self, loop: EventLoop, listening: socket.socket, trouble: Callable[[], str]) -> None:
        """`trouble`: a word for why new sessions are not welcome; nothing if they are."""
        self.listening = listening
        self._loop = loop
        self._trouble = trouble
        self._askers: dict[int, _Asker] = {}
        "by descriptor, oldest first"
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_RESET)  # what is accepted inherits it
        self._acceptor = Acceptor(listening, loop, has_room=lambda: True, serve=self._take)
        self._acceptor.start()

    def hand_over(self) -> int:
        """Answer those who have come; others wait for the next process, or `go_on`. The socket's descriptor.

        From another thread than the loop's.
        """
        is_paused = Event()
        self._loop.call(self._acceptor.pause)
        self._loop.call(is_paused.set)
        is_paused.wait(HAND_OVER / 1000)
        deadline = monotonic_ms() + HAND_OVER
        while self._askers and monotonic_ms() < deadline:
            sleep(LOOK)
        return self.listening.fileno()

    def go_on(self) -> None:
        """There is no next process."""
        self._loop.call(self._acceptor.resume)

    def close(self) -> None:
        self._acceptor.close()
        for asker in self._askers.values():
            asker.sock.close()
        self._askers.clear()

    def _take(self, sock: socket.socket, source: str) -> None:
        sock.setblocking(False)
        if len(self._askers) >= ASKERS:
            self._drop(next(iter(self._askers.values())))
        asker = _Asker(sock)
        self._loop.watch(sock.fileno(), lambda: self._hear(asker))
        self._askers[sock.fileno()] = asker
        self._loop.each_second(self._look_at_clock, wanted=True)

    def _hear(self, asker: _Asker) -> None:
        try:
            data = asker.sock.recv(REQUEST_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        asker.request += data
        is_whole = any(end in asker.request for end in ENDS)
        if is_whole:
            self._answer(asker)
        if is_whole or not data or len(asker.request) >= REQUEST_MAX:
            self._drop(asker)

    def _answer(self, asker: _Asker) -> None:
        method = asker.request.split(b" ", 1)[0]
        trouble = self._trouble()
        status = NO_METHOD if method not in METHODS else UNAVAILABLE if trouble else OK
        body = f"{trouble or 'ok'}\n"
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        with suppress(OSError):  # it has gone
            asker.sock.send((head + ("" if method == b"HEAD" else body)).encode())  # an empty buffer has room for it

    def _look_at_clock(self) -> None:
        now = monotonic_ms()
        for asker in [asker for asker in self._askers.values() if now - asker.came_at >= PATIENCE]:
            self._drop(asker)

    def _drop(self, asker: _Asker) -> None:
        self._loop.forget(asker.sock.fileno())
        self._askers.pop(asker.sock.fileno(), None)
        asker.sock.close()
        if not self._askers:
            self._loop.each_second(self._look_at_clock, wanted=False)


def open_health(endpoint: Endpoint, loop: EventLoop, trouble: Callable[[], str]) -> Health:
    """Listen for questions. Raises: TransportError that names the option."""
    try:
        listening = listen(endpoint.host, endpoint.port_min, "")
    except TransportError as exc:
        raise cannot_listen("--health", endpoint, exc) from exc.__cause__
    log.info(f"health checks on: {name_of(listening)}", "start")
    return Health(loop, listening, trouble)
