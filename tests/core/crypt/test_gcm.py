"""AES-GCM three ways: the same bytes from each, and no forgery passes any."""

import random
import sys
from collections.abc import Callable

import pytest

from kcptun_lite.core.crypt.gcm import CryptographyGcm, Gcm, NumpyGcm, PlainGcm, make_gcm
from tests.helpers import noise

WAYS: list[Callable[[bytes], Gcm]] = [CryptographyGcm, NumpyGcm, PlainGcm]
KEY = noise(16, 4)
OVERHEAD = 28  # bytes; nonce and tag


def lay(packets: list[bytes]) -> tuple[memoryview, list[tuple[int, int]]]:
    arena, spans = bytearray(), []
    for packet in packets:
        spans.append((len(arena), len(packet)))
        arena += packet + b"\xdd" * (-len(packet) % 16)
    return memoryview(arena), spans


def pick(arena: memoryview, spans: list[tuple[int, int]]) -> list[bytes]:
    return [bytes(arena[start : start + length]) for start, length in spans]


def sealed_by(way: Callable[[bytes], Gcm], packets: list[bytes], key: bytes = KEY) -> list[bytes]:
    arena, spans = lay(packets)
    way(key).seal(arena, spans)
    return pick(arena, spans)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 5])
def test_published_vectors(way: Callable[[bytes], Gcm], count: int) -> None:
    """Test cases 1 to 3 of the GCM specification (McGrew and Viega)."""
    empty = bytes(12) + bytes(16)
    assert sealed_by(way, [empty] * count, bytes(16))[-1][12:].hex() == "58e2fccefa7e3061367f1d57a4e7455a"
    zeros = bytes(12) + bytes(16) + bytes(16)
    assert (
        sealed_by(way, [zeros] * count, bytes(16))[-1][12:].hex()
        == "0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf"
    )
    nonce, key = bytes.fromhex("cafebabefacedbaddecaf888"), bytes.fromhex("feffe9928665731c6d6a8f9467308308")
    text = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
    )
    assert (
        sealed_by(way, [nonce + text + bytes(16)] * count, key)[-1][12 + 64 :].hex()
        == "4d5c2af327cd64a62cf35abd2ba6fab4"
    )


@pytest.mark.parametrize("count", [1, 3, 4, 31, 70])
def test_all_ways_agree_on_every_size(count: int) -> None:
    rng = random.Random(count)
    packets = [rng.randbytes(OVERHEAD + rng.choice((0, 1, 15, 16, 17, 24, 127, 128, 1322, 1472))) for _ in range(count)]
    results = [sealed_by(way, packets) for way in WAYS]
    assert results[0] == results[1] == results[2]
    for way in WAYS:
        arena, spans = lay(results[0])
        assert way(KEY).open(arena, spans) == [True] * count
        assert [packet[12:-16] for packet in pick(arena, spans)] == [packet[12:-16] for packet in packets]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 8])
def test_a_changed_bit_anywhere_is_noticed(way: Callable[[bytes], Gcm], count: int) -> None:
    room = way(KEY)
    sealed = sealed_by(way, [noise(OVERHEAD + 40, i) for i in range(count)])
    for at in range(OVERHEAD + 40):
        changed = bytearray(sealed[0])
        changed[at] ^= 1 << at % 8
        arena, spans = lay([bytes(changed), *sealed[1:]])
        assert room.open(arena, spans) == [False] + [True] * (count - 1)


def test_the_best_installed_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_gcm(KEY), CryptographyGcm)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    assert isinstance(make_gcm(KEY), NumpyGcm)
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert isinstance(make_gcm(KEY), PlainGcm)
