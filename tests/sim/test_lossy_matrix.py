"""Everything arrives, and in time: loss x round trip x mode, with and without FEC, and links that shuffle.

A bound is stated twice. No single run may take longer than the theory of `hard_limit` allows. And all runs of a
mode and a loss together may take at most `STRETCH` times what they would take without loss; the figures are 1.5
times what is measured, so that anything that makes recovery twice as slow is seen.
"""

import pytest

from kcptun_lite.core.params import ConversationParams
from tests.helpers import MODES, ConversationPair, KcpPair, kcp_params, noise

DELAYS = (10, 50, 150, 300)  # ms, one way
SEEDS = range(10)
TO_B = noise(60_000, 1)  # more than the 32 segments that may go before the peer has told its window
TO_A = noise(30_000, 2)

# mode -> loss -> total time against the time without loss
STRETCH = {
    "normal": {0.05: 2.2, 0.1: 2.8, 0.2: 4.2, 0.3: 8.6},
    "fast": {0.05: 2.2, 0.1: 2.8, 0.2: 4.2, 0.3: 8.6},
    "fast2": {0.05: 2.1, 0.1: 2.8, 0.2: 4.0, 0.3: 7.2},
    "fast3": {0.05: 2.1, 0.1: 2.8, 0.2: 4.0, 0.3: 7.2},
    "nc=0": {0.05: 1.9, 0.1: 2.3, 0.2: 3.7, 0.3: 6.4},
}


def lossless_time(mode: str, delay: int) -> int:
    """One way there with the window, one for the rest of the data, and one for its ACK."""
    interval = MODES[mode][1]
    if MODES[mode][3]:
        return 3 * delay
    return 13 * (2 * delay + interval // 2)  # the congestion window grows from 1 by about 1 each round trip


def hard_limit(mode: str, loss: float, delay: int) -> int:
    """ms by which even the segment with the worst luck of all our seeds is through.

    Of the 80 segments of a run, and 40 runs of a mode and loss, the unluckiest is lost `tries` times in a row,
    there or its ACK back, and its timeout grows by half or all of the RTO each time (docs/protocol.md, "Flush").
    """
    nodelay, interval, _, nc = MODES[mode]
    tries = 0
    chance = 80.0 * 40
    while loss and chance > 0.1:
        chance *= 1 - (1 - loss) ** 2
        tries += 1
    rto = max(200, 2 * delay + 2 * delay // 4 + interval)
    backoff = sum(rto + rto * n // (2 if nodelay else 1) for n in range(tries))
    return (2 if nc else 10) * lossless_time(mode, delay) + backoff


@pytest.mark.parametrize("delay", [0, *DELAYS])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "nc=0"])
def test_without_loss_it_takes_what_theory_says(mode: str, delay: int) -> None:
    pair = KcpPair(kcp_params(mode), link={"delay": delay})
    assert pair.exchange(TO_B, TO_A, limit=2000) == lossless_time(mode, delay)


@pytest.mark.parametrize("delay", [0, *DELAYS])
def test_without_loss_the_congestion_window_opens(delay: int) -> None:
    pair = KcpPair(kcp_params("nc=0"), link={"delay": delay})
    pair.exchange(TO_B, TO_A, limit=14 * (2 * delay + 15))


@pytest.mark.parametrize("loss", [0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("mode", MODES)
def test_loss_costs_no_more_than_it_must(mode: str, loss: float) -> None:
    total = lossless = 0
    for delay in DELAYS:
        for seed in SEEDS:
            pair = KcpPair(kcp_params(mode), link={"delay": delay, "loss": loss}, seed=seed)
            total += pair.exchange(TO_B, TO_A, limit=hard_limit(mode, loss, delay))
            lossless += lossless_time(mode, delay)
    print(f"\n{mode} {loss:.0%}: {total / lossless:.2f} times the time without loss")
    assert total <= STRETCH[mode][loss] * lossless


LINKS = {
    "jitter": {"delay": 30, "jitter": 40},
    "reorder": {"delay": 30, "reorder": 0.3},
    "duplicate": {"delay": 30, "duplicate": 0.5},
    "narrow": {"delay": 30, "rate": 1.0, "queue": 300},
    "narrow with a short queue": {"delay": 30, "rate": 2.0, "queue": 30},
    "everything": {"delay": 30, "jitter": 40, "reorder": 0.2, "duplicate": 0.2, "loss": 0.1, "rate": 5.0},
}


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
@pytest.mark.parametrize("mode", MODES)
def test_links_that_shuffle_lose_and_double_nothing(mode: str, link: dict[str, float]) -> None:
    for seed in range(3):
        pair = KcpPair(kcp_params(mode), link=link, seed=seed)
        pair.exchange(TO_B, TO_A, limit=8_000 if mode == "nc=0" else 4_000)


def test_one_dead_direction_is_waited_for() -> None:
    """ACKs do not come back for a minute; then everything is acknowledged with the next repetition."""
    pair = KcpPair(kcp_params("fast2"), link={"delay": 20}, link_back={"delay": 20, "loss": 1.0})
    pair.a.write(TO_B)
    pair.drive(limit=60_000)
    assert not pair.a.is_quiet
    # Linear back-off: after a minute the wait of a segment is about sqrt(2 * 60 s * rto / 2), 3.5 s.
    assert pair.a.counters.retransmitted / 32 < 40
    pair.b_to_a.loss = 0.0
    pair.drive(lambda: pair.a.is_quiet, limit=8_000)
    assert pair.b.received == TO_B


FEC = {"off": (0, 0), "10-3": (10, 3), "5-5": (5, 5)}


def transfer(pair: ConversationPair, data: bytes, *, limit: int) -> int:
    """Send on a new stream of a, until b has read it; the ms it took."""
    sid = pair.a.open_stream()
    pair.a.write(sid, data)
    return pair.drive(lambda: pair.b.received.get(sid) == data, limit=limit)


@pytest.mark.parametrize("fec", FEC.values(), ids=FEC.keys())
@pytest.mark.parametrize("loss", [0.0, 0.05, 0.1, 0.2, 0.3])
def test_conversation_with_and_without_fec(loss: float, fec: tuple[int, int]) -> None:
    for seed in range(4):
        params = ConversationParams(kcp_params("fast"), data_shards=fec[0], parity_shards=fec[1])
        pair = ConversationPair(params, link={"delay": 50, "loss": loss}, seed=seed)
        transfer(pair, TO_B, limit=hard_limit("fast", loss, 50))
        transfer(pair, TO_A, limit=hard_limit("fast", loss, 50))


def test_fec_saves_round_trips() -> None:
    """400 kB at 5 % loss: with 10/3 nearly every loss is made good before a repetition could be on its way."""
    times = dict.fromkeys(("off", "10-3"), 0)
    for name in times:
        data_shards, parity_shards = FEC[name]
        params = ConversationParams(kcp_params("fast"), data_shards=data_shards, parity_shards=parity_shards)
        for seed in range(5):
            pair = ConversationPair(params, link={"delay": 100, "loss": 0.05}, seed=seed)
            times[name] += transfer(pair, noise(400_000), limit=30_000)
    print(f"\n400 kB, 5 % loss, 200 ms: {times['off'] / 5:.0f} ms without FEC, {times['10-3'] / 5:.0f} ms with 10/3")
    assert times["10-3"] < 0.7 * times["off"]
