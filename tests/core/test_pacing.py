"""Rates are kept to, and bursts are no larger than they may be."""

import pytest

from kcptun_lite.core.pacing import LIMIT_BURST, Pacer, TokenBucket


@pytest.mark.parametrize("rate", [1_000, 125_000, 10_000_000])
@pytest.mark.parametrize("size", [60, 1350, 32_768])
def test_never_more_than_the_rate_and_one_burst(rate: int, size: int) -> None:
    bucket = TokenBucket(rate, 0)
    now = sent = 0
    while now < 20_000:
        pause = bucket.wait(now)
        if pause:
            now += pause
            continue
        bucket.spend(size)
        sent += size
        assert sent <= LIMIT_BURST + size + rate * now / 1000
    assert sent >= rate * 20 * 0.95


def test_a_rest_earns_no_more_than_a_burst() -> None:
    bucket = TokenBucket(1_000_000, 0)
    bucket.wait(3_600_000)
    sent = 0
    while not bucket.wait(3_600_000):
        bucket.spend(1000)
        sent += 1000
    assert sent == LIMIT_BURST


def test_a_window_that_opens_at_once_is_spread_over_the_round_trip() -> None:
    pacer = Pacer()
    pacer.room(0, 2000, 1000, 100)
    pacer.spend(2000)  # all credit is gone
    now, gone = 0, 0
    while gone < 1000:
        now += 1
        room = pacer.room(now, 1000 - gone, 1000, 100)
        assert room <= 100  # two steps of 4 ms at 12.5 segments per ms
        pacer.spend(room)
        gone += room
        assert gone == 1000 or pacer.resume_at is not None
    assert 80 <= now <= 250
    assert pacer.room(now, 5000, 1000, 5) == 5000  # short round trips need no pacing
