"""Keys from passphrases: PBKDF2 and HMAC in the few lines they are.

In      passphrase, salt, rounds
Out     key bytes
Knows   RFC 2104, RFC 8018. Not: which salt belongs to what
Cost    4096 rounds, 32 bytes: 9 ms on a desktop core, once per start

Not `hashlib.pbkdf2_hmac`: it takes 2 ms, but loads OpenSSL (3.7 MiB resident), and from Python 3.12 on it is
missing where OpenSSL is (OpenWrt without python3-openssl).
"""

from collections.abc import Callable
from typing import Any

_BLOCK_SIZE = 64  # bytes; of SHA-1 and SHA-256 alike
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))

HashFactory = Callable[[bytes], Any]


def pbkdf2_sha1(password: bytes, salt: bytes, rounds: int, length: int) -> bytes:
    """`length` bytes of PBKDF2-HMAC-SHA1 (RFC 8018, 5.2)."""
    inner, outer = _hmac_keyed(_sha1(), password)

    def hmac(message: bytes) -> bytes:
        first, second = inner.copy(), outer.copy()
        first.update(message)
        second.update(first.digest())
        return second.digest()  # type: ignore[no-any-return]

    derived = bytearray()
    block = 1
    while len(derived) < length:
        link = hmac(salt + block.to_bytes(4, "big"))
        total = int.from_bytes(link, "big")
        for _ in range(rounds - 1):
            link = hmac(link)
            total ^= int.from_bytes(link, "big")
        derived += total.to_bytes(len(link), "big")
        block += 1
    return bytes(derived[:length])


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256, 32 bytes (RFC 2104)."""
    from hashlib import sha256

    inner, outer = _hmac_keyed(sha256, key)
    inner.update(message)
    outer.update(inner.digest())
    return outer.digest()  # type: ignore[no-any-return]


def _hmac_keyed(new: HashFactory, key: bytes) -> tuple[Any, Any]:
    """The two hash objects of HMAC, having taken in the key."""
    if len(key) > _BLOCK_SIZE:
        key = new(key).digest()
    key = key.ljust(_BLOCK_SIZE, b"\0")
    return new(key.translate(_INNER_PAD)), new(key.translate(_OUTER_PAD))


def _sha1() -> HashFactory:
    try:
        from _sha1 import sha1  # type: ignore[import-not-found]  # CPython's own; hashlib would load OpenSSL's
    except ImportError:
        from hashlib import sha1
    return sha1  # type: ignore[no-any-return]
