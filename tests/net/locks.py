"""Locks that know their order, put in place of all others for the length of a test.

In      nothing: `locks_in_order` is on in every test of net/ and app/
Out     a failed test when some thread has waited for a lock it should have taken before another one
Knows   the table of locks in the design: tunnel 1, listener 2, a session's tx lock 3, its state 4, leaves 5
"""

from collections.abc import Callable, Iterator
from threading import Condition, Lock, get_ident
from typing import Any

import pytest

from kcptun_lite.app.tunnel import Tunnel
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.net.ends.listener import Listener
from kcptun_lite.net.ends.route import Route
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.update_thread import UpdateThread


class OrderedLock:
    """A lock with a level: whoever waits for it while holding one of the same level or a higher one is noted.

    Trying without waiting cannot deadlock and may be done in any order.
    """

    violations: list[str] = []
    "what went wrong since the list was cleared: an exception in some thread might be swallowed"
    _held: dict[int, list["OrderedLock"]] = {}
    "by thread"

    def __init__(self, level: int, name: str) -> None:
        self.level = level
        self.name = name
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"{self.level} {self.name}"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        held = self._held.setdefault(get_ident(), [])
        if blocking and held and held[-1].level >= self.level:
            self.violations.append(f"{self} taken under {held}")
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            held.append(self)
        return taken

    def release(self) -> None:
        self._held[get_ident()].remove(self)
        self._lock.release()

    def locked(self) -> bool:
        """As a Lock has it; threading.Condition asks for it since Python 3.14."""
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


@pytest.fixture(autouse=True)
def locks_in_order(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every lock of the table in the design is watched; the test fails if one was waited for out of order."""

    def replace(room: type, install: Callable[[Any], None]) -> None:
        begin = room.__init__  # type: ignore[misc]

        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            begin(self, *args, **kwargs)
            install(self)

        monkeypatch.setattr(room, "__init__", init)

    def in_tunnel(tunnel: Any) -> None:
        tunnel._lock = OrderedLock(1, "tunnel")
        tunnel._relay_gone = _condition(tunnel._lock)

    def in_session(session: Any) -> None:
        session._tx_lock = OrderedLock(3, "session tx")
        session.lock = OrderedLock(4, "session")

    replace(Tunnel, in_tunnel)
    replace(Listener, lambda listener: setattr(listener, "_lock", OrderedLock(2, "listener")))
    replace(Session, in_session)
    replace(BufferPool, lambda pool: setattr(pool, "_lock", OrderedLock(5, "pool")))
    replace(UpdateThread, lambda ticker: setattr(ticker, "_condition", _condition(OrderedLock(5, "ticker"))))
    replace(Route, lambda route: setattr(route, "_lock", OrderedLock(5, "route")))
    OrderedLock.violations.clear()
    yield
    assert not OrderedLock.violations


def _condition(lock: Any) -> Condition:
    return Condition(lock)
