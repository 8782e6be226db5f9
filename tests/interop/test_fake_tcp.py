"""--tcp, ours and the real one, through a router with a NAT and a firewall that counts every sequence number."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic

import pytest

from tests.networks import FAST, PYTHON, SERVER, Internet, World, plug
from tests.programs import Program, go_knows, kcptun_arguments, require, require_newest, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make networks")

SERVER6 = "2001:db8:9::9"
SIZE = 8 << 20  # bytes each way
LOSSY_SIZE = 2 << 20  # bytes each way where packets are lost: more than a window of KCP's, or of a TCP's
BACK_WITHIN = 3.0  # s, as with UDP (tests/test_healing.py)
RULES = """
table inet nat {{
    chain out {{ type nat hook postrouting priority srcnat; meta nfproto ipv4 oif out masquerade; }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        numgen random mod 1000 < {loss} counter drop
        ct state invalid counter drop comment "invalid"
        tcp dport 29900 tcp flags & (syn | ack | psh | rst | fin) == ack counter comment "kernel"
        tcp sport 29900 tcp flags & (syn | ack | psh | rst | fin) == ack counter comment "kernel"
        tcp sport 29900 tcp flags & psh == psh counter comment "data"
        tcp sport 29900 meta length > 940 counter comment "large"
        tcp sport 29900 ip dscp ef counter comment "marked"
        tcp dport 29900 ip dscp ef counter comment "marked"
        tcp dport 29900 counter comment "sent"
        tcp sport 29900 counter comment "sent"
    }}
}}
"""


class Behind(World):
    """A client's host behind a router that has a NAT (IPv4) and tracks connections strictly."""

    def plug(self, device: str, number: int) -> None:
        self.router = self._stack.enter_context(Internet())
        plug(
            self.near,
            self.router,
            device,
            ["10.0.1.1/24", "2001:db8:1::1/64 nodad"],
            ["10.0.1.2/24", "2001:db8:1::2/64 nodad"],
        )
        plug(
            self.router,
            self.far,
            "out",
            ["198.51.100.1/24", "2001:db8:2::1/64 nodad"],
            ["198.51.100.9/24", "2001:db8:2::9/64 nodad"],
        )
        for host in self.near, self.router, self.far:
            sysctl(host, "net.ipv6.conf.all.forwarding=1", "net.ipv4.ip_forward=1")
        self.near.ip("route add default via 10.0.1.2", "route add default via 2001:db8:1::2")
        self.router.ip(f"route add {SERVER}/32 via 198.51.100.9", f"route add {SERVER6}/128 via 2001:db8:2::9")
        self.far.ip(f"addr add {SERVER6}/128 dev lo", "route add 2001:db8:1::/64 via 2001:db8:2::1")
        self.fire_up()

    def fire_up(self, *, loss: int = 0, strict: bool = True) -> None:
        """`loss`: packets in a thousand, either way. `strict`: connections with wrong numbers are cut."""
        rules = "table inet nat\ndelete table inet nat\n" + RULES.format(loss=loss)
        subprocess.run(self.router.command("nft", "-f", "-"), input=rules, text=True, check=True)
        sysctl(self.router, f"net.netfilter.nf_conntrack_tcp_be_liberal={int(not strict)}")

    def counted(self, comment: str) -> int:
        """Packets that went through the router's rules of that name."""
        words = self.router.command("nft", "--json", "list", "table", "inet", "nat")
        listed = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)["nftables"]
        rules = [entry["rule"] for entry in listed if entry.get("rule", {}).get("comment") == comment]
        return sum(part["counter"]["packets"] for rule in rules for part in rule["expr"] if "counter" in part)

    def connections(self) -> list[str]:
        """Of fake TCP, at both ends, as `ss` tells them."""
        return [line for host in (self.near, self.far) for line in established(host)]


def sysctl(host: Internet, *settings: str) -> None:
    subprocess.run(host.command("sysctl", "-qw", *settings), check=True)


def established(host: Internet) -> list[str]:
    words = host.command("ss", "-Htn", "state", "all", "( sport = :29900 or dport = :29900 )")
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if not line.startswith("LISTEN")]


def echo(connection: socket.socket, size: int = SIZE) -> bool:
    """Whether `size` bytes come back as they went; both directions at once."""
    data, hashed, left = os.urandom(size), hashlib.sha256(), size
    sender = threading.Thread(target=connection.sendall, args=(data,), daemon=True)
    sender.start()
    while left and (chunk := connection.recv(65536)):
        hashed.update(chunk)
        left -= len(chunk)
    sender.join(10)
    return not left and hashed.digest() == hashlib.sha256(data).digest()


@pytest.fixture
def world() -> Iterator[Behind]:
    require("nft", "kcptun-client", "iptables")
    with ExitStack() as stack:
        yield Behind(stack)


PAIRS = [("ours", "ours"), ("ours", "go"), ("go", "ours"), ("ours", "newest")]


