"""The simulated network does what it says."""

import pytest

from tests.helpers import KcpPair, SimulatedLink, kcp_params, noise

PACKET = memoryview(bytes(range(100)))


def arrivals(link: SimulatedLink, *, packets: int = 1000, gap: int = 1) -> list[tuple[int, int]]:
    """(sent at, arrived at) of what got through, in order of arrival."""
    seen = []
    for number in range(packets):
        link.send(memoryview(number.to_bytes(4, "big") + bytes(968)), number * gap)
    while (now := link.next_arrival) is not None:
        seen += [(int.from_bytes(packet[:4], "big") * gap, now) for packet in link.receive(now)]
    return seen


def test_a_clean_link_keeps_order_and_time() -> None:
    assert arrivals(SimulatedLink(delay=7)) == [(n, n + 7) for n in range(1000)]


def test_nothing_arrives_early() -> None:
    link = SimulatedLink(delay=5)
    link.send(PACKET, 100)
    assert link.receive(104) == []
    assert link.receive(105) == [bytes(PACKET)]
    assert link.next_arrival is None


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.5, 1.0])
def test_loss_is_the_share_that_is_lost(loss: float) -> None:
    link = SimulatedLink(loss=loss)
    assert len(arrivals(link)) == pytest.approx(1000 * (1 - loss), abs=40)
    assert (link.sent, link.sent - link.lost) == (1000, len(arrivals(SimulatedLink(loss=loss))))


def test_same_seed_same_faults() -> None:
    faults = {"loss": 0.2, "jitter": 10, "reorder": 0.2, "duplicate": 0.2}
    assert arrivals(SimulatedLink(**faults, seed=3)) == arrivals(SimulatedLink(**faults, seed=3))
    assert arrivals(SimulatedLink(**faults, seed=3)) != arrivals(SimulatedLink(**faults, seed=4))


def test_jitter_and_reordering_let_packets_overtake() -> None:
    for link in (SimulatedLink(delay=10, jitter=10), SimulatedLink(delay=10, reorder=0.1)):
        seen = arrivals(link)
        assert [sent for sent, _ in seen] != sorted(sent for sent, _ in seen)
        assert {arrived - sent for sent, arrived in seen} <= set(range(10, 31))


def test_duplicates_come_on_top() -> None:
    assert len(arrivals(SimulatedLink(duplicate=0.3))) == pytest.approx(1300, abs=50)


def test_rate_spaces_packets() -> None:
    seen = arrivals(SimulatedLink(rate=1.0, queue=10**9), gap=0)  # 1000 bytes each with headers: 8 ms
    assert [arrived for _, arrived in seen] == [8 * (n + 1) for n in range(1000)]


def test_a_full_queue_drops() -> None:
    link = SimulatedLink(rate=1.0, queue=80)
    assert len(arrivals(link, gap=0)) == 10
    assert link.overflowed == link.lost == 990


def test_drive_gives_the_time_it_took() -> None:
    pair = KcpPair(kcp_params("fast3"), link={"delay": 10})
    pair.a.write(b"x")
    assert pair.drive(lambda: pair.b.received == b"x", limit=100) == 10
    assert pair.now == 10
    assert pair.drive(limit=55) == 55


def test_drive_says_what_it_waited_for_in_vain() -> None:
    pair = KcpPair(link={"delay": 10, "loss": 1.0})
    with pytest.raises(AssertionError, match="nothing will happen"):
        pair.drive(lambda: False, limit=1000)
    pair.a.write(b"x")
    with pytest.raises(AssertionError, match="not done after 1000 ms"):
        pair.drive(lambda: False, limit=1000)


def test_actions_happen_at_their_time() -> None:
    pair = KcpPair()
    times: list[int] = []
    for ms in (30, 10, 20):
        pair.at(ms, lambda: times.append(pair.now))
    pair.drive(limit=25)
    assert times == [10, 20]
    pair.drive(limit=25)
    assert times == [10, 20, 30]


def test_runs_can_be_repeated() -> None:
    def run() -> tuple[int, int]:
        pair = KcpPair(link={"delay": 10, "loss": 0.2, "jitter": 5}, seed=9)
        return pair.exchange(noise(50_000, 1), noise(50_000, 2), limit=10_000), pair.a_to_b.sent

    assert run() == run()
