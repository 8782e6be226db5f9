"""Bulk on 100 Mbit/s with 50 ms each way and windows of 1024: what arrives, and what is sent for nothing.

1024 segments of 1298 bytes are 106 Mbit/s at 100 ms. FEC 10/3 and headers leave 72 Mbit/s of the link, and
without FEC 94. While a hole is open the window stands still, because its peer counts it from the first missing
segment: each repetition that is lost again costs a round trip in which nothing new goes
(docs/protocol.md, "Input", "Flush").
With `tries` repetitions on the road per window, 1024 segments take (1 + tries) round trips.
"""

from dataclasses import dataclass

import pytest

from kcptun_lite.core.params import ConversationParams
from tests.helpers import ConversationPair, kcp_params, noise

LINK = {"delay": 50, "rate": 100.0, "queue": 100}
WARM_UP = 1_000  # ms
MEASURED = 3_000  # ms
BLOCK = noise(1 << 20)


class Sink(bytearray):
    """Counts what it is given."""

    count = 0

    def __iadd__(self, data: bytes) -> "Sink":  # type: ignore[override]
        self.count += len(data)
        return self


@dataclass
class Result:
    """One bulk transfer."""

    goodput: float
    "Mbit/s of stream data"
    sent: int
    lost: int
    "packets, including those the queue did not take"
    retransmitted: int
    repeated: int
    "segments the receiver had already"
    recovered: int
    acks: int
    "packets the other way"


def bulk(loss: float, fec: tuple[int, int], mode: str = "fast", seed: int = 1, **link: float) -> Result:
    params = ConversationParams(
        kcp_params(mode),
        data_shards=fec[0],
        parity_shards=fec[1],
        compress=False,
        smux_buffer=16 << 20,
    )
    pair = ConversationPair(params, link={**LINK, "loss": loss, **link}, seed=seed)
    sid = pair.a.open_stream()
    sink = Sink()

    def refill() -> None:
        pair.a.write(sid, BLOCK)
        pair.at(pair.now + 50, refill)  # 160 Mbit/s: more than the link takes

    refill()
    pair.drive(lambda: bool(pair.b.opened), limit=5_000)
    pair.b.received[sid] = sink
    pair.drive(limit=WARM_UP)
    before = sink.count
    pair.drive(limit=MEASURED)
    return Result(
        goodput=(sink.count - before) * 8 / (MEASURED * 1000),
        sent=pair.a_to_b.sent,
        lost=pair.a_to_b.lost,
        retransmitted=pair.a.counters.retransmitted,
        repeated=pair.b.counters.repeated,
        recovered=pair.b.counters.fec_recovered,
        acks=pair.b_to_a.sent,
    )


# (fec, loss) -> least goodput in Mbit/s, and the most segments repeated for nothing as a share of packets sent
BOUNDS = {
    ((0, 0), 0.0): (92, 0.001),
    ((0, 0), 0.01): (40, 0.03),
    ((0, 0), 0.05): (29, 0.08),
    ((0, 0), 0.1): (24, 0.14),
    ((10, 3), 0.0): (70, 0.001),
    ((10, 3), 0.01): (66, 0.005),
    ((10, 3), 0.05): (50, 0.03),
    ((10, 3), 0.1): (37, 0.08),
}


@pytest.mark.parametrize(("fec", "loss"), BOUNDS)
def test_goodput_under_loss(fec: tuple[int, int], loss: float) -> None:
    least, most_needless = BOUNDS[fec, loss]
    result = bulk(loss, fec)
    print(f"\nFEC {fec[0]}/{fec[1]}, {loss:.0%} loss: {result.goodput:.1f} Mbit/s; {result}")
    assert result.goodput >= least
    assert result.repeated <= most_needless * result.sent


def test_acknowledgements_stay_few() -> None:
    """One for every half interval, or for a datagram full: never one for each segment."""
    result = bulk(0.0, (0, 0))
    assert result.acks <= 4_000 / 15 + result.sent / 50


def test_a_deep_queue_does_not_starve_the_transfer() -> None:
    """20 Mbit/s, a queue of 600 ms: a window of 1024 fills it, and the round trip grows from 100 ms to 660 at once."""
    result = bulk(0.0, (0, 0), rate=20.0, queue=600)
    print(f"\n20 Mbit/s with a deep queue: {result}")
    assert result.goodput >= 17
    assert result.repeated <= result.sent * 0.01
