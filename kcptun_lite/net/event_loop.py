"""The one thread that waits for the network: whoever can read or write is called.

In      descriptors and whom to call for them; functions, from any thread
Out     the calls, one after the other, in one thread
Knows   epoll, threads. Not: what a descriptor is of
Cost    one system call for all that is ready, 0.5 us for each call; idle: no wake-up

Threads that wait for a socket each would hand the interpreter's lock on after every system call: an echo of 64 bytes
took 20 futex calls at either end and twice the processor time.
"""

import os
import select
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from threading import Thread, get_ident
from time import monotonic, sleep

from kcptun_lite import log
from kcptun_lite.errors import describe_exception

Callback = Callable[[], None]

READY_AT_ONCE = 64  # descriptors; what is more than that comes next, and those before have their turn behind it
SCRATCH_BYTES = 16 * 1024  # for reads of thin streams; more than that at once is no thin stream
FAILED_REST = 0.01  # s; whoever has failed for want of memory is still ready, and would fail again at once


class EventLoop:
    """Calls back in its own thread; a callback must not block, and one that raises is logged.

    `watch`, `forget`, `call` and `each_second` are for any thread, the others for the loop's own.
    """

    def __init__(self) -> None:
        """Raises: OSError without descriptors."""
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        "for whoever is called, until it returns"
        self._epoll = select.epoll()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._callbacks: dict[int, Callback] = {self._alarm: self._silence_alarm}
        self._epoll.register(self._alarm, select.EPOLLIN)
        self._posted: deque[Callback] = deque()
        self._afterwards: dict[Callback, None] = {}
        self._timers: list[tuple[float, int, Callback]] = []
        self._order = count()
        "of timers for the same moment"
        self._each_second: dict[Callback, None] = {}
        self._second = 0.0
        self._is_stopping = False
        self._thread = Thread(target=self._run, name="network")

    def __repr__(self) -> str:
        state = "running" if self._thread.is_alive() else "not running"
        return f"<EventLoop {state}, {len(self._callbacks) - 1} descriptors>"

    def start(self) -> None:
        """Raises: RuntimeError if there is no thread to be had."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread when the calls of this round are made; wait for it, and close."""
        self._is_stopping = True
        self._ring()
        if self._thread.ident is not None:
            self._thread.join()
        self._epoll.close()
        alarm, self._alarm = self._alarm, -1  # which may be another's number soon, and late callers are left alone
        os.close(alarm)

    # -- from any thread -----------------------------------------------------------------------

    @property
    def is_here(self) -> bool:
        """Whether the caller is in the loop's thread."""
        return self._thread.ident == get_ident()

    def watch(self, number: int, callback: Callback, *, to_write: bool = False) -> None:
        """Have `callback` called as long as a descriptor can be read, or written; an error counts as both.

        Now and then it is called for nothing: read without waiting. What was watched under that number before, and
        closed, is watched no more.
        Raises: OSError if the system has no room for one more (epoll_ctl(2): ENOSPC, ENOMEM); then it is not watched.
        """
        events = select.EPOLLOUT if to_write else select.EPOLLIN
        is_known = number in self._callbacks
        self._callbacks[number] = callback
        try:
            if is_known:
                with suppress(FileNotFoundError):  # closed without `forget`, and the system has forgotten it
                    return self._epoll.modify(number, events)
            self._epoll.register(number, events)
        except OSError:
            del self._callbacks[number]
            raise

    def forget(self, number: int) -> None:
        """Watch a descriptor no more; before it is closed."""
        if self._callbacks.pop(number, None) is not None:
            with suppress(OSError, ValueError):  # closed already, or the loop is
                self._epoll.unregister(number)

    def call(self, function: Callback) -> None:
        """Call a function soon; at once if this is the loop's thread."""
        if self.is_here:
            function()
            return
        self._posted.append(function)
        self._ring()

    def each_second(self, function: Callback, *, wanted: bool) -> None:
        """Call a function once a second, or no more."""
        if wanted:
            is_first = not self._each_second
            self._each_second[function] = None
            if is_first:
                self._second = monotonic() + 1
                self._ring()  # the loop may be sleeping without a limit
        else:
            self._each_second.pop(function, None)

    # -- from the loop's thread ----------------------------------------------------------------

    def afterwards(self, function: Callback) -> None:
        """Call a function once when all that is ready now was dealt with, however often it is asked for."""
        self._afterwards[function] = None

    def call_later(self, delay_s: float, function: Callback) -> None:
        heappush(self._timers, (monotonic() + delay_s, next(self._order), function))

    # -- inside --------------------------------------------------------------------------------

    def _ring(self) -> None:
        if self._alarm >= 0:  # else the loop is over
            os.eventfd_write(self._alarm, 1)

    def _silence_alarm(self) -> None:
        os.eventfd_read(self._alarm)

    def _run(self) -> None:
        while not self._is_stopping:
            for number, _ in self._epoll.poll(self._patience(), READY_AT_ONCE):
                if callback := self._callbacks.get(number):  # else somebody before it has had it forgotten
                    self._try(callback)
            while self._posted:
                self._try(self._posted.popleft())
            while self._timers and self._timers[0][0] <= monotonic():
                self._try(heappop(self._timers)[2])
            if self._each_second and monotonic() >= self._second:
                self._second = monotonic() + 1
                for function in list(self._each_second):
                    self._try(function)
            while self._afterwards:
                functions, self._afterwards = self._afterwards, {}
                for function in functions:
                    self._try(function)

    def _patience(self) -> float | None:
        """s until something is to be done though nothing comes; None for never."""
        if not self._timers and not self._each_second:
            return None
        due = [self._timers[0][0]] if self._timers else []
        due += [self._second] if self._each_second else []
        return max(0.0, min(due) - monotonic())

    def _try(self, function: Callback) -> None:
        try:
            function()
        except Exception as exc:  # a bug must not stop the tunnel
            log.limited("network", f"network: {describe_exception(exc)}", log.Level.ERROR)
            sleep(FAILED_REST)
