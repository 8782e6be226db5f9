"""The send window against a naive one that looks at everything each time."""

from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from kcptun_lite.core.kcp.congestion import Flight
from kcptun_lite.core.kcp.send_window import HEAD, Cause, Segment, SendWindow
from kcptun_lite.core.wire import MASK32

WRAP = 1 << 32


def payloads(window: SendWindow) -> list[bytes]:
    return [segment.payload for segment in window.segments]


def flight(now: int) -> Flight:
    return Flight(now & MASK32, now)


def push(window: SendWindow, payload: bytes, now: int, rto: int) -> Segment:
    sn = window.push([payload], flight(now), rto)
    assert sn == window.segments[-1].sn
    return window.segments[-1]


def test_una_frees_and_counts_bytes() -> None:
    window = SendWindow(2)
    for size in (10, 20, 30):
        push(window, bytes(size), 0, 100)
    assert window.acknowledge_until(2) == 30
    assert (window.snd_una, window.snd_nxt) == (2, 3)
    assert window.acknowledge_until(2) == 0
    assert window.acknowledge_until(3) == 30
    assert window.next_resend is None


@pytest.mark.parametrize("una", [4, 5, 1000, 0x7FFFFFFF, 0x80000000, MASK32, WRAP - 1000])
def test_impossible_una_changes_nothing(una: int) -> None:
    window = SendWindow(2)
    for _ in range(3):
        push(window, b"x", 0, 100)
    assert window.acknowledge_until(una) == 0
    assert len(window.segments) == 3
    assert window.snd_una == 0


def test_una_across_the_wrap() -> None:
    window = SendWindow(2, first_sn=WRAP - 2)
    for sn in range(4):
        push(window, bytes([sn]), 0, 100)
    assert window.snd_nxt == WRAP + 2
    window.acknowledge_until(1)
    assert payloads(window) == [b"\3"]
    assert window.snd_una == WRAP + 1
    assert window.acknowledge_until(WRAP - 1) == 0


def test_acks_across_the_wrap_count_skips() -> None:
    window = SendWindow(2, first_sn=WRAP - 2)
    for _ in range(4):
        push(window, b"x", MASK32, 100)
    window.acknowledge([(0, MASK32), (1, 0)])
    assert [segment.acked for segment in window.segments] == [False, False, True, True]
    assert [cause for _, cause in window.due(10, 0, early=False)] == [Cause.FAST, Cause.FAST]


def test_ack_outside_the_window_is_ignored() -> None:
    window = SendWindow(2, first_sn=10)
    for _ in range(3):
        push(window, b"x", 0, 100)
    window.acknowledge([(9, 0), (13, 0), (0x80000000, 0), (MASK32, 0)])
    assert not any(segment.acked or segment.fastack for segment in window.segments)
    assert not window.has_skipped


def test_acked_segments_stay_until_una_passes() -> None:
    window = SendWindow(2)
    for _ in range(3):
        push(window, b"x", 0, 100)
    window.acknowledge([(0, 0), (1, 0), (2, 0)])
    assert len(window.segments) == 3
    assert window.due(1000, 0, early=True) == []
    window.acknowledge_until(3)
    assert window.segments == []


def test_an_ack_of_an_earlier_transmission_is_no_skip() -> None:
    window = SendWindow(2)
    push(window, b"a", 0, 100)
    push(window, b"b", 0, 100)
    window.resent(window.segments[0], Cause.TIMEOUT, flight(100), 100, 0)
    window.acknowledge([(1, 0)])  # sent at 0, before the repetition of 0
    assert window.segments[0].fastack == 0
    window.acknowledge([(1, 100)])  # nor does a ts that was never sent with it make one
    assert window.segments[0].fastack == 0
    push(window, b"c", 100, 100)
    window.acknowledge([(2, 100)])
    assert window.segments[0].fastack == 1


