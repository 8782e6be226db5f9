"""The UDP socket: batches in and out, with offload and without it, and runs cut and laid by the kernel's rules."""

import random

import pytest

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.wire import MTU_MAX
from kcptun_lite.net.udp import udp_socket as peer_socket
from kcptun_lite.net.udp.address import mapped
from kcptun_lite.net.udp.udp_socket import GSO_BYTES, GSO_PACKETS, READS_MAX, UdpOptions
from tests.net.udp.datagrams import BOTH_ROADS, FAST, PLAIN, SEED, Opener, make_batch, make_packets, receive_all


@BOTH_ROADS
@pytest.mark.parametrize(
    "sizes",
    [
        [100],
        [1350] * 10,
        [1344] * 48,
        [1350] * 9 + [40],
        [40] + [1350] * 9,
        [1350, 1350, 77, 1350, 1350, 1350, 78, 77, 1500, 1],
        [1350] * 100,
        [20] * 200,
        list(range(1, 200)),
        list(range(200, 0, -1)),
        [1500] * 44,
    ],
    ids=lambda sizes: f"{len(sizes)}x{sizes[0]}",
)
def test_packets_arrive_whole_and_in_order(open_udp: Opener, options: UdpOptions, sizes: list[int]) -> None:
    here, there = open_udp(options=options), open_udp(options=options)
    packets = make_packets(sizes)
    assert here.send(packets, there.address) == len(packets)
    arrived, sources = receive_all(there, len(packets))
    assert arrived == [bytes(packet) for packet in packets]
    assert sources == {here.address}
    assert here.last_error is None and there.last_error is None


@BOTH_ROADS
def test_random_mixes_arrive_in_order(open_udp: Opener, options: UdpOptions) -> None:
    here, there = open_udp(options=options), open_udp(options=options)
    rng = random.Random(SEED)
    for _ in range(20):
        packets = make_packets([rng.choice([24, 70, 512, 1350, 1350, 1350]) for _ in range(rng.randrange(1, 90))])
        assert here.send(packets, there.address) == len(packets)
        assert receive_all(there, len(packets))[0] == [bytes(packet) for packet in packets]


@pytest.mark.parametrize(("here_on", "there_on"), [(FAST, PLAIN), (PLAIN, FAST)], ids=["out", "in"])
def test_one_end_without_offload(open_udp: Opener, here_on: UdpOptions, there_on: UdpOptions) -> None:
    here, there = open_udp(options=here_on), open_udp(options=there_on)
    packets = make_packets([1350] * 60 + [90])
    assert here.send(packets, there.address) == 61
    assert receive_all(there, 61)[0] == [bytes(packet) for packet in packets]


def test_offload_makes_a_few_calls_of_many_packets(open_udp: Opener) -> None:
    here, there = open_udp(), open_udp()
    assert repr(here) == f"<UdpSocket 127.0.0.1:{here.address[1]} gso+gro>"
    here.send(make_packets([1350] * 48), there.address)
    batch = make_batch()
    assert there.receive(batch) == 48
    assert batch.addresses == [here.address] * 48


def test_several_peers_in_one_batch(open_udp: Opener) -> None:
    there = open_udp()
    peers = [open_udp() for _ in range(5)]
    for peer in peers:
        peer.send(make_packets([300] * 3), there.address)
    batch = make_batch()
    while len(batch) < 15:
        there.receive(batch)
    assert batch.addresses == [peer.address for peer in peers for _ in range(3)]


@BOTH_ROADS
def test_ipv6_alone_and_ipv4_through_a_dual_stack_socket(open_udp: Opener, options: UdpOptions) -> None:
    everywhere = open_udp("", options)
    port = everywhere.address[1]
    packets = make_packets([1350] * 20 + [10])
    for host, home in (("::1", ("::1", port, 0, 0)), ("127.0.0.1", ("127.0.0.1", port))):
        peer = open_udp(host, options)
        assert peer.send(packets, home) == 21
        arrived, sources = receive_all(everywhere, 21)
        assert arrived == [bytes(packet) for packet in packets]
        assert sources == {mapped(peer.address)}
        # and the answer, to the address as it was received
        assert everywhere.send(packets, sources.pop()) == 21
        assert receive_all(peer, 21)[0] == arrived


