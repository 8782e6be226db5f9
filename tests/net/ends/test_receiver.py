"""The receiver: opened packets come out, bad ones and bugs do not stop it."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.pacing import COALESCING_REST, Coalescer
from kcptun_lite.net.ends import receiver
from kcptun_lite.net.ends.receiver import Receiver
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket
from tests.net.fakes import Peer, make_context, noise, wait_until


class Room:
    """A receiver under the method aes, and a peer who has the key."""

    def __init__(self) -> None:
        self.context = make_context(crypt="aes", loop=EventLoop())
        self.udp = UdpSocket.listen("127.0.0.1", 0, UdpOptions())
        self.counters = Counters()
        self.received: list[bytes] = []
        self.on_batch: Callable[[PacketBatch], None] = lambda batch: None
        self.peer = Peer()
        found = Receiver(self.udp, self.context, self.counters, self._deliver, partial(self.udp.receive, wait=False))
        self.udp.watch(self.context.loop, found.receive_ready)
        self.context.loop.start()

    def _deliver(self, batch: PacketBatch, now: int) -> None:
        self.on_batch(batch)
        for source, packets in batch.by_source():
            assert source == self.peer.address
            self.received += map(bytes, packets)

    def send(self, body: bytes) -> None:
        """A packet of our own kind."""
        crypt = self.context.make_crypt()
        batch = PacketBatch(memoryview(bytearray(2048)))
        batch.arena[crypt.headroom : crypt.headroom + len(body)] = body
        batch.commit(crypt.headroom + len(body) + crypt.tailroom)
        crypt.seal(batch)
        self.peer.send(batch.packet(0), self.udp.address)

    def wait_for(self, *bodies: bytes) -> None:
        wait_until(lambda: self.received == list(bodies))


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    room.udp.close()
    room.context.loop.stop()
    room.peer.close()
    assert room.context.pool.usage().in_use_bytes == 0


def test_packets_that_come_thick_are_let_gather(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(receiver, "sleep", rests.append)
    monkeypatch.setattr(Coalescer, "wants_rest", lambda coalescer, packets, size, now: size >= 1000)
    room.send(noise(1000, seed=1))
    wait_until(lambda: len(rests) == 1)
    room.send(noise(30, seed=2))
    room.wait_for(noise(1000, seed=1), noise(30, seed=2))
    assert rests == [COALESCING_REST / 1000]


def test_packets_come_out_opened_and_in_order(room: Room) -> None:
    bodies = [noise(size, seed=size) for size in (24, 100, 1400, 25)]
    for body in bodies:
        room.send(body)
    room.wait_for(*bodies)
    assert (room.counters.in_packets, room.counters.in_bytes) == (4, sum(map(len, bodies)))


def test_bad_packets_cost_a_count(room: Room) -> None:
    for size in (1, 19, 20, 500, 1500):
        room.peer.send(memoryview(noise(size)), room.udp.address)
    room.send(noise(30))
    room.wait_for(noise(30))
    assert room.counters.in_checksum_errors == 5


def test_a_bug_behind_it_costs_one_batch(room: Room) -> None:
    def fail(batch: PacketBatch) -> None:
        room.on_batch = lambda batch: None
        raise ZeroDivisionError("a bug")

    room.on_batch = fail
    room.send(noise(40))
    wait_until(lambda: room.on_batch is not fail)
    room.send(noise(30))
    room.wait_for(noise(30))


def test_a_sample_of_what_fails_is_kept_for_the_diagnosis(room: Room) -> None:
    bad = noise(60)
    room.peer.send(memoryview(bad), room.udp.address)
    wait_until(lambda: room.counters.in_checksum_errors == 1)
    room.peer.send(memoryview(bad), room.udp.address)
    wait_until(lambda: room.counters.in_checksum_errors == 2)
    sample = room.context.failed_packets.take()
    assert sample is not None
    assert (sample.source, sample.packet, sample.udp) == (room.peer.address, bad, room.udp)
