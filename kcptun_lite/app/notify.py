"""What systemd is told: ready, alive, stopping.

In      NOTIFY_SOCKET and WATCHDOG_USEC of the environment; calls from a program's life; turns of the update thread
Out     datagrams
Knows   sd_notify(3), sd_watchdog_enabled(3). Not: what the program does
Cost    loaded only where systemd asks for it; one datagram in half of WatchdogSec=

The sign of life is sent by the update thread as one of its targets. So a thread that hangs sends none, and nobody else
does so in its place.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """systemd's ear, and a target of the update thread."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment["NOTIFY_SOCKET"]
        self._address = "\0" + path[1:] if path.startswith("@") else path  # @: Linux's abstract name space
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # nothing of ours waits for systemd
        self.interval = _watchdog_ms(environment) // 2
        "ms between two signs of life; 0: none are wanted"

    def ready(self, status: str) -> None:
        """The program serves; `status` is what `systemctl status` shows of it."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def update(self, now: int) -> int | None:
        """A sign of life (`now` and result in ms)."""
        self._send("WATCHDOG=1")
        return now + self.interval

    def close(self) -> None:
        self._socket.close()

    def _send(self, text: str) -> None:
        with suppress(OSError):  # no systemd any more, or a full queue: the tunnel matters more
            self._socket.sendto(text.encode(), self._address)


def _watchdog_ms(environment: Mapping[str, str]) -> int:
    """How often systemd wants to hear of this process; 0: never."""
    try:
        if int(environment.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return 0
        return max(0, int(environment.get("WATCHDOG_USEC", 0)) // 1000)
    except ValueError:
        return 0
