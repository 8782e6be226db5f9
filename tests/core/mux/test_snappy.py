"""The snappy room: the Go vectors and a capture, streams cut anywhere, chunks made to harm."""

import contextlib
import json
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcptun_lite.core.mux import snappy
from kcptun_lite.core.mux.snappy import SnappyDecoder, SnappyEncoder
from kcptun_lite.core.wire import SNAPPY_CHUNK_MAX, SNAPPY_IDENTIFIER
from kcptun_lite.errors import SnappyError


@pytest.fixture(autouse=True, scope="module", params=["cramjam", "plain"])
def codec(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test of this page with the library and without."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(snappy, "cramjam_if_any", lambda: None)
        yield request.param


VECTORS = Path(__file__).parents[2] / "vectors"
HELD_MAX = 4 + 4 + 76_490  # header, CRC, block


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def mixed(size: int, seed: int = 1) -> bytes:
    """Bytes of which some can be compressed and some cannot."""
    rng = random.Random(seed)
    parts: list[bytes] = []
    while sum(map(len, parts)) < size:
        parts.append(rng.randbytes(rng.randint(1, 3000)) if rng.random() < 0.5 else b"go" * rng.randint(1, 40_000))
    return b"".join(parts)[:size]


def chunk(kind: int, body: bytes) -> bytes:
    return struct.pack("<I", kind | len(body) << 8) + body


def data_chunks(data: bytes) -> bytes:
    """Chunks for `data` as another program writes them, without the identifier."""
    return bytes(cramjam.snappy.compress(data))[len(SNAPPY_IDENTIFIER) :]


def chunks_of(stream: bytes) -> list[tuple[int, bytes]]:
    found = []
    while stream:
        (header,) = struct.unpack_from("<I", stream)
        end = 4 + (header >> 8)
        assert end <= len(stream)
        found.append((header & 0xFF, stream[4:end]))
        stream = stream[end:]
    return found


def decode_three_ways(stream: bytes) -> bytes:
    """Decode whole, byte by byte, and with the start of another chunk behind; all must agree."""
    whole = SnappyDecoder()
    result = whole.feed(stream)
    assert whole.held_bytes == 0

    slow = SnappyDecoder()
    assert b"".join(slow.feed(stream[at : at + 1]) for at in range(len(stream))) == result
    assert slow.held_bytes == 0

    trailing = SnappyDecoder()
    more = data_chunks(b"trailing")
    assert trailing.feed(bytearray(stream + more[:7])) == result
    assert trailing.held_bytes == 7
    assert trailing.feed(memoryview(more)[7:]) == b"trailing"
    return result


def test_vectors_decode_step_by_step() -> None:
    decoder = SnappyDecoder()
    for step in load("snappy.json")["steps"]:
        got = b"".join(decoder.feed(bytes.fromhex(piece)) for piece in step["underlying_writes"] or [])
        assert len(got) == step["len"]
        if "input" in step:
            assert got.hex() == step["input"]
        assert decoder.held_bytes == 0


def test_vectors_decode_however_they_are_cut() -> None:
    steps = load("snappy.json")["steps"]
    stream = bytes.fromhex("".join(piece for step in steps for piece in step["underlying_writes"] or []))
    assert len(decode_three_ways(stream)) == sum(step["len"] for step in steps)


def test_first_chunk_is_the_one_every_session_starts_with() -> None:
    # docs/protocol.md, "snappy": the SYN of version 1 and of version 2
    assert SnappyEncoder().encode([bytes.fromhex("0100000003000000")]).hex() == (
        "ff060000734e61507059" + "010c0000" + "4439ac2f" + "0100000003000000"
    )
    assert SnappyEncoder().encode([bytes.fromhex("0200000003000000")]).hex() == (
        "ff060000734e61507059" + "010c0000" + "bde37d26" + "0200000003000000"
    )


def kcp_payload(capture: Any, direction: str, packet_header: int) -> bytes:
    """The bytes that KCP carried, from the unencrypted datagrams of a capture."""
    segments: dict[int, bytes] = {}
    for datagram in capture["datagrams"]:
        rest = bytes.fromhex(datagram["hex"])[packet_header:]
        while direction == datagram["dir"] and len(rest) >= 24:
            _, cmd, _, _, _, sn, _, length = struct.unpack_from("<IBBHIIII", rest)
            if cmd == 81:
                segments[sn] = rest[24 : 24 + length]
            rest = rest[24 + length :]
    assert sorted(segments) == list(range(len(segments)))
    return b"".join(segments[sn] for sn in sorted(segments))


@pytest.mark.parametrize("direction", ["C>S", "S>C"])
def test_capture_of_the_go_programs_decodes_to_frames(direction: str) -> None:
    stream = kcp_payload(load("cap_none_nofec.json"), direction, packet_header=20)
    assert stream.startswith(SNAPPY_IDENTIFIER)
    frames = decode_three_ways(stream)
    count = 0
    while frames:
        version, command, length, sid = struct.unpack_from("<BBHI", frames)
        assert (version, command <= 3, sid % 2 or command == 3) == (1, True, True)
        frames = frames[8 + length :]
        count += 1
    assert count > 3


def test_what_is_encoded_arrives_at_once() -> None:
    encoder, decoder = SnappyEncoder(), SnappyDecoder()
    rng = random.Random(7)
    for size in [1, 8, 1300, 65_528, 65_536, 65_537, 200_000, 3]:
        data = mixed(size, seed=size)
        cut = rng.randrange(size)
        assert decoder.feed(encoder.encode([data[:cut], bytearray(), memoryview(data)[cut:]])) == data
        assert decoder.held_bytes == 0


def test_identifier_comes_once_and_chunks_are_within_bounds(codec: str) -> None:
    encoder = SnappyEncoder()
    stream = encoder.encode([noise(150_000)]) + encoder.encode([bytes(150_000)]) + encoder.encode([b"x"])
    kinds = [kind for kind, _ in chunks_of(stream)]
    assert kinds == ([0xFF, 1, 1, 1, 0, 0, 0, 1] if codec == "cramjam" else [0xFF, 1, 1, 1, 1, 1, 1, 1])
    assert all(len(body) <= 4 + SNAPPY_CHUNK_MAX for _, body in chunks_of(stream))
    assert len(stream) < (150_000 if codec == "cramjam" else 300_000) + 10_000


def test_nothing_gives_nothing() -> None:
    encoder = SnappyEncoder()
    assert encoder.encode([]) == b"" == encoder.encode([b"", memoryview(b"")])
    assert encoder.encode([b"x"]).startswith(SNAPPY_IDENTIFIER)
    assert SnappyDecoder().feed(b"") == b""


def test_rooms_may_be_used_from_any_thread() -> None:
    encoder, decoder = SnappyEncoder(), SnappyDecoder()
    got: list[bytes] = []
    for number in range(3):
        thread = threading.Thread(target=lambda n=number: got.append(decoder.feed(encoder.encode([b"%d" % n]))))
        thread.start()
        thread.join()
    assert got == [b"0", b"1", b"2"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=300), max_size=8), st.randoms(use_true_random=False))
