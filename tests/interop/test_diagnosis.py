"""Two ends that do not fit: the exact sentence each user sees, with ours and with the real program at the far end."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from typing import NamedTuple

import pytest

from tests.programs import Options, Program, Tunnel, start_client, start_server, wait_until
from tests.traffic import Target, connect, echo_handler, exchange, exchange_handler

QUICK: Options = {"mode": "fast3"}
STRICT: Options = {"strict": True}
GIVEN: Options = {"smuxver": 1, "nocomp=false": True}
"what kcptun has had by default until November 2025"
NOWHERE = "127.0.0.1:1"

PERHAPS = " (or it is a --check, which tries all)"
NOTHING = "nothing comes back from {server}: --key or --crypt differ, or the server is down, or UDP is blocked"
DROPPED = "server {server} acknowledges packets, but drops the session: --nocomp or --smuxver differ"
CUT = "server {server} closes streams at once without a byte: it cannot reach its --target, or that hangs up"
REFUSED = "server {server} refuses UDP: no kcptun runs there, or --remoteaddr has another port than its --listen"
TARGET = "--target: cannot connect to 127.0.0.1:1: Connection refused"
PLAIN_FRAMES = "no snappy stream, it starts with byte 0x01: --nocomp must be the same on both ends"
SNAPPY = "a snappy stream in place of smux frames: --nocomp must be the same on both ends"
ONE_FOR_TWO = "frame of smux version 1, expected 2: --smuxver must be the same on both ends"
TWO_FOR_ONE = "frame of smux version 2, expected 1: --smuxver must be the same on both ends"


class Case(NamedTuple):
    """A mismatch, and what is said about it; "" for an end that says nothing of it."""

    name: str
    client: str
    server: str
    client_options: Options
    server_options: Options
    client_says: str = ""
    server_says: str = ""


CASES = [
    Case("key", "ours", "go", {"key": "one"}, {"key": "two"}, NOTHING),
    Case("nocomp at the client", "ours", "go", {"nocomp": True}, {}, DROPPED),
    Case("nocomp at the server", "ours", "go", GIVEN, {"nocomp": True}, DROPPED),
    Case("one of the two given", "ours", "go", {"smuxver": 2}, {}, DROPPED),
    Case("smux 2 at the client", "ours", "go", {"smuxver": 2}, {}, DROPPED),
    Case("smux 2 at the server", "ours", "go", GIVEN, {"smuxver": 2}, DROPPED),
    Case("target", "ours", "go", {}, {"target": NOWHERE}, CUT),
    Case(
        "key",
        "ours",
        "ours",
        {"key": "one"},
        {"key": "two"},
        NOTHING,
        "client 127.0.0.1 uses another --key, or is not kcptun",
    ),
    Case(
        "crypt",
        "ours",
        "ours",
        {"crypt": "salsa20"},
        {},
        "server {server} uses --crypt aes, this client salsa20",
        "client 127.0.0.1 uses --crypt salsa20, this server aes",
    ),
    Case(
        "crypt none",
        "ours",
        "ours",
        {"crypt": "none"},
        {},
        "",
        f"client 127.0.0.1 uses --crypt none, this server aes{PERHAPS}",
    ),
    Case(
        "nocomp at the client",
        "ours",
        "ours",
        {"nocomp": True},
        STRICT,
        f"server {{server}}: {SNAPPY}",
        f"client 127.0.0.1 is refused (--strict): {PLAIN_FRAMES}",
    ),
    Case(
        "nocomp at the server",
        "ours",
        "ours",
        GIVEN,
        {**STRICT, "nocomp": True},
        f"server {{server}}: {PLAIN_FRAMES}",
        f"client 127.0.0.1 is refused (--strict): {SNAPPY}",
    ),
    Case(
        "smux 2 at the client",
        "ours",
        "ours",
        {"smuxver": 2},
        STRICT,
        f"server {{server}}: {ONE_FOR_TWO}",
        f"client 127.0.0.1 is refused (--strict): {TWO_FOR_ONE}",
    ),
    Case(
        "smux 2 at the server",
        "ours",
        "ours",
        GIVEN,
        {**STRICT, "smuxver": 2},
        f"server {{server}}: {TWO_FOR_ONE}",
        f"client 127.0.0.1 is refused (--strict): {ONE_FOR_TWO}",
    ),
    Case("target", "ours", "ours", {}, {"target": NOWHERE}, CUT, TARGET),
    Case(
        "key",
        "go",
        "ours",
        {"key": "one"},
        {"key": "two"},
        server_says="client 127.0.0.1 uses another --key, or is not kcptun",
    ),
    *(
        Case(
            f"crypt {method}",
            "go",
            "ours",
            {"crypt": method},
            {"crypt": "salsa20"},
            server_says=f"client 127.0.0.1 uses --crypt {method}, this server salsa20" + PERHAPS * (method == "none"),
        )
        for method in ("aes", "twofish", "xor", "none")
    ),
    Case(
        "nocomp",
        "go",
        "ours",
        {"nocomp": True},
        STRICT,
        server_says=f"client 127.0.0.1 is refused (--strict): {PLAIN_FRAMES}",
    ),
    Case(
        "smux 2",
        "go",
        "ours",
        {"smuxver": 2},
        STRICT,
        server_says=f"client 127.0.0.1 is refused (--strict): {TWO_FOR_ONE}",
    ),
    Case(
        "error correction",
        "go",
        "ours",
        {"datashard": 0, "parityshard": 0},
        STRICT,
        server_says="client 127.0.0.1 uses --datashard 0, unlike this server (--strict): losses may break its "
        "connections, and one of before 2021 understands nothing",
    ),
    Case("target", "go", "ours", {}, {"target": NOWHERE}, server_says=TARGET),
]


def wait_for_warning(program: Program, sentence: str) -> None:
    program.wait_for_log(rf" warning: {re.escape(sentence)}$")


@pytest.mark.parametrize(("client", "server"), [("ours", "go"), ("ours", "ours"), ("go", "ours")])
def test_each_mismatch_is_named(client: str, server: str) -> None:
    cases = [case for case in CASES if (case.client, case.server) == (client, server)]
    with ThreadPoolExecutor(4) as pool:  # they mostly wait
        outcomes = {case.name: pool.submit(see, case) for case in cases}
    failures = {name: outcome.exception() for name, outcome in outcomes.items() if outcome.exception()}
    assert not failures


def see(case: Case) -> None:
    """Make the mismatch and wait for the sentences. Raises RuntimeError with the log if one does not come."""
    with Target(echo_handler) as target:
        tunnel = Tunnel(
            case.client,
            case.server,
            target.address,
            QUICK,
            client_options=case.client_options,
            server_options=case.server_options,
        )
        with tunnel, connect(tunnel.address) as sock:
            sock.sendall(b"hello")
            if case.client_says:
                wait_for_warning(tunnel.client, case.client_says.format(server=tunnel.server_address))
            if case.server_says:
                wait_for_warning(tunnel.server, case.server_says)


def test_a_closed_port_is_named() -> None:
    client, address = start_client("ours", {"remoteaddr": NOWHERE})
    try:
        with connect(address) as sock:
            sock.sendall(b"hello")
            wait_for_warning(client, REFUSED.format(server=NOWHERE))
    finally:
        client.stop()


def test_a_silent_target_is_no_mismatch() -> None:
    """A real server says nothing for ten seconds while its target says nothing: that must not look like a mismatch."""
    with Target(lambda sock: sock.recv(1) and None) as target:
        with Tunnel("ours", "go", target.address, QUICK) as tunnel, connect(tunnel.address):
            wait_until(lambda: tunnel.client.counters()["InPkts"] >= 5, "answers to five probes of a second each")
            assert not [line for line in tunnel.client.log if "warning: server" in line]


@pytest.mark.once
def test_a_flood_of_bad_packets_gives_a_bounded_number_of_lines() -> None:
    random = Random(1)
    with Target(exchange_handler) as target:
        server, address = start_server("ours", {"target": target.address, "key": "flooded"})
        client = None
        try:
            host, _, port = address.rpartition(":")
            sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(50)]
            sent = 0
            while sent < 60_000 or not any("uses another --key" in line for line in server.log):
                for sock in sockets:
                    with suppress(OSError):
                        sock.sendto(random.randbytes(random.randint(1, 1400)), (host, int(port)))
                    sent += 1
            for sock in sockets:
                sock.close()
            about = [line for line in server.log if "client 127.0.0.1" in line]
            assert len(about) == 1, about
            assert server.counters()["InCsumErrors"] > 5_000
            client, tcp_address = start_client("ours", {"remoteaddr": address, "key": "flooded"})
            exchange(connect(tcp_address), up=100_000, down=100_000, seed=1)
        finally:
            server.stop()
            if client:
                client.stop()


class Adaptation(NamedTuple):
    """A client whose settings are not the server's, and what the server says of it."""

    client_options: Options
    server_options: Options
    differences: str


