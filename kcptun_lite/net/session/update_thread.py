"""The clock, and the one thread that calls on time whoever has something to do later.

In      targets with an `update(now)`; `wake` from any thread when one has work earlier than it said
Out     `update(now)` calls, each as soon as its time has come
Knows   threading, time. Not: what an update does
Cost    3 us per call, 60 us per sleep (40 of them the kernel's); a `wake` that changes nothing 0.2 us; idle: no wake-up
"""

import threading
import time
from typing import Protocol

from kcptun_lite import log

NEVER = 1 << 62  # ms; the planned time of an idle target
AWAKE = -1  # ms; nobody can want an earlier call, so nobody wakes a thread that is awake


def monotonic_ms() -> int:
    """Milliseconds of a clock that never goes back; its zero means nothing."""
    return time.monotonic_ns() // 1_000_000


class Tickable(Protocol):
    """Something the update thread calls; hashed by identity."""

    def update(self, now: int) -> int | None:
        """Do what is due at `now` (ms); returns the ms of the next wanted call, None for nothing to do."""


class UpdateThread:
    """Calls each target at the time it asked for.

    Times are absolute, so being late (a turn of the GIL) shifts no rhythm. A target is called at most
    once per millisecond unless it is woken. An update that raises is logged and its target detached.
    """

    def __init__(self) -> None:
        self._planned: dict[Tickable, int] = {}
        "ms of the next call of each target; changed under the condition, peeked at without"
        self._sleeping_until = AWAKE
        self._is_stopping = False
        self._condition = threading.Condition(threading.Lock())
        self._thread = threading.Thread(target=self._run, name="update")

    def __repr__(self) -> str:
        state = "running" if self._thread.is_alive() else "not running"
        return f"<UpdateThread {state}, {len(self._planned)} targets>"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the updates that are due by now, and wait for it; not from inside an update."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def attach(self, target: Tickable) -> None:
        """Begin to call the target, the first time at once."""
        with self._condition:
            self._planned[target] = NEVER
            self._plan_locked(target, 0)

    def detach(self, target: Tickable) -> None:
        """Begin no more calls of the target (one under way still ends); unknown targets are fine."""
        with self._condition:
            self._planned.pop(target, None)

    def wake(self, target: Tickable, at: int = 0) -> None:
        """Call the target at `at` (ms; past: at once) if nothing earlier is planned; detached targets are left alone.

        First change the state that `update` reads, then call this. Any thread may, whatever lock it holds.
        """
        # Peeking without the lock is safe: an update begins by forgetting the planned time, so
        # whoever still sees that time here changed his state before that update reads it.
        planned = self._planned.get(target)
        if planned is None or planned <= at:
            return
        with self._condition:
            self._plan_locked(target, at)

    def _plan_locked(self, target: Tickable, at: int) -> None:
        """Make `at` the target's time, unless it has an earlier one or is gone."""
        planned = self._planned.get(target)
        if planned is None or planned <= at:
            return
        self._planned[target] = at
        if at < self._sleeping_until:
            self._sleeping_until = at
            self._condition.notify()

    def _run(self) -> None:
        while due := self._wait():
            for target in due:
                if target in self._planned:  # not detached meanwhile
                    self._update(target)

    def _wait(self) -> list[Tickable]:
        """Sleep until targets are due; their planned time is forgotten here. Empty: the thread is to stop."""
        with self._condition:
            while not self._is_stopping:
                now_ns = time.monotonic_ns()
                now = now_ns // 1_000_000
                earliest = min(self._planned.values(), default=NEVER)
                if earliest <= now:
                    due = [target for target, at in self._planned.items() if at <= now]
                    for target in due:
                        self._planned[target] = NEVER
                    return due
                self._sleeping_until = earliest
                self._condition.wait(None if earliest == NEVER else (earliest * 1_000_000 - now_ns) / 1e9)
                self._sleeping_until = AWAKE
            return []

    def _update(self, target: Tickable) -> None:
        now = monotonic_ms()
        try:
            wanted = target.update(now)
        except Exception as exc:
            self.detach(target)
            log.error(f"{target!r} failed and is updated no more: {exc!r} at {_place(exc)}")
            return
        if wanted is not None:
            with self._condition:
                self._plan_locked(target, max(wanted, now + 1))


def _place(exc: Exception) -> str:
    """File and line that raised, for a bug's one line in the log."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
