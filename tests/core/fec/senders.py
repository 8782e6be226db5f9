"""Both ends of error correction without a network, for the tests of this folder."""

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.strided import PACKET_ALIGNMENT
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.fec.decoder import FecDecoder
from kcptun_lite.core.fec.encoder import FecEncoder
from kcptun_lite.core.wire import FEC_DATA, FEC_HEADER, FEC_HEADER_SIZE, FEC_PARITY

CODES = [(10, 3), (1, 1), (3, 1), (2, 4), (20, 10), (70, 30), (200, 56)]
HEADROOM, TAILROOM = 12, 16
EMPTY = 0xEE


def vectors(name: str) -> Any:
    return json.loads((Path(__file__).parents[2] / "vectors" / f"{name}.json").read_text())


def unhex(packets: list[str] | None) -> list[bytes]:
    return [bytes.fromhex(packet) for packet in packets or []]


class Sender:
    """An encoder and its batch."""

    def __init__(self, data: int, parity: int, capacity: int = 1 << 19) -> None:
        self.encoder = FecEncoder(data, parity, HEADROOM, TAILROOM)
        self.batch = PacketBatch(memoryview(bytearray(capacity)))

    def send(self, datagrams: list[bytes], now: int = 0, *, behind: int = 0) -> list[bytes]:
        """The packets, FEC header first, that `datagrams` become in one batch that holds `behind` others already."""
        batch = self.batch
        batch.clear()
        batch.arena[:] = bytes([EMPTY]) * batch.capacity
        for _ in range(behind):
            batch.commit(50)
        for datagram in datagrams:
            at = batch.end + HEADROOM + FEC_HEADER_SIZE
            batch.arena[at : at + len(datagram)] = datagram
            batch.commit(HEADROOM + FEC_HEADER_SIZE + len(datagram) + TAILROOM)
        self.encoder.protect(batch, behind, now)
        slots = sorted(zip(batch.starts, batch.lengths, strict=True))
        for (start, length), (following, _) in zip(slots, [*slots[1:], (batch.end, 0)], strict=True):
            assert start % PACKET_ALIGNMENT == 0
            assert start + length <= following, "packets overlap"
        packets = [bytes(view) for view in batch.views()[behind:]]
        assert all(set(packet[:HEADROOM] + packet[len(packet) - TAILROOM :]) <= {EMPTY} for packet in packets)
        return [packet[HEADROOM : len(packet) - TAILROOM] for packet in packets]


class Receiver:
    """A decoder; each call's packets are poisoned afterwards, as a batch is."""

    def __init__(self, data: int = 0, parity: int = 0) -> None:
        """It knows the sender's shards already, from packets long ago, if they are given."""
        self.counters = Counters()
        self.decoder = FecDecoder(self.counters)
        if data:
            seqids = range(1000 * (data + parity) - 1, 1001 * (data + parity) + 1)
            kinds = [FEC_PARITY] + [FEC_DATA] * data + [FEC_PARITY] * parity + [FEC_DATA]
            packets = [FEC_HEADER.pack(seqid, kind, 0) for seqid, kind in zip(seqids, kinds, strict=True)]
            self.decoder.receive([memoryview(packet) for packet in packets])
            assert self.decoder.shards == (data, parity)
            while self.decoder._groups:
                self.decoder._forget_oldest()
            self.counters.fec_parity = self.counters.fec_short = self.counters.fec_errors = 0

    def receive(self, packets: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        buffers = [bytearray(packet) for packet in packets]
        direct, recovered = self.decoder.receive([memoryview(buffer) for buffer in buffers])
        result = [bytes(datagram) for datagram in direct], [bytes(datagram) for datagram in recovered]
        for buffer in buffers:
            buffer[:] = b"\xdd" * len(buffer)
        groups = [group for group in self.decoder._groups.values() if group]
        held = sum(len(shard) for group in groups for shard in group.shards.values())
        held += sum(len(packet) for _, _, packets in self.decoder._early for packet in packets)
        assert self.decoder.held_bytes == held
        return result


def some_datagrams(count: int, rng: random.Random, longest: int = 60) -> list[bytes]:
    return [rng.randbytes(rng.choice([24, longest, longest, rng.randint(0, longest)])) for _ in range(count)]


def in_batches(packets: list[bytes], rng: random.Random, largest: int = 90) -> Iterator[list[bytes]]:
    rest = iter(packets)
    while incoming := list(islice(rest, rng.randint(1, largest))):
        yield incoming


def seqid_of(packet: bytes) -> int:
    return int.from_bytes(packet[:4], "little")


def is_data(packet: bytes) -> bool:
    return packet[4] == FEC_DATA