NO_FEC: Options = {"datashard": 0, "parityshard": 0}
ADAPTATIONS = [
    Adaptation({"smuxver": 2}, {}, "--smuxver 2"),
    Adaptation({}, {"smuxver": 2}, "--smuxver 1"),
    Adaptation({"nocomp": True}, {}, "--nocomp"),
    Adaptation({}, {"nocomp": True}, "compression"),
    Adaptation({"smuxver": 2, "nocomp": True}, {}, "--smuxver 2, --nocomp"),
    Adaptation(NO_FEC, {}, "--datashard 0"),
    Adaptation({**NO_FEC, "smuxver": 2}, {"nocomp": True}, "--smuxver 2, compression, --datashard 0"),
    Adaptation({}, {**NO_FEC, "smuxver": 2}, "--smuxver 1, --datashard 10 --parityshard 3"),
    Adaptation({"datashard": 4, "parityshard": 2}, {}, "--datashard 4 --parityshard 2"),
]


@pytest.mark.parametrize(
    ("client", "case"),
    [*(("go", case) for case in ADAPTATIONS), *(("ours", case) for case in ADAPTATIONS[4::2])],
    ids=lambda value: value if isinstance(value, str) else value.differences,
)
def test_the_server_takes_a_client_as_it_comes(client: str, case: Adaptation) -> None:
    with Target(exchange_handler) as target:
        tunnel = Tunnel(
            client,
            "ours",
            target.address,
            QUICK,
            client_options=case.client_options,
            server_options=case.server_options,
        )
        with tunnel:
            exchange(connect(tunnel.address), up=200_000, down=200_000, seed=1)
            sentence = f"client 127.0.0.1 uses {case.differences}, unlike this server, which adapts to it"
            tunnel.server.wait_for_log(rf" {re.escape(sentence)}$")
            exchange(connect(tunnel.address), up=1000, down=1000, seed=2)
            has_fec = case.client_options.get("datashard", 10) != 0
            # Between two of ours error correction is on only where it was asked for, in the direction that asked.
            wanted = {tunnel.server: has_fec, tunnel.client: has_fec}
            if client == "ours":
                wanted = {tunnel.server: case.client_options.get("datashard", 0) != 0, tunnel.client: False}
            for end, is_wanted in wanted.items():
                assert (end.counters()["FECParityShards"] > 9) == is_wanted, "the server answers in kind"
        assert len([line for line in tunnel.server.log if "unlike this server" in line]) == 1
