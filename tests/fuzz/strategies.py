"""Programs for the targets: recorded traffic with damage done to it, and traffic made up of almost valid pieces.

In      hypothesis's choices
Out     strategies of bytes for each of `targets.TARGETS`
Knows   what headers look like, which values are near an edge

The suite draws the same few examples each time. For more, and others: FUZZ_EXAMPLES=20000 pytest tests/fuzz
"""

import json
import os
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kcptun_lite.app.options import OPTIONS
from kcptun_lite.core.mux.snappy import SnappyEncoder
from kcptun_lite.core.wire import (
    FEC_HEADER,
    KCP_PUSH,
    KCP_SEGMENT,
    KCP_WINS,
    SMUX_HEADER,
    SMUX_PSH,
    SMUX_UPD,
    SMUX_UPDATE,
    SNAPPY_IDENTIFIER,
)
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import CONV, record

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
Programs = st.SearchStrategy[bytes]


def bounded(count: int) -> Callable[[Any], Any]:
    """Settings for `count` examples in the suite, always the same ones."""
    return settings(
        max_examples=EXAMPLES or count,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# -- damage --------------------------------------------------------------------------------------------------


@cache
def recorded(target: str) -> list[bytes]:
    return seeds()[target]


@st.composite
def damaged(draw: st.DrawFn, target: str) -> bytes:
    """A recorded program with some bytes changed, lost, doubled or put in."""
    program = bytearray(draw(st.sampled_from(recorded(target))))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(program)))
        size = draw(st.sampled_from((1, 1, 2, 4, 27, 300)))
        match draw(st.integers(0, 3)):
            case 0:
                program[at : at + size] = draw(st.binary(min_size=size, max_size=size))
            case 1:
                del program[at : at + size]
            case 2:
                program[at:at] = program[at : at + size]
            case 3:
                program[at : at + 1] = draw(st.sampled_from((b"\0", b"\xff", b"\x7f", b"\x80", b"\1")))
    return bytes(program)


# -- made up -------------------------------------------------------------------------------------------------


nothing: Programs = st.just(b"")


def program(*steps: Programs, start: Programs = nothing, most: int = 30) -> Programs:
    """A first byte or none, and then a number of the steps."""
    return st.tuples(start, st.lists(st.one_of(*steps), max_size=most)).map(lambda parts: parts[0] + b"".join(parts[1]))


def step(operation: int | st.SearchStrategy[int], payload: Programs = nothing) -> Programs:
    operations = st.just(operation) if isinstance(operation, int) else operation
    return st.builds(record, operations, payload)


def near(*edges: int, width: int = 32) -> st.SearchStrategy[int]:
    """A number of `width` bits, most likely within a few of one of the edges."""
    top = (1 << width) - 1
    close = st.builds(lambda edge, offset: (edge + offset) & top, st.sampled_from((0, *edges)), st.integers(-2, 34))
    return st.one_of(close, close, st.integers(0, top))


first_byte: Programs = st.binary(min_size=1, max_size=1)
a_little: Programs = st.binary(max_size=40)
some_ms: Programs = st.sampled_from((0, 5, 100, 3000, 40_000)).map(lambda ms: ms.to_bytes(2, "little"))


@st.composite
def segments(draw: st.DrawFn, *convs: int, payload: Programs = a_little) -> bytes:
    """A datagram of one to three segments, the last one perhaps cut or with a wrong length."""
    datagram = b""
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        data = draw(payload)
        length = draw(st.sampled_from((len(data),) * 8 + (len(data) + 1, 0xFFFFFFFF)))
        datagram += KCP_SEGMENT.pack(
            draw(st.sampled_from((*convs, *convs, *convs, 99))),
            draw(st.sampled_from((KCP_PUSH,) * 4 + tuple(range(KCP_PUSH - 1, KCP_WINS + 2)))),
            0,
            draw(near(32, width=16)),
            draw(near(0x80000000)),
            draw(near(32, 0x80000000)),
            draw(near(32)),
            length,
        )
        datagram += data
    return datagram


