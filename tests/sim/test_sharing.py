"""Several transfers over one simulated line: all get their part, and the queue stays short.

None knows of the others. What they have in common is the queue, and what each does when it sees one.
"""

from random import Random

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


def share(beginnings: list[int], until: int, *, rate: float, delay: int, queue: int) -> list[Bulk]:
    """Transfers over one line that begin at so many ms; their `received` is what came in the last 8 s."""
    bottleneck = Bottleneck()
    bulks: list[Bulk] = []
    turns = Random(1)
    for now in range(0, until, 2):
        while len(bulks) < len(beginnings) and now >= beginnings[len(bulks)]:
            bulk = Bulk(delay=delay, seed=len(bulks) + 1)
            bulk.pair.a_to_b = SharedLink(bottleneck, delay=delay, rate=rate, queue=queue)
            bulk.pair._agenda.clear()
            bulk.pair.now = now
            bulk._refill()
            bulks.append(bulk)
        if now == until - MEASURED:
            for bulk in bulks:
                bulk.received = 0
        for bulk in turns.sample(bulks, len(bulks)):  # else the first has the queue's last place each time
            bulk.pair.drive(limit=2)
    return bulks


def test_two_share_a_line_and_the_later_one_gets_his_part() -> None:
    bulks = share([0, 3_000], 33_000, rate=50.0, delay=30, queue=100)
    got = [bulk.received for bulk in bulks]
    print(f"\nshares {got[0] / sum(got):.0%} : {got[1] / sum(got):.0%}")
    assert min(got) >= 0.36 * sum(got)
    assert sum(got) * 8 / MEASURED / 1000 >= 0.85 * 50 * HEADERS


def test_many_share_a_line_without_a_queue_and_without_losses() -> None:
    """As the clients of a server share its line: each begins while the others are at it."""
    bulks = share([1_000 * index for index in range(8)], 24_000, rate=100.0, delay=20, queue=200)
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
    bulks = share([300 * index for index in range(16)], 20_000, rate=100.0, delay=20, queue=200)
    links = [bulk.pair.a_to_b for bulk in bulks]
    lost = sum(link.overflowed for link in links) / sum(link.sent for link in links)
    got = [bulk.received for bulk in bulks]
    print(f"\n{lost:.1%} lost in the queue, the least {min(got) / sum(got) * len(got):.0%} of the mean")
    assert lost <= 0.08
    assert sum(got) * 8 / MEASURED / 1000 >= 0.85 * 100 * HEADERS
    assert max(bulk.model.min_rtt for bulk in bulks) <= 60, "the others' queue is taken for the way"
    assert min(got) >= 0.1 * sum(got) / len(got)
