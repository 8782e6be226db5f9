"""The model of the line at work: bulk with no window set, over simulated lines of every kind.

What a line can carry is its rate, less its losses, less the 6 % that headers take: 24 of KCP, 28 of IP and UDP, and 20
of encryption in 1350 bytes. The first second of each run is the model's to learn in, and does not count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import pytest

from kcptun_lite.core.kcp.queue_meter import QUEUE_MOST
from kcptun_lite.core.kcp.sender import LATE, Limit
from tests.helpers import UDP_IP_BYTES, KcpPair, SimulatedLink, kcp_params
from tests.sim.bulk import HEADERS, Bulk

LEARNING = 1_500  # ms; five round trips of the longest line


@dataclass(frozen=True)
class Case:
    """A line: Mbit/s, ms each way, ms of queue."""

    rate: float
    delay: int
    queue: int

    def __str__(self) -> str:
        return f"{self.rate:g} Mbit/s, {2 * self.delay} ms, queue {self.queue} ms"


LINES = [
    Case(100, 50, 100),
    Case(100, 50, 20),
    Case(100, 100, 200),
    Case(20, 20, 26),
    Case(200, 15, 16),
    Case(10, 150, 300),
]


@pytest.mark.parametrize("loss", [0.0, 0.03, 0.1])
@pytest.mark.parametrize("case", LINES, ids=str)
def test_the_line_is_filled_and_its_queue_is_not(case: Case, loss: float) -> None:
    bulk = Bulk(rate=case.rate, delay=case.delay, queue=case.queue, loss=loss)
    bulk.goodput(LEARNING)
    share = bulk.goodput() / (case.rate * (1 - loss) * HEADERS)
    link = bulk.pair.a_to_b
    queue = bulk.queue(max(2_000, 40 * case.delay))  # two or three probes
    print(
        f"\n{case}, {loss:.0%}: {share:.0%}, own loss {link.overflowed / link.sent:.2%}, queue {queue[len(queue) // 2]}"
    )
    assert share >= (0.8 if loss == 0.1 else 0.9)
    assert link.overflowed <= 0.03 * link.sent, "most of it in the first second"
    assert queue[len(queue) // 2] <= QUEUE_MOST


def test_losses_in_bursts_slow_nothing() -> None:
    """Every 400 ms the line is dead for 20 ms."""
    bulk = Bulk(rate=100.0, delay=50, queue=100)
    link = bulk.pair.a_to_b
    link_send = link.send
    bulk.pair.a_to_b.send = lambda packet, now: link_send(packet, now) if now % 400 >= 20 else None  # type: ignore[method-assign]
    bulk.goodput(LEARNING)
    assert bulk.goodput() >= 0.8 * 0.95 * 100 * HEADERS


def changed(bulk: Bulk, change: Callable[[], None], rate: float, *, within: int) -> None:
    """After the change 90 % of the new rate are reached in time."""
    change()
    bulk.goodput(within)
    assert bulk.goodput(3_000) >= 0.9 * rate * HEADERS


def test_a_line_that_becomes_slower_and_faster_is_followed() -> None:
    bulk = Bulk(rate=100.0, delay=50, queue=400)
    link = bulk.pair.a_to_b
    bulk.goodput(3_000)
    changed(bulk, lambda: setattr(link, "rate", 20.0), 20.0, within=5_000)
    changed(bulk, lambda: setattr(link, "rate", 100.0), 100.0, within=5_000)


def test_a_small_window_is_told_as_the_limit_and_so_is_the_peers() -> None:
    for windows, expected in (
        ({"snd_wnd": 16, "rcv_wnd": 1024}, Limit.WINDOW),
        ({"snd_wnd": 1024, "rcv_wnd": 16}, Limit.PEER),
    ):
        pair = KcpPair(kcp_params("fast", **windows), link={"delay": 30})
        pair.a.write(bytes(2_000_000))
        pair.drive(limit=2_000)
        assert pair.a.kcp.sender.take_limit() is expected
    assert pair.a.kcp.sender.take_limit() is Limit.APPLICATION, "nothing has been sent since"


def test_a_longer_way_is_found() -> None:
    """The route has changed: what was the least round trip is none any more."""
    bulk = Bulk(rate=50.0, delay=20, queue=100)
    bulk.goodput(3_000)
    bulk.pair.a_to_b.delay = bulk.pair.b_to_a.delay = 60
    bulk.goodput(20_000)
    assert bulk.model.min_rtt >= 118
    assert bulk.goodput(3_000) >= 0.85 * 50 * HEADERS


def test_a_peer_next_door_that_moves_far_away_is_followed() -> None:
    bulk = Bulk(rate=50.0, delay=1, queue=200)
    bulk.goodput(2_000)
    bulk.pair.a_to_b.delay = bulk.pair.b_to_a.delay = 40
    bulk.goodput(30_000)
    assert 78 <= bulk.model.min_rtt
    assert bulk.goodput(5_000) >= 0.85 * 50 * HEADERS
    queue = bulk.queue(3_000)
    assert queue[len(queue) // 2] <= 2 * QUEUE_MOST


@pytest.mark.parametrize("jitter", [10, 30])
def test_packets_out_of_order_are_no_losses(jitter: int) -> None:
    shares = []
    for seed in range(1, 4):
        bulk = Bulk(rate=50.0, delay=30, queue=100, jitter=jitter, seed=seed)
        bulk.goodput(LEARNING)
        shares.append(bulk.goodput() / (50 * HEADERS))
        needless = bulk.pair.b.counters.repeated / bulk.pair.a_to_b.sent
        print(f"\njitter {jitter}: {shares[-1]:.0%}, {needless:.1%} sent for nothing")
    assert median(shares) >= (0.9 if jitter == 10 else 0.45)


def test_acknowledgements_in_clumps_are_no_faster_line() -> None:
    """All that comes back comes every 40 ms."""
    bulk = Bulk(rate=50.0, delay=30, queue=100)
    back = bulk.pair.b_to_a
    put = back._put
    back._put = lambda packet, leaves_at: put(packet, -(-leaves_at // 40) * 40)  # type: ignore[method-assign]
    bulk.goodput(LEARNING)
    link = bulk.pair.a_to_b
    overflowed = link.overflowed
    assert bulk.goodput() >= 0.85 * 50 * HEADERS
    assert link.overflowed - overflowed <= 0.01 * link.sent


class Policer(SimulatedLink):
    """Drops what is above its rate, with a bucket for bursts and no queue."""

    def __init__(self, policed: float, bucket: int, delay: int) -> None:
        super().__init__(delay=delay)
        self.policed, self.bucket, self.tokens, self.at = policed, bucket, float(bucket), 0

    def send(self, packet: memoryview, now: int) -> None:
        self.tokens = min(self.bucket, self.tokens + (now - self.at) * self.policed * 125)
        self.at = now
        size = len(packet) + UDP_IP_BYTES
        if size > self.tokens:
            self.sent += 1
            self.lost += 1
            return
        self.tokens -= size
        super().send(packet, now)


def test_a_policer_is_not_fought() -> None:
    bulk = Bulk(delay=30)
    policer = Policer(20.0, 60_000, 30)
    bulk.pair.a_to_b = policer
    bulk.goodput(10_000)
    sent, lost = policer.sent, policer.lost
    assert bulk.goodput() >= 0.75 * 20 * HEADERS
    assert policer.lost - lost <= 0.25 * (policer.sent - sent)


def test_a_peer_that_lies_gets_no_more_than_the_window() -> None:
    """It acknowledges what it has not received: the rate it feigns is bounded by what was sent."""
    bulk = Bulk(rate=20.0, delay=30, queue=60)
    bulk.goodput(2_000)
    kcp = bulk.pair.a.kcp
    for _ in range(50):
        kcp.sender.acknowledge(kcp.window.snd_nxt & 0xFFFFFFFF, [], 0xFFFF, bulk.pair.now)
        kcp.sender.end_batch(bulk.pair.now)
        bulk.pair.drive(limit=20)
        assert kcp.window.unacked <= kcp.control.window <= 0xFFFF
    assert kcp.send_bytes <= (0xFFFF + 100) * 1350


def test_thin_traffic_is_sent_twice_where_packets_are_lost_and_once_where_not() -> None:
    for loss, fewest, most in ((0.0, 0, 700), (0.05, 800, 3 * 1201)):
        pair = KcpPair(kcp_params("fast", follows_line=True), link={"delay": 30, "loss": loss}, seed=3)
        took: list[int] = []
        asked: list[int] = []

        def ask(pair: KcpPair = pair, asked: list[int] = asked) -> None:
            asked.append(pair.now)
            pair.a.write(bytes(64))
            pair.at(pair.now + 50, ask)

        def answer(pair: KcpPair = pair, took: list[int] = took, asked: list[int] = asked) -> None:
            while len(pair.b.received) >= 64:
                del pair.b.received[:64]
                took.append(pair.now - asked[len(took)])

        pair.b.on_data = answer
        ask()
        pair.drive(limit=60_000)
        late = sorted(took)[len(took) * 99 // 100]
        print(f"\n{loss:.0%}: p99 {late} ms, {pair.a.counters.copied} copies of {len(asked)}")
        assert fewest <= pair.a.counters.copied <= most
        assert late <= 30 + (20 if loss else 0)


class LatePair(KcpPair):
    """On a machine with too much to do nobody is called when he wants to be, but some ms later."""

    def _next_event(self) -> int | None:
        coming = super()._next_event()
        return None if coming is None else coming + 3 * LATE


def test_losses_are_repaired_though_every_call_is_late() -> None:
    params = kcp_params("fast", snd_wnd=0xFFFF, rcv_wnd=0xFFFF, follows_line=True)
    pair = LatePair(params, link={"delay": 30, "rate": 50.0, "loss": 0.1}, link_back={"delay": 30})
    took = pair.exchange(bytes(1_000_000), b"", limit=6_000)
    print(f"\n{took} ms")
