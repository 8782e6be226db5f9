"""The update thread: everybody is called on time, nobody is forgotten, idle ones cost nothing."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kcptun_lite import log
from kcptun_lite.net.session.update_thread import NEVER, UpdateThread, monotonic_ms

PATIENCE_S = 10.0
FAR = 3_600_000  # ms


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Target:
    """Notes when it is called; `plan` says what it answers."""

    def __init__(self, plan: Callable[[int], int | None] = lambda now: None) -> None:
        self.plan = plan
        self.calls: list[int] = []

    def update(self, now: int) -> int | None:
        self.calls.append(now)
        return self.plan(now)

    def wait_for_calls(self, count: int) -> None:
        wait_until(lambda: len(self.calls) >= count)


@pytest.fixture
def ticker() -> Iterator[UpdateThread]:
    ticker = UpdateThread()
    ticker.start()
    yield ticker
    ticker.stop()


def is_asleep_for_ever(ticker: UpdateThread) -> bool:
    return ticker._sleeping_until == NEVER


def test_clock_counts_milliseconds_and_never_goes_back() -> None:
    before_ns = time.monotonic_ns()
    times = [monotonic_ms() for _ in range(1000)]
    assert times == sorted(times)
    assert before_ns // 1_000_000 <= times[0] and times[-1] <= time.monotonic_ns() // 1_000_000


def test_a_new_target_is_called_at_once_and_then_only_when_it_wants(ticker: UpdateThread) -> None:
    target = Target()
    ticker.attach(target)
    target.wait_for_calls(1)
    wait_until(lambda: is_asleep_for_ever(ticker))
    assert len(target.calls) == 1


def test_without_targets_the_thread_sleeps_without_a_limit(ticker: UpdateThread) -> None:
    wait_until(lambda: is_asleep_for_ever(ticker))


def test_no_call_comes_before_its_time_and_none_is_left_out(ticker: UpdateThread) -> None:
    wanted: list[int] = []

    def every_three_ms(now: int) -> int | None:
        wanted.append((wanted[-1] if wanted else now) + 3)
        return wanted[-1] if len(wanted) < 20 else None

    target = Target(every_three_ms)
    ticker.attach(target)
    target.wait_for_calls(20)
    assert all(called >= planned for planned, called in zip(wanted, target.calls[1:], strict=False))
    assert len(target.calls) == 20


def test_targets_do_not_disturb_each_other(ticker: UpdateThread) -> None:
    quick = Target(lambda now: now + 2)
    slow = Target(lambda now: now + FAR)
    idle = Target()
    for target in (slow, idle, quick):
        ticker.attach(target)
    quick.wait_for_calls(10)
    assert len(slow.calls) == len(idle.calls) == 1
    ticker.detach(quick)


def test_a_target_that_is_always_late_is_called_once_per_millisecond(ticker: UpdateThread) -> None:
    greedy = Target(lambda now: now - 5)
    ticker.attach(greedy)
    greedy.wait_for_calls(20)
    ticker.detach(greedy)
    assert len(set(greedy.calls)) == len(greedy.calls)


def test_waking_an_idle_target(ticker: UpdateThread) -> None:
    target = Target()
    ticker.attach(target)
    wait_until(lambda: is_asleep_for_ever(ticker))
    at = monotonic_ms() + 5
    ticker.wake(target, at)
    target.wait_for_calls(2)
    assert target.calls[1] >= at


def test_waking_brings_a_call_forward_but_never_puts_it_off(ticker: UpdateThread) -> None:
    target = Target(lambda now: now + FAR)
    ticker.attach(target)
    target.wait_for_calls(1)
    planned = target.calls[0] + FAR
    wait_until(lambda: ticker._sleeping_until == planned)
    ticker.wake(target, planned + 1)
    assert ticker._sleeping_until == planned
    ticker.wake(target)
    target.wait_for_calls(2)


def test_waking_too_late_takes_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticker = UpdateThread()
    target = Target()
    ticker.attach(target)
    monkeypatch.setattr(ticker, "_condition", None)
    ticker.wake(target, 5)
    ticker.wake(Target(), 5)


def test_waking_during_the_update_is_not_lost(ticker: UpdateThread) -> None:
    target = Target()
    entered, woken = threading.Event(), threading.Event()

    def wait_inside(now: int) -> int | None:
        entered.set()
        assert woken.wait(PATIENCE_S)
        return None

    target.plan = wait_inside
    ticker.attach(target)
    assert entered.wait(PATIENCE_S)
    ticker.wake(target)  # the update has looked at the old state and is about to answer "nothing"
    woken.set()
    target.wait_for_calls(2)


def test_wakes_from_many_threads_each_lead_to_a_later_update(ticker: UpdateThread) -> None:
    work: list[int] = []
    done: list[int] = []

    def take_all(now: int) -> int | None:
        while work:
            done.append(work.pop())
        return None

    target = Target(take_all)
    ticker.attach(target)

    def feed(first: int) -> None:
        for item in range(first, first + 200):
            work.append(item)
            ticker.wake(target, monotonic_ms())

    threads = [threading.Thread(target=feed, args=(first,)) for first in range(0, 800, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(done) == 800)
    assert sorted(done) == list(range(800))


def test_a_failing_target_is_logged_once_and_detached(ticker: UpdateThread, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "error", lines.append)
    bad = Target(lambda now: 1 // 0)
    good = Target(lambda now: now + 1)
    ticker.attach(bad)
    ticker.attach(good)
    good.wait_for_calls(5)
    ticker.wake(bad)
    good.wait_for_calls(8)
    assert len(bad.calls) == 1
    assert len(lines) == 1
    assert "ZeroDivisionError" in lines[0] and "test_update_thread.py:" in lines[0]
    ticker.detach(good)


def test_a_target_may_detach_itself_or_another_during_its_update(ticker: UpdateThread) -> None:
    other = Target(lambda now: now + FAR)

    def leave(now: int) -> int | None:
        ticker.detach(leaver)
        ticker.detach(other)
        return now

    leaver = Target(leave)
    ticker.attach(other)
    other.wait_for_calls(1)
    ticker.attach(leaver)
    leaver.wait_for_calls(1)
    wait_until(lambda: is_asleep_for_ever(ticker))
    ticker.wake(leaver)
    ticker.detach(leaver)
    assert len(leaver.calls) == len(other.calls) == 1
    assert repr(ticker) == "<UpdateThread running, 0 targets>"


def test_stop_ends_a_thread_that_sleeps_and_one_that_never_sleeps() -> None:
    for plan in (lambda now: None, lambda now: now):
        ticker = UpdateThread()
        ticker.start()
        target = Target(plan)
        ticker.attach(target)
        target.wait_for_calls(1)
        ticker.stop()
        assert repr(ticker) == "<UpdateThread not running, 1 targets>"
