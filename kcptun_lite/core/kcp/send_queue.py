"""The stream's bytes that have no number yet, and how they are cut into segments.

In      chunks of any size
Out     pieces of mss bytes; only the last may be shorter
Knows   bytes. Not: windows, numbers
Wire    docs/protocol.md, "Sending into KCP", stream mode: a segment is filled up before the next is begun
Cost    0.15 us per piece cut from the middle of a chunk
"""

from collections import deque


class SendQueue:
    """A first-in-first-out queue of bytes."""

    __slots__ = ("_chunks", "_mss", "_offset", "size")

    def __init__(self, mss: int) -> None:
        self.size = 0
        "bytes queued"
        self._chunks: deque[bytes] = deque()
        self._offset = 0  # how far the first chunk is used up
        self._mss = mss

    def push(self, data: bytes) -> None:
        self._chunks.append(data)
        self.size += len(data)

    def cut_full(self, most: int) -> tuple[list[bytes], memoryview]:
        """Up to `most` pieces of exactly mss bytes, none if the first chunk has too few; and all of them as one."""
        head, start, mss = self._chunks[0], self._offset, self._mss
        count = min(most, (len(head) - start) // mss)
        end = start + count * mss
        self._advance(count * mss)
        return [head[at : at + mss] for at in range(start, end, mss)], memoryview(head)[start:end]

    def cut(self) -> bytes:
        """The next mss bytes, or what there is."""
        parts = []
        missing = self._mss
        while missing and self.size:
            part = self._chunks[0][self._offset : self._offset + missing]
            parts.append(part)
            missing -= len(part)
            self._advance(len(part))
        return b"".join(parts)

    def _advance(self, count: int) -> None:
        self.size -= count
        self._offset += count
        if self._offset == len(self._chunks[0]):
            self._chunks.popleft()
            self._offset = 0
