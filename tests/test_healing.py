"""What the tunnel does about restarts, new addresses, silence and dead servers; the programs from outside.

Bounds are those users are promised, with the anchors of the Go program (60 to 90 s) far above them.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep

import pytest

from tests.nat import Nat, udp
from tests.programs import Program, Tunnel, require, start_client, start_server, wait_until
from tests.traffic import Target, connect, echo_handler, exchange, exchange_handler, receive_exactly
from tools.lossy_proxy import Link

FAST = {"mode": "fast3", "sndwnd": 512, "rcvwnd": 512, "datashard": 0, "parityshard": 0}
BACK_WITHIN = 3.0  # s after a server is back, until new connections work


@contextmanager
def running(program: Program) -> Iterator[Program]:
    try:
        yield program
    finally:
        program.stop(signal.SIGKILL)


def answers(address: str) -> bool:
    with suppress(OSError), connect(address, timeout=1.0) as sock:
        sock.sendall(b"again")
        return receive_exactly(sock, 5) == b"again"
    return False


@pytest.mark.parametrize("kind", ["ours", "go"])
def test_after_a_server_restart_new_connections_work_at_once_and_old_ones_are_reset(kind: str) -> None:
    if kind == "go":
        require("kcptun-server")
    with Target(echo_handler) as target:
        options = {**FAST, "target": target.address}
        server, address = start_server(kind, options)
        client, peer_socket = start_client("ours", {**FAST, "remoteaddr": address})
        with running(client), connect(peer_socket) as old:
            old.sendall(b"hello")
            assert receive_exactly(old, 5) == b"hello"
            server.stop(signal.SIGKILL)
            server, _ = start_server(kind, {**options, "listen": address})
            with running(server):
                back = monotonic()
                wait_until(lambda: answers(peer_socket), "a new connection works", BACK_WITHIN)
                old.settimeout(BACK_WITHIN)
                with pytest.raises(ConnectionResetError):
                    old.recv(1)
                assert monotonic() - back < 2 * BACK_WITHIN


def test_a_new_address_of_the_client_cuts_no_stream() -> None:
    with Target(exchange_handler) as target:
        server, address = start_server("ours", {**FAST, "target": target.address})
        with running(server), Nat(address) as nat:
            client, peer_socket = start_client("ours", {**FAST, "remoteaddr": nat.address})
            with running(client):
                moved = 0

                def progress(count: int) -> None:
                    nonlocal moved
                    if moved // (1 << 20) != (moved + count) // (1 << 20):
                        nat.rebind()
                    moved += count

                exchange(connect(peer_socket), up=4 << 20, down=4 << 20, seed=3, progress=progress)
                assert any("moved from" in line for line in server.log)
                assert server.counters()["PassiveOpens"] == 1


def test_replayed_packets_move_no_session() -> None:
    with Target(echo_handler) as target:
        server, address = start_server("ours", {**FAST, "target": target.address})
        with running(server), Nat(address) as nat:
            client, peer_socket = start_client("ours", {**FAST, "remoteaddr": nat.address})
            with running(client), connect(peer_socket) as sock, udp() as thief:
                host, _, port = address.rpartition(":")
                taken: list[bytes] = []
                for number in range(20):
                    sock.sendall(b"%04d" % number)
                    assert receive_exactly(sock, 4) == b"%04d" % number
                    # Those from before this question: with its answer the server has read the originals.
                    for packet in taken:
                        thief.sendto(packet, (host, int(port)))
                    taken = list(nat.recorded)
                assert not any("moved from" in line for line in server.log)


def test_an_outage_loses_no_stream() -> None:
    with Target(echo_handler) as target:
        server, address = start_server("ours", {**FAST, "target": target.address})
        with running(server), Nat(address) as nat:
            client, peer_socket = start_client("ours", {**FAST, "remoteaddr": nat.address})
            with running(client), connect(peer_socket) as sock:
                sock.sendall(b"before")
                assert receive_exactly(sock, 6) == b"before"
                nat.is_cut = True
                sock.sendall(b"during")
                client.wait_for_log("trying another way")
                nat.is_cut = False
                assert receive_exactly(sock, 6) == b"during"


def test_a_dead_server_is_passed_over_for_the_next_one() -> None:
    with Target(echo_handler) as target, udp() as silent:
        server, address = start_server("ours", {**FAST, "target": target.address})
        dead = f"127.0.0.1:{silent.getsockname()[1]}"
        with running(server):
            client, peer_socket = start_client("ours", {**FAST, "remoteaddr": f"{dead},{address}"})
            with running(client), connect(peer_socket) as sock:
                sock.sendall(b"hello")
                assert receive_exactly(sock, 5) == b"hello"


@pytest.mark.parametrize(("client", "server"), [("ours", "ours"), ("ours", "go")])
def test_sighup_keeps_a_way_that_answers(client: str, server: str) -> None:
    if server == "go":
        require("kcptun-server")
    with Target(echo_handler) as target, Tunnel(client, server, target.address, FAST) as tunnel:
        with connect(tunnel.address) as sock:
            for message in (b"one", b"two"):
                sock.sendall(message)
                assert receive_exactly(sock, 3) == message
                port = tunnel.client.udp_port()
                os.kill(tunnel.client.pid, signal.SIGHUP)
            sleep(2)
            sock.sendall(b"end")
            assert receive_exactly(sock, 3) == b"end"
            assert tunnel.client.udp_port() == port


# -- a path that loses what is large -------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_path_that_loses_large_packets_is_found_out_and_used(direction: str) -> None:
    """Behind a firewall that keeps ICMP back: small requests pass, and all bulk would hang."""
    up, down = (200_000, 100) if direction == "up" else (100, 200_000)
    link = Link(delay_ms=10, largest=900)
    with Target(exchange_handler) as target, Tunnel("ours", "ours", target.address, FAST, link=link) as tunnel:
        exchange(connect(tunnel.address), up=100, down=100, seed=1)
        begin = monotonic()
        while True:
            try:
                exchange(connect(tunnel.address), up=up, down=down, seed=2)
                break
            except OSError:
                assert monotonic() - begin < 45, "in vain"
        end = tunnel.client if direction == "up" else tunnel.server
        assert [line for line in end.log if "are lost on the way, smaller ones are not" in line]
