"""What the fuzzers have found, each as its smallest input, and what was made of it."""

import pytest

from kcptun_lite.app.parsing import parse
from kcptun_lite.core.crypt.crypt import KEY_ROUNDS, KEY_SALT, KEY_SIZE, derive_key
from kcptun_lite.core.crypt.pbkdf2 import pbkdf2_sha1
from tests.fuzz.targets import TARGETS

FOUND: list[tuple[str, bytes]] = [
    ("config", b'\x00{"key": "\\ud800"}'),  # half a character: Go's JSON reads U+FFFD
    ("config", b'\xff{"key": "\\udcff\\ud83d\\ude00"}'),
]


@pytest.mark.parametrize(("target", "program"), FOUND, ids=[target for target, _ in FOUND])
def test_it_does_no_harm_any_more(target: str, program: bytes) -> None:
    TARGETS[target](program)


def test_half_a_character_is_read_as_go_reads_it() -> None:
    found, _ = parse("server", ["-c", "file"], {}, lambda path: b'{"key": "a\\ud800b\\ud83d\\ude00"}')
    assert found.key == "a\ufffdb\U0001f600"


def test_a_key_that_is_no_utf8_counts_byte_by_byte() -> None:
    from_command_line = b"\xff\xfekey".decode("utf-8", "surrogateescape")
    assert derive_key(from_command_line) == pbkdf2_sha1(b"\xff\xfekey", KEY_SALT, KEY_ROUNDS, KEY_SIZE)
