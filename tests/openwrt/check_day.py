"""A day in a router's life: what each event does to connections that are open. Run by `make test-router`.

A LAN, the router of OpenWrt's parts with a client for our server and one for kcptun's, and an Internet with a name
server, both servers and a target that sends everything back. netifd, fw4 and opkg are not among the parts: their
events, their ruleset and their calls of OpenWrt's scripts are made here.

The table in openwrt/README.md says the same in words.
"""

import os
import sys
from contextlib import ExitStack, suppress

from tests.networks import Host, Internet, plug
from tests.openwrt.router import FILES, SERVICE, STATUS, Router, wait_for
from tests.openwrt.uci import client, section
from tests.programs import Program

LAN, GATEWAY = "192.168.1.1", "198.51.100.1"
SERVER = "203.0.113.9"
PORTS = {"ours": "12948", "go": "12949"}  # where the LAN connects to
PYTHON = [sys.executable, "-m"]

# What fw4 makes of OpenWrt's zones, as far as it concerns a tunnel: one transaction that replaces everything.
RULESET = """
table inet fw4
flush table inet fw4
table inet fw4 {
	chain input {
		type filter hook input priority filter; policy drop;
		iifname { "lo", "lan0" } accept
		ct state established,related accept
	}
}
"""

# A service that hears of the same events later than ours, so that a test knows when ours has acted.
PROBE = """#!/bin/sh /etc/rc.common
USE_PROCD=1
start_service() { :; }
service_triggers() {
	procd_add_raw_trigger "interface.*" 1200 /bin/touch /tmp/handled
	procd_add_raw_trigger "config.change" 1200 /bin/touch /tmp/handled
}
"""


def tunnel(name: str, port: str, **options: str) -> str:
    common = {"server": "vps.example", "server_port": port, "bind_address": LAN, "local_port": PORTS[name]}
    return client(name, **common | {"mode": "fast3"} | options)


def config(**options: str) -> str:
    """Two tunnels and a disabled one; `options` are the second's."""
    return tunnel("ours", "29900-29909") + tunnel("go", "29950", **options) + section("client", "spare", enabled="0")


class Connection:
    """One of the LAN's, through the router's tunnel to the target."""

    def __init__(self, lan: Host, name: str) -> None:
        self._socket = lan.socket()
        self._socket.settimeout(30)
        try:
            self._socket.connect((LAN, int(PORTS[name])))
        except OSError:
            self._socket.close()
            raise

    def carries(self) -> bool:
        """Whether 50 kB, which buffers hold, come back as they were sent."""
        data = os.urandom(50_000)
        received = b""
        with suppress(OSError):
            self._socket.sendall(data)
            while len(received) < len(data) and (chunk := self._socket.recv(65536)):
                received += chunk
        return received == data

    def was_reset(self) -> bool:
        """Whether it ends in a reset, and neither in silence nor as if everything had arrived."""
        try:
            while self._socket.recv(65536):
                pass
        except ConnectionResetError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


