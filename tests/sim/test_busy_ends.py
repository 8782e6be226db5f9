"""A line that is as fast as the processors at its ends, or faster: who waits for a processor is no queue of the line.

And lines whose queue holds next to nothing: bursts and probes must be as small as that.
"""

from heapq import heappop
from random import Random

import pytest

from tests.helpers import POISON, KcpEnd, KcpPair, SimulatedLink
from tests.sim.bulk import HEADERS, Bulk

LEARNING = 2_000  # ms
PACKET = 1378 * 8 / 1000  # kbit on the line: so many segments per ms are a Mbit/s


class BusyPair(KcpPair):
    """Each packet takes its time, and now and then somebody else has the processor."""

    cost = (0.0, 0.0)
    "ms of the sender and of the receiver for a packet, sent or received"
    stalls = (0, 0)
    "ms on average between stalls, and how long the longest take"

    def prepare(self, cost: tuple[float, float], stalls: tuple[int, int], seed: int) -> None:
        self.cost, self.stalls = cost, stalls
        self._free_at = [0.0, 0.0]
        self._stall_at = [100.0, 150.0]
        self._random = Random(seed)

    def _step(self) -> None:
        while self._agenda and self._agenda[0][0] <= self.now:
            heappop(self._agenda)[2]()
        self._turn(0, self.a, self.b_to_a, self.a_to_b)
        self._turn(1, self.b, self.a_to_b, self.b_to_a)

    def _turn(self, which: int, end: KcpEnd, link: SimulatedLink, out: SimulatedLink) -> None:
        now = self.now
        if self._free_at[which] > now:
            return
        packets = link.receive(now)
        if packets:
            end.receive([memoryview(packet) for packet in packets], now)
            for packet in packets:
                packet[:] = bytes([POISON]) * len(packet)
        before = out.sent
        end.tick(now)
        end.work(now)
        end.transmit(out, now)
        took = (len(packets) + out.sent - before) * self.cost[which]
        if self.stalls[0] and now >= self._stall_at[which]:
            took += self._random.uniform(5, self.stalls[1])
            self._stall_at[which] = now + took + self._random.expovariate(1 / self.stalls[0])
        self._free_at[which] = max(self._free_at[which], now) + took

    def _next_event(self) -> int | None:
        coming = [self._agenda[0][0]] if self._agenda else []
        for which, end, link in ((0, self.a, self.b_to_a), (1, self.b, self.a_to_b)):
            wanted = [at for at in (link.next_arrival, end.deadline) if at is not None]
            if wanted:
                coming.append(max(min(wanted), int(self._free_at[which]) + 1, self.now + 1))
        return min(coming, default=None)


class BusyBulk(Bulk):
    """A transfer between two busy machines."""

    Pair = BusyPair


def run(
    rate: int, delay: int, queue: int, *, cost: tuple[float, float] = (0.0, 0.0), stalls: tuple[int, int] = (0, 0)
) -> tuple[float, float, float]:
    """Mbit/s, the share lost in the queue, and the rate that is believed, in Mbit/s; after the first two seconds."""
    bulk = BusyBulk(rate=rate, delay=delay, queue=queue)
    assert isinstance(bulk.pair, BusyPair)
    bulk.pair.prepare(cost, stalls, seed=1)
    bulk.goodput(LEARNING)
    link = bulk.pair.a_to_b
    overflowed, sent = link.overflowed, link.sent
    got = bulk.goodput(4_000)
    lost, believed = (link.overflowed - overflowed) / (link.sent - sent), bulk.model.rate * PACKET
    print(f"\n{rate} Mbit/s, {2 * delay} ms, queue {queue} ms: {got:.0f}, lost {lost:.2%}, believed {believed:.0f}")
    return got, lost, believed


@pytest.mark.parametrize(
    ("cost", "stalls", "least"),
    [((0.03, 0.02), (80, 30), 180), ((0.015, 0.015), (200, 60), 300), ((0.022, 0.016), (500, 30), 280)],
    ids=["stormy", "long-stalls", "busy"],
)
def test_who_waits_for_a_processor_slows_nothing_more(
    cost: tuple[float, float], stalls: tuple[int, int], least: float
) -> None:
    """Round trips five times the least of all, and acknowledgements in clumps; the line is not what has changed."""
    got, lost, believed = run(500, 5, 10, cost=cost, stalls=stalls)
    assert got >= least
    assert lost <= 0.02
    assert believed <= 1.15 * 500


@pytest.mark.parametrize(("rate", "delay", "queue"), [(500, 5, 2), (100, 5, 2), (20, 20, 8), (200, 15, 6)])
def test_a_queue_of_a_fifth_of_the_round_trip_is_not_overfilled(rate: int, delay: int, queue: int) -> None:
    got, lost, _ = run(rate, delay, queue)
    assert got >= 0.9 * rate * HEADERS
    assert lost <= 0.01
