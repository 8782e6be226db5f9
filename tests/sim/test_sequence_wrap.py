"""Numbers that pass 2**32 in the middle of a lossy exchange: sn and una, and the clock behind ts."""

import pytest

from tests.helpers import MODES, KcpPair, kcp_params, noise

WRAP = 1 << 32
TO_B = noise(150_000, 1)  # 118 segments
TO_A = noise(50_000, 2)
LOSSY = {"delay": 25, "loss": 0.1, "jitter": 10, "duplicate": 0.05}


@pytest.mark.parametrize("first_sn", [WRAP - 1, WRAP - 17, WRAP - 60, WRAP // 2 - 17])
@pytest.mark.parametrize("mode", MODES)
def test_numbers_wrap(mode: str, first_sn: int) -> None:
    pair = KcpPair(kcp_params(mode), link=LOSSY, first_sn=first_sn)
    took = pair.exchange(TO_B, TO_A, limit=20_000)
    assert pair.a.kcp.window.snd_una >= first_sn + 100
    unwrapped = KcpPair(kcp_params(mode), link=LOSSY, first_sn=0)
    assert took == unwrapped.exchange(TO_B, TO_A, limit=20_000)


@pytest.mark.parametrize("before", [1, 40, 200, 1000])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrap", [WRAP, WRAP // 2], ids=["2-32", "2-31"])
def test_the_clock_wraps(mode: str, before: int, wrap: int) -> None:
    pair = KcpPair(kcp_params(mode), link=LOSSY, now=wrap - before)
    took = pair.exchange(TO_B, TO_A, limit=20_000)
    reference = KcpPair(kcp_params(mode), link=LOSSY, now=0)
    assert took == reference.exchange(TO_B, TO_A, limit=20_000)
    assert pair.a.kcp.rtt.srtt == reference.a.kcp.rtt.srtt


def test_both_wrap_with_small_windows_and_a_sleeping_reader() -> None:
    params = kcp_params("fast2", snd_wnd=8, rcv_wnd=8)
    pair = KcpPair(params, link=LOSSY, first_sn=WRAP - 10, now=WRAP - 3_000)
    pair.b.is_reading = False
    pair.a.write(TO_B)

    def read() -> None:
        pair.b.is_reading = True

    pair.at(WRAP + 3_000, read)
    pair.drive(lambda: pair.b.received == TO_B, limit=30_000)


def test_a_long_life_crosses_the_wrap_again_and_again() -> None:
    """60 days of ms, 49.7 of which are 2**32, go by while now and then something is said."""
    pair = KcpPair(kcp_params("fast"), link=LOSSY)
    for day in range(60):
        pair.now = day * 86_400_000
        pair.exchange(noise(3_000, day), noise(3_000, day + 100), limit=5_000)
        pair.drive(limit=5_000)  # what is still on its way comes today, not tomorrow
