"""The crypt room: the Go vectors, the argument for running ciphers, and datagrams from unknown sources."""

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from Crypto.Cipher import AES, Blowfish

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt import crypt
from kcptun_lite.core.crypt.ciphers import CFB_IV
from kcptun_lite.core.crypt.crypt import METHODS, PacketCipher, PacketCrypt, derive_key, fitting_methods, make_crypt
from kcptun_lite.core.crypt.cryptodome import load
from kcptun_lite.core.wire import KCP_SEGMENT
from kcptun_lite.errors import ConfigError, LocalProtocolError
from tests.helpers import noise, vectors

POOL = BufferPool(contextlib.nullcontext(), poison=True)
CHECKED = [name for name, method in METHODS.items() if method.make_cipher]
KEY = derive_key("it's a secrect")


def cipher_of(method: str, key: bytes = KEY) -> PacketCipher:
    make = METHODS[method].make_cipher
    assert make is not None
    return make(key[: METHODS[method].key_size], POOL)


def make_batch(packets: list[bytes], seed: int = 7) -> PacketBatch:
    """The packets on a batch whose gaps hold noise."""
    batch = PacketBatch(memoryview(bytearray(noise(sum(len(packet) + 15 for packet in packets) + 16, seed))))
    for packet in packets:
        batch.arena[batch.end : batch.end + len(packet)] = packet
        batch.commit(len(packet))
    return batch


def with_headers(room: PacketCrypt, bodies: list[bytes]) -> PacketBatch:
    """Bodies laid as the rooms above lay them, for `seal`."""
    return make_batch([noise(room.headroom) + body + noise(room.tailroom) for body in bodies])


def contents(batch: PacketBatch) -> list[bytes]:
    return [bytes(view) for view in batch.views()]


def seal(method: str, bodies: list[bytes], seed: int = 1, key: bytes = KEY) -> list[bytes]:
    room = make_crypt(method, key, random.Random(seed).randbytes, POOL)
    batch = with_headers(room, bodies)
    room.seal(batch)
    return contents(batch)


def opened(method: str, packets: list[bytes], counters: Counters | None = None) -> PacketBatch:
    batch = make_batch(packets)
    make_crypt(method, KEY, noise, POOL).open(batch, counters or Counters())
    return batch


# --- Keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", vectors("pbkdf2")["cases"], ids=lambda case: str(case["key_utf8"])[:20])
def test_keys_are_those_of_kcptun(case: dict[str, str]) -> None:
    from hashlib import sha1

    key = derive_key(case["key_utf8"])
    assert key.hex() == case["derived_hex"]
    table = crypt._xor_table(key)
    assert table[:64].hex() == case["xor_table_first64"]
    assert table[-32:].hex() == case["xor_table_last32_of_1500"]
    assert sha1(table).hexdigest() == case["xor_table_1500_sha1"]


# --- Bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CHECKED)
def test_ciphertexts_are_those_of_kcp_go(method: str) -> None:
    file = vectors("crypt")
    key = derive_key(file["passphrase"])
    assert key.hex().startswith(file["ciphers"][method]["key_hex"])
    plaintexts = [bytes.fromhex(text) for text in file["plaintexts"]]
    ciphertexts = [bytes.fromhex(text) for text in file["ciphers"][method]["ciphertexts"]]

    for plaintext, ciphertext in zip(plaintexts, ciphertexts, strict=True):
        batch = make_batch([plaintext])  # a fresh cipher starts from the constant IV, as kcp-go does for every packet
        cipher_of(method, key).encrypt(batch)
        assert contents(batch) == [ciphertext]

    batch = make_batch(ciphertexts)
    cipher_of(method, key).decrypt(batch)
    assert [text[16:] for text in contents(batch)] == [text[16:] for text in plaintexts]


@pytest.mark.parametrize("case", vectors("packet")["cases"], ids=lambda case: str(case["crypt"]))
def test_packets_are_those_of_kcp_go(case: dict[str, str]) -> None:
    key = derive_key(vectors("packet")["passphrase"])
    nonce, body, packet = (bytes.fromhex(case[name]) for name in ("nonce", "body", "packet"))
    room = make_crypt(case["crypt"], key, lambda size: nonce, POOL)
    batch = with_headers(room, [body])
    room.seal(batch)
    assert contents(batch) == [packet]
    room.open(batch, Counters())
    assert contents(batch) == [body]


def test_gcm_packets_are_those_of_kcp_go() -> None:
    file = vectors("aes128gcm")
    key = bytes.fromhex(file["key_hex"])
    cases = [{name: bytes.fromhex(case[name]) for name in ("nonce", "plaintext", "packet")} for case in file["cases"]]
    nonces = b"".join(case["nonce"] for case in cases)
    room = make_crypt("aes-128-gcm", key, lambda size: nonces, POOL)
    batch = with_headers(room, [case["plaintext"] for case in cases])
    room.seal(batch)
    assert contents(batch) == [case["packet"] for case in cases]
    room.open(batch, Counters())
    assert contents(batch) == [case["plaintext"] for case in cases]


