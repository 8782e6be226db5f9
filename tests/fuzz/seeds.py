"""Programs for the fuzzers that begin where real traffic has been: recorded by the Go programs, see tests/vectors.

In      tests/vectors
Out     some programs for each of `targets.TARGETS`
Knows   the vectors, the operations of the targets
"""

from contextlib import nullcontext
from itertools import islice
from typing import Any

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES, BufferPool
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.crypt import derive_key, make_crypt
from tests.fuzz.targets import FUZZ_METHODS, KEY, record
from tests.helpers import noise, vectors

PROGRAM_MAX = 16_384  # bytes; longer ones mutate slowly
CAPTURES = ("cap_aes_default", "cap_none_nofec", "cap_salsa20_nocomp", "cap_smux2_window", "cap_new_null")
CAPTURE_KEY = "it's a secrect"


def seeds() -> dict[str, list[bytes]]:
    """Target name -> programs."""
    found = {
        "fec": _fec(),
        "kcp": _kcp(),
        "crypt": _crypt(),
        "gro": _gro(),
        "snappy": _snappy(),
        "smux": _smux(),
        "conversation": _conversation(),
        "listener": _listener(),
        "config": _config(),
        "address": _address(),
    }
    return {name: [program[:PROGRAM_MAX] for program in programs] for name, programs in found.items()}


def _fec() -> list[bytes]:
    cases = vectors("fec_decode")["cases"]
    return [b"".join(record(1, bytes.fromhex(step["packet"])) for step in case["steps"]) for case in cases]


def _kcp() -> list[bytes]:
    """The client's side of each recorded run: what it wrote and what it got."""
    programs = []
    for scenario in vectors("kcp_561")["scenarios"]:
        steps, before = [], 0
        for event in islice(scenario["events"], 80):
            if event["t"] != before:
                steps.append(record(2, (event["t"] - before).to_bytes(2, "little")))
                before = event["t"]
            if event["e"] == "dgram" and event["dir"] == "B>A" and not event.get("lost"):
                steps += [record(0, bytes.fromhex(event["hex"])), record(3)]
            elif event["e"] == "write" and event["end"] == "A":
                steps.append(record(4, bytes.fromhex(event["hex"]) if "hex" in event else bytes(event["n"])))
        programs.append(b"".join(steps))
    return programs


def _crypt() -> list[bytes]:
    programs = []
    for index, method in enumerate(FUZZ_METHODS):
        ours = make_crypt(method, KEY, bytes, BufferPool(nullcontext()))
        body = noise(100, seed=index)
        incoming = PacketBatch(memoryview(bytearray(256)))
        incoming.arena[ours.headroom : ours.headroom + len(body)] = body
        incoming.commit(ours.headroom + len(body) + ours.tailroom)
        ours.seal(incoming)
        programs.append(bytes([index]) + record(0, bytes(incoming.packet(0))) + record(1, body) + record(0, body[:20]))
    return programs


def _gro() -> list[bytes]:
    return [
        total.to_bytes(4, "big") + bytes([17, 104]) + size.to_bytes(4, "little")
        for total, size in ((60_000, 1350), (13_500, 1350), (13_501, 1344), (3, 1))
    ]


def _snappy() -> list[bytes]:
    writes = [bytes.fromhex(w) for step in vectors("snappy")["steps"] for w in step["underlying_writes"] or ()]
    return [b"".join(record(0, write) for write in writes[:count]) for count in (2, 6, len(writes))]


def _smux() -> list[bytes]:
    programs = []
    for session in vectors("smux")["sessions"]:
        for side, direction in ((0, "C>S"), (2, "S>C")):
            frames = [bytes.fromhex(e["hex"]) for e in session["events"] if e.get("dir") == direction]
            opened = [record(2)] * 4 if side else []
            steps = [record(0, frame) + record(1, frame[4:8]) for frame in frames]
            programs.append(bytes([side | (session["version"] - 1)]) + b"".join(opened + steps))
    return programs


def _conversation() -> list[bytes]:
    programs = []
    for name in CAPTURES:
        fec, compress = name != "cap_none_nofec" and name != "cap_new_null", name in CAPTURES[:2]
        settings = fec | compress << 1 | (name == "cap_smux2_window") << 2 | 8
        packets = _opened(name, "C>S")
        programs.append(bytes([settings]) + b"".join(record(0, p) + record(3, b"\x0a\0") for p in packets[:40]))
    for session in vectors("smux")["sessions"]:
        frames = [bytes.fromhex(e["hex"]) for e in session["events"] if e.get("dir") == "C>S"]
        for settings, operation in ((8, 1), (10, 2)):
            programs.append(bytes([settings]) + b"".join(record(operation, frame) for frame in frames[:40]))
    return programs


def _listener() -> list[bytes]:
    return [b"".join(record(4, packet) for packet in _opened(name, "C>S")[:40]) for name in CAPTURES]


def _opened(capture: str, direction: str) -> list[bytes]:
    """The recorded packets of one direction, decrypted."""
    found: dict[str, Any] = vectors(capture)
    method = {"cap_new_null": "null", "cap_none_nofec": "none", "cap_salsa20_nocomp": "salsa20"}.get(capture, "aes")
    ours = make_crypt(method, derive_key(CAPTURE_KEY), bytes, BufferPool(nullcontext()))
    packets: list[bytes] = []
    for datagram in islice((d for d in found["datagrams"] if d["dir"] == direction), 60):
        packet = bytes.fromhex(datagram["hex"])
        incoming = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
        incoming.arena[: len(packet)] = packet
        incoming.commit(len(packet))
        ours.open(incoming, Counters())
        packets += map(bytes, incoming.views())
    return packets


def _config() -> list[bytes]:
    texts = (
        b'{"localaddr": ":12948", "remoteaddr": "vps:29900", "key": "it\'s a secrect", "crypt": "aes", "mode": "fast2",'
        b' "mtu": 1350, "sndwnd": 128, "rcvwnd": 512, "datashard": 10, "parityshard": 3, "nocomp": false, "conn": 1}',
        b'{"listen": ":29900-29910", "target": "[::1]:22", "crypt": "aes-128-gcm", "smuxver": 2, "streambuf": 65536}',
        b'{"remoteaddr": "a.example:1-9,[2001:db8::1]:29900", "quiet": true, "snmplog": "./snmp-20060102.log"}',
        b"null",
        b'\xef\xbb\xbf{"KEY": "\\ud83d\\ude00", "key": "\\ud800", "nodelay": 1e3, "resend": -1}',
    )
    return [side + text for side in (b"\0", b"\xff") for text in texts]


def _address() -> list[bytes]:
    texts = (
        "vps:29900",
        ":12948",
        "[::1]:80",
        "::1:29900",
        "h:1-9,[fe80::1%eth0]:2-3",
        "/run/k.sock",
        "@x",
        "24MiB",
        "0x1f",
    )
    return [text.encode() for text in texts]
