"""Rates are kept to, and bursts are no larger than they may be."""

import pytest

from kcptun_lite.core.kcp.pacing import BATCH_WORTH_ITS_COST, LIMIT_BURST, Coalescer, Pacer, TokenBucket


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


RATE = 12.5  # segments per ms; a window of 1000 in 100 ms, and a quarter more
STEP = 4  # ms


def test_a_window_that_opens_at_once_is_spread_over_the_round_trip() -> None:
    pacer = Pacer()
    pacer.room(0, 2000, RATE, STEP)
    pacer.spend(2000)  # all credit is gone
    now, gone = 0, 0
    while gone < 1000:
        now += 1
        room = pacer.room(now, 1000 - gone, RATE, STEP)
        assert room <= 100  # two steps of 4 ms at 12.5 segments per ms
        pacer.spend(room)
        gone += room
        assert gone == 1000 or pacer.resume_at is not None
    assert 80 <= now <= 250
    assert pacer.room(now, 5000, 0.0, STEP) == 5000  # short round trips need no pacing


def rests(packets_a_ms: int, together: int, ms: int, size: int = 1350) -> int:
    """How often a receiver rests while packets come at this rate, so many at a time."""
    coalescer = Coalescer()
    return sum(
        coalescer.wants_rest(together, together * size, i * together // packets_a_ms)
        for i in range(ms * packets_a_ms // together)
    )


def test_packets_that_come_thick_one_by_one_are_let_gather() -> None:
    assert rests(packets_a_ms=9, together=1, ms=5) == 0, "not for a few"
    assert rests(packets_a_ms=9, together=1, ms=100) > 700


def test_nobody_waits_for_what_comes_seldom_or_in_large_batches() -> None:
    assert rests(packets_a_ms=3, together=1, ms=1000) == 0
    assert rests(packets_a_ms=9, together=1, ms=1000, size=132) == 0, "small messages"
    assert rests(packets_a_ms=90, together=BATCH_WORTH_ITS_COST, ms=1000) == 0


def test_small_batches_among_large_ones_are_none_to_wait_for() -> None:
    coalescer = Coalescer()
    batches = [1] * 5 + [50]
    assert not any(
        coalescer.wants_rest(batches[i % len(batches)], batches[i % len(batches)] * 1350, i // 4) for i in range(1000)
    )


def test_after_a_pause_nobody_waits() -> None:
    coalescer = Coalescer()
    for _ in range(1000):
        coalescer.wants_rest(1, 1350, 0)
    assert coalescer.wants_rest(1, 1350, 1)
    assert not coalescer.wants_rest(1, 1350, 20)
