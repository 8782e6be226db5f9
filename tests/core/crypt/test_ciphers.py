"""The ciphers written here: published vectors, and both kinds of lanes against each other."""

import contextlib
import random
import sys

import pytest

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.crypt import ciphers
from kcptun_lite.core.crypt.ciphers import IntLanes, LaneCfb, Lanes, NumpyLanes, WordCipher, sm4, tea, twofish, xtea
from tests.helpers import noise

POOL = BufferPool(contextlib.nullcontext(), poison=True)
MAKERS = {"tea": (tea, 16), "xtea": (xtea, 16), "sm4": (sm4, 16), "twofish": (twofish, 32)}


def cipher(name: str) -> WordCipher:
    make, key_size = MAKERS[name]
    return make(noise(key_size, 9))


def encrypt_blocks(cipher: WordCipher, lanes: Lanes, blocks: bytes) -> bytes:
    """Plain block encryption, one lane a block."""
    result = bytearray(blocks)
    words = memoryview(result).cast("I")
    columns = [words[i :: cipher.block_words] for i in range(cipher.block_words)]
    for word, column in zip(cipher.rounds(lanes, *map(lanes.load, columns)), columns, strict=True):
        lanes.store(word, column)
    return bytes(result)


# name, key, plaintext, ciphertext
PUBLISHED = [
    # GB/T 32907-2016, appendix A.1
    ("sm4", "0123456789abcdeffedcba9876543210", "0123456789abcdeffedcba9876543210", "681edf34d206965e86b3e94f536e4246"),
    # Twofish: A 128-Bit Block Cipher, appendix B.2
    (
        "twofish",
        "0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff",
        "00000000000000000000000000000000",
        "37527be0052334b89f0cfccae87cfa20",
    ),
    # XTEA as other libraries test it
    ("xtea", "000102030405060708090a0b0c0d0e0f", "4142434445464748", "497df3d072612cb5"),
    ("xtea", "00000000000000000000000000000000", "4141414141414141", "ed23375a821a8c2d"),
]


@pytest.mark.parametrize(("name", "key", "plaintext", "ciphertext"), PUBLISHED)
def test_published_vectors(name: str, key: str, plaintext: str, ciphertext: str) -> None:
    make, _ = MAKERS[name]
    subject = make(bytes.fromhex(key))
    for lanes in (subject.int_lanes(subject, 1), NumpyLanes(subject, 1)):
        assert encrypt_blocks(subject, lanes, bytes.fromhex(plaintext)).hex() == ciphertext


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 64, 600])
@pytest.mark.parametrize("name", MAKERS)
def test_all_lanes_give_the_same_bytes_as_one_lane(name: str, count: int) -> None:
    subject = cipher(name)
    size = 4 * subject.block_words
    blocks = b"\0" * size + b"\xff" * size + noise(size * count)
    blocks = blocks[-size * count :]
    one = subject.int_lanes(subject, 1)
    expected = b"".join(encrypt_blocks(subject, one, blocks[i : i + size]) for i in range(0, len(blocks), size))
    for lanes in (subject.int_lanes(subject, count), IntLanes(subject, count), NumpyLanes(subject, count)):
        assert encrypt_blocks(subject, lanes, blocks) == expected


def make_batch(packets: list[bytes]) -> PacketBatch:
    batch = PacketBatch(memoryview(bytearray(sum(len(packet) + 15 for packet in packets))))
    for packet in packets:
        batch.arena[batch.end : batch.end + len(packet)] = packet
        batch.commit(len(packet))
    return batch


@pytest.mark.parametrize("numpy_installed", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_batches_are_decrypted_alike_with_and_without_numpy(
    name: str, numpy_installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not numpy_installed:
        monkeypatch.setitem(sys.modules, "numpy", None)
    rng = random.Random(2)
    packets = [rng.randbytes(rng.randint(20, 1500)) for _ in range(ciphers.ENCRYPT_LANES + 10)]
    room = LaneCfb(cipher(name), POOL)
    batch = make_batch(packets)
    room.encrypt(batch)
    sealed = [bytes(view) for view in batch.views()]
    assert all(a != b for a, b in zip(sealed, packets, strict=True))

    for some in (sealed, sealed[:3], sealed[:1]):  # many blocks, and fewer than numpy is called for
        batch = make_batch(some)
        room.decrypt(batch)
        assert [bytes(view[16:]) for view in batch.views()] == [packet[16:] for packet in packets[: len(some)]]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_where_the_batch_is_cut_makes_no_difference(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    packets = [noise(size, size) for size in (20, 129, 64, 333)]
    room = LaneCfb(cipher("sm4"), POOL)
    batch = make_batch(packets)
    room.encrypt(batch)
    monkeypatch.setattr(ciphers, "DECRYPT_LANES_INT", step)
    room.decrypt(batch)
    assert [bytes(view[16:]) for view in batch.views()] == [packet[16:] for packet in packets]


def test_scratch_memory_is_bounded_by_packets_side_by_side() -> None:
    taken = []

    class Watched(BufferPool):
        def take(self, size: int) -> memoryview:
            taken.append(size)
            return super().take(size)

    room = LaneCfb(cipher("tea"), Watched(contextlib.nullcontext()))
    room.encrypt(make_batch([noise(1500)] + [noise(30)] * 500))
    assert max(taken) <= ciphers.ENCRYPT_LANES * 1504
