"""How many bytes all sessions together may hold, and how many they do (`--memlimit`).

In      what each conversation and the pool hold, and what they would like to hold besides
Out     what they may
Knows   bytes. Not: what they are of
Cost    1 us per question, two questions per batch

Nobody has a fixed share, and nobody can take it all: a queue may be as long as what is still free when it asks
(the dynamic threshold of shared switch buffers: Choudhury and Hahne, IEEE/ACM ToN 6, 1998). One queue that is stuck
holds half of the limit, two a third each, and there is always room for the next one. A queue below its `least`
may always go on, so nobody waits for what somebody else has to give back.
"""

from contextlib import AbstractContextManager

from kcptun_lite.core.wire import MTU_MAX

UNLIMITED = 1 << 62  # bytes
HEADROOM = 512 * 1024  # bytes of a limit that queues leave to batches, which are taken without asking
SEGMENT_COST = 200  # bytes that Python needs to hold a segment, besides its payload
SEGMENT_BYTES = MTU_MAX + SEGMENT_COST  # the longest segment
SESSION_COST = 32 * 1024  # bytes of the objects and codecs of a session at rest, measured


class Budget:
    """The sum, and the limit to it; thread-safe through the leaf lock it is given."""

    def __init__(self, lock: AbstractContextManager[object], limit: int = 0) -> None:
        """`limit` in bytes; 0 is none."""
        self.limit = limit or UNLIMITED
        self.used = 0
        "bytes held now"
        self.peak = 0
        "most bytes ever held"
        self.waits = 0
        "questions that were answered with less than was wanted"
        self._lock = lock

    def __repr__(self) -> str:
        limit = "no limit" if self.limit == UNLIMITED else f"of {self.limit}"
        return f"<Budget {self.used} {limit}, {self.waits} waits>"

    @property
    def free(self) -> int:
        """Bytes that may still be held, batches aside; less than 0 is possible."""
        return self.limit - HEADROOM - self.used

    def update(self, change: int, queue: int = 0, wanted: int = 0, least: int = 0) -> tuple[int, int]:
        """Count `change` bytes more (or less), and ask for more besides.

        Args:
            queue: what the asker's queue holds already.
            wanted: how much more it would like to hold now.
            least: how much it may hold in any case.
        Returns: how much more it might hold, and how much of what it wanted is counted from now on.
        """
        with self._lock:
            self.used += change
            allowance = max(self.limit - HEADROOM - self.used - queue, least - queue, 0)
            granted = min(wanted, allowance)
            self.waits += granted < wanted
            self.used += granted
            self.peak = max(self.peak, self.used)
        return allowance, granted


class Share:
    """What one conversation has of a budget; not thread-safe, as the conversation."""

    __slots__ = ("_budget", "_cost", "_counted", "_is_closed", "is_limited")

    def __init__(self, budget: Budget, cost: int = 0) -> None:
        """`cost`: bytes that the conversation takes without holding anything."""
        self.is_limited = budget.limit != UNLIMITED
        self._budget = budget
        self._cost = cost
        self._counted = 0
        self._is_closed = False
        self.update(0)

    def update(self, held: int, queue: int = 0, wanted: int = 0, least: int = 0) -> int:
        """Tell that `held` bytes are held; returns how many more there may be. Arguments as `Budget.update`."""
        if self._is_closed:
            return 0
        held += self._cost
        allowance, granted = self._budget.update(held - self._counted, queue, wanted, least)
        self._counted = held + granted
        return allowance

    def close(self) -> None:
        """Give everything back; what is held after this is not counted."""
        self.update(-self._cost)
        self._is_closed = True


class Taken:
    """What readers have in their hands: bytes last taken from a stream, until its reader comes for more."""

    def __init__(self) -> None:
        self.size = 0
        "bytes, of all streams"
        self._by_stream: dict[int, int] = {}

    def add(self, sid: int, size: int) -> None:
        """A reader has taken so much; what it had before was dropped."""
        self._by_stream[sid] = size
        self.size += size

    def drop(self, sid: int) -> bool:
        """A reader is done with what it had; whether that was anything."""
        done = self._by_stream.pop(sid, 0)
        self.size -= done
        return done > 0