def test_only_what_was_sent_again_can_have_been_sent_for_nothing() -> None:
    window = SendWindow(2)
    for payload in (b"once", b"twice"):
        push(window, payload, 0, 100)
    window.resent(window.segments[1], Cause.TIMEOUT, flight(100), 100, 0)
    window.acknowledge_until(2, answers_since=-1)
    assert window.needless == 1


@pytest.mark.parametrize(
    ("limit", "skips", "fast"), [(2, 1, False), (2, 2, True), (1, 1, True), (3, 2, False), (0, 9, False)]
)
def test_fast_limit(limit: int, skips: int, fast: bool) -> None:
    window = SendWindow(limit)
    for _ in range(skips + 1):
        push(window, b"x", 0, 100)
    for sn in range(1, skips + 1):
        window.acknowledge([(sn, 0)])
    assert window.has_fast is fast
    assert [cause for _, cause in window.due(50, 0, early=False)] == [Cause.FAST] * fast
    # Nothing new goes out: one skip is enough, whatever the limit.
    assert [cause for _, cause in window.due(50, 0, early=True)] == [Cause.FAST if fast else Cause.EARLY]


@pytest.mark.parametrize(("nodelay", "rtos"), [(0, [200, 300, 400, 500]), (1, [150, 200, 250, 300])])
def test_timeouts_back_off_linearly(nodelay: int, rtos: list[int]) -> None:
    window = SendWindow(2)
    segment = push(window, b"x", 0, 100)
    now = 0
    for rto in rtos:
        now = segment.resend_at
        assert window.due(now - 1, 0, early=True) == []
        assert window.due(now, 0, early=False) == [(segment, Cause.TIMEOUT)]
        window.resent(segment, Cause.TIMEOUT, flight(now), 100, nodelay)
        assert segment.resend_at == now + rto


def test_backoff_has_a_ceiling() -> None:
    window = SendWindow(2)
    segment = push(window, b"x", 0, 50_000)
    for _ in range(3):
        window.resent(segment, Cause.TIMEOUT, flight(0), 50_000, 0)
    assert segment.rto == 60_000


def test_fast_retransmission_starts_from_the_plain_rto() -> None:
    window = SendWindow(1)
    segment = push(window, b"x", 0, 100)
    window.resent(segment, Cause.TIMEOUT, flight(100), 100, 0)
    push(window, b"y", 200, 100)
    window.acknowledge([(1, 200)])
    assert window.due(210, 0, early=False) == [(segment, Cause.FAST)]
    window.resent(segment, Cause.FAST, flight(210), 90, 0)
    assert (segment.rto, segment.fastack, segment.flight.ts, segment.resend_at) == (90, 0, 210, 300)


def test_early_retransmission_with_a_shorter_rto_is_due_in_time() -> None:
    """The first RTO is 200 ms; once the round trip is known a repetition's may end before it."""
    window = SendWindow(2)
    segment = push(window, b"x", 0, 200)
    push(window, b"y", 0, 200)
    window.acknowledge([(1, 0)])
    assert window.due(20, 0, early=True) == [(segment, Cause.EARLY)]
    window.resent(segment, Cause.EARLY, flight(20), 60, 1)
    assert window.next_resend is not None
    assert window.next_resend <= 80
    assert window.due(80, 0, early=False) == [(segment, Cause.TIMEOUT)]


@dataclass
class NaiveSegment:
    sn: int
    ts: int
    rto: int
    resend_at: int
    fastack: int = 0
    acked: bool = False


