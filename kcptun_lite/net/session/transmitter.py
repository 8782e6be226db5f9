"""A session's way out: one thread at a time puts together, seals and sends what the conversation wants sent.

In      calls of whoever has made something to send
Out     sealed packets; a call of the update thread for what must wait
Knows   the order of the two locks (its own before the session's), pauses, the rate limit. Not: paths, streams
Wire    docs/protocol.md, "Rate limit"
Cost    two locks and one cipher call per batch
"""

from threading import Lock
from typing import Protocol

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BufferPool, borrow
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.crypt import PacketCrypt
from kcptun_lite.core.kcp.pacing import PACED_BATCH, TokenBucket
from kcptun_lite.net.session.update_thread import Tickable, UpdateThread, monotonic_ms

BRIEFLY = 2  # ms that a thread sends which serves all sessions: more, and with a slow cipher it never came back


class Sending(Tickable, Protocol):
    """What a transmitter needs of its session."""

    lock: Lock
    conversation: Conversation
    counters: Counters

    @property
    def is_closed(self) -> bool: ...

    def send_packets(self, packets: list[memoryview]) -> int:
        """Send packets on the path of now; returns how many the kernel took. Called without the session's lock."""

    def wake_writers_locked(self) -> None:
        """There may be room for more."""


class Transmitter:
    """One session's; `lock` is taken before the session's own."""

    def __init__(
        self, session: Sending, crypt: PacketCrypt, pool: BufferPool, ticker: UpdateThread, rate: int, now: int
    ) -> None:
        """`crypt` seals for this session alone. `rate`: bytes a second at most, 0 for no limit."""
        self.lock = Lock()
        self.paced_until = 0
        "ms; before it the rate limit lets nothing out"
        self._session = session
        self._crypt = crypt
        self._pool = pool
        self._ticker = ticker
        self._bucket = TokenBucket(rate, now) if rate else None
        self._is_wanted = False

    def transmit(self, until: int | None = None) -> None:
        """Send what there is; from `until` (ms) on the rest is left to the update thread.

        Who sends goes on for as long as others write: `until` is for all whose thread is not a stream's own.
        """
        self._is_wanted = True  # a note for the one thread that may be at it, which looks before it leaves
        while self._is_wanted and self.lock.acquire(blocking=False):
            try:
                self._is_wanted = False
                is_complete = self._transmit_held(until)
            finally:
                self.lock.release()
            if not is_complete or (until is not None and self._is_wanted and monotonic_ms() >= until):
                self._ticker.wake(self._session)
                return

    def transmit_briefly(self) -> None:
        """As `transmit`, for a short time: for threads that others wait for."""
        self.transmit(monotonic_ms() + BRIEFLY)

    def say_last_words(self) -> None:
        """Send all there is without a pause, behind whoever sends now."""
        with self.lock:
            self._transmit_held(is_last=True)

    def _transmit_held(self, until: int | None = None, *, is_last: bool = False) -> bool:
        """Send what there is, or there is time for, at least a batch; whether that was all."""
        session, conversation, bucket = self._session, self._session.conversation, self._bucket
        with borrow(self._pool, max(self._pool.batch_bytes, conversation.params.batch_bytes)) as arena:
            batch = PacketBatch(arena)
            if bucket:
                batch.capacity = min(batch.capacity, max(PACED_BATCH, conversation.params.group_bytes))
            more = True
            while more:
                now = monotonic_ms()
                if bucket and not is_last and (pause := bucket.wait(now)):
                    self.paced_until = now + pause
                    self._ticker.wake(session, self.paced_until)
                    return True
                with session.lock:
                    if session.is_closed and not conversation.kcp.flush_wanted:
                        return True
                    more = conversation.packets_to_send(batch, now)
                    session.wake_writers_locked()
                    deadline = conversation.next_deadline()
                if batch.starts:
                    self._send(batch)
                if more and until is not None and monotonic_ms() >= until:
                    return False
            if deadline is not None:
                self._ticker.wake(session, deadline)
        return True

    def _send(self, batch: PacketBatch) -> None:
        self._crypt.seal(batch)
        packets, size = batch.views(), sum(batch.lengths)
        sent = self._session.send_packets(packets)
        counters = self._session.counters
        counters.out_packets += sent
        counters.send_drops += len(packets) - sent
        counters.out_bytes += size
        if self._bucket:
            self._bucket.spend(size)
        batch.clear()
