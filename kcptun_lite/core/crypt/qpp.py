"""Quantum permutation pad: every byte of a stream through one of many secret permutations.

In      bytes of one stream, in order
Out     as many bytes, permuted or restored
Knows   QPP as kcptun uses it (xtaci/qpp). Not: smux, where the key comes from
Wire    docs/protocol.md, "QPP"
Cost    0.17 us per byte (46 Mbit/s), most of it the generator; pads of one key: 61 of them 50 ms, 25 KiB

It is applied inside the encrypted tunnel and adds nothing that AES lacks; it is here to be compatible.
"""

from collections.abc import Sequence
from math import ceil

from kcptun_lite.core.crypt.cryptodome import load
from kcptun_lite.core.crypt.pbkdf2 import hmac_sha256, pbkdf2_sha1
from kcptun_lite.core.wire import Buffer

_SEED_SALT = b"___QUANTUM_PERMUTATION_PAD_SEED_DERIVE___"
_SHUFFLE_SALT = b"___QUANTUM_PERMUTATION_PAD_SHUFFLE_SALT___"
_PRNG_SALT = b"___QUANTUM_PERMUTATION_PAD_PRNG_SALT___"
_SELECTOR = b"PERMUTATION_MATRIX_SELECTOR"
_ROUNDS = 128  # of PBKDF2
_CHUNK_ROUNDS = 1024
_CHUNK_SIZE = 32  # bytes
_CHUNKS = ceil(211 / _CHUNK_SIZE)  # 211 bytes hold log2(256!), the choice of one permutation
_MASK64 = 0xFFFFFFFFFFFFFFFF


class QppPads:
    """The permutations of one key: made once per process, shared by all streams."""

    def __init__(self, key: str, count: int) -> None:
        """`count`: 1 or more; kcptun advises a prime number.

        Raises: ConfigError without pycryptodome.
        """
        password = key.encode()
        seed = password if len(password) >= _CHUNK_SIZE else pbkdf2_sha1(password, _SEED_SALT, _ROUNDS, _CHUNK_SIZE)
        chunks = []
        for i in range(_CHUNKS):
            chunk = bytes(seed[(i * _CHUNK_SIZE + j) % len(seed)] for j in range(_CHUNK_SIZE))
            chunks.append(pbkdf2_sha1(chunk, _SEED_SALT, _CHUNK_ROUNDS, _CHUNK_SIZE))
        self.forward = _shuffled_pads(chunks, count)
        self.backward = [_inverse(pad) for pad in self.forward]
        prng_key = pbkdf2_sha1(hmac_sha256(password, _SELECTOR), _PRNG_SALT, _ROUNDS, 32)
        self.prng_state = tuple(int.from_bytes(prng_key[i : i + 8], "little") for i in range(0, 32, 8))


def _shuffled_pads(chunks: Sequence[bytes], count: int) -> list[bytes]:
    """The identity shuffled `count` times, all at once, so that an AES call serves every pad."""
    aes = load("Cipher.AES")
    ciphers = [aes.new(pbkdf2_sha1(chunk, _SHUFFLE_SALT, _ROUNDS, 32), aes.MODE_ECB) for chunk in chunks]
    pads = [bytearray(range(256)) for _ in range(count)]
    states = b"".join(hmac_sha256(chunks[p % len(chunks)], b"QPP_%s" % f"{p:b}".encode()) for p in range(count))
    for i in range(255, 0, -1):
        for cipher in ciphers:
            states = cipher.encrypt(states)
        for p, pad in enumerate(pads):
            j = int.from_bytes(states[32 * p : 32 * p + 32], "big") % (i + 1)
            pad[i], pad[j] = pad[j], pad[i]
    return [bytes(pad) for pad in pads]


def _inverse(pad: bytes) -> bytes:
    inverse = bytearray(256)
    for x, y in enumerate(pad):
        inverse[y] = x
    return bytes(inverse)


class QppStream:
    """Both directions of one stream; each goes on where its last call ended."""

    def __init__(self, pads: QppPads) -> None:
        self._pads = pads
        self._sent = _Keystream(pads.prng_state)
        self._received = _Keystream(pads.prng_state)

    def encrypt(self, data: Buffer) -> bytes:
        """`data` permuted; as long as it was."""
        keystream, words, skip = self._sent.take(len(data))
        pads, count = self._pads.forward, len(self._pads.forward)
        mixed = _xor(bytes(skip) + bytes(data), keystream)
        parts = [mixed[8 * i : 8 * i + 8].translate(pads[(word & 0xFFFF) % count]) for i, word in enumerate(words)]
        return b"".join(parts)[skip:]

    def decrypt(self, data: Buffer) -> bytes:
        """`data` restored; as long as it was."""
        keystream, words, skip = self._received.take(len(data))
        pads, count = self._pads.backward, len(self._pads.backward)
        padded = bytes(skip) + bytes(data)
        parts = [padded[8 * i : 8 * i + 8].translate(pads[(word & 0xFFFF) % count]) for i, word in enumerate(words)]
        return _xor(b"".join(parts), keystream)[skip:]


def _xor(data: bytes, keystream: bytes) -> bytes:
    """`data` XOR the first bytes of `keystream`, which is at least as long."""
    size = len(data)
    return (int.from_bytes(data, "little") ^ int.from_bytes(keystream[:size], "little")).to_bytes(size, "little")


class _Keystream:
    """xoshiro256** (Blackman and Vigna), in 64-bit words that calls may divide anywhere."""

    def __init__(self, state: tuple[int, ...]) -> None:
        self._state = state
        self._word = 0
        self._used = 8
        "bytes of `_word` already used"

    def take(self, size: int) -> tuple[bytes, list[int], int]:
        """(bytes of the words, the words, how many bytes of the first word belong to an earlier call)."""
        skip = self._used & 7
        words = [self._word] if skip else []
        words += self._next_words(-(-(size + skip) // 8) - len(words))
        if words:
            self._word = words[-1]
            self._used = (skip + size - 1 & 7) + 1
        return b"".join([word.to_bytes(8, "little") for word in words]), words, skip

    def _next_words(self, count: int) -> list[int]:
        s0, s1, s2, s3 = self._state
        words = []
        for _ in range(count):
            x = s1 * 5 & _MASK64
            words.append((x << 7 | x >> 57) * 9 & _MASK64)
            t = s1 << 17 & _MASK64
            s2 ^= s0
            s3 ^= s1
            s1 ^= s2
            s0 ^= s3
            s2 ^= t
            s3 = (s3 << 45 | s3 >> 19) & _MASK64
        self._state = s0, s1, s2, s3
        return words
