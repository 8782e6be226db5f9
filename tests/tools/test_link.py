"""The emulated line of tools/link.py, without devices: what each packet meets, told by a clock of our own."""

from random import Random

import pytest

from tools.link import Lane, Line, Outages

PACKET = bytes(1400)


def send(lane: Lane, count: int, *, gap: float = 0.0, start: float = 0.0) -> None:
    for index in range(count):
        lane.put(index.to_bytes(4, "big") + PACKET[4:], len(PACKET), start + index * gap)


def numbers(packets: list[bytes]) -> list[int]:
    return [int.from_bytes(packet[:4], "big") for packet in packets]


def test_delay() -> None:
    lane = Lane(Line(delay_ms=50), Random(1))
    send(lane, 3, gap=0.010)
    assert numbers(lane.due(0.0499)) == []
    assert numbers(lane.due(0.0601)) == [0, 1]
    assert lane.is_busy
    assert numbers(lane.due(1.0)) == [2]
    assert not lane.is_busy


def test_rate_and_queue() -> None:
    """11.2 Mbit/s take 1 ms for each packet; 14.7 kB are 10 packets and a half."""
    lane = Lane(Line(rate_mbit=11.2, queue_kb=14.7), Random(1))
    send(lane, 20)
    assert lane.counters.overflowed == 9, "one is being sent, ten wait"
    assert len(lane.due(0.00501)) == 5
    assert len(lane.due(1.0)) == 6


def test_the_fate_of_a_packet_depends_on_its_number_alone() -> None:
    arrived = []
    for gap in (0.0, 0.001, 0.1):
        lane = Lane(Line(loss=0.1), Random(7))
        send(lane, 5000, gap=gap)
        arrived.append(numbers(lane.due(1e9)))
    assert arrived[0] == arrived[1] == arrived[2]
    assert 400 < 5000 - len(arrived[0]) < 600


def test_outages_take_their_share_of_the_time_in_pieces_of_their_length() -> None:
    outages = Outages(0.05, 20, Random(3))
    states = [outages.is_bad(ms / 1000) for ms in range(400_000)]
    bad = sum(states)
    runs = sum(after and not before for before, after in zip(states, states[1:], strict=False))
    assert bad == pytest.approx(20_000, rel=0.15)
    assert bad / runs == pytest.approx(20, rel=0.15)


def test_jitter_reorders_within_its_bounds() -> None:
    lane = Lane(Line(delay_ms=10, jitter_ms=5), Random(1))
    send(lane, 200)
    assert lane.due(0.00999) == []
    order = numbers(lane.due(0.01501))
    assert sorted(order) == list(range(200))
    assert order != sorted(order)


@pytest.mark.parametrize("bad", [{"loss": 1.0}, {"loss": -0.1}, {"delay_ms": -1}, {"queue_kb": -1}])
def test_refused_lines(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Line(**bad)
