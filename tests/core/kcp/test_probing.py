"""Probes become small where the queue has no room for them, and large again slowly."""

import pytest

from kcptun_lite.core.kcp.probing import PART_LEAST, REGAIN, ProbeSize


def probe(size: ProbeSize, lost: int, *, loss: float = 0.0, sent: int = 200) -> float:
    size.on_sent(sent)
    size.on_over(1000, 1100)
    for _ in range(lost):
        size.on_lost(1050)
    size.learn(loss)
    return size.part


def test_losses_of_a_probe_halve_the_next_one_down_to_a_least() -> None:
    size = ProbeSize()
    assert [probe(size, 20) for _ in range(3)] == [1 / 2, 1 / 4, 1 / 8]
    for _ in range(9):
        probe(size, 20)
    assert size.part == PART_LEAST


def test_what_finds_room_is_larger_the_next_time() -> None:
    size = ProbeSize()
    probe(size, 20)
    assert probe(size, 0) == 1 / 2 + REGAIN
    for _ in range(100):
        probe(size, 0)
    assert size.part == 1.0


@pytest.mark.parametrize("sent_at", [999, 1101])
def test_what_was_lost_before_and_after_is_not_counted(sent_at: int) -> None:
    size = ProbeSize()
    size.on_sent(200)
    size.on_over(1000, 1100)
    for _ in range(50):
        size.on_lost(sent_at)
    size.learn(0.0)
    assert size.part == 1.0


def test_the_usual_losses_are_none_of_the_probe() -> None:
    assert probe(ProbeSize(), 20, loss=0.1) == 1.0
    assert probe(ProbeSize(), 60, loss=0.1) == 1 / 2
