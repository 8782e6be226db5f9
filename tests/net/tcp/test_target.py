"""A server's target: what its name means, and for how long; addresses that do not answer."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from kcptun_lite.errors import TransportError
from kcptun_lite.net.tcp import target as module
from kcptun_lite.net.tcp.target import NAME_KEPT, Place, Target, is_connected
from tests.net.fakes import in_background


class Resolver:
    """What a name means, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        self.asked = 0
        self.places: list[Place] = []
        monkeypatch.setattr(module, "resolve", self._resolve)
        monkeypatch.setattr(module, "monotonic_ms", lambda: self.now)

    def _resolve(self, host: str, port: int, kind: int) -> list[Place]:
        self.asked += 1
        if not self.places:
            raise TransportError(f"cannot resolve {host}")
        return self.places


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def place_of(server: socket.socket) -> Place:
    return socket.AF_INET, server.getsockname()


def refusing_place() -> Place:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return place_of(closed)


def test_a_name_is_resolved_once_in_a_while(resolver: Resolver, server: socket.socket) -> None:
    target = Target("target.example", 80, "")
    resolver.places = [place_of(server)]
    assert target.begin() is None  # it may take its time
    target.connect().close()
    resolver.now += NAME_KEPT - 1
    begun = target.begin()
    assert begun is not None and resolver.asked == 1
    begun.close()
    resolver.now += 1
    assert target.begin() is None
    target.connect().close()
    assert resolver.asked == 2


def test_a_name_that_cannot_be_resolved_means_what_it_meant(resolver: Resolver, server: socket.socket) -> None:
    target = Target("target.example", 80, "")
    with pytest.raises(TransportError, match="cannot resolve"):
        target.connect()
    resolver.places = [place_of(server)]
    target.connect().close()
    resolver.places = []
    resolver.now += NAME_KEPT
    assert target.begin() is None
    target.connect().close()


def test_who_refuses_may_have_moved(resolver: Resolver, server: socket.socket) -> None:
    """`begin` fails at the old address, and `connect`, which follows then, finds the new one."""
    with socket.create_server(("127.0.0.1", 0)) as old:
        resolver.places = [place_of(old)]
        target = Target("target.example", 80, "")
        target.connect().close()
    resolver.places = [place_of(server)]
    begun = target.begin()
    assert begun is None or not is_connected(begun)
    if begun is not None:
        begun.close()
    with target.connect() as sock:
        assert sock.getpeername() == server.getsockname()


def test_the_address_that_has_answered_is_asked_first(resolver: Resolver, server: socket.socket) -> None:
    resolver.places = [refusing_place(), place_of(server)]
    target = Target("target.example", 80, "")
    target.connect().close()
    for _ in range(2):  # and once more when the name has been resolved again
        begun = target.begin()
        assert begun is not None
        with begun:
            assert begun.getpeername() == server.getsockname()
        target.connect().close()


def test_connecting_to_who_does_not_answer_ends_with_the_program() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as stack:
        for _ in range(2):  # then its queue is full, and the kernel answers nobody
            stack.enter_context(sock := socket.socket()).setblocking(False)
            sock.connect_ex(server.getsockname())
        is_stopping = threading.Event()
        connecting = in_background(Target("127.0.0.1", server.getsockname()[1], "").connect, is_stopping.is_set)
        is_stopping.set()
        with pytest.raises(TransportError, match="timed out"):
            connecting.result()
