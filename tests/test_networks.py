"""Devices and addresses that are named in options: they come late, go, and come back with another number."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.networks import Host, Internet, plug
from tests.programs import ROOT, Options, Program, kcptun_arguments, require

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make networks")

SERVER = "203.0.113.9"
PYTHON = [sys.executable, "-m"]
FAST = {"key": "k", "nocomp": True, "mode": "fast3"}


class World:
    """A client's host with the devices wan (the default route) and wanb, and the server's at the other ends."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.near = stack.enter_context(Internet())
        self.far = stack.enter_context(Internet())
        self.far.ip(f"addr add {SERVER}/32 dev lo")
        self.plug("wan", 1)
        self._start(self.far, "echo", "ready", [*PYTHON, "tests.openwrt.services", "echo", SERVER])

    def plug(self, device: str, number: int) -> None:
        """A wire; the lower its number, the sooner routes prefer it."""
        plug(self.near, self.far, device, [f"10.0.{number}.1/24"], [f"10.0.{number}.2/24"])
        self.near.ip(f"route add default via 10.0.{number}.2 dev {device} metric {number}")

    def unplug(self, device: str) -> None:
        self.near.ip(f"link del {device}")

    def serve(self, kind: str = "ours", **options: object) -> Program:
        name = ["kcptun-server"] if kind == "go" else [*PYTHON, "kcptun_lite", "server"]
        given: Options = {"listen": "0.0.0.0:29900", "target": f"{SERVER}:7", **FAST, **options}
        return self._start(self.far, kind, "listening on", [*name, *kcptun_arguments(given)])

    def dial(self, **options: object) -> Program:
        given: Options = {"localaddr": "127.0.0.1:12948", "remoteaddr": f"{SERVER}:29900", **FAST, **options}
        return self._start(
            self.near, "client", "listening on", [*PYTHON, "kcptun_lite", "client", *kcptun_arguments(given)]
        )

    def _start(self, host: Host, name: str, sign: str, words: list[str]) -> Program:
        program = Program(name, host.command(*words), env={"PYTHONPATH": str(ROOT)})
        self._stack.callback(program.stop)
        program.wait_for_log(sign)
        return program

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        connection = self._stack.enter_context(self.near.socket())
        connection.settimeout(30)
        connection.connect((host, 12948))
        return connection

    def works(self) -> bool:
        """Whether a new connection carries data."""
        with suppress(OSError):
            return carries(self.connect())
        return False


def carries(connection: socket.socket) -> bool:
    """Whether what is sent comes back."""
    data = os.urandom(50_000)
    received = b""
    connection.sendall(data)
    while len(received) < len(data) and (chunk := connection.recv(65536)):
        received += chunk
    return received == data


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
