"""Which streams' small messages go before what others have waiting.

In      what is queued for KCP, and of which stream
Out     whether a message may overtake
Knows   the queue's counters. Not: frames, windows, the clock

A bulk stream always has some ms of the line waiting. A keystroke or a request beside it need not stand behind that.
It may, as far as the order within its stream allows, and as long as such messages are a small part of what goes:
whoever writes a lot in small pieces stands in line like all others.
"""

from kcptun_lite.core.kcp.send_queue import SendQueue

SMALL = 8 * 1024  # bytes
SHARE = 1 / 4  # of what goes in turn ...
CREDIT_MOST = 16 * 1024  # ... and bytes at once


class Overtaking:
    """Who may overtake whom in one conversation's queue."""

    def __init__(self, queue: SendQueue) -> None:
        self._queue = queue
        self._ends: dict[int, int] = {}
        "sid -> `pushed` behind the last that it has in the queue"
        self._credit = float(CREDIT_MOST)
        self._seen = 0  # `passed`, when the credit was counted

    def ask(self, sid: int, size: int) -> bool:
        """Whether so many bytes of a stream may go ahead now; if so, they must.

        Nothing overtakes the first bytes of all, which say what is spoken, nor anything of its own stream.
        """
        queue = self._queue
        passed = queue.passed
        if not 0 < passed < queue.pushed or size > SMALL or self._ends.get(sid, 0) > passed:
            return False
        self._credit = min(self._credit + SHARE * (passed - self._seen), CREDIT_MOST)
        self._seen = passed
        if size > self._credit:
            return False
        self._credit -= size
        return True

    def note(self, sid: int) -> None:
        """Something of the stream was queued in turn."""
        self._ends[sid] = self._queue.pushed

    def forget(self, sid: int) -> None:
        """The stream is over."""
        self._ends.pop(sid, None)
