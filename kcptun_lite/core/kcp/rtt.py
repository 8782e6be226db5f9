"""The round-trip time, and the retransmission timeout that follows from it.

In      samples in ms
Out     srtt, rttvar, rto, the loss delay
Knows   numbers. Not: segments
Wire    docs/protocol.md, "Round-trip time"; RFC 6298
"""

from kcptun_lite.core.wire import (
    KCP_RTO_INITIAL,
    KCP_RTO_MAX,
)


class RttEstimator:
    """srtt, rttvar and rto in ms, by RFC 6298 with kcp-go's shifts (docs/protocol.md, "Round-trip time")."""

    def __init__(self, min_rto: int, interval: int) -> None:
        self.srtt = 0
        self.rttvar = 0
        self.latest = 0
        "ms; the newest measurement, which sees a queue grow before the averages do"
        self.rto = KCP_RTO_INITIAL
        self._min_rto = min_rto
        self._interval = interval

    def sample(self, rtt: int) -> None:
        """Take one measurement, ms >= 0."""
        self.latest = rtt
        if self.srtt == 0:
            self.srtt = rtt
            self.rttvar = rtt >> 1
        else:
            delta = rtt - self.srtt
            self.srtt += delta >> 3
            delta = abs(delta)
            # A sample far *below* the average says little about the next one: it weighs 1/32 (kcp-go).
            self.rttvar += (delta - self.rttvar) >> (5 if rtt < self.srtt - self.rttvar else 2)
        rto = self.srtt + max(self._interval, self.rttvar << 2)
        self.rto = min(max(self._min_rto, rto), KCP_RTO_MAX)

    @property
    def loss_delay(self) -> int:
        """ms after its sending before which no segment is taken for lost, however short the RTO was then."""
        return min(self.rto, self.latest + max(self._interval, self.latest >> 2)) if self.latest else self.rto
