"""How fast segments are delivered, from what was acknowledged at two moments.

In      moments, and what had arrived by then
Out     segments per ms
Knows   numbers
Source  draft-cheng-iccrg-delivery-rate-estimation, section 3.2
"""

from typing import NamedTuple


class Mark(NamedTuple):
    """What was known at one moment."""

    now: int
    "ms"
    sent_at: int
    "ms; of the newest that has arrived"
    delivered: int
    "segments, in all"

    def rate_until(self, later: "Mark") -> float:
        """Segments per ms that were delivered from here on.

        No faster than they were sent: acknowledgements that have waited for a processor come all at once.
        """
        elapsed = max(later.now - self.now, later.sent_at - self.sent_at, 1)
        return (later.delivered - self.delivered) / elapsed
