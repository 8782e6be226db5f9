"""Tells whether the peer has lost all memory of a conversation.

In      whether each datagram of the peer acknowledges from zero, `now`
Out     when to ask, and whether it is certain
Knows   times. Not: datagrams, who asks
Wire    docs/protocol.md, "Server sessions"
"""

from kcptun_lite.core.question import Questioner

RESTART_DATAGRAMS = 2  # that acknowledge nothing after others had acknowledged something ...
RESTART_AFTER = 300  # ms, or two RTO ... and for so long
RESTART_ASK_AFTER = 100  # ms from the first question to the second; each further pause is twice the one before


class RestartDetector(Questioner):
    """Tells whether the peer has lost all memory of the conversation: it acknowledges from zero, and goes on to.

    A packet that is late or was replayed acknowledges from zero as well. So the peer is asked again and again
    (WASK): one that remembers answers with its true `una`, and the suspicion is over.
    """

    def __init__(self) -> None:
        super().__init__(RESTART_ASK_AFTER)
        self._since = 0
        self._count = 0

    def note(self, *, is_from_zero: bool, now: int) -> None:
        """A datagram of the peer has been read."""
        if not is_from_zero:
            self.ask_at = None
            self._count = 0
            return
        if not self._count:
            self._since = self.ask_at = now
            self._pause = RESTART_ASK_AFTER
        self._count += 1

    def is_certain(self, now: int, rto: int) -> bool:
        return self._count >= RESTART_DATAGRAMS and now - self._since >= max(RESTART_AFTER, 2 * rto)
