"""How many segments may be in flight.

In      progress and losses
Out     the congestion window in segments
Knows   numbers. Not: segments, times
Wire    WIRE.md 4.8; RFC 5681
"""

from kcptun_lite.core.wire import (
    KCP_SSTHRESH_INITIAL,
    KCP_SSTHRESH_MIN,
)


class CongestionWindow:
    """Segments that may be in flight when `nc` is 0; slow start and congestion avoidance of kcp-go."""

    def __init__(self, mss: int) -> None:
        self.cwnd = 1
        self.ssthresh = KCP_SSTHRESH_INITIAL
        self._increment = mss  # bytes; the fractional part of cwnd
        self._mss = mss

    def on_progress(self, rmt_wnd: int) -> None:
        """`una` has moved."""
        if self.cwnd >= rmt_wnd:
            return
        mss = self._mss
        if self.cwnd < self.ssthresh:
            self.cwnd += 1
            self._increment += mss
        else:
            self._increment = max(self._increment, mss)
            self._increment += mss * mss // self._increment + mss // 16
            if (self.cwnd + 1) * mss <= self._increment:
                self.cwnd = -(-self._increment // mss)
        if self.cwnd > rmt_wnd:
            self.cwnd = rmt_wnd
            self._increment = rmt_wnd * mss

    def on_fast_retransmit(self, in_flight: int, resend: int) -> None:
        self.ssthresh = max(in_flight // 2, KCP_SSTHRESH_MIN)
        self.cwnd = self.ssthresh + resend
        self._increment = self.cwnd * self._mss

    def on_timeout(self, limit: int) -> None:
        self.ssthresh = max(limit // 2, KCP_SSTHRESH_MIN)
        self.cwnd = 1
        self._increment = self._mss
