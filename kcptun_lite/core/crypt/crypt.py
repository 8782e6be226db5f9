"""The wall between us and the network: packets sealed and opened, a batch at a time.

In      PacketBatch: bodies behind `headroom` to seal, packets as they came to open
Out     the same batch: nonce, checksum or tag written and all encrypted; or bodies, the bad ones dropped
Knows   every method of --crypt, its key and its header. Not: FEC, KCP, whose packet it is
Wire    docs/protocol.md, "Encryption"; kcp-go crypt.go, kcptun std/crypt.go
Cost    per packet of 1350 bytes in a batch of 64, seal / open, of that 0.7 for nonce and CRC-32:
        aes 2.8 / 1.0 us, xor 1.1, none 0.7, aes-128-gcm 1.2 (gcm.py), salsa20 12, blowfish 11 / 7, cast5 15 / 12,
        3des 120; tea, xtea, sm4, twofish: ciphers.py

Running ciphers. A packet is CFB from a constant IV, and its first 16 bytes are a random nonce that the receiver
decrypts and throws away. CFB deciphers a block from itself and the block before it, so only the first block, which
is nonce, depends on the IV. Whatever feedback a packet starts from, every receiver finds the same checksum and
body. So one CFB object may run on over the whole arena, from packet to packet and through the gaps between them:
packets start at multiples of 16, and what a gap holds touches only the next nonce. One call instead of sixty-four.

Nothing is lost by it: the first ciphertext block is fresh random bytes XOR a value independent of them, be that E(IV)
or E(the block before). It is uniformly random either way, and all key stream of the packet follows from it.

Opening needs no chain at all: P[i] = C[i] XOR E(C[i - 1]) is one ECB call over the arena and one XOR.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple, Protocol

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES, BufferPool, borrow
from kcptun_lite.core.batch.strided import join_numbers, scatter
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.cryptodome import load
from kcptun_lite.core.crypt.gcm import Gcm, PlainGcm, make_gcm
from kcptun_lite.core.crypt.pbkdf2 import pbkdf2_sha1
from kcptun_lite.core.lazy_imports import loaded_numpy
from kcptun_lite.core.wire import (
    CFB_IV,
    CRYPT_CRC_SIZE,
    CRYPT_GCM_NONCE_SIZE,
    CRYPT_GCM_TAG_SIZE,
    CRYPT_HEADER_SIZE,
    CRYPT_NONCE_SIZE,
    KCP_HEADER_SIZE,
    KCP_PUSH,
    KCP_SEGMENT,
    KCP_WINS,
    MTU_MAX,
    fec_type,
)
from kcptun_lite.errors import ConfigError, LocalProtocolError

RandomBytes = Callable[[int], bytes]
"os.urandom, or a seeded stand-in: core has no randomness of its own"

KEY_SALT = b"kcp-go"
KEY_ROUNDS = 4096
KEY_SIZE = 32  # bytes
XOR_SALT = b"sH3CIVoF#rWLtJo6"
XOR_ROUNDS = 32
SALSA20_NONCE_SIZE = 8  # bytes of the packet's nonce, left in clear

# Up to so many bytes are copied for pycryptodome: bytes objects cost it nothing, a view 3 us for its finalizer. One
# packet of 128 bytes: encryption 2.5 us beside 6.5, decryption 4.5 beside 14; 16 KiB: 29 beside 32 and 10 beside 17.
COPIED_BYTES = 16 * 1024
NUMBER_BYTES = 1024  # up to which the XOR of two numbers takes less time than the call of pycryptodome's

GRID = 32  # packets from which on nonces and checksums are written by numpy: 0.6 us each for 64, one by one 0.9

_CHECKED_HEADER = Struct("<16sI")  # nonce, CRC-32 of what follows


class PacketCrypt(Protocol):
    """Seals and opens whole batches in place. Not thread-safe: one per thread or per lock."""

    headroom: int
    "bytes in front of every body"
    tailroom: int
    "bytes behind every body"

    def seal(self, batch: PacketBatch) -> None:
        """Encrypt all live packets; `lengths` include headroom and tailroom already."""

    def open(self, batch: PacketBatch, counters: Counters) -> None:
        """Decrypt all live packets; afterwards `starts` and `lengths` are those of the bodies.

        Dropped and counted: `in_checksum_errors` for a wrong checksum or tag and for packets too short to have
        one, `kcp_in_errors` for bodies shorter than a KCP header. Good ones: `in_packets`, `in_bytes`.
        """


class PacketCipher(Protocol):
    """The encryption alone, from the first byte of each packet, in place."""

    def encrypt(self, batch: PacketBatch) -> None: ...
    def decrypt(self, batch: PacketBatch) -> None: ...


class Method(NamedTuple):
    """One name of --crypt (docs/protocol.md, "Ciphers")."""

    key_size: int
    "bytes taken from the front of the derived key"
    make_cipher: "Callable[[bytes, BufferPool], PacketCipher] | None" = None
    "None for the two that carry no nonce of 16 and no CRC: null, aes-128-gcm"
    remark: str = ""
    "what the log says behind its name when it is chosen, or nothing"
    is_slow: bool = False
    "a large batch takes 100 ms or more, in which its thread does nothing else"


def derive_key(passphrase: str) -> bytes:
    """The 32 bytes all keys are cut from (docs/protocol.md, "Keys")."""
    # surrogateescape: bytes of a command line that are not UTF-8 count as they are, as they do for Go.
    return pbkdf2_sha1(passphrase.encode("utf-8", "surrogateescape"), KEY_SALT, KEY_ROUNDS, KEY_SIZE)


def make_crypt(method: str, key: bytes, random_bytes: RandomBytes, pool: BufferPool) -> PacketCrypt:
    """The crypt of one thread. `key`: from `derive_key`.

    Raises: LocalProtocolError for a name not in METHODS; ConfigError if a library is missing or the cipher
    refuses the key.
    """
    if method not in METHODS:
        raise LocalProtocolError(f"no such encryption method: {method}")
    chosen = METHODS[method]
    if chosen.make_cipher is not None:
        return CheckedCrypt(chosen.make_cipher(key[: chosen.key_size], pool), random_bytes)
    if method == "null":
        return NullCrypt()
    return GcmCrypt(make_gcm(key[: chosen.key_size]), random_bytes)


def fitting_methods(key: bytes, packet: bytes) -> list[str]:
    """The methods under which `packet`, as it came, passes its check with this derived key.

    For explaining why a peer is not understood: slow (some ms), and it loads the libraries of all methods.
    `null` has no check; it fits if the packet looks like FEC or KCP in clear.
    """
    pool = BufferPool(nullcontext(), floor_bytes=0)
    fitting = []
    for method in METHODS:
        arena = bytearray(-len(packet) % 16 + len(packet))
        arena[: len(packet)] = packet
        batch = PacketBatch(memoryview(arena))
        batch.commit(len(packet))
        try:
            if method == "aes-128-gcm":  # without the libraries that make it fast and large
                crypt: PacketCrypt = GcmCrypt(PlainGcm(key[: METHODS[method].key_size]), bytes)
            else:
                crypt = make_crypt(method, key, bytes, pool)
        except ConfigError:
            continue
        crypt.open(batch, Counters())
        if batch.lengths[0] and (method != "null" or _is_plausible(packet)):
            fitting.append(method)
    return fitting


def _is_plausible(body: bytes) -> bool:
    """Whether a body of at least 24 bytes starts with a FEC header or a whole KCP segment."""
    if fec_type(body):
        return True
    _, command, fragment, _, _, _, _, length = KCP_SEGMENT.unpack_from(body)
    return bool(KCP_PUSH <= command <= KCP_WINS and fragment == 0 and length <= len(body) - KCP_HEADER_SIZE)


# --- The three kinds of header --------------------------------------------------------------------------


class CheckedCrypt:
    """nonce 16 | CRC-32 | body, all of it encrypted: every method but two (docs/protocol.md, "Packet layout")."""

    headroom = CRYPT_HEADER_SIZE
    tailroom = 0

    def __init__(self, cipher: PacketCipher, random_bytes: RandomBytes) -> None:
        from zlib import crc32

        self._cipher = cipher
        self._random_bytes = random_bytes
        self._crc32 = crc32

    def seal(self, batch: PacketBatch) -> None:
        arena, crc32 = batch.arena, self._crc32
        nonces = self._random_bytes(CRYPT_NONCE_SIZE * len(batch))
        if (stride := batch.stride) and len(batch) >= GRID and loaded_numpy():
            scatter(arena, 0, stride, CRYPT_NONCE_SIZE, nonces)
            scatter(arena, CRYPT_NONCE_SIZE, stride, CRYPT_CRC_SIZE, join_numbers(map(crc32, _grid_bodies(batch))))
            self._cipher.encrypt(batch)
            return
        at = 0
        for start, length in zip(batch.starts, batch.lengths, strict=True):
            if length:
                checksum = crc32(arena[start + CRYPT_HEADER_SIZE : start + length])
                _CHECKED_HEADER.pack_into(arena, start, nonces[at : at + CRYPT_NONCE_SIZE], checksum)
                at += CRYPT_NONCE_SIZE
        self._cipher.encrypt(batch)

    def open(self, batch: PacketBatch, counters: Counters) -> None:
        self._cipher.decrypt(batch)
        arena, starts, lengths, crc32 = batch.arena, batch.starts, batch.lengths, self._crc32
        for index, length in enumerate(lengths):
            if not length:
                continue
            start = starts[index]
            body = start + CRYPT_HEADER_SIZE
            lengths[index] = 0
            if length < CRYPT_HEADER_SIZE or _CHECKED_HEADER.unpack_from(arena, start)[1] != crc32(
                arena[body : start + length]
            ):
                counters.in_checksum_errors += 1
            elif length < CRYPT_HEADER_SIZE + KCP_HEADER_SIZE:
                counters.kcp_in_errors += 1
            else:
                starts[index], lengths[index] = body, length - CRYPT_HEADER_SIZE
                counters.in_packets += 1
                counters.in_bytes += lengths[index]


def _grid_bodies(batch: PacketBatch) -> list[memoryview]:
    """What the checksums of a grid's packets are of, in the order of the arena."""
    arena, stride, usual = batch.arena, batch.stride, max(batch.lengths)
    size = usual - CRYPT_HEADER_SIZE
    bodies = [arena[at : at + size] for at in range(CRYPT_HEADER_SIZE, batch.end, stride)]
    if batch.lengths.count(usual) != len(bodies):
        for start, length in zip(batch.starts, batch.lengths, strict=True):
            if length != usual:
                bodies[start // stride] = arena[start + CRYPT_HEADER_SIZE : start + max(length, CRYPT_HEADER_SIZE)]
    return bodies


class GcmCrypt:
    """nonce 12 | body | tag 16 (docs/protocol.md, "aes-128-gcm")."""

    headroom = CRYPT_GCM_NONCE_SIZE
    tailroom = CRYPT_GCM_TAG_SIZE

    def __init__(self, gcm: Gcm, random_bytes: RandomBytes) -> None:
        self._gcm = gcm
        self._random_bytes = random_bytes

    def seal(self, batch: PacketBatch) -> None:
        arena = batch.arena
        packets = [(start, length) for start, length in zip(batch.starts, batch.lengths, strict=True) if length]
        nonces = self._random_bytes(CRYPT_GCM_NONCE_SIZE * len(packets))
        for i, (start, _) in enumerate(packets):
            at = CRYPT_GCM_NONCE_SIZE * i
            arena[start : start + CRYPT_GCM_NONCE_SIZE] = nonces[at : at + CRYPT_GCM_NONCE_SIZE]
        self._gcm.seal(arena, packets)

    def open(self, batch: PacketBatch, counters: Counters) -> None:
        starts, lengths = batch.starts, batch.lengths
        overhead = CRYPT_GCM_NONCE_SIZE + CRYPT_GCM_TAG_SIZE
        whole = []
        for i, length in enumerate(lengths):
            if length >= overhead:
                whole.append(i)
            elif length:
                lengths[i] = 0
                counters.in_checksum_errors += 1
        verdicts = self._gcm.open(batch.arena, [(starts[i], lengths[i]) for i in whole])
        for i, genuine in zip(whole, verdicts, strict=True):
            size = lengths[i] - overhead
            starts[i] += CRYPT_GCM_NONCE_SIZE
            if genuine and size >= KCP_HEADER_SIZE:
                lengths[i] = size
                counters.in_packets += 1
                counters.in_bytes += size
            else:
                lengths[i] = 0
                if genuine:
                    counters.kcp_in_errors += 1
                else:
                    counters.in_checksum_errors += 1


class NullCrypt:
    """The body and nothing else."""

    headroom = 0
    tailroom = 0

    def seal(self, batch: PacketBatch) -> None:
        pass

    def open(self, batch: PacketBatch, counters: Counters) -> None:
        for i, length in enumerate(batch.lengths):
            if length >= KCP_HEADER_SIZE:
                counters.in_packets += 1
                counters.in_bytes += length
            elif length:
                batch.lengths[i] = 0
                counters.kcp_in_errors += 1


# --- The ciphers of CheckedCrypt ------------------------------------------------------------------------


class RunningCfb:
    """A block cipher of pycryptodome in CFB, running on from packet to packet; see the top of this file."""

    def __init__(self, module: Any, key: bytes, pool: BufferPool) -> None:
        """`module`: Crypto.Cipher.AES or a sibling. Raises: ConfigError if it refuses the key."""
        block = module.block_size
        try:
            self._running = module.new(key, module.MODE_CFB, iv=CFB_IV[:block], segment_size=8 * block)
            self._ecb = module.new(key, module.MODE_ECB)
        except ValueError as exc:  # 3DES with two equal thirds: one passphrase in 2**55
            raise ConfigError(f"this key is too weak for the encryption method ({exc}); choose another key") from exc
        self._strxor = load("Util.strxor").strxor
        self._block = block
        self._pool = pool

    def encrypt(self, batch: PacketBatch) -> None:
        used = batch.arena[: batch.end]
        if batch.end <= COPIED_BYTES:
            used[:] = self._running.encrypt(bytes(used))
        else:
            self._running.encrypt(used, output=used)

    def decrypt(self, batch: PacketBatch) -> None:
        arena, block, fed_back = batch.arena, self._block, batch.end - self._block
        if batch.end <= COPIED_BYTES:
            sealed = bytes(arena[: batch.end])
            arena[block : batch.end] = self._xor(sealed[block:], self._ecb.encrypt(sealed[:fed_back]))
            return
        # From the end, because a block is the input for the one behind it; in parts, which stay in the cache.
        with borrow(self._pool, BATCH_BYTES) as keystream:
            for start in reversed(range(0, fed_back, BATCH_BYTES)):
                end = min(start + BATCH_BYTES, fed_back)
                part = keystream[: end - start]
                self._ecb.encrypt(arena[start:end], output=part)
                after = arena[start + block : end + block]
                self._strxor(after, part, output=after)

    def _xor(self, one: bytes, other: bytes) -> bytes:
        if len(one) > NUMBER_BYTES:
            return self._strxor(one, other)  # type: ignore[no-any-return]
        return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")


class Salsa20Packets:
    """Salsa20/20 from counter 0, keyed anew for every packet by its first 8 bytes (docs/protocol.md, "salsa20")."""

    def __init__(self, key: bytes, pool: BufferPool) -> None:
        self._new = load("Cipher.Salsa20").new
        self._key = key

    def encrypt(self, batch: PacketBatch) -> None:
        for packet in batch.views():
            if len(packet) > SALSA20_NONCE_SIZE:
                secret = packet[SALSA20_NONCE_SIZE:]
                self._new(self._key, packet[:SALSA20_NONCE_SIZE]).encrypt(secret, output=secret)

    decrypt = encrypt


class XorTable:
    """Every packet XOR the same 1500 bytes (docs/protocol.md, "xor"): one XOR with a table that repeats them."""

    def __init__(self, key: bytes, pool: BufferPool) -> None:
        self._strxor = load("Util.strxor").strxor
        self._table = memoryview(_xor_table(key))
        self._pool = pool

    def encrypt(self, batch: PacketBatch) -> None:
        end = batch.end
        if not end:
            return
        with borrow(self._pool, end) as tables:
            for start, length in zip(batch.starts, batch.lengths, strict=True):
                size = min(length, MTU_MAX)  # beyond the table no packet can be valid
                tables[start : start + size] = self._table[:size]
            used = batch.arena[:end]
            self._strxor(used, tables[:end], output=used)

    decrypt = encrypt


@lru_cache(maxsize=1)
def _xor_table(key: bytes) -> bytes:
    return pbkdf2_sha1(key, XOR_SALT, XOR_ROUNDS, MTU_MAX)


class Clear:
    """No encryption: the method none has nonce and checksum only."""

    def __init__(self, key: bytes, pool: BufferPool) -> None:
        pass

    def encrypt(self, batch: PacketBatch) -> None:
        pass

    decrypt = encrypt


def _native(name: str) -> Callable[[bytes, BufferPool], PacketCipher]:
    return lambda key, pool: RunningCfb(load(f"Cipher.{name}"), key, pool)


def _lanes(name: str) -> Callable[[bytes, BufferPool], PacketCipher]:
    def make(key: bytes, pool: BufferPool) -> PacketCipher:
        from kcptun_lite.core.crypt import ciphers  # 0.1 MiB that hardly anybody needs

        return ciphers.LaneCfb(getattr(ciphers, name)(key), pool)

    return make


# --- The table ------------------------------------------------------------------------------------------

_IN_PYTHON = "computed in Python and slow, about {} Mbit/s on a desktop core: aes is faster and safer"
_IN_CLEAR = "encrypts nothing: anyone on the way can read and change the traffic"

METHODS: dict[str, Method] = {
    "aes": Method(32, _native("AES")),
    "aes-128": Method(16, _native("AES")),
    "aes-128-gcm": Method(16),
    "aes-192": Method(24, _native("AES")),
    "salsa20": Method(32, Salsa20Packets),
    "blowfish": Method(32, _native("Blowfish")),
    "twofish": Method(32, _lanes("twofish"), _IN_PYTHON.format(35), is_slow=True),
    "cast5": Method(16, _native("CAST")),
    "3des": Method(
        24, _native("DES3"), "slow, about 80 Mbit/s on a desktop core: aes is faster and safer", is_slow=True
    ),
    "tea": Method(16, _lanes("tea"), "has a quarter of the rounds it was designed with and protects little: use aes"),
    "xtea": Method(16, _lanes("xtea"), _IN_PYTHON.format(90), is_slow=True),
    "xor": Method(32, XorTable, "hides nothing from anyone who compares two packets: use aes"),
    "sm4": Method(16, _lanes("sm4"), _IN_PYTHON.format(90), is_slow=True),
    "none": Method(0, Clear, _IN_CLEAR),
    "null": Method(0, None, _IN_CLEAR),
}
"the methods by name, in the order of kcptun's help"
