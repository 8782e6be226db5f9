"""Where the status is to be had: a file for whoever looks now and then, a socket beside it for whoever looks on.

In      the status as an object
Out     a file, replaced as a whole every few seconds; PATH.sock (app/status_socket); both removed at the end
Knows   when to write, what is not replaced. Not: what is in the status
Cost    loaded with --status alone, as is the json module, 1 MiB; 1 ms per write
"""

import json
from collections.abc import Callable
from typing import Any

from kcptun_lite import files, log
from kcptun_lite.app.status_socket import StatusSocket
from kcptun_lite.errors import ConfigError, describe_os_error
from kcptun_lite.net.event_loop import EventLoop

BEGINNING = b'{"pid": '  # of every status, by which a file is known to be one
PERIOD = 5000  # ms between two writes


class StatusFile:
    """Writes the status from time to time, and gives it to the viewers of its socket every second."""

    def __init__(self, path: str, loop: EventLoop, status: Callable[[], dict[str, Any]]) -> None:
        """`status` is called in the main thread and in the loop's."""
        self._path = path
        self._status = status
        self._due = 0
        self._written: files.Identity | None = None
        "the file as we have left it"
        self._socket = StatusSocket(f"{path}.sock", loop, lambda: self._encode() + b"\n")
        self._troubles: dict[str, str] = {}
        "path -> why it was not to be had the last time"

    def check(self) -> None:
        """Raises: ConfigError if the path is none for a status file, or something else is there."""
        try:
            files.check_replaceable(self._path, _is_status)
        except OSError as exc:
            raise ConfigError(f"--status: {self._path} cannot be written: {exc.strerror}") from exc

    def tick(self, now: int) -> None:
        """Write if it is time (ms), and listen; what cannot be done costs a line in the log, not one each time."""
        if now < self._due:
            return
        self._due = now + PERIOD
        self._try(self._path, "written", self._write)
        self._try(self._socket.path, "listened on", self._socket.open)

    def remove(self) -> None:
        """Remove file and socket, unless another program has its own there by now; when the loop is over."""
        self._socket.close()
        files.remove(self._path, self._written)

    def _write(self) -> None:
        files.check_replaceable(self._path, _is_status)
        self._written = files.replace(self._path, self._encode())

    def _encode(self) -> bytes:
        return json.dumps(self._status()).encode()

    def _try(self, path: str, what: str, step: Callable[[], None]) -> None:
        trouble = ""
        try:
            step()
        except OSError as exc:
            trouble = f"--status: {path} cannot be {what}: {describe_os_error(exc)}"
            if trouble != self._troubles.get(path):
                log.warning(trouble)
        self._troubles[path] = trouble


def _is_status(beginning: bytes) -> bool:
    return beginning.startswith(BEGINNING)