def test_any_writes_cut_anywhere(writes: list[bytes], rng: random.Random) -> None:
    encoder, decoder = SnappyEncoder(), SnappyDecoder()
    stream = b"".join(encoder.encode([write]) for write in writes)
    got = b""
    while stream:
        cut = rng.randint(1, 40)
        got += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert got == b"".join(writes)
    assert decoder.held_bytes == 0


def test_foreign_streams_with_all_kinds_of_chunks() -> None:
    stream = (
        SNAPPY_IDENTIFIER
        + chunk(0xFE, bytes(5))
        + data_chunks(noise(70_000, 2))
        + SNAPPY_IDENTIFIER
        + SNAPPY_IDENTIFIER
        + chunk(0x80, b"")
        + chunk(0x80, b"")
        + chunk(0xFD, noise(200, 3))
        + data_chunks(bytes(70_000))
        + chunk(0x99, b"last")
    )
    assert decode_three_ways(stream) == noise(70_000, 2) + bytes(70_000)


def test_largest_skippable_chunk_is_not_kept() -> None:
    decoder = SnappyDecoder()
    assert decoder.feed(SNAPPY_IDENTIFIER + b"\xfe\xff\xff\xff") == b""
    left = 0xFFFFFF
    while left:
        step = min(left, 1_000_003)
        assert decoder.feed(bytes(step)) == b""
        assert decoder.held_bytes == 0
        left -= step
    assert decoder.feed(data_chunks(b"after it")) == b"after it"


def test_held_bytes_stay_within_one_chunk() -> None:
    decoder = SnappyDecoder()
    largest = chunk(0x00, bytes(4) + b"\x80\x80\x04" + bytes(76_487))
    decoder.feed(SNAPPY_IDENTIFIER)
    for at in range(0, len(largest) - 1, 1000):
        assert decoder.feed(largest[at : min(at + 1000, len(largest) - 1)]) == b""
        assert decoder.held_bytes < HELD_MAX
    assert decoder.held_bytes == HELD_MAX - 1
    with pytest.raises(SnappyError, match="broken snappy chunk"):
        decoder.feed(largest[-1:])


