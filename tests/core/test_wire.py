"""Layouts and the arithmetic of serial numbers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcptun_lite.core import wire
from kcptun_lite.core.wire import MASK32, diff32, fec_type, first_segment

U32 = st.integers(0, MASK32)
SEGMENT = bytes.fromhex("b21782ad51000002d9010000070000000000000008000000" + "0100000003000000")  # sn 7
FEC_DATA = bytes.fromhex("00000000f1002200") + SEGMENT


def test_header_sizes() -> None:
    assert wire.KCP_SEGMENT.size == wire.KCP_HEADER_SIZE == 24
    assert wire.FEC_HEADER.size == wire.FEC_HEADER_SIZE == 8
    assert wire.SMUX_HEADER.size == wire.SMUX_HEADER_SIZE == 8
    assert wire.CRYPT_HEADER_SIZE == 20


@pytest.mark.parametrize(
    ("later", "earlier", "distance"),
    [
        (0, 0, 0),
        (5, 3, 2),
        (3, 5, -2),
        (0, MASK32, 1),
        (MASK32, 0, -1),
        (2, MASK32 - 2, 5),
        (0x7FFFFFFF, 0, 0x7FFFFFFF),
        (0x80000000, 0, -0x80000000),
        (0x80000001, 0, -0x7FFFFFFF),
        ((1 << 32) + 4, MASK32, 5),
    ],
)
def test_diff32(later: int, earlier: int, distance: int) -> None:
    assert diff32(later, earlier) == distance


@given(U32, st.integers(-0x80000000, 0x7FFFFFFF))
def test_diff32_gives_back_what_was_added(start: int, distance: int) -> None:
    assert diff32((start + distance) & MASK32, start) == distance


def test_packets_are_told_apart() -> None:
    assert fec_type(SEGMENT) == 0
    assert fec_type(FEC_DATA) == wire.FEC_DATA
    assert fec_type(FEC_DATA[:4] + b"\xf2\0" + FEC_DATA[6:]) == wire.FEC_PARITY
    assert fec_type(FEC_DATA[:4] + b"\xf3\0" + FEC_DATA[6:]) == wire.FEC_OUT_OF_BAND
    for kind in (b"\xf0\0", b"\xf4\0", b"\xf1\1", b"\x51\xf1"):
        assert fec_type(FEC_DATA[:4] + kind + FEC_DATA[6:]) == 0


@pytest.mark.parametrize("size", range(6))
def test_short_packets_are_no_fec(size: int) -> None:
    assert fec_type(FEC_DATA[:size]) == 0


def test_no_segment_looks_like_fec() -> None:
    for cmd in (wire.KCP_PUSH, wire.KCP_ACK, wire.KCP_WASK, wire.KCP_WINS):
        assert fec_type(wire.KCP_SEGMENT.pack(MASK32, cmd, 0, 65535, MASK32, 0xF1F1F1F1, 0xF2F2F2F2, 0)) == 0


def test_first_segment() -> None:
    assert first_segment(SEGMENT) == (0xAD8217B2, 7)
    assert first_segment(memoryview(FEC_DATA)) == (0xAD8217B2, 7)
    assert first_segment(FEC_DATA[:4] + b"\xf2\0" + FEC_DATA[6:]) is None
    assert first_segment(FEC_DATA[:4] + b"\xf3\0" + FEC_DATA[6:]) is None


@pytest.mark.parametrize("packet", [SEGMENT, FEC_DATA])
def test_first_segment_needs_a_whole_header(packet: bytes) -> None:
    needed = len(packet) - 8
    assert first_segment(packet[:needed]) == (0xAD8217B2, 7)
    for size in range(needed):
        assert first_segment(packet[:size]) is None


@given(st.binary(max_size=64))
def test_any_bytes_are_classified(packet: bytes) -> None:
    assert fec_type(packet) in (0, wire.FEC_DATA, wire.FEC_PARITY, wire.FEC_OUT_OF_BAND)
    first_segment(packet)


def test_every_datagram_of_a_go_end_without_crypto_is_found() -> None:
    path = Path(__file__).parent.parent / "vectors" / "cap_new_null.json"
    datagrams = [bytes.fromhex(datagram["hex"]) for datagram in json.loads(path.read_text())["datagrams"]]
    found = [first_segment(datagram) for datagram in datagrams]
    assert None not in found
    assert len({segment[0] for segment in found if segment}) == 1
