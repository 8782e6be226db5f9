"""The status for whoever looks on: a unix socket that gives a line at once and one each second.

In      a path, a function that gives the line
Out     lines to at most VIEWERS viewers, who are this program's own user or root
Knows   who may connect, who has stopped reading. Not: what is in a line
Cost    loaded with --status alone; without a viewer one descriptor, and a look at the path whenever the file is written

Nothing that a viewer does holds the tunnel up: its thread for the network never waits for one, keeps at most the rest
of one line for it, and drops whoever has not taken a line when the next is due.
"""

import errno
import os
import socket
from collections.abc import Callable

from kcptun_lite import files
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.tcp.sockets import is_abandoned

MODE = 0o600
VIEWERS = 8
SEND_BUFFER = 32 * 1024  # bytes that the system keeps for one viewer, of which it takes twice as much; 10 to 20 lines


class _Viewer:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""
        "of a line that has gone out in part"


class StatusSocket:
    """`open` is for the main thread, `close` for when the loop is over; all else happens in the loop's thread."""

    def __init__(self, path: str, loop: EventLoop, line: Callable[[], bytes]) -> None:
        self.path = path
        self._loop = loop
        self._line = line
        self._listening: socket.socket | None = None
        self._identity: files.Identity | None = None
        self._is_resting = False
        "the system had no descriptor for one more viewer: nobody is let in until `open` is called again"
        self._viewers: list[_Viewer] = []

    def open(self) -> None:
        """Listen; to be called now and then: again if the socket was removed, or another program had the path.

        Raises: OSError.
        """
        if self._listening and files.identify(self.path) == self._identity:
            if self._is_resting:
                self._is_resting = False  # before `watch`, after which the loop may set it again at once
                try:
                    self._loop.watch(self._listening.fileno(), self._accept)
                except OSError:
                    self._is_resting = True
                    raise
            return
        self._stop_listening()
        self._make_way()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.setblocking(False)
            os.fchmod(listening.fileno(), MODE)  # what `bind` makes has these rights from the first moment (unix(7))
            listening.bind(self.path)
            listening.listen(VIEWERS)
            self._is_resting = False
            self._loop.watch(listening.fileno(), self._accept)
        except OSError:
            listening.close()
            raise
        self._listening, self._identity = listening, files.identify(self.path)

    def close(self) -> None:
        """Let go of all viewers, and remove the socket if it is still ours."""
        self._stop_listening()
        for viewer in list(self._viewers):
            self._drop(viewer)

    def _make_way(self) -> None:
        """Remove what a process of ours that was killed has left. Raises: OSError if it is anything else."""
        found = files.identify(self.path)
        if found is None:
            return
        if os.lstat(self.path).st_uid != os.geteuid():
            raise OSError(errno.EEXIST, "what is there belongs to another user; remove it")
        if not is_abandoned(self.path):
            raise OSError(errno.EEXIST, "another program has its status there; name another file")
        files.remove(self.path, found)

    def _stop_listening(self) -> None:
        if self._listening:
            self._loop.forget(self._listening.fileno())
            self._listening.close()
            files.remove(self.path, self._identity)
        self._listening = self._identity = None

    # -- the loop's thread ---------------------------------------------------------------------

    def _accept(self) -> None:
        listening = self._listening
        if listening is None:
            return
        try:
            sock, _ = listening.accept()
        except BlockingIOError:
            return
        except OSError:
            self._loop.forget(listening.fileno())
            self._is_resting = True
            return
        sock.setblocking(False)
        viewer = _Viewer(sock)
        self._viewers.append(viewer)
        try:
            if len(self._viewers) > VIEWERS:
                return self._drop(viewer)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self._loop.watch(sock.fileno(), lambda: self._look_at(viewer))
        except OSError:
            return self._drop(viewer)
        self._loop.each_second(self._tell, wanted=True)
        self._send(viewer, self._line())

    def _tell(self) -> None:
        line = self._line()
        for viewer in list(self._viewers):
            if viewer.rest:
                self._drop(viewer)
            else:
                self._send(viewer, line)

    def _send(self, viewer: _Viewer, data: bytes) -> None:
        """Send what goes without waiting, the rest when there is room."""
        had_rest = bool(viewer.rest)
        try:
            sent = viewer.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._drop(viewer)
        viewer.rest = data[sent:]
        if had_rest != bool(viewer.rest):
            self._loop.watch(viewer.sock.fileno(), lambda: self._look_at(viewer), to_write=not had_rest)

    def _look_at(self, viewer: _Viewer) -> None:
        """There is room for the rest, or the viewer has gone; one that says something is none."""
        if viewer.rest:
            return self._send(viewer, viewer.rest)
        try:
            viewer.sock.recv(1)
        except BlockingIOError:
            return
        except OSError:
            pass
        self._drop(viewer)

    def _drop(self, viewer: _Viewer) -> None:
        self._loop.forget(viewer.sock.fileno())
        viewer.sock.close()
        self._viewers.remove(viewer)
        if not self._viewers:
            self._loop.each_second(self._tell, wanted=False)