def test_a_capture_opens_but_for_the_one_ping_in_it() -> None:
    capture = vectors("cap_2017_default")
    counters = Counters()
    packets = [bytes.fromhex(datagram["hex"]) for datagram in capture["datagrams"]]
    opened("aes", packets, counters)
    assert (counters.in_packets, counters.in_checksum_errors) == (len(packets) - 1, 1)


# --- The argument for running ciphers (see the top of crypt.py) -----------------------------------------

FIXED_IV = {"aes": (AES, 16), "blowfish": (Blowfish, 8)}


def packet_by_packet(method: str, packet: bytes, direction: str) -> bytes:
    """kcp-go's way: a new CFB object with the constant IV for every packet."""
    module, block = FIXED_IV[method]
    cipher: Any = module.new(KEY, module.MODE_CFB, iv=CFB_IV[:block], segment_size=8 * block)
    padded = packet + bytes(-len(packet) % block)
    return bytes(getattr(cipher, direction)(padded))[: len(packet)]


@pytest.mark.parametrize("method", FIXED_IV)
def test_a_running_cipher_is_read_packet_by_packet_and_the_other_way_round(method: str) -> None:
    packets = [noise(size, size) for size in range(20, 1501)]
    random.Random(3).shuffle(packets)
    ours = cipher_of(method)
    for half in (packets[:700], packets[700:]):  # it runs on from batch to batch as well
        batch = make_batch(half)
        ours.encrypt(batch)
        for packet, sealed in zip(half, contents(batch), strict=True):
            assert packet_by_packet(method, sealed, "decrypt")[16:] == packet[16:]

    theirs = make_batch([packet_by_packet(method, packet, "encrypt") for packet in packets])
    ours.decrypt(theirs)
    assert [packet[16:] for packet in contents(theirs)] == [packet[16:] for packet in packets]


@pytest.mark.parametrize("method", ["aes", "blowfish", "tea", "sm4"])
def test_equal_packets_never_look_alike(method: str) -> None:
    """Neither side by side on a batch, nor on the next batch, nor under the next cipher object."""
    body = noise(60)
    random_bytes = random.Random(5).randbytes
    sealed = []
    for _ in range(3):
        room = make_crypt(method, KEY, random_bytes, POOL)
        for _ in range(4):
            batch = with_headers(room, [body] * 100)
            room.seal(batch)
            sealed += contents(batch)
    block = 16 if method in ("aes", "sm4") else 8
    blocks = [packet[i : i + block] for packet in sealed for i in range(0, 80, block)]
    assert len(set(blocks)) == len(blocks) == len(sealed) * (80 // block)


def test_what_the_gaps_hold_changes_no_body() -> None:
    bodies = [noise(size) for size in (25, 1, 333, 24)]
    results = []
    for seed in (1, 2):
        ours = cipher_of("aes")
        batch = make_batch([noise(20) + body for body in bodies], seed)
        ours.encrypt(batch)
        results.append([packet_by_packet("aes", packet, "decrypt")[20:] for packet in contents(batch)])
    assert results == [bodies, bodies]


# --- Batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_comes_back_as_it_went(method: str) -> None:
    rng = random.Random(11)
    bodies = [rng.randbytes(rng.choice((24, 25, 44, 100, 1330, 1472))) for _ in range(70)]
    counters = Counters()
    assert contents(opened(method, seal(method, bodies), counters)) == bodies
    assert (counters.in_packets, counters.in_bytes) == (70, sum(map(len, bodies)))
    assert (counters.in_checksum_errors, counters.kcp_in_errors) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_wire_order_need_not_be_arena_order_and_dropped_packets_stay_dropped(method: str) -> None:
    bodies = [noise(100 + i, i) for i in range(6)]
    room = make_crypt(method, KEY, noise, POOL)
    batch = with_headers(room, bodies)
    batch.starts.insert(1, batch.starts.pop())  # as FEC inserts parity
    batch.lengths.insert(1, batch.lengths.pop())
    batch.drop(3)
    room.seal(batch)
    room.open(batch, Counters())
    assert contents(batch) == [bodies[i] for i in (0, 5, 1, 3, 4)]


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_is_fine(method: str) -> None:
    room = make_crypt(method, KEY, noise, POOL)
    batch = PacketBatch(memoryview(bytearray(64)))
    room.seal(batch)
    room.open(batch, Counters())
    assert batch.end == 0


@pytest.mark.parametrize("method", METHODS)
def test_scratch_buffers_go_back(method: str) -> None:
    opened(method, seal(method, [noise(100)] * 3))
    assert POOL.usage().in_use_bytes == 0


# --- Unknown sources ------------------------------------------------------------------------------------------


def flips(packet: bytes) -> Iterator[bytes]:
    for at in {0, 5, 12, 16, 19, 20, 40, len(packet) - 16, len(packet) - 1}:
        yield packet[:at] + bytes([packet[at] ^ 0x40]) + packet[at + 1 :]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "null"])
