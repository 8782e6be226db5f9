"""Thin traffic goes again as often as losses ask for, later where they come in bursts, and never as much of a line."""

import pytest

from kcptun_lite.core.kcp.copies import BURST_DELAYS, CREDIT_MOST, DELAYS, RATE_LEAST, Copies


@pytest.mark.parametrize(("loss", "count"), [(0.0, 0), (0.002, 0), (0.005, 1), (0.05, 2), (0.1, 3)])
def test_as_many_as_leave_next_to_nothing_lost(loss: float, count: int) -> None:
    assert Copies().plan(loss, 100.0, 100, 1000) == DELAYS[count]


def lose(copies: Copies, later: int, times: int) -> tuple[int, ...]:
    for _ in range(times):
        copies.on_lost(later)
    return copies.plan(0.05, 100.0, 100, 1000)


def test_where_the_first_copy_is_lost_as_well_they_outlast_a_burst() -> None:
    copies = Copies()
    copies.plan(0.05, 100.0, 100, 1000)
    assert lose(copies, 48, 10) == BURST_DELAYS
    assert lose(copies, 4, 40) == DELAYS[2], "losses by chance again"


def test_now_and_then_the_first_copy_is_lost_by_chance() -> None:
    copies = Copies()
    copies.plan(0.1, 100.0, 100, 1000)
    for _ in range(20):
        assert lose(copies, 48, 1) != BURST_DELAYS
        assert lose(copies, 4, 9) != BURST_DELAYS


def test_they_are_a_small_part_of_what_goes() -> None:
    copies = Copies()
    size, sent = 500, 0
    for now in range(0, 60_000, 5):
        sent += size * len(copies.plan(0.1, 0.0, size, now))
    assert 0.9 * 60_000 * RATE_LEAST <= sent <= 60_000 * RATE_LEAST + CREDIT_MOST
