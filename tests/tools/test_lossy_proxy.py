"""The lossy proxy: what it does to datagrams is what it was told, and it comes back with its seed."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from tests.programs import wait_until
from tools.lossy_proxy import Lane, Link, LossyProxy


def carry(link: Link, seed: int, count: int = 4000) -> tuple[Lane, list[bytes]]:
    """`count` numbered datagrams, one each millisecond of a made-up clock, through one lane to its end."""
    lane = Lane(link, seed)
    arrived: list[bytes] = []
    for number in range(count):
        lane.offer(b"%06d" % number, arrived.append, number / 1000)
        lane.release(number / 1000)
    lane.release(1e9)
    return lane, arrived


def test_a_clean_link_changes_nothing() -> None:
    lane, arrived = carry(Link(), 1)
    assert arrived == [b"%06d" % number for number in range(4000)]
    assert lane.counters.delivered == lane.counters.received == 4000


def test_the_seed_decides_what_is_lost() -> None:
    link = Link(loss=0.1, duplicate=0.05, reorder=0.05, jitter_ms=3)
    assert carry(link, 7)[1] == carry(link, 7)[1]
    assert carry(link, 7)[1] != carry(link, 8)[1]


def test_counts_are_the_truth() -> None:
    lane, arrived = carry(Link(loss=0.1, duplicate=0.05, reorder=0.05, delay_ms=20), 7)
    counters = lane.counters
    times = Counter(arrived)
    assert counters.lost == 4000 - len(times)
    assert counters.duplicated == sum(count == 2 for count in times.values())
    assert counters.delivered == len(arrived)
    assert 300 < counters.lost < 500 and 120 < counters.reordered < 280
    overtaken = sum(later < earlier for earlier, later in pairwise(arrived))
    assert 0 < overtaken <= counters.reordered


def test_delay_holds_back_and_keeps_the_order() -> None:
    lane = Lane(Link(delay_ms=20), 1)
    arrived: list[bytes] = []
    lane.offer(b"one", arrived.append, 0.0)
    lane.offer(b"two", arrived.append, 0.001)
    assert lane.next_due() == pytest.approx(0.020)
    lane.release(0.0199)
    assert arrived == []
    lane.release(0.0205)
    assert arrived == [b"one"]
    lane.release(0.0211)
    assert arrived == [b"one", b"two"] and lane.next_due() is None


def test_a_rate_paces_and_overflows() -> None:
    lane = Lane(Link(rate_mbit=8, queue_kb=10), 1)  # 1000 bytes take 1 ms, ten wait
    arrived: list[bytes] = []
    for _ in range(20):
        lane.offer(bytes(1000), arrived.append, 0.0)
    assert lane.counters.overflowed == 10
    lane.release(0.0051)
    assert len(arrived) == 5
    lane.release(1.0)
    assert len(arrived) == 10


def test_spoilt_copies_come_with_the_good_ones() -> None:
    lane, arrived = carry(Link(spoil=0.5), 3)
    assert len(arrived) == 4000 + lane.counters.spoilt
    good = {b"%06d" % number for number in range(4000)}
    assert good <= set(arrived)
    damaged = [data for data in arrived if data not in good]
    assert 0.9 * lane.counters.spoilt < len(damaged)
    assert Lane(Link(spoil=1), 1)._spoil(b"") is not None


def test_impossible_links_are_refused() -> None:
    for wrong in ({"loss": 1.5}, {"reorder": -0.1}, {"delay_ms": -1}):
        with pytest.raises(ValueError):
            Link(**wrong)


@contextmanager
def udp_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock


def test_each_client_gets_its_own_answers() -> None:
    with udp_socket() as server, udp_socket() as first, udp_socket() as second:
        with LossyProxy(f"127.0.0.1:{server.getsockname()[1]}", Link(delay_ms=1)) as proxy:
            host, _, port = proxy.address.rpartition(":")
            for client, word in ((first, b"one"), (second, b"two"), (first, b"three")):
                client.sendto(word, (host, int(port)))
            seen: dict[tuple[str, int], list[bytes]] = {}
            for _ in range(3):
                word, address = server.recvfrom(100)
                seen.setdefault(address, []).append(word)
                server.sendto(word.upper(), address)
            assert sorted(seen.values()) == [[b"one", b"three"], [b"two"]]
            assert [first.recv(100), first.recv(100), second.recv(100)] == [b"ONE", b"THREE", b"TWO"]
        assert proxy.up.counters.delivered == proxy.down.counters.delivered == 3


def test_a_dead_server_is_counted_not_fatal() -> None:
    with udp_socket() as server, udp_socket() as client:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        with LossyProxy(where, Link(duplicate=1)) as proxy:
            server.close()
            host, _, port = proxy.address.rpartition(":")
            for number in range(1, 4):
                client.sendto(b"anybody?", (host, int(port)))
                wait_until(lambda: proxy.up.counters.received == number, "the proxy serves on")  # noqa: B023
        assert proxy.up.counters.refused >= 1
