"""snappy without a library, beside the library: the same bytes, and no harm from any others.

That streams are read and written alike, the Go vectors among them, is what test_snappy asks of both.
"""

import contextlib
import struct
from random import Random

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcptun_lite.core.mux import plain_snappy
from kcptun_lite.core.wire import SNAPPY_CHUNK_MAX, SNAPPY_IDENTIFIER
from kcptun_lite.errors import SnappyError


def text(size: int, seed: int) -> bytes:
    """Words again and again, so that blocks have copies of all lengths and distances."""
    random = Random(seed)
    words = [random.randbytes(random.choice((1, 2, 5, 17, 70, 300))) for _ in range(40)]
    parts: list[bytes] = []
    while sum(map(len, parts)) < size:
        parts.append(random.choice(words) * random.choice((1, 1, 1, 9)))
    return b"".join(parts)[:size]


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # RFC 3720, B.4 and its catalogues
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_the_crc_is_castagnolis(data: bytes, crc: int) -> None:
    assert plain_snappy.crc32c(data) == crc


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=70_000))
def test_a_crc_of_lanes_is_that_of_single_bytes(data: bytes) -> None:
    assert plain_snappy.crc32c(data) == plain_snappy._crc_bytewise(data, 0xFFFFFFFF) ^ 0xFFFFFFFF


@pytest.mark.parametrize("size", [1, 2, 59, 60, 61, 255, 256, 257, 5_000, 65_535, SNAPPY_CHUNK_MAX])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_the_library_are_read(size: int, seed: int) -> None:
    for data in (text(size, seed), Random(seed).randbytes(size), bytes(size)):
        assert plain_snappy.decompress_block(bytes(cramjam.snappy.compress_raw(data))) == data
        stream = bytes(cramjam.snappy.compress(data))
        assert plain_snappy.decompress(stream) == data
        assert bytes(cramjam.snappy.decompress(SNAPPY_IDENTIFIER + plain_snappy.chunk(data))) == data


def test_each_kind_of_element_is_read() -> None:
    far = bytes(range(256)) * 20
    literal = b"\xf4" + struct.pack("<H", len(far) - 1) + far
    cases = [
        (b"\x05" + b"\x10abcde", b"abcde"),
        (b"\x0a" + b"\x04ab" + bytes([(8 - 4) << 2 | 1, 2]), b"ab" * 5),  # one byte of distance, over itself
        (b"\x84\x28" + literal + b"\x0e" + struct.pack("<H", 5120), far + far[:4]),
        (b"\x84\x28" + literal + b"\x0f" + struct.pack("<I", 5120), far + far[:4]),
    ]
    for block, data in cases:
        assert plain_snappy.decompress_block(block) == data


@pytest.mark.parametrize(
    "block",
    [b"", b"\x80", b"\x05", b"\x05\x10abcd", b"\x04\x10abcde", b"\x06\x10abcde", b"\x05\x01\x01", b"\x05\x00a\x01\x00",
     b"\x05\x00a\x01\x02", b"\x05\xf0", b"\x05\xfc\xff\xff\xff\xff", b"\x05\x02\x00", b"\x05\x03\x00\x00\x00"],
)  # fmt: skip
def test_a_broken_block_is_refused(block: bytes) -> None:
    with pytest.raises(SnappyError, match="cut, or longer"):
        plain_snappy.decompress_block(block)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_any_block_is_read_as_the_library_reads_it(block: bytes) -> None:
    """Or refused, where that refuses it; and never gives more than it says at its start."""
    theirs = ours = None
    with contextlib.suppress(cramjam.DecompressionError):
        theirs = bytes(cramjam.snappy.decompress_raw(block))
    with contextlib.suppress(SnappyError):
        ours = plain_snappy.decompress_block(block)
    assert ours == theirs


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 3000), st.data())
def test_one_changed_byte_gives_no_wrong_bytes(seed: int, size: int, data: st.DataObject) -> None:
    good = text(size, seed)
    stream = bytearray(cramjam.snappy.compress(good))[len(SNAPPY_IDENTIFIER) :]
    at = data.draw(st.integers(4, len(stream) - 1))
    stream[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(SnappyError):
        assert plain_snappy.decompress(bytes(stream)) == good


def test_the_longest_work_that_a_chunk_can_make_is_bounded() -> None:
    """No element takes longer than it gives bytes, but for copies of one byte: 25,000 at the most."""
    copies = b"\x02\x01\x00" * ((76_490 - 5) // 3)
    block = b"\x80\x80\x04" + b"\x00a" + copies
    with pytest.raises(SnappyError):
        plain_snappy.decompress_block(block)
