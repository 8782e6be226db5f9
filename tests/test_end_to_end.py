"""Our client and our server as processes: what users do with them, and what unknown sources do to them."""

import hashlib
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from tests.programs import Options, Tunnel, start_client, start_server, wait_until
from tests.traffic import (
    Target,
    connect,
    digest_handler,
    echo_handler,
    exchange,
    exchange_across_outage,
    exchange_handler,
    payload,
    receive_exactly,
)
from tools.lossy_proxy import Link

MIB = 1 << 20
FAST: Options = {"mode": "fast3", "sndwnd": 1024, "rcvwnd": 1024}


def our_tunnel(target: Target, options: Options = FAST, **more: object) -> Tunnel:
    return Tunnel("ours", "ours", target.address, options, **more)  # type: ignore[arg-type]


@contextmanager
def stopped_at_the_end(*programs: object) -> Iterator[None]:
    try:
        yield
    finally:
        for program in programs:
            program.stop(signal.SIGKILL)  # type: ignore[attr-defined]


def ask_echo(address: str, message: bytes = b"hello") -> None:
    with connect(address) as sock:
        sock.sendall(message)
        assert receive_exactly(sock, len(message)) == message


# -- data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressible", [False, True], ids=["noise", "text"])
def test_big_data_both_ways_at_once(compressible: bool) -> None:
    with Target(exchange_handler) as target, our_tunnel(target) as tunnel:
        exchange(connect(tunnel.address), up=24 * MIB, down=24 * MIB, seed=1, compressible=compressible)


def test_a_bad_link_loses_nothing() -> None:
    link = Link(loss=0.05, reorder=0.03, duplicate=0.02, delay_ms=10, jitter_ms=3)
    with Target(exchange_handler) as target:
        with our_tunnel(target, {**FAST, "datashard": 10, "parityshard": 3}, link=link) as tunnel:
            exchange(connect(tunnel.address), up=4 * MIB, down=4 * MIB, seed=1)
            assert tunnel.server.counters()["FECRecovered"] > 0
        assert tunnel.link_counters["up"]["lost"] and tunnel.link_counters["down"]["lost"]


@pytest.mark.parametrize("smuxver", [1, 2])
def test_half_close_brings_the_whole_answer(smuxver: int) -> None:
    question = payload(3 * MIB, 5)
    options = {**FAST, "smuxver": smuxver, "closewait": 30}  # 0, the client's default, ends both directions at once
    with Target(digest_handler) as target, our_tunnel(target, options) as tunnel:
        with connect(tunnel.address) as sock:
            sock.sendall(question)
            sock.shutdown(socket.SHUT_WR)
            head = struct.pack("<Q", len(question)) + hashlib.sha256(question).digest()
            assert receive_exactly(sock, len(head)) == head
            assert receive_exactly(sock, len(question)) == question
            assert sock.recv(1) == b""


def test_two_hundred_streams_at_once() -> None:
    count = 200
    with Target(exchange_handler) as target, our_tunnel(target, {**FAST, "smuxver": 2}) as tunnel:
        socks = [connect(tunnel.address) for _ in range(count)]
        wait_until(lambda: target.connections == count, "all streams open")
        with ThreadPoolExecutor(count) as pool:
            for transfer in [
                pool.submit(
                    exchange, sock, up=20_000 + 37 * n, down=90_000 - 41 * n, seed=2 * n, compressible=n % 3 == 0
                )
                for n, sock in enumerate(socks)
            ]:
                transfer.result()


def test_a_slow_reader_does_not_hold_up_the_others() -> None:
    size = 16 * MIB  # more than the stream's window and all kernel buffers on its way
    options = {**FAST, "smuxver": 2, "smuxbuf": MIB, "streambuf": MIB // 4}
    with Target(exchange_handler) as target, our_tunnel(target, options) as tunnel:
        with connect(tunnel.address) as slow:
            slow.sendall(struct.pack("<QQQQB", 0, 1, size, 2, False))
            first = receive_exactly(slow, 1)
            with ThreadPoolExecutor(3) as pool:
                for transfer in [
                    pool.submit(exchange, connect(tunnel.address), up=2 * MIB, down=2 * MIB, seed=10 * n)
                    for n in range(3)
                ]:
                    transfer.result()
            assert first + receive_exactly(slow, size - 1) == payload(size, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"crypt": "null", "datashard": 0, "parityshard": 0, "nocomp": True},
        {"crypt": "aes-128-gcm", "conn": 3},
        {"QPP": True, "crypt": "salsa20"},
    ],
    ids=["null", "gcm", "qpp"],
)
def test_what_the_debian_program_does_not_know(options: Options) -> None:
    client_options = {name: value for name, value in options.items() if name == "conn"}
    both = {name: value for name, value in options.items() if name != "conn"}
    with Target(exchange_handler) as target:
        with our_tunnel(target, {**FAST, **both}, client_options=client_options) as tunnel:
            for seed in range(3):
                exchange(connect(tunnel.address), up=MIB, down=MIB, seed=seed)


# -- addresses ---------------------------------------------------------------------------------------------


def test_unix_sockets_at_both_ends(tmp_path: Path) -> None:
    peer_socket, goal = str(tmp_path / "socket"), str(tmp_path / "goal")
    with Target(exchange_handler, goal) as target:
        with our_tunnel(target, client_options={"localaddr": peer_socket}):
            exchange(connect(peer_socket), up=MIB, down=MIB, seed=1)