fec_packets: Programs = st.builds(
    lambda seqid, kind, size, data: FEC_HEADER.pack(seqid, kind, size) + data,
    near(13, 0xFFFFFFFF // 13 * 13),
    st.sampled_from((0xF1, 0xF1, 0xF1, 0xF2, 0xF2, 0xF3)),
    near(2, 42, width=16),
    st.binary(max_size=60),
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """One smux frame, of version 1 more often than not."""
    version = draw(st.sampled_from((1, 1, 1, 2, 2, 0, 3)))
    command = draw(st.sampled_from((0, 0, 1, SMUX_PSH, SMUX_PSH, SMUX_PSH, 3, SMUX_UPD, 5)))
    data = draw(a_little) if command == SMUX_PSH else b""
    if command == SMUX_UPD:
        data = SMUX_UPDATE.pack(draw(near(100)), draw(near(100, 65_536)))
    length = draw(st.sampled_from((len(data),) * 8 + (len(data) + 1, 0xFFFF)))
    return SMUX_HEADER.pack(version, command, length, draw(st.integers(0, 6))) + data


sids: Programs = st.integers(0, 6).map(lambda sid: sid.to_bytes(4, "little"))


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """One snappy chunk: good, damaged, or only a header that promises something."""
    match draw(st.integers(0, 4)):
        case 0:
            return SNAPPY_IDENTIFIER
        case 1:
            return struct.pack("<I", draw(st.integers(0, 0xFF)) | draw(near(10, 76_494, 65_540, width=24)) << 8)
        case 2:
            return struct.pack("<I", draw(st.sampled_from((0x80, 0xFE, 0x02, 0x7F))) | 5 << 8) + b"12345"
        case damage:
            content = draw(st.binary(max_size=50)) * draw(st.sampled_from((1, 100, 3000)))
            made = bytearray(SnappyEncoder().encode([content]).removeprefix(SNAPPY_IDENTIFIER))
            if damage == 4 and made:
                made[draw(st.integers(0, len(made) - 1))] ^= draw(st.integers(1, 255))
            return bytes(made)


json_values = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 70_000), st.floats(), st.text(max_size=12), st.lists(st.integers())
)
json_keys = st.one_of(st.sampled_from([option.json_key for option in OPTIONS]), st.text(max_size=6))
json_files: Programs = st.dictionaries(json_keys, json_values, max_size=6).map(lambda found: json.dumps(found).encode())

address_texts: Programs = st.one_of(
    st.text(":[]-,.%@/ 0123456789abcdefx\u0663", max_size=24), st.text(max_size=12)
).map(lambda text: text.encode("utf-8", "surrogatepass"))

PROGRAMS: dict[str, Programs] = {
    "fec": program(step(st.integers(0, 1), fec_packets), start=first_byte),
    "kcp": program(
        step(st.integers(0, 1), segments(CONV)),
        step(2, some_ms),
        step(3),
        step(4, st.binary(min_size=1, max_size=3000)),
    ),
    "crypt": program(step(st.integers(0, 1), st.binary(max_size=100)), start=first_byte, most=8),
    "gro": st.builds(
        lambda start, total, size: struct.pack("<HH", start, total) + b"\x11\x68" + struct.pack("=I", size),
        near(60_000, width=16),
        near(1350, 13_500, 65_000, width=16),
        near(1350, 1500),
    ),
    "snappy": st.tuples(
        st.just(SNAPPY_IDENTIFIER) | chunks(), st.lists(chunks(), max_size=8), st.integers(1, 5000)
    ).map(lambda parts: cut(parts[0] + b"".join(parts[1]), parts[2])),
    "smux": program(
        step(0, frames()),
        step(0, frames()),
        step(st.integers(1, 7), st.builds(bytes.__add__, sids, a_little)),
        start=first_byte,
    ),
    "conversation": program(
        step(0, segments(CONV, payload=frames())),
        step(st.integers(1, 2), frames()),
        step(7, fec_packets),
        step(3, some_ms),
        step(st.integers(4, 6), st.builds(bytes.__add__, sids, a_little)),
        start=first_byte,
    ),
    "listener": program(
        step(st.integers(0, 7), segments(1, 2, 3, payload=frames())),
        step(st.integers(4, 7), fec_packets),
        step(8, some_ms),
    ),
    "config": st.builds(bytes.__add__, first_byte, json_files),
    "address": address_texts,
}


def cut(data: bytes, size: int) -> bytes:
    """The bytes as a program, `size` at a time."""
    return b"".join(record(0, data[at : at + size]) for at in range(0, len(data), size))
