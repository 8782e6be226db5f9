"""A tunnel that must leave by one WAN of two: `option interface`. Run by `make test-router`.

netifd is not among the parts: its events are made here, and /lib/functions/network.sh, through which scripts ask it,
is a stand-in that knows the devices of networks that are up, and brings one up when it has been asked for, too late.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.networks import Internet, plug
from tests.openwrt.router import SERVICE, Router, wait_for
from tests.openwrt.uci import client, section
from tests.programs import Program

SERVER = "203.0.113.9"
NETWORK_SH = """
network_get_device() {
	echo "$2" >>/tmp/asked
	[ -s "/tmp/up/$2" ] || { [ ! -e "/tmp/late/$2" ] || mv "/tmp/late/$2" /tmp/up; return 1; }
	export -- "$1=$(cat "/tmp/up/$2")"
}
"""
FORGET = "rm -rf /tmp/late /tmp/up /tmp/asked /var/run/kcptun-lite.device.*; mkdir /tmp/up; touch /tmp/asked"


class Wans:
    """The router's networks wan, which is up and has the default route, and wanb; a server beyond both."""

    def __init__(self, stack: ExitStack, router: Router) -> None:
        self._stack = stack
        self._router = router
        self._internet = stack.enter_context(Internet())
        self._internet.ip(f"addr add {SERVER}/32 dev lo")
        self._devices: dict[str, str] = {}
        stack.callback(self._unplug_all)
        router.ip("link set lo up")
        router.path("/lib/functions/network.sh").write_text(NETWORK_SH)
        router.run(FORGET)
        router.configure("".join(section("interface", name, proto="dhcp") for name in ("wan", "wanb")), "network")
        self.up("wan", "eth0", "198.51.100.2", metric=1)
        self._start("echo", "ready", "tests.openwrt.services", "echo", SERVER)
        self.server = self._start(
            "server", "listening on", "kcptun_lite", "server", "-l", ":29900", "-t", f"{SERVER}:7", "--nocomp"
        )

    def _start(self, name: str, sign: str, *words: str) -> Program:
        program = Program(name, self._internet.command(sys.executable, "-m", *words), env={"KCPTUN_KEY": "k"})
        self._stack.callback(program.stop)
        program.wait_for_log(sign)
        return program

    def up(self, network: str, device: str, address: str, *, metric: int) -> None:
        """The network gets a device that is made now."""
        gateway = f"{address.rpartition('.')[0]}.1"
        plug(self._router, self._internet, device, [f"{address}/24"], [f"{gateway}/24"])
        self._router.ip(f"route add default via {gateway} dev {device} metric {metric}")
        self._devices[network] = device
        self._router.path(f"/tmp/up/{network}").write_text(device)
        self.event("interface.update", network)

    def down(self, network: str) -> None:
        self._router.ip(f"link del {self._devices.pop(network)}")
        self._router.run(f"rm /tmp/up/{network}")
        self.event("interface.down", network)

    def event(self, kind: str, network: str) -> None:
        """Tell procd; if there is a tunnel that needs the network, wait until its device has been asked for."""
        asked = len(self.asked())
        self._router.event(kind, interface=network)
        if any(
            f"'eq', 'interface', '{network}'], ['run_script', '{SERVICE}', 'reload'" in trigger
            for trigger in self.triggers()
        ):
            wait_for(lambda: len(self.asked()) > asked, f"reload after {kind} of {network}")

    def asked(self) -> list[str]:
        return self._router.run("cat /tmp/asked").split()

    def triggers(self) -> list[str]:
        return [str(trigger) for trigger in self._router.procd().get("triggers", [])]

    def connect(self) -> socket.socket:
        connection = self._stack.enter_context(self._router.socket())
        connection.settimeout(30)
        connection.connect(("127.0.0.1", 12948))
        return connection

    def _unplug_all(self) -> None:
        for device in self._devices.values():
            self._router.ip(f"link del {device}")
        self._router.run(f"rm /lib/functions/network.sh; {FORGET}")


def carries(connection: socket.socket) -> bool:
    """Whether what is sent comes back."""
    data = os.urandom(20_000)
    received = b""
    connection.sendall(data)
    while len(received) < len(data) and (chunk := connection.recv(65536)):
        received += chunk
    return received == data


