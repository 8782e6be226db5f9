"""The event loop: who is called when, and what ends without a trace."""

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from kcptun_lite import log
from kcptun_lite.net import event_loop
from kcptun_lite.net.event_loop import EventLoop
from tests.net.fakes import PATIENCE_S, wait_until


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    loop.start()
    yield loop
    loop.stop()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


Pair = tuple[socket.socket, socket.socket]


def test_who_can_read_is_called_until_it_is_forgotten(loop: EventLoop, pair: Pair) -> None:
    here, there = pair
    came: list[bytes] = []
    loop.watch(here.fileno(), lambda: came.append(here.recv(1)))
    there.send(b"ab")
    wait_until(lambda: came == [b"a", b"b"])
    loop.forget(here.fileno())
    loop.forget(here.fileno())
    there.send(b"c")
    done = threading.Event()
    loop.call(done.set)
    assert done.wait(PATIENCE_S) and came == [b"a", b"b"]


def test_who_can_write_is_called_and_may_read_from_then_on(loop: EventLoop, pair: Pair) -> None:
    here, there = pair
    calls: list[str] = []

    def read() -> None:
        here.recv(1)
        calls.append("read")

    def write() -> None:
        calls.append("write")
        loop.watch(here.fileno(), read)

    loop.watch(here.fileno(), write, to_write=True)
    wait_until(lambda: calls == ["write"])
    there.send(b"x")
    wait_until(lambda: calls == ["write", "read"])