@BOTH_ROADS
def test_empty_and_oversized_datagrams_are_dropped(open_udp: Opener, options: UdpOptions) -> None:
    here, there = open_udp(options=PLAIN), open_udp(options=options)
    good = make_packets([MTU_MAX, 1])
    strange = make_packets([MTU_MAX + 1, 0, 9000, 65_000])
    here.send([good[0], *strange, good[1]], there.address)
    assert receive_all(there, 2)[0] == [bytes(packet) for packet in good]


def test_an_oversized_run_is_dropped_whole(open_udp: Opener) -> None:
    here, there = open_udp(), open_udp()
    here.send(make_packets([2000] * 5), there.address)
    here.send(make_packets([30]), there.address)
    assert [len(packet) for packet in receive_all(there, 1)[0]] == [30]


def test_a_batch_that_fills_leaves_the_rest_for_the_next(open_udp: Opener) -> None:
    here, there = open_udp(options=PLAIN), open_udp(options=PLAIN)
    incoming = 64 * 1024
    here.send(make_packets([1350] * 100), there.address)
    first = there.receive(PacketBatch(memoryview(bytearray(incoming))))
    assert first == incoming // 1360
    assert len(receive_all(there, 100 - first)[0]) == 100 - first


@BOTH_ROADS
def test_a_flood_of_useless_datagrams_does_not_hold_back_a_good_one(open_udp: Opener, options: UdpOptions) -> None:
    here, there = open_udp(options=PLAIN), open_udp(options=options)
    here.send(make_packets([50] + [0] * (READS_MAX + 50)), there.address)
    batch = make_batch()
    assert there.receive(batch) == 1
    batch.clear()
    assert there.receive(batch) == 0  # the rest of the flood was still waiting


# -- cutting into runs, laying runs ------------------------------------------------------------


def test_runs_keep_order_and_the_kernel_s_rules() -> None:
    rng = random.Random(SEED)
    for _ in range(300):
        sizes = [rng.choice([0, 1, 24, 1350, 1350, 1350, 1350, 9000]) for _ in range(rng.randrange(200))]
        packets = make_packets(sizes)
        runs = list(peer_socket._runs(packets))
        assert [packet for run in runs for packet in run] == packets
        for run in runs:
            first, *others = [len(packet) for packet in run]
            assert len(run) <= GSO_PACKETS
            assert len(run) == 1 or first + sum(others) <= GSO_BYTES
            assert all(size == first for size in others[:-1])
            assert not others or 0 < others[-1] <= first
    assert [len(run) for run in peer_socket._runs(make_packets([1350] * 100 + [7]))] == [48, 48, 5]
    assert [len(run) for run in peer_socket._runs(make_packets([20] * 130))] == [64, 64, 2]


def test_a_run_is_laid_at_multiples_of_16() -> None:
    rng = random.Random(SEED)
    for size in [1, 15, 16, 17, 100, 1344, 1350, 1499, 1500]:
        for count in (1, 2, 3, 40):
            total = size * (count - 1) + rng.randint(1, size)
            content = rng.randbytes(total)
            batch = make_batch()
            batch.commit(33)
            batch.arena[batch.end : batch.end + total] = content
            peer_socket._lay_run(batch, size, total)
            assert all(start % 16 == 0 for start in [*batch.starts, batch.end])
            laid = [bytes(batch.packet(index)) for index in range(1, len(batch))]
            assert laid == [content[at : at + size] for at in range(0, total, size)]
            assert batch.end >= batch.starts[-1] + batch.lengths[-1]


def test_a_run_of_small_packets_behind_large_ones_loses_none() -> None:
    batch = PacketBatch(memoryview(bytearray(128 * 1024)))
    content = random.Random(SEED).randbytes(48 * 1344)
    for size, count in ((1344, 40), (64, 100)):
        total = size * count
        batch.arena[batch.end : batch.end + total] = content[:total]
        peer_socket._lay_run(batch, size, total)
    assert [len(packet) for packet in batch.packets()] == [1344] * 40 + [64] * 100
    assert b"".join(batch.packets()) == content[: 40 * 1344] + content[: 100 * 64]


def test_a_run_too_long_for_the_batch_is_cut() -> None:
    batch = PacketBatch(memoryview(bytearray(4096)))
    peer_socket._lay_run(batch, 1, 4096)
    assert len(batch) == 4096 // 16 and batch.end == 4096