@pytest.fixture
def wans(router: Router) -> Iterator[Wans]:
    with ExitStack() as stack:
        yield Wans(stack, router)


def test_a_tunnel_leaves_by_the_network_that_was_named(router: Router, wans: Wans) -> None:
    router.configure(client("home", server=SERVER, interface="wanb", bind_address="127.0.0.1", local_port="12948"))
    router.service("start")
    router.wait_for_log("daemon.notice kcptun-lite: section 'home' starts when the network 'wanb' comes up")
    assert router.pids() == {}, "and by no other meanwhile"

    wans.up("wanb", "pppoe-wanb", "192.0.2.2", metric=2)
    wait_for(router.pids, "start")
    pids = router.pids()
    assert router.instances()["home"]["env"]["KCPTUN_INTERFACE"] == "pppoe-wanb"
    router.status("home")
    connection = wans.connect()
    assert carries(connection)
    wans.server.wait_for_log(r"remote address: 192\.0\.2\.2:")

    # Leases are renewed, and the other WAN's events are not even looked at.
    asked = len(wans.asked())
    wans.event("interface.update", "wan")
    wans.event("interface.update", "wanb")
    assert wans.asked()[asked:] == ["wanb"]

    # PPPoE is cut and comes back with a device of another number and another address: the connection goes on.
    wans.down("wanb")
    router.run("ip route get 203.0.113.9 | grep -q 'dev eth0'")  # there is another way, which is not taken
    connection.sendall(b"x")
    router.wait_for_log("--interface pppoe-wanb: No such device")
    assert router.service("status").startswith("running"), "it waits"
    wans.up("wanb", "pppoe-wanb", "192.0.2.3", metric=2)
    assert connection.recv(1) == b"x" and carries(connection)
    assert router.pids() == pids

    # A device of another name is another setting.
    wans.down("wanb")
    wans.up("wanb", "eth1", "192.0.2.4", metric=2)
    wait_for(lambda: router.pids().get("home", pids["home"]) != pids["home"], "restart")
    assert router.instances()["home"]["env"]["KCPTUN_INTERFACE"] == "eth1"
    router.status("home")
    assert carries(wans.connect())
    assert not any("198.51.100.2" in line for line in wans.server.log)


def test_a_network_that_comes_up_while_the_service_starts(router: Router, wans: Wans) -> None:
    """Its event was before procd knew that somebody waits for it."""
    router.run("mkdir /tmp/late; echo eth0 >/tmp/late/wanb")
    router.configure(client("home", interface="wanb"))
    router.service("start")
    assert router.instances()["home"]["env"]["KCPTUN_INTERFACE"] == "eth0"


def test_only_the_networks_of_tunnels_that_run_are_watched(router: Router, wans: Wans) -> None:
    router.configure(
        client("a", interface="wanb")
        + client("b", local_port="12949", interface="wanb")
        + client("c", local_port="12950", interface="wan")
        + client("d", enabled="0", interface="lan")
        + client("e", local_port="12951")
    )
    router.service("start")
    assert router.procd()["triggers"][1:] == [
        ["interface.*", ["if", ["eq", "interface", network], ["run_script", SERVICE, action]], 1000]
        for network, action in [("wan", "follow"), ("wan6", "follow"), ("wan", "reload"), ("wanb", "reload")]
    ]
    assert set(router.instances()) == {"c", "e"}
    assert "KCPTUN_INTERFACE" not in router.instances()["e"]["env"]


@pytest.mark.parametrize("name", ["eth0", "wanc", "wan b", "../wan", "globals"])
def test_what_is_no_network_is_said(router: Router, wans: Wans, name: str) -> None:
    router.run("printf \"config globals 'globals'\\n\" >>/etc/config/network")
    router.configure(client("home", interface=name))
    router.service("start")
    assert router.instances() == {}
    router.wait_for_log(
        f"daemon.err kcptun-lite: section 'home' of /etc/config/kcptun-lite is not started: "
        f"interface '{name}' is not a network of /etc/config/network, such as wan"
    )
