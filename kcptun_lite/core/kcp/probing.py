"""How much a probe may ask for: less where the line's queue has had no room for it.

In      what a probe has sent, what of it was lost, the loss that is usual
Out     a part of what would be asked for otherwise
Knows   counts and times. Not: rates, states
"""

PROBE_LOST = 0.02  # of what a probe sends; more than that and than is usual did not fit the queue
PROBE_LOST_LEAST = 2  # segments
CHANCE = 2  # standard deviations of the usual losses are chance
PART_LEAST = 1 / 16
REGAIN = 1 / 32  # of all, after a probe that found room: slowly, as each that finds none costs its losses


class ProbeSize:
    """The part of a full probe that the next one asks for.

    A queue that is shorter than what a probe sends more shows nothing of it but losses.
    """

    def __init__(self) -> None:
        self.part = 1.0
        self._sent = self._lost = 0
        self._begin = self._end = 0  # ms

    def on_sent(self, count: int) -> None:
        """So many segments of a probe have gone."""
        self._sent += count

    def on_over(self, begin: int, end: int) -> None:
        """What was sent between these moments, in ms, was the probe."""
        self._begin, self._end = begin, end

    def on_lost(self, sent_at: int) -> None:
        """A segment sent at this moment is believed lost."""
        self._lost += self._begin <= sent_at <= self._end

    def learn(self, loss: float) -> None:
        """What there is to learn of the last probe, some round trips later; `loss` is the usual share."""
        usual = self._sent * loss
        more = max(PROBE_LOST * self._sent, CHANCE * usual**0.5, PROBE_LOST_LEAST)
        has_overflowed = self._lost - usual > more
        self.part = max(self.part / 2, PART_LEAST) if has_overflowed else min(self.part + REGAIN, 1.0)
        self._sent = self._lost = 0