@pytest.mark.parametrize("shards", [{"ds": 10, "ps": 3}, {"ds": 0, "ps": 0}], ids=["fec", "plain"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_data_come_through_whole(world: Behind, client: str, server: str, family: int, shards: dict[str, int]) -> None:
    if "newest" in (client, server):
        require_newest()
    if client == "go" and go_knows("ratelimit"):
        pytest.skip('the newest client receives nothing (docs/protocol.md, "Fake TCP")')
    world.serve(server, tcp=True, listen=":29900", smuxver=1, sndwnd=1024, rcvwnd=1024, **shards)
    remote = f"[{SERVER6}]:29900" if family == 6 else f"{SERVER}:29900"
    world.dial(client, tcp=True, remoteaddr=remote, smuxver=1, sndwnd=1024, rcvwnd=1024, **shards)
    world.fire_up(loss=50, strict=client == server)
    assert echo(world.connect(), LOSSY_SIZE)
    assert world.counted("data") > LOSSY_SIZE / 1350


def test_a_strict_firewall_finds_nothing_wrong(world: Behind) -> None:
    """Nor does the kernel say anything after its handshake; the server's may acknowledge what comes before `accept`."""
    world.serve(tcp=True)
    world.dial(tcp=True)
    assert echo(world.connect())
    assert world.counted("data") > SIZE / 1350
    assert world.counted("invalid") == 0 and world.counted("kernel") <= 5


def test_nothing_is_left_of_a_connection(world: Behind) -> None:
    """When its session ends, at either end, so do both kernels' connections."""
    server = world.serve(tcp=True)
    client = world.dial(tcp=True)
    assert echo(world.connect(), 1000)
    assert len(established(world.near)) == len(established(world.far)) == 1
    client.stop()
    wait_until(lambda: not established(world.near) and not established(world.far), "end of the connection")
    client = world.dial(tcp=True)
    assert echo(world.connect(), 1000)
    server.stop()
    client.stop()
    wait_until(lambda: not established(world.near) and not established(world.far), "end of the connection")


def test_a_server_that_was_killed_and_came_back(world: Behind) -> None:
    server = world.serve(tcp=True)
    world.dial(tcp=True)
    connection = world.connect()
    assert echo(connection, 1000)
    server.stop(signal.SIGKILL)
    world.serve(tcp=True)
    began = monotonic()
    wait_until(world.works, "new connections")
    assert monotonic() - began < BACK_WITHIN
    with pytest.raises(OSError):
        assert connection.recv(1)


def test_a_new_address(world: Behind) -> None:
    """The same session goes on, and the connection in it."""
    world.serve(tcp=True)
    world.dial(tcp=True)
    connection = world.connect()
    assert echo(connection, 1000)
    world.near.ip(
        "addr add 10.0.1.7/24 dev wan",
        "addr del 10.0.1.1/24 dev wan",
        "addr replace 10.0.1.7/24 dev wan",
        "route replace default via 10.0.1.2 src 10.0.1.7",
    )
    began = monotonic()
    assert echo(connection, 1000)
    assert monotonic() - began < BACK_WITHIN
    wait_until(lambda: len(world.connections()) == 2, "end of the connection from the old address")


@pytest.mark.parametrize("loose", [0, 1])
def test_a_router_that_has_forgotten_the_connection(world: Behind, loose: int) -> None:
    """After a long pause, or restarted. It drops what is of no connection, or takes it for one from another port."""
    require("conntrack")
    world.serve(tcp=True)
    world.dial(tcp=True)
    connection = world.connect()
    assert echo(connection, 1000)
    sysctl(world.router, f"net.netfilter.nf_conntrack_tcp_loose={loose}")
    subprocess.run(world.router.command("conntrack", "-F"), check=True)
    began = monotonic()
    assert echo(connection, 1000)
    assert monotonic() - began < 2 * BACK_WITHIN


CHECKS = [
    ("reject", 11, r"FAIL  refused server .*:29900 refuses TCP: no kcptun runs there with --tcp, or --remoteaddr"),
    ("drop", 12, r"FAIL  answer  server .*:29900 does not answer the TCP handshake: it is down, or a firewall"),
    ("mute", 12, r"FAIL  answer  server .*:29900 takes the TCP connection, and nothing comes back through it: --key"),
    ("", 0, r"ok    target"),
]


@pytest.mark.parametrize(("obstacle", "code", "sentence"), CHECKS, ids=[name or "none" for name, _, _ in CHECKS])
def test_check_says_what_is_in_the_way(world: Behind, obstacle: str, code: int, sentence: str) -> None:
    rules = {
        "reject": "tcp dport 29900 reject with tcp reset",
        "drop": "tcp dport 29900 drop",
        "mute": "tcp sport 29900 tcp flags & psh == psh drop",
    }
    world.serve(tcp=True)
    if obstacle:
        words = world.router.command("nft", "insert", "rule", "inet", "nat", "forward", rules[obstacle])
        subprocess.run(words, check=True)
    arguments = kcptun_arguments({"check": True, "tcp": True, "remoteaddr": f"{SERVER}:29900", **FAST})
    check = Program("check", world.near.command(*PYTHON, "kcptun_lite", "client", *arguments))
    check.wait_for_log(sentence)
    assert check.stop(0) == code


def test_auto_goes_over_tcp_while_udp_does_not_get_through(world: Behind) -> None:
    """And back, when the network has changed; the connections stay."""
    world.serve(tcp=True)
    block = world.router.command("nft", "insert", "rule", "inet", "nat", "forward", "meta l4proto udp drop")
    subprocess.run(block, check=True)
    client = world.dial(transport="auto")
    connection = world.connect()
    began = monotonic()
    assert echo(connection, 1000)
    assert monotonic() - began < 2 * BACK_WITHIN
    client.wait_for_log("UDP does not get through: going on over TCP")
    assert echo(connection)
    os.kill(client.pid, signal.SIGHUP)
    assert echo(connection, 1000) and world.connections()
    world.fire_up()
    os.kill(client.pid, signal.SIGHUP)
    client.wait_for_log("UDP gets through again: going on over UDP")
    assert echo(connection, 1000)
    wait_until(lambda: not world.connections(), "end of the TCP connection")
    assert sum("UDP does not get through" in line for line in client.log) == 1


def test_check_tries_both_ways(world: Behind) -> None:
    world.serve(tcp=True)
    block = world.router.command("nft", "insert", "rule", "inet", "nat", "forward", "meta l4proto udp drop")
    subprocess.run(block, check=True)
    arguments = kcptun_arguments({"check": True, "transport": "auto", "remoteaddr": f"{SERVER}:29900", **FAST})
    check = Program("check", world.near.command(*PYTHON, "kcptun_lite", "client", *arguments))
    check.wait_for_log("ok    target")
    assert check.stop(0) == 0
    told = "\n".join(check.log)
    assert re.search(r"over UDP:(.|\n)*FAIL  answer  nothing comes back(.|\n)*over TCP:(.|\n)*ok    target", told)


def test_auto_stays_with_udp_where_it_gets_through(world: Behind) -> None:
    world.serve(tcp=True)
    world.dial(transport="auto")
    assert echo(world.connect()) and not world.connections()


def test_the_right_to_raw_sockets_is_all_that_it_needs(world: Behind) -> None:
    capable = ["setpriv", "--bounding-set=-all,+net_raw"]
    world.serve(tcp=True, under=capable)
    world.dial(tcp=True, under=capable)
    assert echo(world.connect(), 1000)


@pytest.mark.parametrize(
    "arguments",
    [["server", "--tcp"], ["client", "-r", "a:1", "--tcp"], ["client", "-r", "a:1", "--transport=auto", "--check"]],
    ids=["server", "client", "check"],
)
def test_without_it_one_sentence_says_so(world: Behind, arguments: list[str]) -> None:
    words = ["setpriv", "--bounding-set=-net_raw", *PYTHON, "kcptun_lite", *arguments, "--key=k"]
    program = Program("kcptun_lite", world.near.command(*words))
    option = "--transport auto" if "--transport=auto" in arguments else "--tcp"
    program.wait_for_log(f"error: {option}: it needs CAP_NET_RAW: run it as root, or give it that capability")
    assert program.stop(0) == 2


def test_every_packet_has_its_class(world: Behind) -> None:
    world.serve(tcp=True, dscp=46)
    world.dial(tcp=True, dscp=46, interface="wan")
    assert echo(world.connect(), 100_000)
    assert world.counted("marked") == world.counted("sent") > 100


def test_packets_fit_what_the_handshake_says(world: Behind) -> None:
    """As a router on the way has corrected it: 900 bytes, and 40 of headers."""
    words = "insert rule inet nat forward tcp flags syn tcp option maxseg size set 900"
    subprocess.run(world.router.command("nft", words), check=True)
    world.serve(tcp=True)
    world.dial(tcp=True)
    assert echo(world.connect(), 1_000_000)
    assert world.counted("data") > 1_000_000 / 900 and world.counted("large") == 0


def test_several_servers_and_ports(world: Behind) -> None:
    """The first server is none; sessions have random ports of a range."""
    world.serve(tcp=True, listen=":29900-29909")
    world.dial(tcp=True, remoteaddr=f"198.51.100.1:29900,{SERVER}:29900-29909", conn=4)
    assert all(echo(world.connect(), 1000) for _ in range(4))


def test_hundreds_of_sessions_come_and_go(world: Behind) -> None:
    """And their kernels' connections with them (xtaci/kcptun issues 895 and 827)."""
    world.serve(tcp=True)
    for _ in range(2):
        client = world.dial(tcp=True, conn=100)
        connections = [world.connect() for _ in range(100)]
        for connection in connections:
            connection.sendall(b"x")
        assert all(connection.recv(1) == b"x" for connection in connections)
        assert len(established(world.far)) >= 100
        client.stop()
    wait_until(lambda: not world.connections(), "end of the connections")
