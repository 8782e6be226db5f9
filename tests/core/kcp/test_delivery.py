"""The rate between two moments is that of the sending or of the arriving, whichever is less."""

import pytest

from kcptun_lite.core.kcp.delivery import Mark


@pytest.mark.parametrize(
    ("arriving", "sending", "expected"),
    [(100, 100, 5.0), (50, 100, 5.0), (100, 50, 5.0), (0, 0, 500.0)],
    ids=["steady", "acknowledgements in a clump", "sent in a burst", "no time at all"],
)
def test_neither_clumps_nor_bursts_make_a_line_faster(arriving: int, sending: int, expected: float) -> None:
    begin = Mark(now=1000, sent_at=900, delivered=7)
    assert begin.rate_until(Mark(1000 + arriving, 900 + sending, 507)) == expected
