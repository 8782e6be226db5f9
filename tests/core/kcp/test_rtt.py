"""The arithmetic of the round-trip time."""

import pytest

from kcptun_lite.core.kcp.rtt import RttEstimator


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        # first sample: srtt = r, rttvar = r >> 1; rto = srtt + 4 * rttvar
        ([35], (35, 17, 103)),
        # 35 -> 34: delta -1, srtt += -1 >> 3 (floors to -1), rttvar += (1 - 17) >> 2
        ([35, 34], (34, 13, 100)),
        ([100, 100, 100], (100, 27, 208)),
        # A far lower sample weighs 1/32: (90 - 50) >> 5 = 1, srtt += -90 >> 3 = -12
        ([100, 10], (88, 51, 292)),
        # A far higher one weighs 1/4: 100 + 900 >> 3, 50 + (900 - 50) >> 2
        ([100, 1000], (212, 262, 1260)),
        # srtt 0 makes every sample a first one
        ([0, 0, 40], (40, 20, 120)),
        # the floor
        ([0], (0, 0, 100)),
        # the ceiling
        ([200_000], (200_000, 100_000, 60_000)),
    ],
)
def test_rtt_table(samples: list[int], expected: tuple[int, int, int]) -> None:
    rtt = RttEstimator(100, 30)
    for sample in samples:
        rtt.sample(sample)
    assert (rtt.srtt, rtt.rttvar, rtt.rto) == expected


def test_rto_before_the_first_sample() -> None:
    assert RttEstimator(30, 10).rto == 200


def test_interval_is_the_least_margin_above_srtt() -> None:
    rtt = RttEstimator(30, 40)
    for _ in range(60):
        rtt.sample(80)
    assert rtt.rttvar < 10
    assert rtt.rto == 80 + 40
