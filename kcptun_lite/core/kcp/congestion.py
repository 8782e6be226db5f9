"""How many segments may be in flight, and how fast they may go: the interface, and kcp-go's two ways.

In      what was sent, acknowledged, lost; round-trip times; `now`
Out     a window in segments, a pacing rate in segments per ms
Knows   numbers. Not: segments, datagrams
Wire    docs/protocol.md, "KCP": congestion window; RFC 5681

line_model.py has the third way, which needs no settings. A controller gets every event; most ignore some.
"""

from kcptun_lite.core.wire import KCP_SSTHRESH_INITIAL, KCP_SSTHRESH_MIN

UNPACED_RTT = 8  # ms; below it a window is no burst worth spreading
PACING_STEP = 4  # ms between two bursts of a window that opened at once


class Flight:
    """Segments sent at one moment, and what was known then."""

    __slots__ = ("delivered", "is_steady", "sent_at", "ts")

    def __init__(self, ts: int, sent_at: int, delivered: int = 0, is_steady: bool = False) -> None:
        self.ts = ts
        "the timestamp on the wire, 32 bits"
        self.sent_at = sent_at
        "ms"
        self.delivered = delivered
        "segments acknowledged in this conversation when it was sent"
        self.is_steady = is_steady
        "sent no faster than the line is believed to be: a loss is the line's, not ours"


class CongestionControl:
    """What a sender asks before it sends, and tells of everything that happens."""

    window: int
    "segments that may be in flight, whatever the peer's window is"
    pacing_step = PACING_STEP
    "ms between two bursts of what is paced"
    is_loss_tolerant = True
    "whether acknowledged segments behind a hole make room for new ones (kcp-go: a window counts from snd_una on)"

    def pacing_rate(self, srtt: int) -> float:
        """Segments per ms, 0 for no pacing; `srtt` in ms."""
        return 0.0

    def flight(self, ts: int, now: int) -> Flight:
        """What segments that go out now carry until they are acknowledged."""
        return Flight(ts, now)

    def on_sent(self, count: int, flight: Flight) -> None:
        """So many segments have gone out with it."""

    def on_idle(self, now: int) -> None:
        """There is nothing more to send, or the peer's window is full: what is measured now is not the line."""

    def on_acknowledged(self, count: int, newest: Flight, in_flight: int, now: int) -> None:
        """`count` segments have arrived, `newest` is the latest sending among them; `in_flight` are left."""

    def on_progress(self, rmt_wnd: int) -> None:
        """`una` has moved; `rmt_wnd` is the peer's window in segments."""

    def on_lost(self, flight: Flight) -> None:
        """A segment of `flight` is believed lost, and goes again."""

    def on_retransmission(self, in_flight: int, limit: int, *, skipped: bool, timed_out: bool) -> None:
        """Segments were sent again in one flush; `limit` is the window that held."""

    def on_rtt(self, rtt: int, now: int) -> None:
        """A round trip took `rtt` ms."""


class FixedWindow(CongestionControl):
    """kcp-go's `nc 1`: the window that was set, spread over the round trip, whatever the line says."""

    def __init__(self, window: int) -> None:
        self.window = window

    def pacing_rate(self, srtt: int) -> float:
        # A quarter more than the window per round trip: pacing spreads bursts, it is not to be the limit.
        return 0.0 if srtt < UNPACED_RTT else self.window * 5 / (srtt * 4)


class KcpCongestionWindow(CongestionControl):
    """kcp-go's `nc 0`: slow start and congestion avoidance, halved by losses."""

    is_loss_tolerant = False

    def __init__(self, limit: int, mss: int, resend: int) -> None:
        """`limit`: segments, `--sndwnd`; `resend`: kcp's fast limit, which adds to a halved window."""
        self.cwnd = 1
        self.ssthresh = KCP_SSTHRESH_INITIAL
        self._limit = limit
        self._increment = mss  # bytes; the fractional part of cwnd
        self._mss = mss
        self._resend = resend

    @property
    def window(self) -> int:  # type: ignore[override]
        return min(self.cwnd, self._limit)

    def pacing_rate(self, srtt: int) -> float:
        return 0.0 if srtt < UNPACED_RTT else self.window * 5 / (srtt * 4)

    def on_progress(self, rmt_wnd: int) -> None:
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

    def on_retransmission(self, in_flight: int, limit: int, *, skipped: bool, timed_out: bool) -> None:
        if skipped:
            self.ssthresh = max(in_flight // 2, KCP_SSTHRESH_MIN)
            self.cwnd = self.ssthresh + self._resend
            self._increment = self.cwnd * self._mss
        if timed_out:
            self.ssthresh = max(limit // 2, KCP_SSTHRESH_MIN)
            self.cwnd = 1
            self._increment = self._mss
