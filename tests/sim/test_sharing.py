"""Several transfers over one simulated line: all get their part, and the queue stays short.

None knows of the others. What they have in common is the queue, and what each does when it sees one.
"""

from random import Random

from kcptun_lite.core.kcp.congestion import CongestionControl, Flight
from tests.helpers import SimulatedLink
from tests.sim.bulk import HEADERS, MEASURED, Bulk


class Bottleneck:
    """One queue for the links of several pairs."""

    busy_until = 0.0


class SharedLink(SimulatedLink):
    """A link whose turn at the bottleneck is one of many."""

    def __init__(self, bottleneck: Bottleneck, **link: float) -> None:
        self.bottleneck = bottleneck
        super().__init__(**link)  # type: ignore[arg-type]

    @property
    def _busy_until(self) -> float:
        return self.bottleneck.busy_until

    @_busy_until.setter
    def _busy_until(self, value: float) -> None:  # type: ignore[override]
        self.bottleneck.busy_until = max(self.bottleneck.busy_until, value)


class Cubic(CongestionControl):
    """What TCP does that fills queues (RFC 9438): grows until something is lost, and then gives up three tenths."""

    is_loss_tolerant = False

    def __init__(self) -> None:
        self._cwnd = self._before = 10.0
        self._is_slow_start = True
        self._epoch = self._lost_at = -1000
        self._now = self._rtt = 0

    @property
    def window(self) -> int:  # type: ignore[override]
        return int(self._cwnd)

    def pacing_rate(self, srtt: int) -> float:
        return self._cwnd * 1.25 / max(srtt, 1)

    def on_rtt(self, rtt: int, now: int) -> None:
        self._rtt, self._now = rtt, now

    def on_acknowledged(self, count: int, newest: Flight, in_flight: int, now: int) -> None:
        if self._is_slow_start:
            self._cwnd += count
            return
        since = (now - self._epoch + self._rtt) / 1000
        target = 0.4 * (since - (self._before * 0.3 / 0.4) ** (1 / 3)) ** 3 + self._before
        self._cwnd += min(max(0.0, (target - self._cwnd) / self._cwnd), 0.5) * count

    def on_retransmission(self, in_flight: int, limit: int, *, skipped: bool, timed_out: bool) -> None:
        if self._now - self._lost_at >= self._rtt:  # losses of one round trip count as one
            self._is_slow_start = False
            self._before, self._epoch, self._lost_at = self._cwnd, self._now, self._now
            self._cwnd = max(self._cwnd * 0.7, 2.0)


class TcpLike(Bulk):
    """A transfer as that of a TCP."""

    def _begin(self) -> None:
        self.pair.a.kcp.control = self.pair.a.kcp.sender.control = Cubic()


def share(
    beginnings: list[int], until: int, *, rate: float, delay: int, queue: int, since: int, last: type[Bulk] = Bulk
) -> list[Bulk]:
    """Transfers over one line that begin at so many ms; their `received` is what has come `since` then.

    The last one is of the kind `last`.
    """
    bottleneck = Bottleneck()
    bulks: list[Bulk] = []
    turns = Random(1)
    for now in range(0, until, 2):
        while len(bulks) < len(beginnings) and now >= beginnings[len(bulks)]:
            kind = last if len(bulks) == len(beginnings) - 1 else Bulk
            bulk = kind(delay=delay, seed=len(bulks) + 1)
            bulk.pair.a_to_b = SharedLink(bottleneck, delay=delay, rate=rate, queue=queue)
            bulk.pair._agenda.clear()
            bulk.pair.now = now
            bulk._refill()
            bulks.append(bulk)
        if now == since:
            for bulk in bulks:
                bulk.received = 0
        for bulk in turns.sample(bulks, len(bulks)):  # else the first has the queue's last place each time
            bulk.pair.drive(limit=2)
    return bulks


def test_two_share_a_line_and_the_later_one_gets_his_part() -> None:
    bulks = share([0, 3_000], 33_000, rate=50.0, delay=30, queue=100, since=25_000)
    got = [bulk.received for bulk in bulks]
    print(f"\nshares {got[0] / sum(got):.0%} : {got[1] / sum(got):.0%}")
    assert min(got) >= 0.36 * sum(got)
    assert sum(got) * 8 / MEASURED / 1000 >= 0.85 * 50 * HEADERS


def test_many_share_a_line_without_a_queue_and_without_losses() -> None:
    """As the clients of a server share its line: each begins while the others are at it."""
    bulks = share([1_000 * index for index in range(8)], 24_000, rate=100.0, delay=20, queue=200, since=16_000)
    got = [bulk.received for bulk in bulks]
    links = [bulk.pair.a_to_b for bulk in bulks]
    mean = sum(got) / len(got)
    print(f"\nthe least {min(got) / mean:.0%}, the most {max(got) / mean:.0%}")
    assert sum(got) * 8 / MEASURED / 1000 >= 0.85 * 100 * HEADERS
    assert min(got) >= 0.5 * mean
    assert sum(link.overflowed for link in links) <= 0.01 * sum(link.sent for link in links)
    assert all(bulk.model.min_rtt <= 44 for bulk in bulks), "the others' queue is taken for the way"


def test_many_that_begin_at_once_do_not_drown_the_line() -> None:
    """Sixteen in five seconds: who begins meets a full queue, and cannot know how long the way is."""
    bulks = share([300 * index for index in range(16)], 20_000, rate=100.0, delay=20, queue=200, since=12_000)
    links = [bulk.pair.a_to_b for bulk in bulks]
    lost = sum(link.overflowed for link in links) / sum(link.sent for link in links)
    got = [bulk.received for bulk in bulks]
    print(f"\n{lost:.1%} lost in the queue, the least {min(got) / sum(got) * len(got):.0%} of the mean")
    assert lost <= 0.08
    assert sum(got) * 8 / MEASURED / 1000 >= 0.85 * 100 * HEADERS
    assert max(bulk.model.min_rtt for bulk in bulks) <= 60, "the others' queue is taken for the way"
    assert min(got) >= 0.1 * sum(got) / len(got)


def test_tcp_beside_it_keeps_its_part_and_does_not_take_all() -> None:
    ours, tcp = share([0, 3_000], 36_000, rate=100.0, delay=50, queue=100, since=6_000, last=TcpLike)
    part = ours.received / (ours.received + tcp.received)
    print(f"\n{part:.0%} beside TCP")
    assert 0.15 <= part <= 0.75
    assert (ours.received + tcp.received) * 8 / 30_000_000 >= 0.85 * 100 * HEADERS
