"""Keys from passphrases, against the standard library."""

import sys
from hashlib import pbkdf2_hmac
from hmac import digest

import pytest

from kcptun_lite.core.crypt.pbkdf2 import hmac_sha256, pbkdf2_sha1
from tests.helpers import noise


@pytest.mark.parametrize(("rounds", "length"), [(1, 20), (2, 19), (7, 21), (32, 100), (3, 0)])
@pytest.mark.parametrize("password", [b"", b"key", noise(64), noise(65), noise(200)], ids=len)
def test_pbkdf2_is_the_standard_one(password: bytes, rounds: int, length: int) -> None:
    expected = pbkdf2_hmac("sha1", password, b"salt", rounds, length) if length else b""
    assert pbkdf2_sha1(password, b"salt", rounds, length) == expected


@pytest.mark.parametrize("key", [b"", noise(32), noise(64), noise(100)], ids=len)
def test_hmac_is_the_standard_one(key: bytes) -> None:
    assert hmac_sha256(key, b"message") == digest(key, b"message", "sha256")


def test_an_interpreter_without_its_own_sha1_has_that_of_hashlib(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pbkdf2_sha1(b"key", b"salt", 3, 32)
    monkeypatch.setitem(sys.modules, "_sha1", None)
    assert pbkdf2_sha1(b"key", b"salt", 3, 32) == expected