class NaiveWindow:
    """docs/protocol.md, "Input", "Flush", word for word: everything is looked at each time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.una = self.nxt = 0
        self.segments: list[NaiveSegment] = []

    def push(self, now: int, rto: int) -> None:
        self.segments.append(NaiveSegment(self.nxt, now, rto, now + rto))
        self.nxt += 1

    def acknowledge_until(self, una: int) -> None:
        if una <= self.nxt:
            self.segments = [segment for segment in self.segments if segment.sn >= una]
            self.una = max(self.una, una)

    def acknowledge(self, acks: list[tuple[int, int]]) -> None:
        for sn, _ in acks:
            for segment in self.segments:
                segment.acked = segment.acked or segment.sn == sn
        for sn, ts in acks:
            if self.una <= sn < self.nxt:
                for segment in self.segments:
                    segment.fastack += segment.sn < sn and segment.ts <= ts

    def due(self, now: int, early: bool) -> list[tuple[int, Cause]]:
        due = []
        for segment in self.segments:
            if segment.acked:
                continue
            if 0 < self.limit <= segment.fastack:
                due.append((segment.sn, Cause.FAST))
            elif segment.fastack and early:
                due.append((segment.sn, Cause.EARLY))
            elif now >= segment.resend_at:
                due.append((segment.sn, Cause.TIMEOUT))
        return due

    def resent(self, sn: int, cause: Cause, now: int, rto: int, nodelay: int) -> None:
        (segment,) = (segment for segment in self.segments if segment.sn == sn)
        segment.rto = segment.rto + (rto // 2 if nodelay else rto) if cause is Cause.TIMEOUT else rto
        segment.ts = now
        segment.resend_at = now + segment.rto
        segment.fastack = 0


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
@pytest.mark.parametrize("nodelay", [0, 1])
@pytest.mark.parametrize("seed", range(10))
def test_flags_and_deadlines_never_miss_what_is_due(limit: int, nodelay: int, seed: int) -> None:
    random = Random(seed)
    window, naive = SendWindow(limit), NaiveWindow(limit)
    now = 0
    for _ in range(200):
        now += random.choice((0, 0, 1, 5, 40, 200))
        rto = random.choice((30, 60, 100, 200))
        action = random.random()
        if action < 0.4:
            for _ in range(random.randint(1, 5)):
                push(window, b"x", now, rto)
                naive.push(now, rto)
        elif action < 0.6 and naive.segments:
            acked = [random.choice(naive.segments) for _ in range(random.randint(1, 4))]
            acks = [(segment.sn, random.choice((segment.ts, max(0, segment.ts - 40)))) for segment in acked]
            window.acknowledge(acks)
            naive.acknowledge(acks)
        elif action < 0.7:
            una = random.randint(naive.una, naive.nxt + 1)
            window.acknowledge_until(una)
            naive.acknowledge_until(una)
        early = random.random() < 0.5
        due = naive.due(now, early)
        assert [(segment.sn, cause) for segment, cause in window.due(now, 0, early=early)] == due
        room = random.choice((0, 1, 100))  # a batch may be too full for all of them
        for segment, cause in window.due(now, 0, early=early)[:room]:
            window.resent(segment, cause, flight(now), rto, nodelay)
            naive.resent(segment.sn, cause, now, rto, nodelay)
        # Nothing that time alone makes due may come before the deadline that is told.
        coming = min((s.resend_at for s in naive.segments if not s.acked and not 0 < limit <= s.fastack), default=None)
        if coming is not None:
            assert window.next_resend is not None
            assert window.next_resend <= coming


def test_a_timeout_waits_while_the_round_trip_grows() -> None:
    """Sent when the RTO was 100 ms; by now acknowledgements take 300, because a queue has filled."""
    window = SendWindow(2)
    segment = push(window, b"x", 0, 100)
    assert window.due(100, 300, early=False) == []
    assert window.next_resend == 300
    assert window.due(300, 300, early=False) == [(segment, Cause.TIMEOUT)]


def test_while_all_is_silent_only_the_head_of_the_window_asks_in_time() -> None:
    """A pause of the path or the peer looks like the loss of everything; most of it waits half as long again."""
    window = SendWindow(fast_limit=2)
    window.push([b"x"] * 100, flight(0), 200)
    asking = window.due(200, 200, early=False)
    assert [segment.sn for segment, _ in asking] == [*range(HEAD)]
    for segment, cause in asking:
        window.resent(segment, cause, flight(200), 200, 1)
    assert window.due(200, 200, early=False) == []
    assert window.next_resend == 300
    assert [segment.sn for segment, _ in window.due(300, 200, early=False)] == [*range(HEAD, 100)]


def test_what_was_sent_before_something_that_arrived_waits_no_longer_than_its_timeout() -> None:
    window = SendWindow(fast_limit=2)
    window.push([b"x"] * 100, flight(0), 200)
    window.push([b"x"], flight(10), 200)
    window.acknowledge([(100, 10)])
    assert len(window.due(200, 200, early=False)) == 100


def test_acknowledged_segments_are_no_load_and_hold_no_bytes() -> None:
    window = SendWindow(2)
    for _ in range(5):
        push(window, bytes(10), 0, 100)
    assert window.acknowledge([(3, 0), (4, 0), (3, 0)]) == 20
    assert window.unacked == 3
    assert window.acknowledge_until(4) == 30
    assert window.unacked == 0
    assert window.acknowledge_until(5) == 0


def test_an_ack_that_comes_twice_is_one_skip_where_it_is_told_twice_on_purpose() -> None:
    for comes_twice, skips in ((True, 1), (False, 2)):
        window = SendWindow(2)
        window.acks_come_twice = comes_twice
        window.push([b"x"] * 3, flight(0), 100)
        window.acknowledge([(2, 0)])
        window.acknowledge([(2, 0)])
        assert window.segments[0].fastack == skips


def test_all_that_is_sent_at_once_is_under_way() -> None:
    window = SendWindow(2)
    window.push([b"x"] * 5, flight(0), 100)
    assert window.unacked == 5
    window.acknowledge([(3, 0)])
    window.acknowledge_until(2)
    assert window.unacked == 2


@pytest.mark.parametrize(("answered", "lost"), [(10, False), (12, True)])
def test_a_sending_is_lost_if_only_its_copy_has_arrived(answered: int, lost: bool) -> None:
    window = SendWindow(2)
    segment = push(window, b"x", 10, 100)
    window.plan_repeats(segment.sn, (2,), 1)
    assert list(window.repeats(12)) == [segment]
    assert window.lost_first_sendings([(segment.sn, answered)]) == ([(segment.flight, answered - 10)] if lost else [])


class Walked(list[Segment]):
    """The segments, and how many were looked at."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)


