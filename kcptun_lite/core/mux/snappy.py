"""Compression: the stream's bytes in, snappy chunks out, and back again.

In      bytes of the session's stream; chunks of the peer, cut anywhere
Out     whole chunks; the peer's bytes
Knows   cramjam, and how a chunk looks outside; core/mux/plain_snappy where there is none. Not: frames, segments
Wire    docs/protocol.md, "snappy"; google/snappy framing_format.txt
Cost    encode 0.6 us per call and 0.3 us per KiB; feed 2 to 12 us per call (cramjam takes and gives back
        140 KiB in each) and 0.2 us per KiB; 130 to 250 KiB for each encoder that is at work

Each direction is one stream that never ends, with its identifier in front of the first chunk. cramjam checks
the CRCs; what a chunk may cost us is checked here, before cramjam sees it.
"""

import struct
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from kcptun_lite.core.wire import SNAPPY_CHUNK_MAX, SNAPPY_IDENTIFIER, Buffer
from kcptun_lite.errors import SnappyError

_CHUNK_HEADER = struct.Struct("<I")  # type in the low byte, length of what follows above it
_CHUNK_HEADER_SIZE = 4  # bytes
_CRC_SIZE = 4  # bytes, first thing in a data chunk

_COMPRESSED = 0x00
_UNCOMPRESSED = 0x01
_SKIPPABLE = 0x80  # and above, up to the identifier
_IDENTIFIER = 0xFF

# type -> smallest and largest length; what is missing here and below _SKIPPABLE is an error.
# A block of 65,536 bytes never needs more than 76,490 when it is compressed (golang/snappy MaxEncodedLen).
_LENGTHS = {
    _COMPRESSED: (_CRC_SIZE + 1, _CRC_SIZE + 76_490),
    _UNCOMPRESSED: (_CRC_SIZE, _CRC_SIZE + SNAPPY_CHUNK_MAX),
    _IDENTIFIER: (6, 6),
}


_idle_compressors: list[Any] = []
"as many as were ever at work at once; a thousand idle sessions would keep 130 MiB"


class SnappyEncoder:
    """One direction of a session, towards the peer."""

    def __init__(self) -> None:
        self._cramjam = cramjam_if_any()
        self._is_identified = False

    def encode(self, parts: Sequence[Buffer]) -> bytes:
        """Give the chunks that hold all `parts`, the stream's identifier in front of the first ones.

        Nothing is kept back, so what is encoded can be decoded at once. No bytes give no chunk.
        """
        data = b"".join(parts)
        if not data:
            return b""
        chunks = [] if self._is_identified else [SNAPPY_IDENTIFIER]
        self._is_identified = True
        pieces = [data[at : at + SNAPPY_CHUNK_MAX] for at in range(0, len(data), SNAPPY_CHUNK_MAX)]
        if self._cramjam is None:
            return b"".join(chunks + [_plain().chunk(piece) for piece in pieces])
        compressor = self._take_compressor(self._cramjam)
        for piece in pieces:  # the compressor never shrinks again: feed it little
            compressor.compress(piece)  # bytes and nothing else
            chunks.append(bytes(compressor.flush()))
        _idle_compressors.append(compressor)
        return b"".join(chunks)

    def _take_compressor(self, cramjam: ModuleType) -> Any:
        """One that is past its identifier: then no chunk depends on those before, and any session may use it."""
        try:
            return _idle_compressors.pop()
        except IndexError:
            compressor = cramjam.snappy.Compressor()
            compressor.compress(b"-")
            compressor.flush()
            return compressor


class SnappyDecoder:
    """One direction of a session, from the peer."""

    def __init__(self) -> None:
        self._cramjam = cramjam_if_any()
        self._held = bytearray()  # the start of a chunk
        self._wanted = _CHUNK_HEADER_SIZE  # bytes in _held from which on there is something to do
        self._to_skip = 0  # bytes of a skippable chunk still to come
        self._identified = False

    @property
    def held_bytes(self) -> int:
        """Bytes kept of a chunk that is not complete; at most 76,498."""
        return len(self._held)

    def feed(self, data: Buffer) -> bytes:
        """Give what the chunks held that are complete now, b"" if none is.

        No chunk may give more than 65,536 bytes, so `data` gives 22 times its length at most, and one chunk.
        Raises SnappyError: no identifier in front, an unknown or oversized chunk, a broken block, a wrong CRC.
        """
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return b""
            data, self._held = self._held, bytearray()
        view = memoryview(data)
        chunks = self._complete_chunks(view)
        if not chunks:
            return b""
        if self._cramjam is None:
            return bytes(_plain().decompress(b"".join(chunks)))
        try:
            return bytes(self._cramjam.snappy.decompress(b"".join((SNAPPY_IDENTIFIER, *chunks))))
        except self._cramjam.DecompressionError as error:
            raise SnappyError(f"broken snappy chunk: {error}") from error

    def _complete_chunks(self, view: memoryview) -> list[memoryview]:
        """Runs of whole data chunks in `view`, each within its bounds; the rest is held or skipped."""
        runs: list[memoryview] = []
        size = len(view)
        at = run = min(self._to_skip, size)
        self._to_skip -= at
        self._wanted = _CHUNK_HEADER_SIZE
        while size - at >= _CHUNK_HEADER_SIZE:
            (header,) = _CHUNK_HEADER.unpack_from(view, at)
            kind, length = header & 0xFF, header >> 8
            if not self._identified:
                _check_opening(kind)
                self._identified = True
            end = at + _CHUNK_HEADER_SIZE + length
            if _SKIPPABLE <= kind < _IDENTIFIER:
                runs.append(view[run:at])
                at = run = min(end, size)
                self._to_skip = end - at
                continue
            _check_length(kind, length)
            if end > size:
                self._wanted = end - at
                break
            if kind == _COMPRESSED:
                _check_block(view[at + _CHUNK_HEADER_SIZE + _CRC_SIZE : end])
            elif kind == _IDENTIFIER and view[at:end] != SNAPPY_IDENTIFIER:
                raise SnappyError("broken snappy identifier")
            at = end
        runs.append(view[run:at])
        if at < size:
            self._held += view[at:]
        return [run for run in runs if run]


def _check_opening(kind: int) -> None:
    if kind != _IDENTIFIER:
        raise SnappyError(f"no snappy stream, it starts with byte 0x{kind:02x}: --nocomp must be the same on both ends")


def _check_length(kind: int, length: int) -> None:
    if kind not in _LENGTHS:
        raise SnappyError(f"snappy chunk of unknown type 0x{kind:02x}")
    least, most = _LENGTHS[kind]
    if not least <= length <= most:
        raise SnappyError(f"snappy chunk of type 0x{kind:02x} with {length} bytes, not {least} to {most}")


def _check_block(block: memoryview) -> None:
    """Refuse a block that says it holds more than a chunk may; its varint is the first thing in it."""
    size = 0
    for shift, byte in zip((0, 7, 14), block, strict=False):  # three bytes say up to 2 ** 21
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    else:
        raise SnappyError("snappy block without a usable length")
    if size > SNAPPY_CHUNK_MAX:
        raise SnappyError(f"snappy block of {size} bytes, more than {SNAPPY_CHUNK_MAX}")


def cramjam_if_any() -> ModuleType | None:
    """The library, None where it is not installed."""
    try:
        import cramjam
    except ImportError:
        return None
    return cramjam


def _plain() -> ModuleType:
    from kcptun_lite.core.mux import plain_snappy  # some ms and 100 KiB, for those who need it

    return plain_snappy