def test_ipv6_all_the_way() -> None:
    with Target(exchange_handler, "[::1]:0") as target:
        tunnel = our_tunnel(
            target, client_options={"localaddr": "[::1]:0"}, server_options={"listen": "[::1]:0"}, link=None
        )
        with tunnel:
            exchange(connect(tunnel.address), up=MIB, down=MIB, seed=1)


# -- long life ---------------------------------------------------------------------------------------------


def test_hundreds_of_connections_leave_nothing_behind() -> None:
    with Target(echo_handler) as target, our_tunnel(target) as tunnel:
        programs = tunnel.client, tunnel.server
        for _ in range(20):
            ask_echo(tunnel.address)
        wait_until(lambda: all(program.thread_count() < 20 for program in programs), "the first streams end")
        before = [(program.thread_count(), program.descriptor_count()) for program in programs]
        for number in range(500):
            ask_echo(tunnel.address, b"message %d" % number)
        wait_until(
            lambda: all(
                program.thread_count() <= threads and program.descriptor_count() <= descriptors
                for program, (threads, descriptors) in zip(programs, before, strict=True)
            ),
            "threads and descriptors are back where they were",
        )


def test_streams_survive_an_outage() -> None:
    with (
        Target(exchange_handler) as target,
        our_tunnel(target, {"mode": "fast3"}, link=Link(delay_ms=5, rate_mbit=20)) as tunnel,
    ):
        exchange_across_outage(tunnel, seconds=5)


def test_a_restarted_server_serves_new_sessions() -> None:
    with Target(echo_handler) as target, our_tunnel(target, client_options={"autoexpire": 1}) as tunnel:
        ask_echo(tunnel.address)
        assert tunnel.server.stop() == 0
        tunnel.server, _ = start_server("ours", {**FAST, "target": target.address, "listen": tunnel.server_address})
        with stopped_at_the_end(tunnel.server):

            def answers() -> bool:
                with suppress(OSError), connect(tunnel.address, timeout=0.5) as sock:
                    sock.sendall(b"again")
                    return receive_exactly(sock, 5) == b"again"
                return False

            wait_until(answers, "an answer from the restarted server")


def test_a_restarted_client_is_served_at_once() -> None:
    with Target(echo_handler) as target, our_tunnel(target) as tunnel:
        for _ in range(3):
            client, address = start_client("ours", {**FAST, "remoteaddr": tunnel.server_address})
            with stopped_at_the_end(client):
                ask_echo(address)
        ask_echo(tunnel.address)


def test_sigterm_ends_both_within_three_seconds_while_streams_are_open() -> None:
    with Target(exchange_handler) as target, our_tunnel(target) as tunnel, connect(tunnel.address) as sock:
        sock.sendall(struct.pack("<QQQQB", 0, 1, 64 * MIB, 2, False))
        receive_exactly(sock, MIB)
        with ExitStack() as idle:
            for _ in range(5):
                idle.enter_context(connect(tunnel.address))
            assert tunnel.client.stop(signal.SIGTERM, timeout=3) == 0
            assert tunnel.server.stop(signal.SIGTERM, timeout=3) == 0


def test_a_target_that_is_not_there_closes_the_connection() -> None:
    with Target(echo_handler) as gone:
        address = gone.address
    with Tunnel("ours", "ours", address, FAST) as tunnel, connect(tunnel.address) as sock:
        with suppress(ConnectionError):  # a reset says the same
            assert sock.recv(1) == b""


# -- unknown sources ---------------------------------------------------------------------------------------------


def test_a_client_with_another_key_gets_nowhere_and_disturbs_nobody() -> None:
    with Target(echo_handler) as target, our_tunnel(target) as tunnel:
        options = {**FAST, "key": "another", "remoteaddr": tunnel.server_address}
        unknown, peer_socket = start_client("ours", options)
        with stopped_at_the_end(unknown), connect(peer_socket, timeout=1) as sock:
            sock.sendall(b"let me in")
            for number in range(50):
                ask_echo(tunnel.address, b"we go on %d" % number)
            wait_until(lambda: tunnel.server.counters()["InCsumErrors"] > 0, "the unknown source's packets are counted")
            with pytest.raises(TimeoutError):
                sock.recv(1)
        assert tunnel.server.counters()["MaxConn"] == 1
        assert target.connections == 50


@pytest.mark.parametrize("crypt", ["aes", "none", "aes-128-gcm"])
def test_garbage_costs_only_counters(crypt: str) -> None:
    random, over = Random(9), threading.Event()

    def pester(*addresses: tuple[str, int]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not over.wait(0.001):
                for address in addresses:
                    with suppress(OSError):
                        sock.sendto(random.randbytes(random.randint(0, 1600)), address)

    with Target(exchange_handler) as target:
        with our_tunnel(target, {**FAST, "crypt": crypt}, link=Link(spoil=0.3, loss=0.02)) as tunnel:
            exchange(connect(tunnel.address), up=1, down=1, seed=0)
            server_port = int(tunnel.server_address.rpartition(":")[2])
            addresses = ("127.0.0.1", server_port), ("127.0.0.1", tunnel.client.udp_port())
            unknown = threading.Thread(target=pester, args=addresses)
            unknown.start()
            try:
                exchange(connect(tunnel.address), up=4 * MIB, down=4 * MIB, seed=1)
            finally:
                over.set()
                unknown.join()
            for program in (tunnel.client, tunnel.server):
                counters = program.counters()
                assert counters["InCsumErrors"] > 100
                assert counters["MaxConn"] == 1
        assert tunnel.link_counters["up"]["spoilt"] > 100
