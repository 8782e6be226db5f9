"""Headers and checksums, against a sum written as the RFC has it; numbers on their circle; anybody's options."""

import os
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcptun_lite.core.lazy_imports import load_numpy
from kcptun_lite.net.fake_tcp.segment import (
    ACK,
    HEADER,
    PSH,
    TIMESTAMPS,
    Segment,
    before,
    make_headers,
    parse,
    payload_sums,
    timestamp,
)


def plain_sum(data: bytes) -> int:
    """RFC 1071: of 16-bit words, carries added in."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("size", [0, 1, 2, 52, 61, 1349, 1350])
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("has_numpy", [False, True])
def test_a_segment_with_its_checksum_adds_up(size: int, count: int, has_numpy: bool) -> None:
    if has_numpy:
        load_numpy()
    payloads = [memoryview(os.urandom(size)) for _ in range(count)]
    addresses = os.urandom(8)
    seq = 0xFFFF_F000  # it goes round
    for timestamps, header_size in (None, 20), ((77, 0xFFFF_FFFF), 32):
        pseudo = addresses + struct.pack("!HH", 6, header_size + size)
        total = int.from_bytes(addresses, "big") + 6
        headers = make_headers((29900, 40000), (seq, 2), PSH | ACK, timestamps, payloads, total)
        for index, (header, payload) in enumerate(zip(headers, payloads, strict=True)):
            assert len(header) == header_size and plain_sum(pseudo + header + payload) == 0xFFFF
            segment = parse(memoryview(header))
            assert segment == Segment(29900, (seq + index * size) & 0xFFFF_FFFF, 2, PSH | ACK, header_size)
            assert timestamp(memoryview(header)[20:]) == (timestamps and timestamps[0])


def test_payloads_of_different_sizes() -> None:
    payloads = [memoryview(os.urandom(size)) for size in random.Random(1).sample(range(1500), 30)]
    sums = [total % 0xFFFF for total in payload_sums(payloads)]
    assert sums == [plain_sum(bytes(payload)) % 0xFFFF for payload in payloads]


def test_numbers_go_round() -> None:
    assert before(1, 2) and not before(2, 1) and not before(1, 1)
    assert before(0xFFFF_FFF0, 5) and not before(5, 0xFFFF_FFF0)


def test_what_is_no_header_is_none() -> None:
    good = HEADER.pack(1, 2, 3, 4, 5 << 4, PSH, 0, 0, 0)
    segment = parse(memoryview(good))
    assert segment and (segment.source_port, segment.seq, segment.ack, segment.flags, segment.size) == (1, 3, 4, 8, 20)
    assert parse(memoryview(good[:19])) is None
    for words in range(16):
        found = parse(memoryview(good[:12] + bytes([words << 4]) + good[13:] + bytes(20)))
        assert (found is not None) == (5 <= words <= 10)


def test_timestamps() -> None:
    assert timestamp(memoryview(TIMESTAMPS.pack(1, 1, 8, 10, 77, 5))) == 77
    synack = bytes([2, 4, 5, 180, 4, 2]) + bytes([8, 10]) + struct.pack("!II", 99, 1) + bytes([1, 3, 3, 10])
    assert timestamp(memoryview(synack)) == 99
    assert timestamp(memoryview(TIMESTAMPS.pack(1, 1, 8, 12, 77, 5))) is None, "as the newest kcptun has them"
    assert timestamp(memoryview(b"")) is None


@given(st.binary(max_size=40))
def test_options_of_anybody(options: bytes) -> None:
    timestamp(memoryview(options))
