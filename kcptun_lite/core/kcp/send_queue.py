"""The stream's bytes that have no number yet, and how they are cut into segments.

In      chunks of any size; some may overtake those that have not been begun
Out     pieces of mss bytes; only the last may be shorter
Knows   bytes. Not: windows, numbers, why one overtakes
Wire    docs/protocol.md, "Sending into KCP", stream mode: a segment is filled up before the next is begun
Cost    0.15 us per piece cut from the middle of a chunk
"""

from collections import deque


class SendQueue:
    """A queue of bytes: first in, first out, but for what goes ahead."""

    __slots__ = ("_ahead", "_current", "_mss", "_offset", "_waiting", "passed", "pushed", "size")

    def __init__(self, mss: int) -> None:
        self.size = 0
        "bytes queued"
        self.pushed = self.passed = 0
        "bytes ever pushed that do not go ahead, and those of them that have been cut"
        self._waiting: deque[bytes] = deque()
        self._ahead: deque[bytes] = deque()
        self._current = self._waiting  # what `_offset` is in
        self._offset = 0  # how far the first chunk is used up
        self._mss = mss

    def push(self, data: bytes, *, is_ahead: bool = False) -> None:
        """`is_ahead`: before all that waits, but for a chunk that has been begun."""
        if is_ahead:
            self._ahead.append(data)
        else:
            self._waiting.append(data)
            self.pushed += len(data)
        self.size += len(data)

    def cut_full(self, most: int) -> tuple[list[bytes], memoryview]:
        """Up to `most` pieces of exactly mss bytes, none if the first chunk has too few; and all of them as one."""
        head, start, mss = self._head(), self._offset, self._mss
        count = min(most, (len(head) - start) // mss)
        end = start + count * mss
        self._advance(count * mss)
        return [head[at : at + mss] for at in range(start, end, mss)], memoryview(head)[start:end]

    def cut(self) -> bytes:
        """The next mss bytes, or what there is."""
        parts = []
        missing = self._mss
        while missing and self.size:
            part = self._head()[self._offset : self._offset + missing]
            parts.append(part)
            missing -= len(part)
            self._advance(len(part))
        return b"".join(parts)

    def _head(self) -> bytes:
        if not self._offset:
            self._current = self._ahead or self._waiting
        return self._current[0]

    def _advance(self, count: int) -> None:
        self.size -= count
        self._offset += count
        if self._current is self._waiting:
            self.passed += count
        if self._offset == len(self._current[0]):
            self._current.popleft()
            self._offset = 0
