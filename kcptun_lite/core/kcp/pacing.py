"""Rates: the user's limit, bursts spread over the round trip, and batches that are worth waiting for.

In      bytes or segments sent, packets received, `now`
Out     how long to wait, how much may go
Knows   rates. Not: what is sent
Wire    docs/protocol.md, "Rate limit"
"""

LIMIT_BURST = 64 * 1500  # bytes; kcp-go's burst
PACING_BURST = 32  # segments that always may go at once
UNPACED = float("inf")  # segments of credit
COALESCING_REST = 1  # ms
COALESCING_RATE = 5000  # bytes a ms, 40 Mbit/s; below there is nothing to gather ...
COALESCING_START = 43_200  # ... nor before so many have come above that rate
BATCH_WORTH_ITS_COST = 16  # packets
PACED_BATCH = 32 * 1024  # bytes sent at once under a limit, so that a burst is several batches


class TokenBucket:
    """Lets `rate` bytes a second pass, and a burst of LIMIT_BURST after a rest."""

    def __init__(self, rate: int, now: int) -> None:
        self._rate = rate
        self._tokens = float(LIMIT_BURST)
        self._filled_at = now

    def wait(self, now: int) -> int:
        """ms until something may be sent; 0 is now."""
        self._tokens = min(LIMIT_BURST, self._tokens + (now - self._filled_at) * self._rate / 1000)
        self._filled_at = now
        return 0 if self._tokens > 0 else 1 + int(-self._tokens * 1000 / self._rate)

    def spend(self, size: int) -> None:
        """`size` bytes were sent; the last ones may have been on credit."""
        self._tokens -= size


class Pacer:
    """Lets segments go at a rate, in bursts of a few ms, so that they need not all wait in one queue."""

    def __init__(self) -> None:
        self.resume_at: int | None = None
        "ms; when what did not go may go"
        self._credit = UNPACED  # segments
        self._at = 0

    def room(self, now: int, wanted: int, rate: float, step: int) -> int:
        """How many of `wanted` segments may go now, and `step` ms later; `rate` in segments per ms, 0 for no limit."""
        self.resume_at = None
        if not rate:
            self._credit, self._at = UNPACED, now
            return wanted
        self._credit = min(self._credit + (now - self._at) * rate, max(PACING_BURST, 2 * step * rate))
        self._at = now
        if wanted <= self._credit:
            return wanted
        self.resume_at = now + step
        return max(0, int(self._credit))

    def spend(self, segments: int) -> None:
        self._credit -= segments


class Coalescer:
    """Tells when packets come thick but one by one: to let some gather costs less than to wake for each of them.

    On a line of 100 Mbit/s, where they come 0.1 ms apart, the receiving end takes 33 instead of 50 ms of processor time
    per MB. Cards do the same with their interrupts.
    """

    def __init__(self) -> None:
        self._surplus = 0  # bytes above the rate, lately
        self._at = 0

    def wants_rest(self, packets: int, size: int, now: int) -> bool:
        """Whether whoever has received so many packets, of `size` bytes in all, should come back in COALESCING_REST ms.

        Small messages are no stream of packets that could gather: somebody waits for each.
        """
        left = max(0, self._surplus - (now - self._at) * COALESCING_RATE)
        is_flight = packets >= 2 * BATCH_WORTH_ITS_COST  # more than a rest gathers: these come by themselves
        self._surplus = 0 if is_flight else min(left + size, 2 * COALESCING_START)
        self._at = now
        return packets < BATCH_WORTH_ITS_COST and self._surplus > COALESCING_START
