"""Buffers from the system and back to it.

In      sizes
Out     `BufferPool.take` a page-aligned buffer; `borrow` one for the length of a block
Knows   mmap. Not: what is in a buffer
Cost    take + give 1 us; a buffer the pool has not kept costs its page faults (about 0.1 us per KiB)

Every buffer is an anonymous mapping of its own, because freed mappings go back to the system at
once under glibc and musl alike, where freed heap stays with the process (musl has no malloc_trim).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap
from typing import NamedTuple

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.budget import HEADROOM, UNLIMITED, Budget

BATCH_BYTES = 128 * 1024  # the smallest batch: about 94 packets of 1350 bytes, two GSO sends
RELAY_BYTES = 64 * 1024  # the smallest relay buffer: two smux frames of 32 KiB, 50 KCP segments
# Where memory is no concern batches are four times as large: locks, wake-ups and system calls come once per batch.
# Bulk over loopback, medians of three: twice the size 512 Mbit/s and 23 ms of CPU per MB beside 426 and 28 with the
# smallest; four times 661 and 19 beside 646 and 19 with twice, and 570 and 21 beside 483 and 25 downwards.
BULK_FACTOR = 4
POOL_FLOOR_BYTES = 320 * 1024  # idle bytes kept while there is traffic, of the smallest: two batches, a relay buffer
SOME_OF_ALLOWANCE = 32  # `take_some` gives one reader this part of what all may have, if that is less than it wants
POISON = 0xDD  # what a given-back buffer is filled with in tests


class PoolUsage(NamedTuple):
    """Bytes of the pool at one moment."""

    in_use_bytes: int
    idle_bytes: int


class BufferPool:
    """Buffers for packets and relays; idle ones are kept within `gogc` percent of those lately in use.

    Thread-safe through the leaf lock it is given (core owns no lock).
    """

    def __init__(
        self,
        lock: AbstractContextManager[object],
        *,
        gogc: int | None = 100,
        floor_bytes: int = POOL_FLOOR_BYTES,
        budget: Budget | None = None,
        factor: int = 1,
        poison: bool = False,
    ) -> None:
        """`gogc` None keeps every idle buffer, as GOGC=off keeps garbage, unless the budget is used up.

        `factor`: how many times the smallest batches and relay buffers are.
        """
        self.batch_bytes = factor * BATCH_BYTES
        self.relay_bytes = factor * RELAY_BYTES
        self.budget = budget or Budget(nullcontext())
        self._lock = lock
        self._gogc = gogc
        self._floor = factor * floor_bytes
        self._poison = poison
        self._idle: dict[int, list[memoryview]] = {}
        self._in_use_bytes = 0
        self._peak_bytes = 0
        "most bytes in use at once since the last trim"
        self._idle_bytes = 0
        self._is_busy = False
        "a buffer was taken since the last trim"

    def take(self, size: int) -> memoryview:
        """A writable buffer of at least `size` bytes, rounded up to whole pages; its content is arbitrary."""
        size = -(-size // PAGESIZE) * PAGESIZE
        with self._lock:
            self._is_busy = True
            self._in_use_bytes += size
            self._peak_bytes = max(self._peak_bytes, self._in_use_bytes)
            kept = self._idle.get(size)
            if kept:
                self._idle_bytes -= size
                return kept.pop()
        try:
            buffer = memoryview(mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS))
        except OSError as exc:
            with self._lock:
                self._in_use_bytes -= size
            raise MemoryError(f"no memory for a buffer: {exc.strerror}") from exc
        self.budget.update(size)
        return buffer

    def take_some(self, size: int) -> memoryview | None:
        """A buffer of `size` bytes, or of less the less the budget has left; None: there is nothing, ask later.

        For the many who read: each takes a small part of what is left, so that all get something.
        """
        budget = self.budget
        if budget.limit != UNLIMITED:
            if budget.free + HEADROOM < size:
                return None
            allowance, granted = budget.update(0, self._in_use_bytes, size)
            budget.update(-granted)
            while size > PAGESIZE and size > allowance // SOME_OF_ALLOWANCE:
                size //= 2
        return self.take(size)

    def give(self, buffer: memoryview) -> None:
        """Take back what `take` gave; the caller keeps no view of it."""
        size = len(buffer)
        if self._poison:
            buffer[:] = bytes([POISON]) * size
        with self._lock:
            self._in_use_bytes -= size
            if self._may_keep_locked(size, self._floor):
                self._idle.setdefault(size, []).append(buffer)
                self._idle_bytes += size
                return
        self.budget.update(-size)  # it is unmapped with its last reference, when we return

    def trim(self) -> bool:
        """Give idle buffers above the ceiling back to the system; called now and then, as use falls.

        When no buffer was taken since the last call the floor falls, too. Returns whether it is so.
        """
        released = 0
        with self._lock:
            is_quiet, self._is_busy = not self._is_busy, False
            self._peak_bytes = self._in_use_bytes
            floor = 0 if is_quiet else self._floor
            for kept in self._idle.values():
                while kept and not self._may_keep_locked(0, floor):
                    size = len(kept.pop())
                    self._idle_bytes -= size
                    released += size
        self.budget.update(-released)
        return is_quiet

    def usage(self) -> PoolUsage:
        with self._lock:
            return PoolUsage(self._in_use_bytes, self._idle_bytes)

    def _may_keep_locked(self, size: int, floor: int) -> bool:
        if self.budget.free < 0:
            return False
        if self._gogc is None:
            return True
        return self._idle_bytes + size <= max(floor, self._peak_bytes * self._gogc // 100)


class _Loan:
    """A buffer for the length of a block; as a generator this would cost every small packet 2 us more."""

    __slots__ = ("_buffer", "_pool", "_size")

    def __init__(self, pool: BufferPool, size: int) -> None:
        self._pool = pool
        self._size = size

    def __enter__(self) -> memoryview:
        self._buffer = self._pool.take(self._size)
        return self._buffer

    def __exit__(self, *exc: object) -> None:
        self._pool.give(self._buffer)


class _BatchLoan(_Loan):
    __slots__ = ()

    def __enter__(self) -> PacketBatch:  # type: ignore[override]
        return PacketBatch(super().__enter__())


def borrow(pool: BufferPool, size: int) -> AbstractContextManager[memoryview]:
    """A buffer of the pool for the length of a block."""
    return _Loan(pool, size)


@contextmanager
def borrow_some(pool: BufferPool, size: int) -> Iterator[memoryview | None]:
    """A buffer as `BufferPool.take_some` gives it, or None, for the length of a block."""
    buffer = pool.take_some(size)
    try:
        yield buffer
    finally:
        if buffer is not None:
            pool.give(buffer)


def borrow_batch(pool: BufferPool) -> AbstractContextManager[PacketBatch]:
    """A batch for the length of a block; the only way to one, so that none is forgotten."""
    return _BatchLoan(pool, pool.batch_bytes)
