"""The block ciphers pycryptodome lacks (TEA, XTEA, SM4, Twofish), in CFB over many packets at once.

In      PacketBatch, key
Out     the same batch, encrypted or decrypted in place
Knows   four ciphers, each written once over `lanes`. Not: nonces, checksums, which method is chosen
Wire    docs/protocol.md, "Ciphers", "Packet layout"; kcp-go crypt.go, golang.org/x/crypto tea, xtea, twofish, tjfoc sm4
Cost    per packet of 1350 bytes in a batch of 64, encrypt / decrypt with numpy / decrypt without:
        tea 47 / 6 / 38 us, xtea 108 / 18 / 81 us, sm4 108 / 17 / 82 us, twofish 290 / 22 / 160 us;
        a packet alone costs 1 to 2.6 ms to encrypt

A lane is one 32-bit word of one block, and a round works on the same word of many blocks at once.
Decrypting CFB is parallel over all blocks of the batch; encrypting is sequential along a packet and
parallel over the packets. Lanes come in two kinds with the same bytes:

    IntLanes     one Python integer, a lane in every 64 bits: the upper half takes carries and shifts
    NumpyLanes   one uint32 array

At 64 lanes an operation on an integer costs 0.1 us and on an array 0.6 us; from some 500 lanes on the
array wins. So integers encrypt, and numpy, where it is installed, decrypts the big batches.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BufferPool, borrow
from kcptun_lite.core.lazy_imports import load_numpy
from kcptun_lite.core.wire import CFB_IV

ENCRYPT_LANES = 64  # packets encrypted side by side; bounds the scratch buffer to 94 KiB
DECRYPT_LANES_INT = 512  # blocks decrypted side by side; 4 KiB an integer, so that all round keys stay in cache
DECRYPT_LANES_NUMPY = 8192  # the same for numpy; 32 KiB an array
NUMPY_PAYS_FROM = 256  # blocks
SCALAR_BELOW = 4  # lanes; a look-up of fewer is cheaper one by one
MASK32 = 0xFFFFFFFF

Word = Any  # an int of IntLanes or an array of NumpyLanes


class Lanes(Protocol):
    """`count` lanes for one cipher: words of blocks in and out, and the constants as wide as the words."""

    mask: Word
    "keeps 32 bits of every lane; needed after every +, << and >>"
    keys: list[Word]

    def scatter(self, value: int) -> Word: ...
    def load(self, column: memoryview) -> Word: ...
    def store(self, word: Word, column: memoryview) -> None: ...
    def lookup(self, word: Word) -> Word: ...


class WordCipher:
    """One cipher under one key; immutable, so that all sessions may share it."""

    def __init__(
        self,
        rounds: Callable[..., Sequence[Word]],
        block_words: int,
        byteorder: Literal["big", "little"],
        keys: Sequence[int],
        tables: Sequence[Sequence[int]] = (),
        int_lanes: "type[IntLanes] | None" = None,
    ) -> None:
        """`tables`: what each byte of a word, lowest first, adds (XOR) to the result of `lookup`.

        `int_lanes`: a kind with a `lookup` of its own that gives the same.
        """
        self.rounds = rounds
        self.int_lanes = int_lanes or IntLanes
        self.block_words = block_words
        self.byteorder: Literal["big", "little"] = byteorder
        self.keys = keys
        self.tables = tables
        self.byte_tables = [[bytes(entry >> 8 * i & 0xFF for entry in table) for i in range(4)] for table in tables]


class IntLanes:
    """Lanes side by side in one integer, 64 bits each, of which the upper 32 are zero between steps."""

    def __init__(self, cipher: WordCipher, count: int) -> None:
        self.size = 8 * count
        self._count = count
        self._byteorder = cipher.byteorder
        self._word_at = 1 if cipher.byteorder == "big" else 0
        self._tables = cipher.tables
        self._byte_tables = cipher.byte_tables
        self._ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * count, "little")
        self.mask = self.scatter(MASK32)
        self.keys = [self.scatter(key) for key in cipher.keys]

    def scatter(self, value: int) -> int:
        return self._ones * value

    def load(self, column: memoryview) -> int:
        lanes = bytearray(self.size)
        memoryview(lanes).cast("I")[self._word_at :: 2] = column
        return int.from_bytes(lanes, self._byteorder)

    def store(self, word: int, column: memoryview) -> None:
        column[:] = memoryview(word.to_bytes(self.size, self._byteorder)).cast("I")[self._word_at :: 2]

    def lookup(self, word: int) -> int:
        """One byte of all lanes is one `bytes` object, and a table of bytes is one `translate`."""
        count = self._count
        if count < SCALAR_BELOW:
            t0, t1, t2, t3 = self._tables
            scalar = 0
            for at in range(0, 64 * count, 64):
                lane = word >> at
                scalar |= (t0[lane & 255] ^ t1[lane >> 8 & 255] ^ t2[lane >> 16 & 255] ^ t3[lane >> 24 & 255]) << at
            return scalar
        data = word.to_bytes(self.size, "little")
        joined = 0
        for i, (table0, table1, table2, table3) in enumerate(self._byte_tables):
            plane = data[i::8]
            joined ^= int.from_bytes(
                plane.translate(table0) + plane.translate(table1) + plane.translate(table2) + plane.translate(table3),
                "little",
            )
        planes = joined.to_bytes(4 * count, "little")
        result = bytearray(self.size)
        for i in range(4):
            result[i::8] = planes[i * count : (i + 1) * count]
        return int.from_bytes(result, "little")


class NumpyLanes:
    """Lanes as one native uint32 array; raises ImportError where numpy is missing."""

    def __init__(self, cipher: WordCipher, count: int) -> None:
        import numpy as np

        self._np = np
        self._wire = np.dtype(np.uint32).newbyteorder(cipher.byteorder)
        self._tables = [np.array(table, np.uint32) for table in cipher.tables]
        self.mask = self.scatter(MASK32)
        self.keys = [self.scatter(key) for key in cipher.keys]

    def scatter(self, value: int) -> Word:
        return self._np.uint32(value)

    def load(self, column: memoryview) -> Word:
        return self._np.asarray(column).view(self._wire).astype(self._np.uint32)

    def store(self, word: Word, column: memoryview) -> None:
        self._np.asarray(column).view(self._wire)[:] = word

    def lookup(self, word: Word) -> Word:
        planes = word.astype("<u4", copy=False).view(self._np.uint8)
        result = self._tables[0].take(planes[0::4])
        for i in range(1, 4):
            result ^= self._tables[i].take(planes[i::4])
        return result


class LaneCfb:
    """Full-block CFB with the constant IV over all packets of a batch, in place (docs/protocol.md, "Packet layout")."""

    def __init__(self, cipher: WordCipher, pool: BufferPool) -> None:
        self._cipher = cipher
        self._pool = pool
        self._block_words = cipher.block_words
        self._iv = [int.from_bytes(CFB_IV[4 * i : 4 * i + 4], cipher.byteorder) for i in range(cipher.block_words)]

    def encrypt(self, batch: PacketBatch) -> None:
        packets = [(start, length) for start, length in zip(batch.starts, batch.lengths, strict=True) if length]
        for first in range(0, len(packets), ENCRYPT_LANES):
            self._encrypt_side_by_side(batch.arena, packets[first : first + ENCRYPT_LANES])

    def _encrypt_side_by_side(self, arena: memoryview, packets: list[tuple[int, int]]) -> None:
        """One packet a row, padded to the longest one; then column after column."""
        block_words, rounds = self._block_words, self._cipher.rounds
        row_words = max(-(-length // (4 * block_words)) for _, length in packets) * block_words
        row = 4 * row_words
        lanes = self._cipher.int_lanes(self._cipher, len(packets))
        feedback = [lanes.scatter(word) for word in self._iv]
        with borrow(self._pool, row * len(packets)) as scratch:
            for i, (start, length) in enumerate(packets):
                scratch[i * row : i * row + length] = arena[start : start + length]
            words = scratch[: row * len(packets)].cast("I")
            for at in range(0, row_words, block_words):
                keystream = rounds(lanes, *feedback)
                for i in range(block_words):
                    column = words[at + i :: row_words]
                    feedback[i] = lanes.load(column) ^ keystream[i]
                    lanes.store(feedback[i], column)
            for i, (start, length) in enumerate(packets):
                arena[start : start + length] = scratch[i * row : i * row + length]

    def decrypt(self, batch: PacketBatch) -> None:
        """P[i] = C[i] ^ E(C[i - 1]) over the arena as a whole, the first block of a packet excepted.

        That block is half or all of the nonce, which nobody reads. Going from the back keeps C[i - 1]
        as long as it is needed.
        """
        block_words = self._block_words
        words = batch.arena[: batch.end].cast("I")
        blocks = len(words) // block_words - 1  # those that are fed back
        kind, step = self._lanes_for(blocks)
        lanes: Lanes | None = None
        end = blocks
        while end > 0:
            begin = max(0, end - step)
            if lanes is None or end - begin < step:
                lanes = kind(self._cipher, end - begin)
            before = words[begin * block_words : end * block_words]
            after = words[(begin + 1) * block_words : (end + 1) * block_words]
            keystream = self._cipher.rounds(lanes, *[lanes.load(before[i::block_words]) for i in range(block_words)])
            for i in range(block_words):
                column = after[i::block_words]
                lanes.store(lanes.load(column) ^ keystream[i], column)
            end = begin

    def _lanes_for(self, blocks: int) -> tuple[type[IntLanes] | type[NumpyLanes], int]:
        if blocks >= NUMPY_PAYS_FROM:
            try:
                load_numpy()
                return NumpyLanes, DECRYPT_LANES_NUMPY
            except ImportError:
                pass
        return self._cipher.int_lanes, DECRYPT_LANES_INT


# --- TEA and XTEA ---------------------------------------------------------------------------------------

_DELTA = 0x9E3779B9


@lru_cache(maxsize=1)
def tea(key: bytes) -> WordCipher:
    """TEA of 16 rounds (8 cycles), as kcp-go asks for: docs/protocol.md, "Ciphers". `key`: 16 bytes."""
    words = [int.from_bytes(key[i : i + 4], "big") for i in range(0, 16, 4)]
    sums = [_DELTA * cycle & MASK32 for cycle in range(1, 9)]
    return WordCipher(_tea_rounds, 2, "big", words + sums)


def _tea_rounds(lanes: Lanes, v0: Word, v1: Word) -> tuple[Word, Word]:
    mask = lanes.mask
    k0, k1, k2, k3, *sums = lanes.keys
    for total in sums:
        v0 = v0 + (((v1 << 4) + k0) ^ (v1 + total) ^ ((v1 >> 5) + k1)) & mask
        v1 = v1 + (((v0 << 4) + k2) ^ (v0 + total) ^ ((v0 >> 5) + k3)) & mask
    return v0, v1


@lru_cache(maxsize=1)
def xtea(key: bytes) -> WordCipher:
    """XTEA of 64 rounds (32 cycles). `key`: 16 bytes."""
    words = [int.from_bytes(key[i : i + 4], "big") for i in range(0, 16, 4)]
    schedule, total = [], 0
    for _ in range(32):
        schedule.append(total + words[total & 3] & MASK32)
        total = total + _DELTA & MASK32
        schedule.append(total + words[total >> 11 & 3] & MASK32)
    return WordCipher(_xtea_rounds, 2, "big", schedule)


def _xtea_rounds(lanes: Lanes, v0: Word, v1: Word) -> tuple[Word, Word]:
    mask = lanes.mask
    schedule = iter(lanes.keys)
    for even, odd in zip(schedule, schedule, strict=True):
        v0 = v0 + ((((v1 << 4) ^ (v1 >> 5)) + v1) ^ even) & mask
        v1 = v1 + ((((v0 << 4) ^ (v0 >> 5)) + v0) ^ odd) & mask
    return v0, v1


# --- SM4 (GB/T 32907-2016) ------------------------------------------------------------------------------

_SM4_SBOX = bytes.fromhex(
    "d690e9fecce13db716b614c228fb2c052b679a762abe04c3aa44132649860699"
    "9c4250f491ef987a33540b43edcfac62e4b31ca9c908e89580df94fa758f3fa6"
    "4707a7fcf37317ba83593c19e6854fa8686b81b27164da8bf8eb0f4b70569d35"
    "1e240e5e6358d1a225227c3b01217887d40046579fd327524c3602e7a0c4c89e"
    "eabf8ad240c738b5a3f7f2cef96115a1e0ae5da49b341a55ad933230f58cb1e3"
    "1df6e22e8266ca60c02923ab0d534e6fd5db3745defd8e2f03ff6a726d6c5b51"
    "8d1baf92bbddbc7f11d95c411f105ad80ac13188a5cd7bbd2d74d012b8e5b4b0"
    "8969974a0c96777e65b9f109c56ec68418f07dec3adc4d2079ee5f3ed7cb3948"
)
_SM4_FK = (0xA3B1BAC6, 0x56AA3350, 0x677D9197, 0xB27022DC)


def _rotate_left(word: int, bits: int) -> int:
    return (word << bits | word >> 32 - bits) & MASK32


@lru_cache(maxsize=1)
def sm4(key: bytes) -> WordCipher:
    """SM4, 32 rounds. `key`: 16 bytes."""
    words = [int.from_bytes(key[4 * i : 4 * i + 4], "big") ^ _SM4_FK[i] for i in range(4)]
    for i in range(32):
        constant = int.from_bytes(bytes((4 * i + j) * 7 & 0xFF for j in range(4)), "big")
        mixed = (words[i + 1] ^ words[i + 2] ^ words[i + 3] ^ constant).to_bytes(4, "big")
        word = int.from_bytes(mixed.translate(_SM4_SBOX), "big")
        words.append(words[i] ^ word ^ _rotate_left(word, 13) ^ _rotate_left(word, 23))
    diffused = [
        s ^ _rotate_left(s, 2) ^ _rotate_left(s, 10) ^ _rotate_left(s, 18) ^ _rotate_left(s, 24) for s in _SM4_SBOX
    ]
    tables = [diffused] + [[_rotate_left(word, 8 * i) for word in diffused] for i in (1, 2, 3)]
    return WordCipher(_sm4_rounds, 4, "big", words[4:], tables, _Sm4IntLanes)


class _Sm4IntLanes(IntLanes):
    """The S-box on all bytes at once, then four rotations: twice as fast as four tables."""

    def lookup(self, word: int) -> int:
        word = int.from_bytes(word.to_bytes(self.size, "little").translate(_SM4_SBOX), "little") & self.mask
        word |= word << 32  # twice in its 64 bits, a rotation is one shift
        return (word ^ word >> 30 ^ word >> 22 ^ word >> 14 ^ word >> 8) & self.mask


def _sm4_rounds(lanes: Lanes, x0: Word, x1: Word, x2: Word, x3: Word) -> tuple[Word, Word, Word, Word]:
    lookup = lanes.lookup
    for key in lanes.keys:
        x0, x1, x2, x3 = x1, x2, x3, x0 ^ lookup(x1 ^ x2 ^ x3 ^ key)
    return x3, x2, x1, x0


# --- Twofish (Schneier et al., 1998), 256-bit keys ------------------------------------------------------

_TWOFISH_Q = (  # nibble permutations t0..t3 of q0 and q1
    ("817d6f320b59eca4", "ecb81235f4a6709d", "ba5e6d90c8f32471", "d7f4126e9b3085ca"),
    ("28bdf76e31940ac5", "1e2b4c376da5f908", "4c75169a0ed82b3f", "b951c3de647f208a"),
)
_TWOFISH_MDS = ((0x01, 0xEF, 0x5B, 0x5B), (0x5B, 0xEF, 0xEF, 0x01), (0xEF, 0x5B, 0x01, 0xEF), (0xEF, 0x01, 0xEF, 0x5B))
_TWOFISH_RS = ("01a455875a58db9e", "a45682f31ec668e5", "02a1fcc147ae3d19", "a455875a58db9e03")
_TWOFISH_MDS_POLYNOMIAL = 0x169
_TWOFISH_RS_POLYNOMIAL = 0x14D
# Which of q0, q1 byte i of a word goes through: first for key word 3, last after key word 0.
_TWOFISH_PATH = ((1, 1, 0, 0, 1), (0, 1, 1, 0, 0), (0, 0, 0, 1, 1), (1, 0, 1, 1, 0))


def _field_product(a: int, b: int, polynomial: int) -> int:
    """Product in GF(2^8)."""
    result = 0
    while b:
        if b & 1:
            result ^= a
        a <<= 1
        if a & 0x100:
            a ^= polynomial
        b >>= 1
    return result


def _twofish_q(permutations: Sequence[str]) -> bytes:
    t0, t1, t2, t3 = ([int(digit, 16) for digit in line] for line in permutations)

    def mix(a: int, b: int) -> tuple[int, int]:
        return a ^ b, (a ^ (b >> 1 | b << 3) ^ a << 3) & 15

    result = bytearray()
    for x in range(256):
        a, b = mix(x >> 4, x & 15)
        a, b = mix(t0[a], t1[b])
        result.append(t3[b] << 4 | t2[a])
    return bytes(result)


@lru_cache(maxsize=1)
def twofish(key: bytes) -> WordCipher:
    """Twofish, 16 rounds. `key`: 32 bytes."""
    q = [_twofish_q(permutations) for permutations in _TWOFISH_Q]
    columns = [
        [
            sum(_field_product(row[i], x, _TWOFISH_MDS_POLYNOMIAL) << 8 * j for j, row in enumerate(_TWOFISH_MDS))
            for x in range(256)
        ]
        for i in range(4)
    ]

    def h_byte(i: int, x: int, key_words: Sequence[bytes]) -> int:
        first, *path = _TWOFISH_PATH[i]
        x = q[first][x]
        for table, word in zip(path, reversed(key_words), strict=True):
            x = q[table][x ^ word[i]]
        return columns[i][x]

    def h(x: int, key_words: Sequence[bytes]) -> int:
        return h_byte(0, x, key_words) ^ h_byte(1, x, key_words) ^ h_byte(2, x, key_words) ^ h_byte(3, x, key_words)

    even, odd = [key[i : i + 4] for i in range(0, 32, 8)], [key[i + 4 : i + 8] for i in range(0, 32, 8)]
    subkeys = []
    for i in range(0, 40, 2):
        a, b = h(i, even), _rotate_left(h(i + 1, odd), 8)
        subkeys += [a + b & MASK32, _rotate_left(a + 2 * b & MASK32, 9)]

    sbox_words = []
    for i in range(24, -1, -8):
        word = bytearray()
        for row in _TWOFISH_RS:
            total = 0
            for factor, byte in zip(bytes.fromhex(row), key[i : i + 8], strict=True):
                total ^= _field_product(factor, byte, _TWOFISH_RS_POLYNOMIAL)
            word.append(total)
        sbox_words.append(bytes(word))
    tables = [[h_byte(i, x, sbox_words) for x in range(256)] for i in range(4)]
    return WordCipher(_twofish_rounds, 4, "little", subkeys, tables)


def _twofish_rounds(lanes: Lanes, r0: Word, r1: Word, r2: Word, r3: Word) -> tuple[Word, Word, Word, Word]:
    mask, lookup = lanes.mask, lanes.lookup
    k0, k1, k2, k3, k4, k5, k6, k7, *round_keys = lanes.keys
    r0, r1, r2, r3 = r0 ^ k0, r1 ^ k1, r2 ^ k2, r3 ^ k3
    schedule = iter(round_keys)
    for even, odd in zip(schedule, schedule, strict=True):
        t0, t1 = lookup(r0), lookup((r1 << 8 | r1 >> 24) & mask)
        t0 = t0 + t1
        r2 = r2 ^ (t0 + even & mask)
        r0, r1, r2, r3 = (r2 >> 1 | r2 << 31) & mask, ((r3 << 1 | r3 >> 31) & mask) ^ (t0 + t1 + odd & mask), r0, r1
    return r2 ^ k4, r3 ^ k5, r0 ^ k6, r1 ^ k7
