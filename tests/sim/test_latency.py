"""A request of 200 bytes and its answer, one after the other, over 30 ms each way with loss: how long each takes.

Without loss it is two ways, 60 ms. Nothing follows a request, so no later ACK tells of its loss: only its timeout
does, srtt + max(interval, 4 rttvar) after it was sent, and at least 100 ms, or 30 ms with nodelay. Sparse
packets fill no FEC group in time, so FEC makes no difference here.
"""

import pytest

from tests.helpers import MODES, KcpPair, kcp_params

DELAY = 30  # ms, one way
REQUESTS = 1000
SIZE = 200  # bytes, both ways


def latencies(mode: str, loss: float, *, gap: int, seed: int = 1) -> list[int]:
    """Sorted ms of each exchange; the next one begins `gap` ms after the answer."""
    pair = KcpPair(kcp_params(mode), link={"delay": DELAY, "loss": loss}, seed=seed)
    took: list[int] = []
    asked_at = 0

    def ask() -> None:
        nonlocal asked_at
        asked_at = pair.now
        pair.a.write(bytes(SIZE))

    def answer() -> None:
        while len(pair.b.received) >= SIZE:
            del pair.b.received[:SIZE]
            pair.b.write(bytes(SIZE))

    def note() -> None:
        if len(pair.a.received) >= SIZE:
            del pair.a.received[:SIZE]
            took.append(pair.now - asked_at)
            pair.at(pair.now + gap, ask)

    pair.b.on_data = answer
    pair.a.on_data = note
    ask()
    pair.drive(lambda: len(took) >= REQUESTS, limit=REQUESTS * 2_000)
    return sorted(took)


# mode -> most ms for 50, 95 and 99 of 100 requests at 10 % loss
BOUNDS = {
    "normal": (60, 250, 500),
    "fast": (60, 250, 500),
    "fast2": (60, 220, 420),
    "fast3": (60, 200, 400),
    "nc=0": (60, 250, 500),
}


@pytest.mark.parametrize("mode", MODES)
def test_without_loss_it_is_two_ways(mode: str) -> None:
    took = latencies(mode, 0.0, gap=10)
    assert (took[0], took[-1]) == (2 * DELAY, 2 * DELAY)


@pytest.mark.parametrize("gap", [0, 200], ids=["at-once", "after-200-ms"])
@pytest.mark.parametrize("mode", MODES)
def test_latency_under_loss(mode: str, gap: int) -> None:
    took = latencies(mode, 0.1, gap=gap)
    p50, p95, p99 = (took[REQUESTS * share // 100] for share in (50, 95, 99))
    print(f"\n{mode}, 10 % loss, next request after {gap} ms: p50 {p50}, p95 {p95}, p99 {p99}, worst {took[-1]} ms")
    most50, most95, most99 = BOUNDS[mode]
    assert p50 <= most50
    assert p95 <= most95
    assert p99 <= most99


def test_a_request_does_not_wait_behind_the_backlog_of_a_bulk_transfer() -> None:
    """20 Mbit/s, 1024 segments: what was queued before is at most the 128 KiB that may wait, and the window."""
    pair = KcpPair(kcp_params("fast", snd_wnd=64), link={"delay": DELAY, "rate": 20.0, "queue": 1000})
    pair.a.write(bytes(5_000_000))
    pair.drive(limit=2_000)
    queued = pair.a.kcp.send_bytes
    assert queued <= (64 + 1) * 1350 + 128 * 1024
