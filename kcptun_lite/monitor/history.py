"""What was read of a tunnel in the last minutes, as lines for charts.

In      one reading a second
Out     points in time, oldest first
Knows   seconds and rates. Not: how they are drawn
Cost    300 points for each tunnel, 100 KiB
"""

from collections import deque
from typing import NamedTuple

from kcptun_lite.monitor.status import Status

KEPT = 300  # points, five minutes
SHARE_OF = 50  # segments; one of less than these is no share


class Point(NamedTuple):
    """One second of a tunnel; None: not known, or it was not running."""

    at: float
    "s, of the clock that the caller has"
    in_bytes_s: int | None = None
    out_bytes_s: int | None = None
    rtt_ms: int | None = None
    "of the busiest session, as are the next two"
    rtt_least_ms: int | None = None
    loss: float | None = None
    "share, as the session measures it"
    resent: float | None = None
    "share of all segments sent since the last point that were sent again"


class History:
    """The points of one tunnel."""

    def __init__(self) -> None:
        self.points: deque[Point] = deque(maxlen=KEPT)
        self._last: Status | None = None

    def add(self, status: Status | None, at: float) -> None:
        last, self._last = self._last, status
        if status is None:
            self.points.append(Point(at))
            return
        session = status.busiest
        self.points.append(
            Point(
                at,
                status.in_bytes_s,
                status.out_bytes_s,
                (session.rtt_ms or None) if session else None,
                (session.rtt_least_ms or None) if session else None,
                session.loss if session else None,
                _resent(last, status) if last and last.pid == status.pid else None,
            )
        )


def _resent(last: Status, status: Status) -> float | None:
    sent = status.counters.get("OutSegs", 0) - last.counters.get("OutSegs", 0)
    again = status.counters.get("RetransSegs", 0) - last.counters.get("RetransSegs", 0)
    return min(max(again, 0) / sent, 1.0) if sent >= SHARE_OF else None
