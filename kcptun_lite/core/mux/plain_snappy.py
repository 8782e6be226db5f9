"""snappy without a library: what cramjam does, where there is none (no Rust for the processor).

In      bytes to send; whole chunks of the peer, within their bounds
Out     uncompressed chunks; the chunks' bytes
Knows   blocks, CRC-32C. Not: where chunks are cut (core/mux/snappy)
Wire    docs/protocol.md, "snappy"; google/snappy framing_format.txt, format_description.txt
Cost    a CRC 25 us and 20 ns per byte; a block up to 1 us for each literal and copy in it. cramjam: some 100 times less

Sending needs no compressor: a chunk may hold its bytes as they are. CRC-32C is reckoned for many stretches of the data
at once, byte by byte of all of them: `bytes.translate` looks all their bytes up in one call, and XOR of large integers
joins them. Python's own loop over bytes is four times slower, and by far more on a router.
"""

import struct

from kcptun_lite.errors import SnappyError

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_STRETCH = 32  # bytes that one lane of the CRC takes
_CHUNK = struct.Struct("<II")  # type and length, masked CRC
_COMPRESSED, _UNCOMPRESSED = 0x00, 0x01
_MASK32 = 0xFFFFFFFF


def _byte_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _byte_table()
_TRANSLATIONS = [bytes(value >> shift & 0xFF for value in _TABLE) for shift in (0, 8, 16, 24)]


def _crc_bytewise(data: bytes, crc: int) -> int:
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def _shift_tables() -> list[list[int]]:
    """What a CRC becomes when _STRETCH zero bytes follow, by each of its bytes: it is linear."""
    zeros = bytes(_STRETCH)
    return [[_crc_bytewise(zeros, value << shift) for value in range(256)] for shift in (0, 8, 16, 24)]


_SHIFT = _shift_tables()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes."""
    lanes = len(data) // _STRETCH
    if lanes < 8:
        return _crc_bytewise(data, _MASK32) ^ _MASK32
    first, second, third, fourth = _TRANSLATIONS
    whole = lanes * _STRETCH
    parts = [0, 0, 0, 0]  # the lanes' CRCs, as four integers with a byte for each lane
    for at in range(_STRETCH):
        looked_up = (parts[0] ^ int.from_bytes(data[at:whole:_STRETCH], "little")).to_bytes(lanes, "little")
        parts = [
            int.from_bytes(looked_up.translate(first), "little") ^ parts[1],
            int.from_bytes(looked_up.translate(second), "little") ^ parts[2],
            int.from_bytes(looked_up.translate(third), "little") ^ parts[3],
            int.from_bytes(looked_up.translate(fourth), "little"),
        ]
    low, second_bytes, third_bytes, high = (part.to_bytes(lanes, "little") for part in parts)
    crc = _MASK32
    shift0, shift8, shift16, shift24 = _SHIFT
    for a, b, c, d in zip(low, second_bytes, third_bytes, high, strict=True):
        crc = shift0[crc & 0xFF] ^ shift8[crc >> 8 & 0xFF] ^ shift16[crc >> 16 & 0xFF] ^ shift24[crc >> 24]
        crc ^= a | b << 8 | c << 16 | d << 24
    return _crc_bytewise(data[whole:], crc) ^ _MASK32


def _masked_crc(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _MASK32


def chunk(data: bytes) -> bytes:
    """One uncompressed chunk; `data` is no longer than a chunk may be."""
    return _CHUNK.pack(_UNCOMPRESSED | (len(data) + 4) << 8, _masked_crc(data)) + data


def decompress(chunks: bytes) -> bytes:
    """What whole data chunks hold; identifiers between them are passed over.

    Raises: SnappyError: a broken block, a wrong CRC.
    """
    found = []
    at = 0
    while at < len(chunks):
        header, crc = _CHUNK.unpack_from(chunks, at)
        kind, end = header & 0xFF, at + 4 + (header >> 8)
        if kind in (_COMPRESSED, _UNCOMPRESSED):
            body = chunks[at + 8 : end]
            data = decompress_block(body) if kind == _COMPRESSED else body
            if _masked_crc(data) != crc:
                raise SnappyError("broken snappy chunk: wrong CRC")
            found.append(data)
        at = end
    return b"".join(found)


def decompress_block(block: bytes) -> bytes:
    """The bytes of one block, never more than it says at its start. Raises: SnappyError."""
    try:
        return _decompress_block(block)
    except (IndexError, ValueError):
        raise SnappyError("broken snappy chunk: its block is cut, or longer than it says") from None


def _decompress_block(block: bytes) -> bytes:
    size, at = _varint(block)
    out = bytearray()
    last = len(block)
    while at < last:
        tag = block[at]
        kind, length = tag & 3, (tag >> 2) + 1
        at += 1
        if kind == 0:  # a literal
            if length > 60:
                extra = length - 60
                length = int.from_bytes(_slice(block, at, extra), "little") + 1
                at += extra
            out += _slice(block, at, length)
            at += length
        else:  # a copy of what came before
            if kind == 1:
                length, offset = (tag >> 2 & 7) + 4, tag >> 5 << 8 | block[at]
            else:
                offset = int.from_bytes(_slice(block, at, 2 * (kind - 1)), "little")
            at += (1, 2, 4)[kind - 1]
            start = len(out) - offset
            if start < 0 or not offset:
                raise ValueError
            if offset >= length:
                out += out[start : start + length]
            else:  # it runs into itself: a pattern again and again
                out += (out[start:] * (length // offset + 1))[:length]
        if len(out) > size:
            raise ValueError
    if len(out) != size:
        raise ValueError
    return bytes(out)


def _varint(block: bytes) -> tuple[int, int]:
    """A number and where it ends."""
    value = at = 0
    while block[at] & 0x80:
        value |= (block[at] & 0x7F) << 7 * at
        at += 1
    return value | block[at] << 7 * at, at + 1


def _slice(block: bytes, at: int, length: int) -> bytes:
    if at + length > len(block):
        raise IndexError
    return block[at : at + length]
