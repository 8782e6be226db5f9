"""What stands in the line's queue, and what has only waited for somebody's processor."""

from kcptun_lite.core.kcp.queue_meter import GAP, GAP_SEGMENTS, QUEUE_LEAST, WAITED_MOST, QueueMeter

MIN_RTT = 40  # ms
RATE = 10.0  # segments per ms


def test_a_queue_is_what_all_the_latest_samples_agree_on() -> None:
    meter = QueueMeter()
    for now in range(0, 100, 5):
        meter.on_rtt(60, MIN_RTT, now)
    assert meter.queue == 20
    meter.on_rtt(41, MIN_RTT, 100)
    assert meter.queue == 1, "one that was fast has not waited in any"


def test_a_few_samples_say_nothing() -> None:
    meter = QueueMeter()
    for now in (0, 50, 100):
        meter.on_rtt(90, MIN_RTT, now)
    assert meter.queue == 0


def waited(count: int, silence: int) -> int:
    """ms that are let be, more than usual, after so many segments at once behind a silence of so many ms."""
    meter = QueueMeter()
    meter.on_acknowledged(1, RATE, 1000)
    usual = meter.noise(MIN_RTT, has_begun=True)
    meter.on_acknowledged(count, RATE, 1000 + silence)
    return meter.noise(MIN_RTT, has_begun=True) - usual


def test_a_clump_behind_a_silence_has_waited_for_a_processor() -> None:
    assert waited(200, 20) == 20 - GAP
    assert waited(10_000, 1000) == WAITED_MOST * MIN_RTT


def test_what_comes_at_the_lines_rate_has_waited_in_its_queue() -> None:
    assert waited(9 * GAP_SEGMENTS // 10, 20) == 0, "too few to tell"
    assert waited(GAP_SEGMENTS + 10, 40) == 0, "less than half of what the line delivers in that time"
    assert waited(1000, GAP) == 0, "no silence: bursts are as far from each other"


def test_who_has_waited_is_forgotten_round_by_round() -> None:
    meter = QueueMeter()
    meter.on_acknowledged(1, RATE, 0)
    meter.on_acknowledged(500, RATE, GAP + 32)
    allowed = []
    for _ in range(7):
        allowed.append(meter.noise(MIN_RTT, has_begun=True) - QUEUE_LEAST)
        meter.end_round()
    assert allowed == [32, 16, 8, 4, 2, 1, 0]
    meter.on_acknowledged(500, RATE, 2 * GAP + 64)
    assert meter.noise(MIN_RTT, has_begun=False) == QUEUE_LEAST, "a line that is being filled"
