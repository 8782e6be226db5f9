"""Locks that know their order and what they guard, put in place of all others for the length of a test.

In      nothing: `locks_in_order` is on in every test of net/ and app/
Out     a failed test when some thread has waited for a lock it should have taken before another one, or has changed
        what a lock guards, or called what must be called under it, without the lock
Knows   the table of locks in docs/architecture.md: tunnel 1, listener 2, a session's transmitter 3, its state 4,
        leaves 5, those below leaves 6; what each guards
"""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from threading import Condition, Lock, get_ident
from typing import Any

import pytest

from kcptun_lite.app.tunnel import Tunnel
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.budget import Budget
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.kcp.kcp import Kcp
from kcptun_lite.net.ends.listener import Listener
from kcptun_lite.net.ends.route import Route
from kcptun_lite.net.fake_tcp.connection import FakeTcpConnection
from kcptun_lite.net.fake_tcp.flow import Flow
from kcptun_lite.net.fake_tcp.port import FakeTcpPort
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import UpdateThread
from kcptun_lite.net.udp.udp_socket import UdpSocket

UNDER_SESSION_LOCK = (
    "open_stream",
    "send_stream_data",
    "send_ahead",
    "take_stream_data",
    "finish_stream",
    "close_stream",
    "take_events",
    "receive_packets",
    "packets_to_send",
    "tick",
    "ping",
    "say_goodbye",
)
"what changes a conversation"


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

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds it."""
        return self in self._held.get(get_ident(), [])

    def expect(self, what: str) -> None:
        """Note it if this thread does not hold the lock, as it must for `what`."""
        if not self.is_mine:
            self.violations.append(f"{what} without {self}")

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

    def guard_writes(room: type, lock_name: str, names: set[str]) -> None:
        """After its making, an object's attributes of these names are only set under its lock."""
        plain = room.__setattr__

        def set_guarded(self: Any, name: str, value: Any) -> None:
            lock = getattr(self, lock_name, None)
            if name in names and isinstance(lock, OrderedLock):
                lock.expect(f"{room.__name__}.{name} was set")
            plain(self, name, value)

        monkeypatch.setattr(room, "__setattr__", set_guarded)

    def guard_calls(room: type, names: Iterable[str], lock_of: Callable[[Any], Any]) -> None:
        """These methods are only called under the lock; `lock_of` gives None for an object that nobody shares."""

        def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(call)
            def check(self: Any, *args: Any, **kwargs: Any) -> Any:
                lock = lock_of(self)
                if isinstance(lock, OrderedLock):
                    lock.expect(f"{room.__name__}.{call.__name__} was called")
                return call(self, *args, **kwargs)

            return check

        for name in names:
            monkeypatch.setattr(room, name, guarded(getattr(room, name)))

    def in_tunnel(tunnel: Any) -> None:
        tunnel._lock = OrderedLock(1, "tunnel")
        tunnel._relay_gone = _condition(tunnel._lock)

    def in_session(session: Any) -> None:
        session._transmitter.lock = OrderedLock(3, "session tx")
        session.lock = OrderedLock(4, "session")
        session.conversation.guard = session.conversation.kcp.guard = session.lock

    replace(Tunnel, in_tunnel)
    replace(Listener, lambda listener: setattr(listener, "_lock", OrderedLock(2, "listener")))
    replace(Session, in_session)
    replace(BufferPool, lambda pool: setattr(pool, "_lock", OrderedLock(5, "pool")))
    replace(UpdateThread, lambda ticker: setattr(ticker, "_condition", _condition(OrderedLock(5, "ticker"))))
    replace(Route, lambda route: setattr(route, "_lock", OrderedLock(5, "route")))
    replace(Budget, lambda budget: setattr(budget, "_lock", OrderedLock(6, "budget")))
    replace(UdpSocket, lambda udp: setattr(udp, "_calls_lock", OrderedLock(6, "UDP calls")))
    replace(FakeTcpConnection, lambda fake: setattr(fake, "_lock", OrderedLock(5, "fake TCP connection")))
    replace(FakeTcpPort, lambda fake: setattr(fake, "_lock", OrderedLock(5, "fake TCP port")))
    replace(Flow, lambda flow: setattr(flow, "_lock", OrderedLock(6, "flow")))

    guard_writes(Tunnel, "_lock", {"_established", "_max_established"})
    guard_writes(Route, "_lock", {"_current"})
    guard_writes(Budget, "_lock", {"used", "peak", "waits"})
    guard_writes(UdpSocket, "_calls_lock", {"_calls", "_is_closed"})
    guard_calls(Conversation, UNDER_SESSION_LOCK, lambda conversation: getattr(conversation, "guard", None))
    guard_calls(Kcp, ["probe", "flush", "receive", "send"], lambda kcp: getattr(kcp, "guard", None))
    for room, lock_of in (
        (Stream, lambda stream: getattr(stream._owner, "lock", None)),
        (Session, lambda session: session.lock),
        (Route, lambda route: route._lock),
        (FakeTcpConnection, lambda fake: fake._lock),
        (FakeTcpPort, lambda fake: fake._lock),
        (UpdateThread, lambda ticker: ticker._condition._lock),
    ):
        guard_calls(room, [name for name in vars(room) if name.endswith("_locked")], lock_of)
    OrderedLock.violations.clear()
    yield
    assert OrderedLock.violations == []


def _condition(lock: Any) -> Condition:
    return Condition(lock)
