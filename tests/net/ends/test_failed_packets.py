"""Suspects: which packets are kept for a closer look, and how few."""

from typing import cast

from kcptun_lite.core.batch.buffers import Address, PacketBatch
from kcptun_lite.core.counters import Counters
from kcptun_lite.net.ends.failed_packets import SAMPLE_EVERY, SUSPECT_FOR, Sample, Sampler, Suspects
from kcptun_lite.net.udp.udp_socket import UdpSocket

UDP = cast(UdpSocket, None)
FRIEND: Address = ("10.0.0.1", 1)
STRANGER: Address = ("10.0.0.2", 2)


def look(sampler: Sampler, sources: list[Address], now: int, *, good: tuple[Address, ...] = (FRIEND,)) -> None:
    """A tray with one packet of each source, its host and port as text; those that are not good fail."""
    batch = PacketBatch(memoryview(bytearray(64 * max(1, len(sources)))))
    for address in sources:
        text = f"{address[0]}:{address[1]} at {now}".encode()
        batch.arena[batch.end : batch.end + len(text)] = text
        batch.commit(len(text))
        batch.addresses.append(address)
    sampler.before(batch, now)
    batch.arena[:] = bytes(len(batch.arena))  # as decryption does
    for index, address in enumerate(sources):
        if address not in good:
            batch.drop(index)
    if not all(batch.lengths):
        sampler.after(batch, now)


def make() -> tuple[Sampler, Suspects, Counters]:
    suspects, counters = Suspects(), Counters(in_packets=1)
    return Sampler(suspects, counters, UDP), suspects, counters


def test_the_second_bad_packet_of_an_address_is_the_sample() -> None:
    sampler, suspects, _ = make()
    look(sampler, [FRIEND, STRANGER, FRIEND], 5000)
    assert suspects.take() is None
    look(sampler, [FRIEND, FRIEND], 5001)
    look(sampler, [FRIEND, FRIEND, STRANGER], 5002)
    assert suspects.take() == Sample(STRANGER, b"10.0.0.2:2 at 5002", UDP)
    assert suspects.take() is None


def test_while_nothing_good_has_come_the_first_bad_packet_will_do() -> None:
    sampler, suspects, counters = make()
    counters.in_packets = 0
    look(sampler, [STRANGER], 5000)
    assert suspects.take() == Sample(STRANGER, b"10.0.0.2:2 at 5000", UDP)


def test_one_sample_a_second_for_all_sockets() -> None:
    suspects = Suspects()
    samplers = [Sampler(suspects, Counters(), UDP) for _ in range(3)]
    taken = 0
    for now in range(5000, 5000 + 10 * SAMPLE_EVERY, 10):
        for sampler in samplers:
            look(sampler, [STRANGER], now)
        taken += suspects.take() is not None
    assert taken == 10


def test_a_suspect_that_does_not_come_back_makes_room_for_the_next() -> None:
    sampler, suspects, _ = make()
    look(sampler, [("10.1.1.1", 1)], 5000)
    look(sampler, [STRANGER], 5001)  # not its turn yet
    look(sampler, [STRANGER], 5002)
    assert suspects.take() is None
    look(sampler, [STRANGER], 5000 + SUSPECT_FOR)
    look(sampler, [STRANGER], 5001 + SUSPECT_FOR)
    sample = suspects.take()
    assert sample and sample.source == STRANGER


def test_a_suspect_whose_next_packet_is_good_is_cleared() -> None:
    sampler, suspects, _ = make()
    look(sampler, [FRIEND], 5000, good=())
    look(sampler, [FRIEND, STRANGER], 5001)
    assert suspects.take() is None
    look(sampler, [STRANGER], 5002)
    sample = suspects.take()
    assert sample and sample.source == STRANGER
