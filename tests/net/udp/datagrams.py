"""What the tests of the UDP socket send through it: datagrams of any size, and the batches they come in.

In      sizes, sockets
Out     packets without a pattern; packets in order of arrival, and where they came from
Knows   UdpSocket and its batches. Not: what is in a packet
"""

import random
import time
from collections.abc import Callable, Sequence

import pytest

from kcptun_lite.core.batch.packets import Address, PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES
from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket
from tests.net.fakes import PATIENCE_S

SEED = 20_170_525
FAST = UdpOptions()
PLAIN = UdpOptions(offload=False)
BOTH_ROADS = pytest.mark.parametrize("options", [FAST, PLAIN], ids=["offload", "plain"])
Opener = Callable[..., UdpSocket]


def make_packets(sizes: Sequence[int]) -> list[memoryview]:
    rng = random.Random(SEED)
    return [memoryview(rng.randbytes(size)) for size in sizes]


def make_batch() -> PacketBatch:
    return PacketBatch(memoryview(bytearray(BATCH_BYTES)))


def receive_all(udp: UdpSocket, count: int) -> tuple[list[bytes], set[Address]]:
    """`count` packets in order of arrival, and where they came from; checks every batch."""
    packets: list[bytes] = []
    sources: set[Address] = set()
    deadline = time.monotonic() + PATIENCE_S
    while len(packets) < count and time.monotonic() < deadline:
        batch = make_batch()
        received = udp.receive(batch)
        assert received == len(batch) == len(batch.lengths) == len(batch.addresses)
        assert all(start % 16 == 0 for start in batch.starts)
        assert batch.end <= batch.capacity
        packets += [bytes(packet) for packet in batch.views()]
        sources.update(batch.addresses)
    return packets, sources
