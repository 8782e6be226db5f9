"""Small messages go before what others have waiting; a stream's own order holds, and nobody lives on it."""

from random import Random

import pytest

from kcptun_lite.core.kcp.send_queue import SendQueue
from kcptun_lite.core.overtaking import CREDIT_MOST, SHARE, SMALL, Overtaking
from kcptun_lite.core.params import ConversationParams
from tests.helpers import ConversationPair, kcp_params, noise

BULK, QUIET = 3, 5


@pytest.fixture
def queue() -> SendQueue:
    """One that has bulk waiting, of which a part has gone."""
    queue = SendQueue(1000)
    queue.push(bytes(100_000))
    queue.cut_full(50)
    return queue


def test_a_small_message_may_and_a_large_one_may_not(queue: SendQueue) -> None:
    overtaking = Overtaking(queue)
    assert overtaking.ask(QUIET, SMALL)
    assert not overtaking.ask(QUIET, SMALL + 1)


def test_nothing_overtakes_the_first_bytes_or_nobody(queue: SendQueue) -> None:
    fresh = SendQueue(1000)
    fresh.push(b"this says what is spoken")
    assert not Overtaking(fresh).ask(QUIET, 10)
    queue.cut_full(100)
    assert not Overtaking(queue).ask(QUIET, 10)


def test_nothing_overtakes_its_own_stream(queue: SendQueue) -> None:
    overtaking = Overtaking(queue)
    queue.push(bytes(1000))
    overtaking.note(QUIET)
    queue.push(bytes(1000))
    assert not overtaking.ask(QUIET, 10)
    queue.cut_full(50)
    queue.cut()
    assert overtaking.ask(QUIET, 10)


def test_who_always_comes_with_small_messages_gets_a_part_of_the_line(queue: SendQueue) -> None:
    overtaking = Overtaking(queue)
    ahead = in_turn = 0
    for _ in range(1000):
        queue.push(bytes(2000))
        while overtaking.ask(QUIET, 1000):
            queue.push(bytes(1000), is_ahead=True)
            ahead += 1000
        before = queue.passed
        queue.cut_full(2)
        in_turn += queue.passed - before
    assert ahead <= SHARE * in_turn + CREDIT_MOST


@pytest.mark.parametrize("compress", [False, True], ids=["nocomp", "snappy"])
@pytest.mark.parametrize("version", [1, 2])
def test_each_stream_keeps_its_order(version: int, compress: bool) -> None:
    """Messages of all sizes, on many streams, beside bulk on a slow line; some end at once, some are opened late."""
    random = Random(version)
    settings = ConversationParams(
        kcp=kcp_params("fast", snd_wnd=32, rcv_wnd=128), smux_version=version, compress=compress
    )
    pair = ConversationPair(settings, link={"delay": 20, "rate": 4.0, "loss": 0.02})
    bulk = pair.a.open_stream()
    pair.a.write(bulk, noise(400_000, 1))
    said: dict[int, bytes] = {bulk: noise(400_000, 1)}
    for number in range(60):
        sid = pair.a.open_stream() if number % 4 == 0 else random.choice([sid for sid in said if sid > 0])
        piece = noise(random.choice([1, 30, 500, 3_000, 20_000]), number)
        is_last = sid != bulk and random.random() < 0.3
        pair.a.write(sid, piece, finish=is_last)
        said[sid] = said.get(sid, b"") + piece
        if is_last:
            said[-sid] = said.pop(sid)  # over
        pair.drive(limit=random.randrange(1, 40))
    pair.drive(lambda: pair.a.is_quiet, limit=60_000)
    for sid, data in said.items():
        assert pair.b.received[abs(sid)] == data


def test_a_request_beside_bulk_does_not_wait_for_what_is_queued() -> None:
    """The window is full and a hundred ms of the line wait: the request goes with the next segments."""
    settings = ConversationParams(kcp=kcp_params("fast", snd_wnd=16, rcv_wnd=256), compress=False)
    pair = ConversationPair(settings, link={"delay": 20, "rate": 10.0})
    bulk, quiet = pair.a.open_stream(), pair.a.open_stream()
    pair.a.write(bulk, bytes(4_000_000))
    pair.drive(limit=500)
    took = []
    for number in range(1, 20):
        pair.a.write(quiet, b"request")
        took.append(pair.drive(lambda number=number: len(pair.b.received[quiet]) == 7 * number, limit=1_000))
        pair.drive(limit=37)
    waiting = pair.a.conversation.kcp.queued_bytes * 8 / 10_000
    print(f"\n{sorted(took)[10]} ms, with {waiting:.0f} ms of the line waiting")
    assert sorted(took)[10] <= 40 + waiting / 2
