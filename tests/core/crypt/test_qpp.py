"""QPP: the Go vectors, and streams cut anywhere."""

import random

import pytest

from kcptun_lite.core.crypt.qpp import QppPads, QppStream
from tests.helpers import noise, vectors

PADS = QppPads("it's a secrect", 7)


@pytest.mark.parametrize("case", vectors("qpp")["cases"], ids=lambda case: f"{len(case['key'])}-{case['pads']}")
def test_successive_writes_are_those_of_kcptun(case: dict[str, object]) -> None:
    assert isinstance(case["key"], str) and isinstance(case["pads"], int) and isinstance(case["writes"], list)
    pads = QppPads(case["key"], case["pads"])
    sender, receiver = QppStream(pads), QppStream(pads)
    for write in case["writes"]:
        plain, cipher = bytes.fromhex(write["plain"]), bytes.fromhex(write["cipher"])
        assert sender.encrypt(plain) == cipher
        assert receiver.decrypt(cipher) == plain


def test_where_a_stream_is_cut_makes_no_difference() -> None:
    rng = random.Random(6)
    plain = noise(5000)
    whole = QppStream(PADS).encrypt(plain)
    assert len(whole) == len(plain)
    sender, receiver = QppStream(PADS), QppStream(PADS)
    encrypted, decrypted = bytearray(), bytearray()
    while len(encrypted) < len(plain):
        size = rng.choice((0, 1, 3, 7, 8, 9, 16, 100))
        encrypted += sender.encrypt(memoryview(plain)[len(encrypted) : len(encrypted) + size])
    while len(decrypted) < len(plain):
        size = rng.choice((0, 1, 3, 7, 8, 9, 16, 100))
        decrypted += receiver.decrypt(memoryview(encrypted)[len(decrypted) : len(decrypted) + size])
    assert encrypted == whole
    assert decrypted == plain


def test_the_two_directions_of_a_stream_go_their_own_ways() -> None:
    ours, theirs = QppStream(PADS), QppStream(PADS)
    assert theirs.decrypt(ours.encrypt(b"a question")) == b"a question"
    assert ours.decrypt(theirs.encrypt(b"the answer")) == b"the answer"


def test_every_pad_is_a_permutation_with_its_inverse() -> None:
    assert len(PADS.forward) == len(PADS.backward) == 7
    for forward, backward in zip(PADS.forward, PADS.backward, strict=True):
        assert sorted(forward) == list(range(256))
        assert forward.translate(backward) == bytes(range(256))
