"""When thin traffic goes again unasked, so that a loss is repaired before anybody can have noticed it.

In      the line's loss and rate, sizes, which sendings have arrived
Out     delays of copies
Knows   numbers and times. Not: segments, windows
Cost    under a microsecond a message
"""

# ms after the first sending, by the number of copies.
DELAYS = ((), (22,), (4, 48), (4, 14, 48))
# Where losses come in bursts: if these last 20 ms on average, one in a hundred lasts 96 or more.
# All that a stream says in the meantime waits with what is lost.
BURST_DELAYS = (4, 14, 40, 96)
AGAIN = 0.25  # of the lost first sendings whose first copy is lost as well: more than chance
AGAIN_MEMORY = 15 / 16  # of that, per loss
SLACK = 2  # ms that a copy may be late
LOSS_NOTICED = 0.002  # of each hundred answers one may be late: there are two ways, and other reasons
LOSS_LEFT = 0.00015  # that only the last copy makes up for, late as it is
SHARE = 0.05  # of the line's rate ...
RATE_LEAST = 12.0  # ... bytes per ms if that is more
CREDIT_MOST = 16 * 1024  # bytes


class Copies:
    """How often, and how late, for one sender."""

    def __init__(self) -> None:
        self._credit = float(CREDIT_MOST)
        self._at = 0
        self._again = 0.0
        self._first_delay = 0  # ms; of the copies that were planned last

    def on_lost(self, later: int) -> None:
        """A first sending is lost; the copy that has arrived was sent `later` ms than it."""
        is_again = later > self._first_delay + SLACK
        self._again += (is_again - self._again) * (1 - AGAIN_MEMORY)

    def plan(self, loss: float, rate: float, size: int, now: int) -> tuple[int, ...]:
        """Delays in ms of what `size` bytes of thin traffic that go now deserve; `rate` is the line's, bytes per ms."""
        self._credit = min(self._credit + (now - self._at) * max(SHARE * rate, RATE_LEAST), CREDIT_MOST)
        self._at = now
        delays = self._wanted(loss)
        if len(delays) * size > self._credit:
            delays = DELAYS[min(int(self._credit // size), len(delays))]
        self._credit -= len(delays) * size
        if delays:
            self._first_delay = delays[0]
        return delays

    def _wanted(self, loss: float) -> tuple[int, ...]:
        if loss <= LOSS_NOTICED:
            return ()
        if self._again > AGAIN:
            return BURST_DELAYS
        count, left = 0, loss
        while left > LOSS_LEFT and count < len(DELAYS) - 1:
            left *= loss
            count += 1
        return DELAYS[count]
