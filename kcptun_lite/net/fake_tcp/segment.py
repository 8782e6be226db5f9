"""TCP segments: their headers and checksums (RFC 9293, 3.1; timestamps: RFC 7323).

In      ports, numbers, flags, payloads
Out     headers to send, the fields of those that came
Knows   the layout. Not: which numbers are right (net/fake_tcp/flow)
Cost    1 us for a header, 3 us for the sum of 1350 bytes, 0.4 us with numpy where payloads are many
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from kcptun_lite.core.batch.strided import MANY
from kcptun_lite.core.lazy_imports import loaded_numpy

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

HEADER = struct.Struct("!HHIIBBHHH")  # ports, seq, ack, size in words << 4, flags, window, checksum, urgent
NOP, TIMESTAMP, TIMESTAMP_SIZE = 1, 8, 10
TIMESTAMP_OPTION = NOP, NOP, TIMESTAMP, TIMESTAMP_SIZE  # as everybody lays it out, then ours, the peer's latest
TIMESTAMP_OPTION_SUM = 0x0101_080A
HEADER_WITH_TIMESTAMPS = struct.Struct(f"{HEADER.format}BBBBII")
TIMESTAMPS = struct.Struct("!BBBBII")
WINDOW = 0xFFFF  # at its largest, as in kcptun: nobody here keeps to it, boxes on the way measure what we send by it
MASK32 = 0xFFFF_FFFF
MASK16 = 0xFFFF  # and the modulus of the checksum, by which a number and the sum of its 16-bit words are the same
HALVES = [(bits, (1 << bits) - 1) for bits in (5408, 2704)]  # whole words: half of 1350 bytes, and of that; masks


class Segment(NamedTuple):
    """The fields of a TCP header."""

    source_port: int
    seq: int
    ack: int
    flags: int
    size: int
    "bytes of the header with its options"


def parse(header: memoryview) -> Segment | None:
    """What begins with a TCP header; None if it is none."""
    if len(header) < HEADER.size:
        return None
    source_port, _, seq, ack, words, flags, _, _, _ = HEADER.unpack_from(header)
    size = (words >> 4) * 4
    return Segment(source_port, seq, ack, flags, size) if HEADER.size <= size <= len(header) else None


def timestamp(options: memoryview) -> int | None:
    """The sender's timestamp among the options of a TCP header; None if it has none, or they make no sense."""
    if len(options) == TIMESTAMPS.size:
        *option, told, _ = TIMESTAMPS.unpack(options)
        if tuple(option) == TIMESTAMP_OPTION:
            return int(told)
    at = 0
    while at + 1 < len(options) and options[at]:
        if options[at] == NOP:
            at += 1
            continue
        size = options[at + 1]
        if options[at] == TIMESTAMP and size == TIMESTAMP_SIZE and at + size <= len(options):
            return int.from_bytes(options[at + 2 : at + 6], "big")
        at += max(2, size)
    return None


def before(one: int, other: int) -> bool:
    """Whether a sequence number lies before another one, on the circle of 32 bits."""
    return ((one - other) & MASK32) > 1 << 31


def make_headers(
    ports: tuple[int, int],
    numbers: tuple[int, int],
    flags: int,
    timestamps: tuple[int, int] | None,
    payloads: Sequence[memoryview],
    pseudo_header_sum: int | None,
) -> list[bytes]:
    """What goes before each of some payloads that follow one another.

    `ports`: ours, the peer's. `numbers`: seq of the first, ack. `timestamps`: ours and the peer's, if there are any.
    `pseudo_header_sum`: addresses and protocol, added up; None: the kernel fills the checksum in.
    """
    seq, ack = numbers
    layout, option_sum = HEADER, 0
    options: tuple[int, ...] = ()
    if timestamps:
        layout, options = HEADER_WITH_TIMESTAMPS, (*TIMESTAMP_OPTION, *timestamps)
        option_sum = TIMESTAMP_OPTION_SUM + sum(timestamps)
    words = layout.size // 4 << 4
    # 2**16 is 1 by this modulus: numbers of 32 bits need not be taken apart. Only the last two differ by payload.
    same = (ports[0] << 16) + ports[1] + ack + (words << 8) + flags + WINDOW + option_sum
    same += layout.size + (pseudo_header_sum or 0)
    sums = [0] * len(payloads) if pseudo_header_sum is None else payload_sums(payloads)
    headers = []
    for payload, payload_sum in zip(payloads, sums, strict=True):
        size, checksum = len(payload), 0
        if pseudo_header_sum is not None:
            checksum = MASK16 - (same + seq + size + payload_sum) % MASK16
        headers.append(layout.pack(*ports, seq, ack, words, flags, WINDOW, checksum, 0, *options))
        seq = seq + size & MASK32
    return headers


def payload_sums(payloads: Sequence[memoryview]) -> list[int]:
    """A number for each payload with the same remainder by 65535 as the sum of its 16-bit words."""
    size = len(payloads[0])
    if len(payloads) >= MANY and size % 2 == 0 and all(len(payload) == size for payload in payloads):
        if np := loaded_numpy():
            words = np.frombuffer(b"".join(payloads), ">u2").reshape(len(payloads), size // 2)
            sums: list[int] = words.sum(axis=1, dtype=np.uint32).tolist()
            return sums
    return [_remainder(payload) for payload in payloads]


def _remainder(payload: memoryview) -> int:
    number = int.from_bytes(payload, "big")
    for bits, mask in HALVES:  # quicker than to divide the whole
        number = (number & mask) + (number >> bits)
    remainder = number % MASK16
    return remainder << 8 if len(payload) % 2 else remainder  # as if there were a zero byte behind it
