"""Fixtures of net/: locks that know their order, in every test; a wire and its clock; UDP sockets on loopback."""

from collections.abc import Iterator

import pytest

from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket
from tests.net.fakes import Clock, Wire, make_context, set_clock
from tests.net.locks import locks_in_order
from tests.net.udp.datagrams import FAST, Opener

__all__ = ["clock", "locks_in_order", "open_udp", "wire"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of all sessions."""
    clock = Clock()
    set_clock(monkeypatch, clock)
    return clock


@pytest.fixture
def wire(clock: Clock) -> Iterator[Wire]:
    with Wire(make_context(), clock) as wire:
        yield wire


@pytest.fixture
def open_udp() -> Iterator[Opener]:
    opened: list[UdpSocket] = []

    def open_one(host: str = "127.0.0.1", options: UdpOptions = FAST) -> UdpSocket:
        opened.append(UdpSocket.listen(host, 0, options))
        return opened[-1]

    yield open_one
    for udp in opened:
        udp.close()
