"""Takes in who connects, in the event loop's thread.

In      a listening socket
Out     connections, each with the name of who made it
Knows   when there is room, and for how long not to ask. Not: what is done with a connection
Cost    one system call for each connection and one more for all that come together
"""

import errno
import os
import socket
from collections.abc import Callable

from kcptun_lite import log
from kcptun_lite.errors import describe_exception, describe_os_error
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.tcp.sockets import tune
from kcptun_lite.net.udp.address import format_address

AT_ONCE = 16  # connections, before others have their turn
PAUSE = 0.1  # s without looking, while there are no descriptors
ROOM_PAUSE = 0.05  # s between looks whether there is room


class Acceptor:
    """Accepts while there is room; `pause` and `resume` are for the event loop's thread."""

    def __init__(
        self,
        listening: socket.socket,
        loop: EventLoop,
        *,
        has_room: Callable[[], bool],
        serve: Callable[[socket.socket, str], None],
    ) -> None:
        """`serve` is called with each connection, which is its own from then on, and must not block."""
        self._listening = listening
        self._loop = loop
        self._has_room = has_room
        self._serve = serve
        self._is_paused = self._is_closed = False
        listening.setblocking(False)

    def start(self) -> None:
        self._loop.call(self.resume)

    def close(self) -> None:
        """Take in nobody more, and close the socket."""
        self._is_closed = True
        self._loop.forget(self._listening.fileno())
        self._listening.close()

    def pause(self) -> None:
        """Let those who come wait, until `resume`."""
        self._is_paused = True
        self._loop.forget(self._listening.fileno())

    def resume(self) -> None:
        self._is_paused = False
        if not self._is_closed:
            try:
                self._loop.watch(self._listening.fileno(), self._accept)
            except OSError as exc:
                self._stumble(exc)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if self._is_paused or self._is_closed:
                return
            if not self._has_room():
                self._rest(ROOM_PAUSE)
                return
            try:
                tcp, _ = self._listening.accept()
            except BlockingIOError:
                return
            except Exception as exc:
                self._stumble(exc)
                return
            try:
                if tcp.family == socket.AF_UNIX:  # others have their options from the listening socket
                    tune(tcp)
                address = tcp.getpeername()  # none, if it is gone already
                self._serve(tcp, format_address(address) if isinstance(address, tuple) else "unix")
            except Exception as exc:  # whatever it is, the next one may fare better
                tcp.close()
                if not is_gone(exc):
                    log.limited("stream", f"no stream: {describe_exception(exc)}")

    def _stumble(self, exc: Exception) -> None:
        """The system has no room for one more now."""
        what = describe_os_error(exc) if isinstance(exc, OSError) else describe_exception(exc)
        log.limited("accept", f"accept: {what}", log.Level.ERROR)
        self._rest(PAUSE)

    def _rest(self, pause_s: float) -> None:
        self.pause()
        self._loop.call_later(pause_s, self.resume)


def is_gone(exc: Exception) -> bool:
    """Whether the application has gone before it was served, which is nobody's trouble."""
    return isinstance(exc, OSError) and exc.errno in (errno.ENOTCONN, errno.ECONNRESET, errno.EINVAL)


def name_of(listening: socket.socket) -> str:
    """Where a socket listens; unix sockets as they are written in options."""
    name = listening.getsockname()
    if isinstance(name, bytes):  # Linux's abstract name space
        return f"@{os.fsdecode(name[1:])}"
    return name if isinstance(name, str) else format_address(name)