def test_a_descriptor_that_was_forgotten_in_the_same_round_is_not_called(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, told = list[int](), list[str]()
    monkeypatch.setattr(log, "limited", lambda key, text, level: told.append(text))
    pairs = [socket.socketpair() for _ in range(2)]

    def call(number: int) -> None:
        calls.append(number)
        for here, _ in pairs:
            loop.forget(here.fileno())

    def watch_all() -> None:  # in one round, so that both are ready in the next
        for number, (here, there) in enumerate(pairs):
            there.send(b"x")
            loop.watch(here.fileno(), lambda number=number: call(number))  # type: ignore[misc]

    loop.call(watch_all)
    wait_until(lambda: bool(calls))
    done = threading.Event()
    loop.call(done.set)
    done.wait(PATIENCE_S)
    assert len(calls) == 1 and not told
    for one, other in pairs:
        one.close()
        other.close()


def test_what_is_called_from_the_loop_itself_is_called_at_once(loop: EventLoop) -> None:
    order: list[str] = []
    done = threading.Event()

    def outer() -> None:
        assert loop.is_here
        loop.call(lambda: order.append("inner"))
        order.append("outer")
        done.set()

    assert not loop.is_here
    loop.call(outer)
    assert done.wait(PATIENCE_S) and order == ["inner", "outer"]


def test_afterwards_comes_once_behind_all_that_is_ready(loop: EventLoop) -> None:
    order: list[str] = []
    done = threading.Event()

    def finish() -> None:
        order.append("afterwards")
        done.set()

    def step(name: str) -> None:
        loop.afterwards(finish)
        order.append(name)

    def both() -> None:
        step("one")
        step("two")

    loop.call(both)
    assert done.wait(PATIENCE_S) and order == ["one", "two", "afterwards"]


def test_later_comes_in_the_order_of_time(loop: EventLoop) -> None:
    order: list[int] = []

    def plan() -> None:
        for delay in (30, 1, 10, 10):
            loop.call_later(delay / 1000, lambda delay=delay: order.append(delay))  # type: ignore[misc]

    loop.call(plan)
    wait_until(lambda: order == [1, 10, 10, 30])


def test_what_is_asked_for_afterwards_from_there_comes_in_the_same_round(loop: EventLoop) -> None:
    done = threading.Event()
    loop.call(lambda: loop.afterwards(lambda: loop.afterwards(done.set)))
    assert done.wait(PATIENCE_S)


def test_later_is_when_its_time_has_come(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [100.0], list[str]()
    monkeypatch.setattr(event_loop, "monotonic", lambda: clock[0])

    def look() -> None:  # one whole round
        done = threading.Event()
        loop.call(lambda: loop.afterwards(done.set))
        assert done.wait(PATIENCE_S)

    loop.call(lambda: loop.call_later(0.25, lambda: calls.append("called")))
    look()
    clock[0] = 100.24
    look()
    assert not calls
    clock[0] = 100.25
    look()
    assert calls == ["called"]


def test_each_second_ends_when_it_is_not_wanted_any_more(loop: EventLoop) -> None:
    calls: list[None] = []

    def note() -> None:
        calls.append(None)
        loop.each_second(note, wanted=False)

    loop.each_second(note, wanted=True)
    loop.each_second(note, wanted=True)
    wait_until(lambda: len(calls) == 1)
    assert not loop._each_second


def test_a_callback_that_fails_is_told_and_the_others_go_on(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch, pair: Pair
) -> None:
    told: list[str] = []
    monkeypatch.setattr(log, "limited", lambda key, text, level: told.append(text))
    here, there = pair

    def fail() -> None:
        here.recv(1)
        raise ZeroDivisionError("a bug")

    loop.watch(here.fileno(), fail)
    there.send(b"x")
    wait_until(lambda: len(told) == 1)
    done = threading.Event()
    loop.call(done.set)
    assert done.wait(PATIENCE_S) and "ZeroDivisionError" in told[0]


def test_stop_leaves_no_descriptor(pair: Pair) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for is_started in (True, False):
        loop = EventLoop()
        loop.watch(pair[0].fileno(), lambda: None)
        if is_started:
            loop.start()
        loop.stop()
    assert set(os.listdir("/proc/self/fd")) == before


# -- what descriptors do behind its back ---------------------------------------------------------------------


def test_a_number_that_was_closed_without_a_word_can_be_watched_again(loop: EventLoop) -> None:
    first, other = socket.socketpair()
    here, there = socket.socketpair()
    with first, other, here, there:
        loop.watch(first.fileno(), lambda: None)
        os.dup2(here.fileno(), first.fileno())
        called = threading.Event()
        loop.watch(first.fileno(), lambda: (first.recv(1), called.set()) and None)
        there.send(b"x")
        assert called.wait(PATIENCE_S)
        loop.forget(first.fileno())


def test_what_there_was_no_room_for_can_be_watched_later(loop: EventLoop, pair: Pair) -> None:
    here, there = pair
    epoll = loop._epoll

    class Full:
        def register(self, number: int, events: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    loop._epoll = Full()  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space"):
        loop.watch(here.fileno(), lambda: None)
    loop._epoll = epoll
    called = threading.Event()
    loop.watch(here.fileno(), lambda: (here.recv(1), called.set()) and None)
    there.send(b"x")
    assert called.wait(PATIENCE_S)


def test_who_fails_again_and_again_does_not_keep_the_processor_busy(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch, pair: Pair
) -> None:
    monkeypatch.setattr(log, "limited", lambda key, text, level: None)
    here, there = pair
    failures: list[None] = []

    def fail() -> None:  # what has come stays there
        failures.append(None)
        raise MemoryError

    there.send(b"x")
    loop.watch(here.fileno(), fail)
    threading.Event().wait(0.3)
    assert 1 <= len(failures) <= 31
    loop.forget(here.fileno())


def test_after_its_end_nothing_is_written_to_whoever_has_its_number(pair: Pair) -> None:
    reader, writer = os.pipe()
    loop = EventLoop()
    alarm = loop._alarm
    loop.watch(pair[0].fileno(), lambda: None)
    loop.start()
    loop.stop()
    os.dup2(writer, alarm)
    loop.call(lambda: None)
    loop.forget(pair[0].fileno())
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 8)
    for number in (reader, writer, alarm):
        os.close(number)