def test_the_same_ack_again_and_again_walks_the_window_no_more_than_it_has_to() -> None:
    window = SendWindow(fast_limit=2)
    window.push([b"x"] * 1000, flight(0), 100)
    window.segments = walked = Walked(window.segments)
    ack = (999, 0)
    for _ in range(4):
        window.acknowledge([ack])
    before = walked.looks
    for _ in range(100):
        window.acknowledge([ack])
    assert walked.looks - before <= 200
    window.resent(window.segments[0], Cause.FAST, flight(50), 100, 1)
    push(window, b"later", 60, 100)
    window.acknowledge([(1000, 60)])
    assert window.segments[0].fastack == 1, "what is sent again can be skipped again"


def test_the_newest_sending_is_one_that_is_known_to_have_arrived() -> None:
    """Else rounds end too early: what was sent again for nothing cannot have been answered yet."""
    window = SendWindow(2)
    first = push(window, b"a", 0, 100)
    again = window.segments[0]
    window.resent(again, Cause.FAST, flight(90), 100, 1)
    window.acknowledge([(0, 0)])  # of the first sending
    assert window.take_progress() == (0, None)
    second = push(window, b"b", 95, 100)
    window.acknowledge([(1, 95)])
    assert first is again and window.take_progress() == (2, second.flight)


def test_una_alone_does_not_tell_which_sending_has_arrived() -> None:
    window = SendWindow(2)
    push(window, b"a", 0, 100)
    window.resent(window.segments[0], Cause.FAST, flight(90), 100, 1)
    window.acknowledge_until(1)
    assert window.take_progress() == (0, None)
    known = push(window, b"b", 95, 100)
    window.acknowledge_until(2)
    assert window.take_progress() == (2, known.flight)
