"""How many segments a peer that does not model its line may have under way: the receive window, where none is set.

In      what has arrived, round-trip times, `now`
Out     the window to announce
Knows   numbers. Not: segments, who sends
Source  the receive buffer auto-tuning of TCP (Fisk and Feng, 2001): twice what arrives in a round trip

kcptun sends what its own window and ours let it, whatever the line says. So the window follows what arrives: as long
as it is the limit, it grows; where the round trip grows with it, the line is the limit, and it shrinks.
"""

FULL = 0.7  # of the window arriving in a round trip: it is the limit
GROWTH = 2
QUEUE_FACTOR, QUEUE_MARGIN = 1.5, 20  # a round trip of so many times the least and so many ms more is a queue
HEADROOM = 1.25  # times what the line carries in its least round trip, where a queue has been seen
PING_EVERY = 500  # ms between questions that measure the round trip of somebody who only receives
ROUND_MIN = 20  # ms


class WindowTuning:
    """The window that one end announces."""

    def __init__(self, start: int, most: int) -> None:
        """Segments: where it begins and where it ends."""
        self.limit = start
        self._start = start
        self._most = max(start, most)
        self._least_rtt = 0
        self._round_at = 0
        self._round_sn = 0
        self._asked_at = 0

    def open_wide(self) -> None:
        """The peer minds the line itself."""
        self.limit = self._start = self._most

    def on_rtt(self, rtt: int) -> None:
        """A round trip of our own took `rtt` ms."""
        if rtt:
            self._least_rtt = min(self._least_rtt or rtt, rtt)

    def on_received(self, next_sn: int, latest_rtt: int, now: int) -> bool:
        """All before `next_sn` has come; True if a question is due that measures the round trip."""
        if self.limit == self._most == self._start:
            return False
        elapsed = now - self._round_at
        if not self._least_rtt or elapsed < max(self._least_rtt, ROUND_MIN):
            return False
        arrived = (next_sn - self._round_sn) * self._least_rtt / elapsed  # in the least round trip
        self._round_at, self._round_sn = now, next_sn
        has_queue = latest_rtt > QUEUE_FACTOR * self._least_rtt + QUEUE_MARGIN
        if has_queue:
            self.limit = min(self.limit, max(self._start, int(HEADROOM * arrived)))
        elif arrived * max(latest_rtt, self._least_rtt) >= FULL * self.limit * self._least_rtt:
            self.limit = min(GROWTH * self.limit, self._most)
        is_bulk = arrived >= self._start / 4
        if is_bulk and now - self._asked_at >= PING_EVERY:
            self._asked_at = now
            return True
        return False
