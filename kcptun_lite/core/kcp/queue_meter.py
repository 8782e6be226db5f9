"""How long the line's queue is, and how much of what looks like one is none.

In      round trips and acknowledgements, as they come
Out     ms of queue; ms that are noise
Knows   times. Not: rates, states
"""

from collections import deque

QUEUE_LEAST, QUEUE_MOST = 5, 15  # ms of standing queue that are let be; an eighth of the round trip between those
NOISE_FACTOR = 1.5  # times the jitter of single round trips that the least of several may be off
CLUMP = 40  # ms, or a round trip: so long all samples must agree on a queue, as acknowledgements may come in clumps
CLUMP_SAMPLES = 4
GAP = 4  # ms without an acknowledgement; after more than that what has waited comes at once ...
GAP_SEGMENTS = 128  # ... so many, or half of what the line delivers in that time, where somebody had no processor
WAITED_MOST = 2  # least round trips


class QueueMeter:
    """What the round trips are above the least of all, and why."""

    def __init__(self) -> None:
        self.queue = 0
        "ms; what the least of the latest round trips is above the least of all"
        self.jitter = 0.0
        "ms; how much one round trip differs from the one before"
        self._waited = 0  # ms that acknowledgements have waited for somebody's processor, lately
        self._acknowledged_at = 0  # ms; the last time
        self._recent: deque[tuple[int, int]] = deque()
        "when samples of the round trip were taken, and what they were; as long ago as a clump"

    def on_rtt(self, rtt: int, min_rtt: int, now: int) -> None:
        """A round trip, and the least of all; ms."""
        recent = self._recent
        if recent:
            self.jitter += (abs(rtt - recent[-1][1]) - self.jitter) / 16  # as in RFC 3550, section 6.4.1
        recent.append((now, rtt))
        span = min(CLUMP, min_rtt)
        while len(recent) > CLUMP_SAMPLES and recent[1][0] <= now - span:
            recent.popleft()
        is_known = len(recent) >= CLUMP_SAMPLES and recent[0][0] <= now - span
        self.queue = min(sample for _, sample in recent) - min_rtt if is_known else 0

    def on_acknowledged(self, count: int, rate: float, now: int) -> None:
        """So many segments at once; the line delivers `rate` per ms.

        In the line's queue there are gaps as well, but what comes after one comes no faster than the line is.
        """
        silence, self._acknowledged_at = now - self._acknowledged_at, now
        if silence > GAP and count > max(GAP_SEGMENTS, rate * silence / 2):
            self._waited = max(self._waited, silence - GAP)

    def end_round(self) -> None:
        """A round trip is over: who has waited for a processor may have more behind him, but less and less."""
        self._waited //= 2

    def noise(self, min_rtt: int, *, has_begun: bool) -> int:
        """ms that no queue need be behind; while a line is being filled nobody can tell who has waited for what."""
        waited = min(self._waited, WAITED_MOST * min_rtt) if has_begun else 0
        return min(max(min_rtt // 8, QUEUE_LEAST), QUEUE_MOST) + int(NOISE_FACTOR * self.jitter) + waited
