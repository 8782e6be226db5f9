"""A reader that stops: the window shuts, is asked for, and opens again without waiting for a timer."""

import pytest

from kcptun_lite.core.kcp.kcp import Kcp
from tests.helpers import KcpPair, kcp_params, noise

DELAY = 17  # ms, one way


def stalled_pair(*, loss: float = 0.0, seed: int = 1) -> KcpPair:
    """A pair with windows of 8 whose b does not read for the first 12 s."""
    pair = KcpPair(kcp_params("fast2", snd_wnd=8, rcv_wnd=8), link={"delay": DELAY, "loss": loss}, seed=seed)
    pair.b.is_reading = False

    def read() -> None:
        pair.b.is_reading = True

    pair.at(12_000, read)
    return pair


def test_nothing_but_probes_while_the_reader_sleeps() -> None:
    pair = stalled_pair()
    pair.a.write(noise(100_000))
    pair.drive(limit=2_000)
    assert pair.b.kcp.received.count == 8
    assert pair.b.received == b""
    before = pair.a_to_b.sent
    pair.drive(limit=9_999)
    # First after 500 ms, then each time half as long again; two seconds have gone before we count.
    assert 3 <= pair.a_to_b.sent - before <= 8
    assert pair.a.counters.retransmitted == 0


def test_window_that_opens_is_used_within_a_round_trip() -> None:
    pair = stalled_pair()
    data = noise(100_000)
    pair.a.write(data)
    pair.drive(lambda: pair.b.is_reading, limit=12_100)
    woke_at = pair.now
    pair.drive(lambda: len(pair.b.received) > 8 * pair.a.kcp.mss, limit=1_000)
    assert pair.now - woke_at <= 2 * DELAY + 1  # WINS there, data back
    # From then on a window of 8 for each round trip and half an interval for the ACKs.
    round_trips = -(-len(data) // (8 * pair.a.kcp.mss))
    pair.drive(lambda: pair.a.is_quiet, limit=round_trips * (2 * DELAY + 12))
    assert pair.b.received == data


@pytest.mark.parametrize("seed", range(5))
def test_lost_window_updates_are_made_up_for_by_probes(seed: int) -> None:
    pair = stalled_pair(loss=0.3, seed=seed)
    data = noise(20_000)
    pair.a.write(data)
    pair.drive(lambda: pair.b.received == data, limit=60_000)


def test_probes_slow_down_to_two_minutes() -> None:
    pair = KcpPair(kcp_params(snd_wnd=8, rcv_wnd=8), link={"delay": DELAY})
    pair.b.is_reading = False
    pair.a.write(noise(100_000))
    pair.drive(limit=3_600_000)
    # 500 ms growing by half reach 120 s after 14 probes and 6 minutes; 27 more fill the hour.
    assert 30 <= pair.a_to_b.sent - 8 <= 60
    before = pair.a_to_b.sent
    pair.drive(limit=600_000)
    assert pair.a_to_b.sent - before == 5
    pair.b.is_reading = True
    pair.drive(lambda: pair.a.is_quiet, limit=125_000)


def test_both_readers_asleep_then_awake() -> None:
    pair = stalled_pair()
    pair.a.is_reading = False
    to_b, to_a = noise(50_000, 1), noise(50_000, 2)
    pair.a.write(to_b)
    pair.b.write(to_a)

    def read() -> None:
        pair.a.is_reading = True

    pair.at(9_000, read)
    pair.drive(lambda: pair.b.received == to_b and pair.a.received == to_a, limit=15_000)


def test_a_reader_that_is_slow_never_loses_anything() -> None:
    """Reads come every 100 ms: the window opens and shuts all the time."""
    pair = stalled_pair(loss=0.05)
    data = noise(200_000)
    pair.a.write(data)

    def nap() -> None:
        pair.b.is_reading = not pair.b.is_reading
        pair.at(pair.now + 50, nap)

    pair.at(12_001, nap)
    pair.drive(lambda: pair.b.received == data, limit=60_000)


def test_unread_bytes_are_bounded_by_the_window() -> None:
    pair = stalled_pair(loss=0.1)
    pair.a.write(noise(500_000))
    kcp: Kcp = pair.b.kcp
    for _ in range(100):
        pair.drive(limit=20)
        assert kcp.received.unread_bytes <= 2 * 8 * kcp.mss  # a window in order, one out of order
        assert kcp.received.count <= 8
