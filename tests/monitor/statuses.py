"""Statuses for the monitor's tests: what a tunnel would write, with what a test wants changed.

In      values by key
Out     the object, and tunnels that tell it through a socket
Knows   docs/status.md. Not: the monitor
"""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time
from typing import Any

from kcptun_lite.core.counters import CSV_COLUMNS

INTERVAL = 0.2  # s between lines, so that a test sees several


def session(**values: Any) -> dict[str, Any]:
    return {
        "conv": "001a2b3c", "remote": "198.51.100.7:29900", "state": "open", "rtt_ms": 182, "rtt_least_ms": 160,
        "rto_ms": 300, "line_bytes_s": 2_500_000, "loss": 0.015, "window": 512, "peer_window": 1024,
        "limited_by": "line", "bytes_in": 1000, "bytes_out": 2000, "in_bytes_s": 125_000, "out_bytes_s": 1250,
        "packets_in": 10, "packets_out": 20, "retransmitted": 1, "streams": 2, "age_s": 3700, "idle_s": 0, **values,
    }  # fmt: skip


def status(**values: Any) -> dict[str, Any]:
    return {
        "pid": os.getpid(), "schema": 2, "role": "client", "name": "home", "version": "0.1.0", "uptime_s": 100,
        "updated": time(), "sessions": [session()], "session_count": 1,
        "connections": [{"in": "127.0.0.1:5000", "out": "198.51.100.7:29900(3)", "age_s": 7}], "streams": 2,
        "bytes_in": 1000, "bytes_out": 2000, "in_bytes_s": 125_000, "out_bytes_s": 1250, "packets_in": 10,
        "packets_out": 20, "retransmitted": 1, "recovered": 0, "lost": 0, "checksum_errors": 0,
        "counters": {name: number for number, name in enumerate(CSV_COLUMNS)}, "memory_bytes": 20_000_000,
        "memory": {"limit_bytes": 0, "held_bytes": 5000, "peak_bytes": 9000, "sending_bytes": 1, "receiving_bytes": 2,
                   "buffers_used_bytes": 3, "buffers_idle_bytes": 4},
        "last_diagnosis": "", "diagnoses": [{"since": 1_700_000_000, "until": 1_700_000_060, "text": "was down"}],
        "workers": [],
        **values,
    }  # fmt: skip


class Teller:
    """A tunnel as the monitor sees it: a socket that gives a line at once, and more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.status = status()
        self.line: bytes | None = None
        "in place of the status"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(f"{path}.sock")
        self._listening.listen(8)
        self._is_stopping = threading.Event()
        self._viewers: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        self._listening.settimeout(INTERVAL)
        while not self._is_stopping.is_set():
            with suppress(TimeoutError):
                self._viewers.append(self._listening.accept()[0])
            line = self.line if self.line is not None else json.dumps(self.status).encode() + b"\n"
            for viewer in list(self._viewers):
                try:
                    viewer.sendall(line)
                except OSError:
                    self._viewers.remove(viewer)
                    viewer.close()

    def stop(self) -> None:
        self._is_stopping.set()
        self._thread.join()
        self._listening.close()
        for viewer in self._viewers:
            viewer.close()
        os.unlink(f"{self.path}.sock")


@contextmanager
def teller(path: Path) -> Iterator[Teller]:
    path.touch()
    found = Teller(path)
    try:
        yield found
    finally:
        found.stop()
