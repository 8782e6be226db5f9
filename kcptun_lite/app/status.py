"""What a running program tells about itself: a small JSON file for init scripts, LuCI and people.

In      the tunnel's sessions, counters and last diagnosis
Out     a file, replaced as a whole every few seconds, removed at the end
Knows   the names of its keys (docs/status.md). Not: who reads it
Cost    1 ms per write; the json module, 1 MiB, only if a file is wanted
"""

import os
from collections.abc import Callable
from time import time
from typing import Any

from kcptun_lite import __version__, files, log
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.line_model import LineModel
from kcptun_lite.core.kcp.sender import Limit
from kcptun_lite.errors import ConfigError, describe_os_error
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.udp.address import format_address

PERIOD = 5000  # ms between two writes

Facts = Callable[[], tuple[list[tuple[Session, Limit]], Counters, str]]
"sessions and what limits each, summed counters, last diagnosis"


class StatusFile:
    """Writes the status from time to time; an empty path writes nothing."""

    def __init__(self, path: str, role: str, started_at: int, facts: Facts) -> None:
        self._path = path
        self._role = role
        self._started_at = started_at
        self._facts = facts
        self._due = started_at
        self._written: files.Identity | None = None
        "the file as we have left it"
        self._trouble = ""
        "why it could not be written the last time"
        if path:
            import json  # now, not when there may be no descriptor left to read it

            self._encode = json.dumps

    def check(self) -> None:
        """Raises: ConfigError if the path is none for a status file, or something else is there."""
        if not self._path:
            return
        try:
            files.check_replaceable(self._path, _is_status)
        except OSError as exc:
            raise ConfigError(f"--status: {self._path} cannot be written: {exc.strerror}") from exc

    def tick(self, now: int) -> None:
        """Write if it is time (ms); a file that cannot be written costs a line in the log, not one each time."""
        if not self._path or now < self._due:
            return
        self._due = now + PERIOD
        try:
            files.check_replaceable(self._path, _is_status)
            self._written = files.replace(self._path, self._encode(self._status(now)).encode())
            self._trouble = ""
        except OSError as exc:
            trouble = f"--status: {self._path} cannot be written: {describe_os_error(exc)}"
            if trouble != self._trouble:
                log.warning(trouble)
            self._trouble = trouble

    def remove(self) -> None:
        """Remove the file, unless another program has its own there by now."""
        files.remove(self._path, self._written)

    def _status(self, now: int) -> dict[str, Any]:
        sessions, counters, diagnosis = self._facts()
        return {
            "pid": os.getpid(),
            "role": self._role,
            "version": __version__,
            "uptime_s": (now - self._started_at) // 1000,
            "updated": int(time()),
            "sessions": [_describe(session, limit, now) for session, limit in sessions if not session.is_closed],
            "streams": sum(session.stream_count for session, _ in sessions),
            "bytes_in": counters.bytes_received,
            "bytes_out": counters.bytes_sent,
            "packets_in": counters.in_packets,
            "packets_out": counters.out_packets,
            "retransmitted": counters.retransmitted,
            "recovered": counters.fec_recovered,
            "lost": counters.lost,
            "checksum_errors": counters.in_checksum_errors,
            "memory_bytes": _resident_bytes(),
            "last_diagnosis": diagnosis,
        }


def _describe(session: Session, limit: Limit, now: int) -> dict[str, Any]:
    kcp = session.conversation.kcp
    rtt, model = kcp.rtt, kcp.control
    line = {}
    if isinstance(model, LineModel):
        line = {
            "line_bytes_s": int(model.rate * kcp.mss * 1000),
            "rtt_least_ms": model.min_rtt,
            "loss": round(model.loss, 4),
        }
    return {
        "conv": f"{session.conversation.conv:08x}",
        "remote": format_address(session.remote),
        "rtt_ms": rtt.srtt,
        "rto_ms": rtt.rto,
        **line,
        "window": kcp.control.window,
        "peer_window": kcp.rmt_wnd,
        "limited_by": limit.value,
        "streams": session.stream_count,
        "age_s": (now - session.opened_at) // 1000,
        "idle_s": (now - session.watch.heard_at) // 1000,
    }


def _is_status(beginning: bytes) -> bool:
    return beginning.startswith(b'{"pid": ')


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError):
        return 0
