"""Hosts with several devices and addresses: those named in options come late, go, and come back; all are answered."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.networks import FAST, PYTHON, SERVER, World, carries
from tests.programs import Program, kcptun_arguments, require, require_newest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make networks")


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


def test_packets_leave_by_the_device_that_was_named(world: World) -> None:
    world.plug("wanb", 2)
    server = world.serve()
    client = world.dial()
    assert carries(world.connect())
    server.wait_for_log(r"remote address: 10\.0\.1\.1:")
    client.stop()
    world.dial(interface="wanb")
    assert carries(world.connect())
    server.wait_for_log(r"remote address: 10\.0\.2\.1:")


def test_a_device_that_comes_late(world: World) -> None:
    """No other is taken meanwhile, and the connection waits."""
    server = world.serve()
    client = world.dial(interface="wanb")
    client.wait_for_log(r"--interface wanb: No such device; it is tried again until there is one")
    connection = world.connect()
    client.wait_for_log(r"re-connecting: .*--interface wanb: No such device; trying again every 1 s")
    world.plug("wanb", 2)
    assert carries(connection)
    server.wait_for_log(r"remote address: 10\.0\.2\.1:")
    assert not any("10.0.1.1" in line for line in server.log)


@pytest.mark.parametrize("kind", ["ours", "go"])
def test_a_device_that_is_made_anew(world: World, kind: str) -> None:
    """As a PPPoE device is: its name is the old one, its number another. Our server knows its client again."""
    if kind == "go":
        require("kcptun-server")
    world.plug("wanb", 2)
    world.serve(kind)
    client = world.dial(interface="wanb")
    connection = world.connect()
    assert carries(connection)
    world.unplug("wanb")
    connection.sendall(b"x")
    client.wait_for_log(r"no way to the server: .*--interface wanb: No such device")
    world.plug("wanb", 2)
    if kind == "ours":
        assert connection.recv(1) == b"x" and carries(connection)
    else:
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert world.works()
    assert client.is_running()


def test_addresses_to_listen_on_that_come_late(world: World) -> None:
    """At boot, or of a PPP device or a VPN: nobody has to start the programs again."""
    server = world.serve(listen="203.0.113.77:29900")
    client = world.dial(localaddr="192.0.2.7:12948", remoteaddr="203.0.113.77:29900")
    server.wait_for_log(
        "--listen: no interface of this machine has 203.0.113.77 now; it is listened on, and works once"
    )
    client.wait_for_log(
        "--localaddr: no interface of this machine has 192.0.2.7 now; it is listened on, and works once"
    )
    for _ in range(2):  # and when it comes back
        world.near.ip("addr add 192.0.2.7/32 dev lo")
        world.far.ip("addr add 203.0.113.77/32 dev lo")
        assert carries(world.connect("192.0.2.7"))
        world.near.ip("addr del 192.0.2.7/32 dev lo")
        world.far.ip("addr del 203.0.113.77/32 dev lo")


def test_check_names_a_device_that_is_not_there(world: World) -> None:
    world.serve()
    arguments = kcptun_arguments({"check": True, "remoteaddr": f"{SERVER}:29900", "interface": "wanb", **FAST})
    check = Program("check", world.near.command(*PYTHON, "kcptun_lite", "client", *arguments))
    check.wait_for_log(r"FAIL  answer  no UDP socket for .*: --interface wanb: No such device")
    assert check.stop(0) == 12


ADDRESSES = {
    4: ["203.0.113.9", "203.0.113.10", "203.0.113.11"],
    6: ["2001:db8::9", "2001:db8::10", "2001:db8::11"],
}
FIRST = {4: "10.0.1.1/24", 6: "2001:db8::1:1/128"}
MOVED = {4: "10.0.1.7", 6: "2001:db8::1:7"}
ROUTE = {4: "default via 10.0.1.2 metric 1", 6: "2001:db8::/112"}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["ours", "go", "newest"])
def test_a_server_answers_from_the_address_that_was_asked(world: World, kind: str, family: int) -> None:
    """Behind a stateful firewall any other answer is lost; a client that has moved is answered from there, too."""
    require("nft", "kcptun-client")
    if kind == "newest":
        require_newest()
    world.far.ip(
        *(f"addr add {address}/32 dev wan" for address in ADDRESSES[4][1:]),
        *(f"addr add {address} dev wan nodad" for address in ADDRESSES[6]),
        "route add 2001:db8::1:0/112 dev wan",
    )
    world.near.ip("addr add 2001:db8::1:1 dev wan nodad", "route add 2001:db8::/112 dev wan src 2001:db8::1:1")
    world.near.shut()
    world.serve(listen=":29900")
    connections = []
    for port, address in enumerate(ADDRESSES[family], 12948):
        remote = f"[{address}]:29900" if family == 6 else f"{address}:29900"
        world.dial(kind, localaddr=f"127.0.0.1:{port}", remoteaddr=remote)
        connections.append(world.connect(port=port))
    assert [carries(connection) for connection in connections] == [True] * 3
    nodad = " nodad" if family == 6 else ""
    world.near.ip(
        f"addr add {MOVED[family]} dev wan{nodad}",
        f"route replace {ROUTE[family]} dev wan src {MOVED[family]}",
        f"addr del {FIRST[family]} dev wan",
    )
    assert [carries(connection) for connection in connections] == [True] * 3


def test_the_firewall_lets_nothing_in_but_answers(world: World) -> None:
    """Else the test above would prove nothing."""
    world.near.shut()
    asking, asked, other = (host.socket(socket.SOCK_DGRAM) for host in (world.near, world.far, world.far))
    with asking, asked, other:
        asked.bind((SERVER, 5000))
        other.bind(("10.0.1.2", 5000))
        asking.settimeout(10)
        asking.sendto(b"question", (SERVER, 5000))
        _, source = asked.recvfrom(100)
        other.sendto(b"from elsewhere", source)
        asked.sendto(b"answer", source)
        assert asking.recv(100) == b"answer"