class World:
    """The router, and what it is plugged into. At first it has no WAN."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.internet = stack.enter_context(Internet())
        self.lan = stack.enter_context(Internet())
        self.router = stack.enter_context(Router())
        self.router.ip("link set lo up")
        plug(self.router, self.lan, "lan0", [f"{LAN}/24"], ["192.168.1.10/24"])
        plug(self.router, self.internet, "wan0", [], [f"{GATEWAY}/24"])
        self.internet.ip(f"addr add {SERVER}/32 dev lo")
        self.load_firewall()
        self.router.path("/etc/init.d/probe").write_text(PROBE)
        self.router.run("chmod 755 /etc/init.d/probe; /etc/init.d/probe start")
        self.router.reset()
        self.start("echo", "ready", [*PYTHON, "tests.openwrt.services", "echo", SERVER])
        serve = ["-t", f"{SERVER}:7", "--nocomp", "--mode", "fast3"]
        ours = [*PYTHON, "kcptun_lite", "server", "-l", f"{SERVER}:29900-29909", *serve]
        self.start("ours", "listening on", ours)
        self.start("go", "listening on", ["kcptun-server", "-l", f"{SERVER}:29950", *serve])

    def start(self, name: str, sign: str, words: list[str]) -> None:
        """A program of the Internet, which is ready when its log has the sign."""
        program = Program(name, self.internet.command(*words), env={"KCPTUN_KEY": "k"})
        self._stack.callback(program.stop)
        program.wait_for_log(sign)

    def connect(self, name: str) -> Connection:
        connection = Connection(self.lan, name)
        self._stack.callback(connection.close)
        return connection

    def works(self, name: str) -> bool:
        """Whether a new connection carries data."""
        with suppress(OSError):
            return self.connect(name).carries()
        return False

    def load_firewall(self) -> None:
        self.router.path("/etc/ruleset").write_text(RULESET)
        self.router.run("nft -f /etc/ruleset")

    def event(self, kind: str, **data: str) -> None:
        """Tell procd, and wait until the service has done what it does about it."""
        self.router.run("rm -f /tmp/handled")
        self.router.event(kind, **data)
        wait_for(lambda: self.router.run("[ ! -e /tmp/handled ] || echo yes"), f"handling of {kind}")

    def wan_up(self, address: str) -> None:
        self.router.ip(f"addr add {address}/24 dev wan0", f"route add default via {GATEWAY}")
        self.event("interface.update", interface="wan")

    def wan_down(self) -> None:
        self.router.ip("addr flush dev wan0")
        self.event("interface.down", interface="wan")

    def moved(self) -> int:
        """How often sessions have gone to new sockets on order."""
        return sum("from a new socket" in line for line in self.router.log())


def test_a_day() -> None:
    with ExitStack() as stack:
        world = World(stack)
        router = world.router

        # First boot: no network, and the name server comes last of all.
        router.configure(config())
        router.service("enable")
        router.service("boot")
        pids = {name: router.status(name)["pid"] for name in PORTS}
        early = world.connect("ours")
        world.wan_up("198.51.100.2")
        router.run(f"echo nameserver {GATEWAY} >/etc/resolv.conf")
        world.start("names", "ready", [*PYTHON, "tests.openwrt.services", "names", GATEWAY, SERVER])
        for name in PORTS:
            wait_for(lambda name=name: world.works(name), f"first connection through {name}", 90)
        assert router.pids() == pids, "nobody has died of it"
        early.close()

        # Leases are renewed, routers advertise, other interfaces come and go: nothing happens.
        connections = {name: world.connect(name) for name in PORTS}
        moved = world.moved()
        for _ in range(3):
            world.event("interface.update", interface="wan")
            world.event("interface.update", interface="wan6")
            world.event("interface.down", interface="guest")
        assert world.moved() == moved
        assert all(connection.carries() for connection in connections.values())

        # Wi-Fi clients come, and go without a word.
        for _ in range(3):
            gone = world.connect("ours")
            assert gone.carries()
            world.lan.ip("link set lan0 down", "link set lan0 up")
        assert all(connection.carries() for connection in connections.values())

        # The firewall is loaded anew: what goes over the tunnel's own UDP "connection" is not asked again.
        world.load_firewall()
        assert all(connection.carries() for connection in connections.values())

        # PPPoE is cut and comes back with the same address: they go on where they were.
        world.wan_down()
        world.wan_up("198.51.100.2")
        assert world.moved() == moved
        assert all(connection.carries() for connection in connections.values())

        # It comes back with another address. Our server recognises its client; kcptun's takes it for a new one.
        world.wan_down()
        world.wan_up("198.51.100.77")
        assert connections["ours"].carries()
        wait_for(lambda: world.works("go"), "connection through go after a change of the address", 60)
        assert connections["go"].was_reset()
        connections["go"] = world.connect("go")
        assert connections["go"].carries()
        assert router.pids() == pids

        # Save & Apply of a section: its connections end, the other's do not.
        router.configure(config(mtu="1300"))
        world.event("config.change", package="kcptun-lite")
        assert connections["go"].was_reset() and connections["ours"].carries()
        wait_for(lambda: world.works("go"), "connection through go after a reload")
        assert router.pids()["ours"] == pids["ours"]

        # A section is disabled and enabled again.
        connections["go"] = world.connect("go")
        assert connections["go"].carries()
        router.configure(config(enabled="0"))
        world.event("config.change", package="kcptun-lite")
        assert connections["go"].was_reset() and connections["ours"].carries()
        router.configure(config())
        world.event("config.change", package="kcptun-lite")
        wait_for(lambda: world.works("go"), "connection through go that is enabled again")
        assert connections["ours"].carries()

        # A program is killed, as the kernel does without memory: procd starts it again.
        router.run(f"kill -9 {router.pids()['go']}")
        wait_for(lambda: world.works("go"), "connection through go that was killed")
        assert connections["ours"].carries()

        upgrade(router)
        assert connections["ours"].was_reset()
        wait_for(lambda: all(world.works(name) for name in PORTS), "connections after the upgrade")
        remove(router)


def upgrade(router: Router) -> None:
    """What opkg does: OpenWrt's default_prerm, new files, default_postinst."""
    own = router.path("/etc/config/kcptun-lite").read_text()
    router.run(
        "mkdir -p /usr/lib/opkg/info; touch /lib/functions/system.sh /etc/shadow\n"
        f"printf '%s\\n' {SERVICE} /etc/uci-defaults/80-kcptun-lite >/usr/lib/opkg/info/kcptun-lite.list"
    )
    script = "unset IPKG_INSTROOT; . /lib/functions.sh; {} kcptun-lite.{}"
    router.run(f"export PKG_UPGRADE=1; {script.format('default_prerm', 'prerm')}")
    wait_for(lambda: not router.procd(), "end of the old version")
    router.path("/etc/uci-defaults/80-kcptun-lite").write_text((FILES / "kcptun-lite.defaults").read_text())
    router.run(
        f"chmod 755 /etc/uci-defaults/80-kcptun-lite; export PKG_UPGRADE=1; {script.format('default_postinst', '')}"
    )
    assert router.path("/etc/config/kcptun-lite").read_text() == own
    assert set(router.pids()) == set(PORTS)


def remove(router: Router) -> None:
    assert router.run("ls /etc/rc.d").split() == ["S95kcptun-lite"]
    router.run("unset IPKG_INSTROOT; . /lib/functions.sh; default_prerm kcptun-lite.prerm")
    wait_for(lambda: not router.procd(), "end of the service")
    assert router.run(f"ls /etc/rc.d {STATUS} | grep -v :", code=None).split() == []
    assert router.run("ps | grep [k]cptun-lite-", code=1) == ""