def test_a_changed_packet_is_dropped_and_its_neighbours_are_not(method: str) -> None:
    bodies = [noise(77, 1), noise(77, 2)]
    first, last = seal(method, bodies)
    for changed in flips(first):
        counters = Counters()
        batch = opened(method, [first, changed, last], counters)
        kept = contents(batch)
        # The first block of a nonce may change unnoticed where the body's first block does not hang on it:
        # none, xor, and CFB with blocks of 8 bytes.
        assert kept in ([bodies[0], bodies[1]], [bodies[0], bodies[0], bodies[1]])
        assert len(kept) + counters.in_checksum_errors == 3
        if changed[20:] != first[20:] or changed[16:20] != first[16:20] or method == "aes-128-gcm":
            assert batch.lengths[1] == 0


@pytest.mark.parametrize("method", METHODS)
def test_short_and_random_datagrams_cost_only_a_counter(method: str) -> None:
    rng = random.Random(13)
    unknowns = [rng.randbytes(size) for size in (*range(1, 60), 1500, 1501, 2000, 4000)]
    good = seal(method, [noise(50)])
    counters = Counters()
    batch = opened(method, unknowns[:40] + good + unknowns[40:], counters)
    bad = counters.in_checksum_errors + counters.kcp_in_errors
    assert (counters.in_packets, bad) == ((41, 23) if method == "null" else (1, 63))
    assert contents(batch)[-1 if method != "null" else 17] == noise(50)


@pytest.mark.parametrize("method", METHODS)
def test_a_body_too_short_for_kcp_is_counted_apart(method: str) -> None:
    counters = Counters()
    batch = opened(method, seal(method, [noise(23), noise(24), noise(1)]), counters)
    assert contents(batch) == [noise(24)]
    assert (counters.in_packets, counters.kcp_in_errors, counters.in_checksum_errors) == (1, 2, 0)


# --- The table ------------------------------------------------------------------------------------------


def test_an_unknown_method_is_a_bug_of_ours() -> None:
    with pytest.raises(LocalProtocolError, match="rot13"):
        make_crypt("rot13", KEY, noise, POOL)


def test_a_key_that_makes_3des_a_single_des_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose another key"):
        make_crypt("3des", KEY[:8] * 4, noise, POOL)


def test_without_pycryptodome_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("Crypto", "Cryptodome"):
        monkeypatch.setitem(sys.modules, f"{package}.Cipher.AES", None)
    with pytest.raises(ConfigError, match="pycryptodome"):
        make_crypt("aes", KEY, noise, POOL)
    make_crypt("tea", KEY, noise, POOL)
    make_crypt("none", KEY, noise, POOL)


def test_pycryptodomex_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("Cryptodome.Cipher.AES")
    monkeypatch.setitem(sys.modules, "Crypto.Cipher.AES", None)
    monkeypatch.setitem(sys.modules, "Cryptodome.Cipher.AES", stand_in)
    assert load("Cipher.AES") is stand_in


def test_remarks_are_on_the_methods_that_need_one() -> None:
    fine = {"aes", "aes-128", "aes-192", "aes-128-gcm", "salsa20", "blowfish", "cast5"}
    assert {name for name, method in METHODS.items() if not method.remark} == fine


# --- Diagnosis ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_method_of_a_packet_is_found(method: str) -> None:
    segment = KCP_SEGMENT.pack(1, 81, 0, 128, 0, 0, 0, 100) + noise(100)
    assert fitting_methods(KEY, seal(method, [segment])[0]) == [method]


def test_no_method_fits_another_key_or_noise() -> None:
    assert fitting_methods(KEY, seal("aes", [noise(100)], key=derive_key("other"))[0]) == []
    for size in (0, 1, 20, 28, 100, 1500):
        assert fitting_methods(KEY, noise(size)) == []


def test_null_fits_what_looks_like_fec_or_kcp() -> None:
    assert fitting_methods(KEY, bytes.fromhex("01000000f1002c00") + noise(60)) == ["null"]
    assert fitting_methods(KEY, KCP_SEGMENT.pack(1, 81, 0, 128, 0, 0, 0, 9) + noise(8)) == []


def test_judging_a_strangers_packet_loads_no_openssl() -> None:
    """Any port scan makes a server judge a packet, so what that loads is there for good."""
    code = (
        "from kcptun_lite.core.crypt.crypt import derive_key, fitting_methods\n"
        "assert fitting_methods(derive_key('k'), bytes(range(120))) == []\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert '_ghash' in maps, 'GCM was tried'\n"
        "assert 'libcrypto' not in maps and '_hashlib' not in maps\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