def test_chunk_in_many_pieces_is_looked_at_only_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = SnappyDecoder()
    look = decoder._complete_chunks
    looks: list[int] = []

    def counting_look(view: memoryview) -> list[memoryview]:
        looks.append(len(view))
        return look(view)

    monkeypatch.setattr(decoder, "_complete_chunks", counting_look)
    stream = SNAPPY_IDENTIFIER + data_chunks(noise(5000))
    assert decoder.feed(stream[:14]) == b""
    assert b"".join(decoder.feed(stream[at : at + 1]) for at in range(14, len(stream))) == noise(5000)
    assert looks == [14, len(stream) - 10]


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (bytes.fromhex("0100000003000000"), "byte 0x01: --nocomp must be the same"),
        (chunk(0xFE, b"") + SNAPPY_IDENTIFIER, "byte 0xfe"),
        (data_chunks(b"no identifier"), "byte 0x01"),
        (SNAPPY_IDENTIFIER[:-1] + b"y", "broken snappy identifier"),
        (SNAPPY_IDENTIFIER + chunk(0xFF, b"sNaPp"), "5 bytes, not 6 to 6"),
        (SNAPPY_IDENTIFIER + chunk(0xFF, b"sNaPpY?"), "7 bytes, not 6 to 6"),
        (SNAPPY_IDENTIFIER + chunk(0x02, b"abcdefgh"), "unknown type 0x02"),
        (SNAPPY_IDENTIFIER + chunk(0x7F, b""), "unknown type 0x7f"),
        (SNAPPY_IDENTIFIER + chunk(0x00, bytes(4)), "4 bytes, not 5 to 76494"),
        (SNAPPY_IDENTIFIER + struct.pack("<I", 76_495 << 8), "76495 bytes"),
        (SNAPPY_IDENTIFIER + chunk(0x01, bytes(3)), "3 bytes, not 4 to 65540"),
        (SNAPPY_IDENTIFIER + struct.pack("<I", 0x01 | 65_541 << 8), "65541 bytes"),
        (SNAPPY_IDENTIFIER + chunk(0x00, bytes(4) + b"\x81\x80\x04" + bytes(20)), "block of 65537 bytes"),
        (SNAPPY_IDENTIFIER + chunk(0x00, bytes(4) + b"\xff\xff\x7f" + bytes(20)), "block of 2097151 bytes"),
        (SNAPPY_IDENTIFIER + chunk(0x00, bytes(4) + b"\xff\xff\xff\xff\x0f"), "without a usable length"),
        (SNAPPY_IDENTIFIER + chunk(0x00, bytes(4) + b"\xff\xff"), "without a usable length"),
        (SNAPPY_IDENTIFIER + chunk(0x01, bytes(4) + b"wrong CRC"), "broken snappy chunk"),
        (SNAPPY_IDENTIFIER + chunk(0x00, bytes(4) + b"\x05\x00"), "broken snappy chunk"),
    ],
)
def test_broken_streams(stream: bytes, said: str) -> None:
    with pytest.raises(SnappyError, match=said):
        SnappyDecoder().feed(stream)
    slow = SnappyDecoder()
    with pytest.raises(SnappyError, match=said):
        for at in range(len(stream)):
            slow.feed(stream[at : at + 1])


def test_oversized_chunk_is_refused_by_its_header() -> None:
    decoder = SnappyDecoder()
    decoder.feed(SNAPPY_IDENTIFIER)
    with pytest.raises(SnappyError):
        decoder.feed(b"\x01\xff\xff\xff")
    assert decoder.held_bytes == 0


def test_one_flipped_bit_never_gives_wrong_bytes() -> None:
    good = SnappyEncoder().encode([mixed(300, seed=5)])
    data = SnappyDecoder().feed(good)
    rng = random.Random(11)
    for _ in range(300):
        broken = bytearray(good)
        broken[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        decoder = SnappyDecoder()
        try:
            got = decoder.feed(broken)
        except SnappyError:
            continue
        assert got in (b"", data)  # the chunk waits for more or is skipped, or the bit meant nothing


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([SNAPPY_IDENTIFIER, data_chunks(b"good" * 9)]))))
def test_only_snappy_errors_come_out(pieces: list[bytes]) -> None:
    decoder = SnappyDecoder()
    try:
        for piece in [SNAPPY_IDENTIFIER, *pieces]:
            out = decoder.feed(piece)
            assert len(out) <= 22 * len(piece) + SNAPPY_CHUNK_MAX
            assert decoder.held_bytes < HELD_MAX
    except SnappyError:
        pass


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from([0x00, 0x01]), st.binary(min_size=5, max_size=200))
def test_only_snappy_errors_come_out_of_broken_blocks(kind: int, body: bytes) -> None:
    with contextlib.suppress(SnappyError):
        SnappyDecoder().feed(SNAPPY_IDENTIFIER + chunk(kind, body))
