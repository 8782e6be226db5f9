"""`--memlimit`: never more is held than it says, nobody starves, and everything arrives."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from kcptun_lite.core.batch.pool import BATCH_BYTES, BufferPool
from kcptun_lite.core.budget import HEADROOM, Budget, Share
from kcptun_lite.core.conversation import RECEIVE_LEAST, SEND_LEAST
from kcptun_lite.core.params import ConversationParams
from tests.helpers import ConversationPair, kcp_params, noise

MIB = 2**20


def test_a_queue_may_be_as_long_as_what_is_free() -> None:
    budget = Budget(nullcontext(), HEADROOM + 1000)
    assert budget.update(0) == (1000, 0)
    assert budget.update(400, queue=400) == (200, 0)  # 600 free, 400 held
    assert budget.update(0, queue=0) == (600, 0)  # another queue
    assert budget.update(200, queue=600) == (0, 0)


def test_what_is_granted_is_counted_and_what_is_not_is_a_wait() -> None:
    budget = Budget(nullcontext(), HEADROOM + 1000)
    assert budget.update(0, wanted=300) == (1000, 300)
    assert (budget.used, budget.waits) == (300, 0)
    assert budget.update(0, queue=300, wanted=500) == (400, 400)
    assert (budget.used, budget.peak, budget.waits) == (700, 700, 1)
    budget.update(-700)
    assert (budget.used, budget.peak) == (0, 700)


def test_everybody_has_the_least() -> None:
    budget = Budget(nullcontext(), HEADROOM + 1000)
    budget.update(1000)
    assert budget.update(0, queue=0, wanted=500, least=100) == (100, 100)
    assert budget.update(0, queue=100, wanted=500, least=100) == (0, 0)


def test_without_a_limit_everything_is_granted_and_counted() -> None:
    budget = Budget(nullcontext())
    assert budget.update(MIB, queue=MIB, wanted=MIB)[1] == MIB
    assert (budget.used, budget.waits) == (2 * MIB, 0)


def test_a_closed_share_gives_back_and_counts_no_more() -> None:
    budget = Budget(nullcontext())
    share = Share(budget)
    share.update(500, wanted=300)
    assert budget.used == 800
    share.update(600)
    assert budget.used == 600
    share.close()
    share.update(700)
    assert budget.used == 0


def test_the_pool_counts_what_it_has_mapped() -> None:
    budget = Budget(nullcontext())
    pool = BufferPool(nullcontext(), floor_bytes=BATCH_BYTES, budget=budget)
    buffers = [pool.take(BATCH_BYTES), pool.take(BATCH_BYTES)]
    assert budget.used == 2 * BATCH_BYTES
    for buffer in buffers:
        pool.give(buffer)
    assert budget.used == 2 * BATCH_BYTES == pool.usage().idle_bytes
    assert not pool.trim()
    assert budget.used == BATCH_BYTES == pool.usage().idle_bytes
    assert pool.trim()  # nothing was taken in between: the floor falls
    assert budget.used == 0


def test_the_pool_keeps_nothing_when_the_budget_is_used_up() -> None:
    budget = Budget(nullcontext(), 2 * HEADROOM)
    pool = BufferPool(nullcontext(), gogc=None, budget=budget)
    buffer = pool.take(BATCH_BYTES)
    budget.update(HEADROOM)
    pool.give(buffer)
    assert budget.used == HEADROOM


def test_readers_get_less_as_less_is_left_and_then_nothing() -> None:
    budget = Budget(nullcontext(), 4 * MIB)
    pool = BufferPool(nullcontext(), budget=budget)
    sizes = []
    while (buffer := pool.take_some(65_536)) is not None:
        sizes.append(len(buffer))
    assert sizes[0] == 65_536 and sizes[-1] == 4096
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) > 100  # so many get something
    assert budget.used <= 4 * MIB


# -- whole conversations ----------------------------------------------------------------------------------


def params(**changes: object) -> ConversationParams:
    settings = {"kcp": kcp_params("fast2", snd_wnd=8192, rcv_wnd=8192), "keepalive": 60_000, **changes}
    return ConversationParams(**settings)  # type: ignore[arg-type]


def limited_pair(settings: ConversationParams, limit: int, *, loss: float = 0.05, seed: int = 1) -> ConversationPair:
    pair = ConversationPair(settings, link={"delay": 20, "loss": loss}, seed=seed)
    for end in (pair.a, pair.b):
        end.conversation.share = Share(Budget(nullcontext(), limit))
    return pair


def budgets(pair: ConversationPair) -> Iterator[Budget]:
    for end in (pair.a, pair.b):
        yield end.conversation.share._budget


@pytest.mark.parametrize("smux_version", [1, 2])
@pytest.mark.parametrize(("fec", "compress"), [(False, False), (True, True)])
@pytest.mark.parametrize("is_compressible", [False, True])
def test_a_stopped_reader_keeps_both_ends_below_the_limit(
    smux_version: int, fec: bool, compress: bool, is_compressible: bool
) -> None:
    limit = 2 * MIB
    shards = (10, 3) if fec else (0, 0)
    pair = limited_pair(
        params(smux_version=smux_version, data_shards=shards[0], parity_shards=shards[1], compress=compress), limit
    )
    data = bytes(4 * MIB) if is_compressible else noise(4 * MIB)
    sid = pair.a.open_stream()
    pair.a.write(sid, data)
    pair.b.is_reading = False
    pair.drive(limit=8_000)
    if smux_version == 1:
        assert max(budget.used for budget in budgets(pair)) > 300_000  # the limit is made use of
        assert is_compressible or not pair.a.is_quiet
    pair.b.is_reading = True
    pair.drive(lambda: pair.b.received.get(sid) == data and pair.a.is_quiet, limit=120_000)
    for budget in budgets(pair):
        assert budget.peak <= limit - HEADROOM + RECEIVE_LEAST + SEND_LEAST
    assert smux_version == 2 or sum(budget.waits for budget in budgets(pair)) > 0


def test_one_stuck_conversation_leaves_room_for_others() -> None:
    budget = Budget(nullcontext(), 2 * MIB)
    stuck = ConversationPair(params(), link={"delay": 10})
    stuck.b.conversation.share = Share(budget)
    stuck.b.is_reading = False
    sid = stuck.a.open_stream()
    stuck.a.write(sid, noise(3 * MIB))
    stuck.drive(limit=5_000)
    assert budget.used > (2 * MIB - HEADROOM) // 3
    other = ConversationPair(params(), link={"delay": 10})
    other.b.conversation.share = Share(budget)
    data = noise(MIB, seed=2)
    sid = other.a.open_stream()
    other.a.write(sid, data)
    other.drive(lambda: other.b.received.get(sid) == data, limit=10_000)
    assert budget.peak <= 2 * MIB


def test_a_conversation_gets_on_when_others_have_taken_everything() -> None:
    budget = Budget(nullcontext(), 2 * MIB)
    budget.update(2 * MIB)
    pair = ConversationPair(params(), link={"delay": 10, "loss": 0.02})
    for end in (pair.a, pair.b):
        end.conversation.share = Share(budget)
    data = noise(300_000)
    sid = pair.a.open_stream()
    pair.a.write(sid, data)
    pair.drive(lambda: pair.b.received.get(sid) == data, limit=60_000)
    assert budget.peak <= 2 * MIB + 2 * (RECEIVE_LEAST + SEND_LEAST) + 2 * BATCH_BYTES


def test_a_peer_that_minds_no_window_cannot_make_us_hold_more() -> None:
    pair = ConversationPair(params(data_shards=0, parity_shards=0, compress=False), link={"delay": 1})
    budget = Budget(nullcontext(), MIB)
    pair.b.conversation.share = Share(budget)
    pair.b.is_reading = False
    sid = pair.a.open_stream()
    pair.a.write(sid, noise(4 * MIB))
    for _ in range(200):
        pair.a.conversation.kcp.rmt_wnd = 8192
        pair.drive(limit=5)
    assert budget.peak <= MIB - HEADROOM + RECEIVE_LEAST


def test_a_reader_holds_what_it_has_taken_until_it_comes_again() -> None:
    pair = limited_pair(params(), 4 * MIB)
    pair.b.is_reading = False
    sid = pair.a.open_stream()
    pair.a.write(sid, noise(100_000))
    pair.drive(limit=200)
    conversation = pair.b.conversation
    before = conversation.held_bytes
    taken = sum(map(len, conversation.take_stream_data(sid, 50_000)))
    assert taken and conversation.held_bytes == before
    more = sum(map(len, conversation.take_stream_data(sid, 50_000)))
    assert conversation.held_bytes == before - taken
    assert more
    conversation.close_stream(sid)
    assert conversation.held_bytes < before - taken - more


def test_without_any_room_one_group_of_the_own_shards_may_still_be_held() -> None:
    """Else error correction of large groups only costs, and wins nothing back."""
    settings = params(data_shards=70, parity_shards=30)
    pair = limited_pair(settings, 2 * MIB)
    budget = next(budgets(pair))
    budget.update(budget.free)
    sid = pair.a.open_stream()
    pair.a.write(sid, b"x")
    pair.drive(lambda: pair.b.received.get(sid) == b"x", limit=2_000)
    assert pair.a.conversation._decoder.held_limit >= 100 * settings.kcp.mtu
