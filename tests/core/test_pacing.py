"""The token bucket keeps to its rate, and lets one burst pass after a rest."""

import pytest

from kcptun_lite.core.pacing import PACING_BURST, TokenBucket


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
        assert sent <= PACING_BURST + size + rate * now / 1000
    assert sent >= rate * 20 * 0.95


def test_a_rest_earns_no_more_than_a_burst() -> None:
    bucket = TokenBucket(1_000_000, 0)
    bucket.wait(3_600_000)
    sent = 0
    while not bucket.wait(3_600_000):
        bucket.spend(1000)
        sent += 1000
    assert sent == PACING_BURST
