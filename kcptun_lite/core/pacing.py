"""How fast one session may send: a token bucket.

In      bytes sent, `now`
Out     how long to wait
Knows   a rate. Not: what is sent
Wire    WIRE.md 8.5, --ratelimit
"""

PACING_BURST = 64 * 1500  # bytes; kcp-go's burst
PACED_TRAY = 32 * 1024  # bytes sent at once under a limit, so that a burst is several trays


class TokenBucket:
    """Lets `rate` bytes a second pass, and a burst of PACING_BURST after a rest."""

    def __init__(self, rate: int, now: int) -> None:
        self._rate = rate
        self._tokens = float(PACING_BURST)
        self._filled_at = now

    def wait(self, now: int) -> int:
        """ms until something may be sent; 0 is now."""
        self._tokens = min(PACING_BURST, self._tokens + (now - self._filled_at) * self._rate / 1000)
        self._filled_at = now
        return 0 if self._tokens > 0 else 1 + int(-self._tokens * 1000 / self._rate)

    def spend(self, size: int) -> None:
        """`size` bytes were sent; the last ones may have been on credit."""
        self._tokens -= size
