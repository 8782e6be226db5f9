"""Suspects: which packets are kept for a closer look, and how few."""

from typing import cast

from kcptun_lite.core.batch.packets import Address, PacketBatch
from kcptun_lite.core.counters import Counters
from kcptun_lite.net.ends.failed_packets import SAMPLE_EVERY, SUSPECT_FOR, FailedPackets, FailedPacketSampler, Sample
from kcptun_lite.net.udp.udp_socket import UdpSocket

UDP = cast(UdpSocket, None)
FRIEND: Address = ("10.0.0.1", 1)
UNKNOWN: Address = ("10.0.0.2", 2)


def look(
    sampler: FailedPacketSampler, sources: list[Address], now: int, *, good: tuple[Address, ...] = (FRIEND,)
) -> None:
    """A batch with one packet of each source, its host and port as text; those that are not good fail."""
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


def make() -> tuple[FailedPacketSampler, FailedPackets, Counters]:
    failed_packets, counters = FailedPackets(), Counters(in_packets=1)
    return FailedPacketSampler(failed_packets, counters, UDP), failed_packets, counters


def test_the_second_bad_packet_of_an_address_is_the_sample() -> None:
    sampler, failed_packets, _ = make()
    look(sampler, [FRIEND, UNKNOWN, FRIEND], 5000)
    assert failed_packets.take() is None
    look(sampler, [FRIEND, FRIEND], 5001)
    look(sampler, [FRIEND, FRIEND, UNKNOWN], 5002)
    assert failed_packets.take() == Sample(UNKNOWN, b"10.0.0.2:2 at 5002", UDP)
    assert failed_packets.take() is None


def test_while_nothing_good_has_come_the_first_bad_packet_will_do() -> None:
    sampler, failed_packets, counters = make()
    counters.in_packets = 0
    look(sampler, [UNKNOWN], 5000)
    assert failed_packets.take() == Sample(UNKNOWN, b"10.0.0.2:2 at 5000", UDP)


def test_one_sample_a_second_for_all_sockets() -> None:
    failed_packets = FailedPackets()
    samplers = [FailedPacketSampler(failed_packets, Counters(), UDP) for _ in range(3)]
    taken = 0
    for now in range(5000, 5000 + 10 * SAMPLE_EVERY, 10):
        for sampler in samplers:
            look(sampler, [UNKNOWN], now)
        taken += failed_packets.take() is not None
    assert taken == 10


def test_a_suspect_that_does_not_come_back_makes_room_for_the_next() -> None:
    sampler, failed_packets, _ = make()
    look(sampler, [("10.1.1.1", 1)], 5000)
    look(sampler, [UNKNOWN], 5001)  # not its turn yet
    look(sampler, [UNKNOWN], 5002)
    assert failed_packets.take() is None
    look(sampler, [UNKNOWN], 5000 + SUSPECT_FOR)
    look(sampler, [UNKNOWN], 5001 + SUSPECT_FOR)
    sample = failed_packets.take()
    assert sample and sample.source == UNKNOWN


def test_a_suspect_whose_next_packet_is_good_is_cleared() -> None:
    sampler, failed_packets, _ = make()
    look(sampler, [FRIEND], 5000, good=())
    look(sampler, [FRIEND, UNKNOWN], 5001)
    assert failed_packets.take() is None
    look(sampler, [UNKNOWN], 5002)
    sample = failed_packets.take()
    assert sample and sample.source == UNKNOWN
