"""The options that came with the newest kcptun, at work: QPP, port ranges, framesize, closewait, scavengettl."""

import os
import signal
import socket
import threading
from contextlib import ExitStack
from time import sleep

import pytest

from tests.programs import Options, Program, Tunnel, start_client, start_kcptun, wait_until
from tests.traffic import Target, connect, digest_handler, echo_handler, exchange, exchange_handler, receive_exactly

QUICK: Options = {"mode": "fast3"}


def ask_echo(address: str, message: bytes = b"hello") -> None:
    with connect(address) as sock:
        sock.sendall(message)
        assert receive_exactly(sock, len(message)) == message


# -- QPP ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"smuxver": 2, "nocomp": True, "QPPCount": 7},
        {"framesize": 100, "key": "a key of more than 32 bytes, which is cut"},
    ],
    ids=str,
)
def test_qpp_both_ways_on_several_streams(options: Options) -> None:
    with (
        Target(exchange_handler) as target,
        Tunnel("ours", "ours", target.address, {**QUICK, "QPP": True, **options}) as tunnel,
    ):
        for seed in range(3):
            exchange(connect(tunnel.address), up=50_000 + seed, down=70_001, seed=seed)


def test_qpp_needs_both_ends_and_their_pads() -> None:
    seen: list[bytes] = []
    with Target(lambda sock: seen.append(sock.recv(100))) as target:
        for client, server in ({"QPP": True}, {}), ({"QPP": True}, {"QPP": True, "QPPCount": 3}):
            tunnel = Tunnel("ours", "ours", target.address, QUICK, client_options=client, server_options=server)
            with tunnel, connect(tunnel.address) as sock:
                sock.sendall(b"in clear")
                wait_until(lambda: len(seen) == 1, "the target to be called")
                received = seen.pop()
                assert len(received) == 8 and received != b"in clear"


# -- port ranges -------------------------------------------------------------------------------------------


def free_ports(count: int) -> int:
    """The first of some neighbouring UDP ports that are free now."""
    for first in range(20_000, 60_000, 97):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def test_sessions_spread_over_a_range_of_ports() -> None:
    first = free_ports(3)
    ports = f"127.0.0.1:{first}-{first + 2}"
    with Target(echo_handler) as target:
        server = start_kcptun("ours", "server", {"listen": ports, "target": target.address})
        server.wait_for_log(rf"listening on: {ports}$")
        client, address = start_client("ours", {"remoteaddr": ports, "conn": 16, **QUICK})
        try:
            for _ in range(16):
                ask_echo(address)
            used = {line.rpartition(":")[2] for line in client.log if "on connection:" in line}
            assert used <= {str(port) for port in range(first, first + 3)} and len(used) > 1
            assert server.counters()["CurrEstab"] == 16
        finally:
            client.stop()
            server.stop()


def wait_until_quiet(program: Program) -> None:
    """Until a stopped peer's last packets have been read, however slow the machine."""
    heard = [-1, 0]
    while heard[-1] != heard[-2]:
        sleep(0.3)
        heard.append(program.counters()["InPkts"])


def test_a_session_that_moves_keeps_its_port_of_a_range() -> None:
    first = free_ports(100)
    ports = f"127.0.0.1:{first}-{first + 99}"
    with Target(echo_handler) as target:
        server = start_kcptun("ours", "server", {"listen": ports, "target": target.address, **QUICK})
        server.wait_for_log(rf"listening on: {ports}$")
        client, address = start_client("ours", {"remoteaddr": ports, **QUICK})
        try:
            with connect(address) as sock:
                sock.sendall(b"before")
                assert receive_exactly(sock, 6) == b"before"
                dialled = client.wait_for_log(r"on connection: .* -> (\S+)").group(1)
                for _ in range(2):
                    os.kill(server.pid, signal.SIGSTOP)
                    wait_until_quiet(client)  # what is still on its way would be taken for an answer
                    since = len(client.log)
                    os.kill(client.pid, signal.SIGHUP)
                    moved = client.wait_for_log(r"from a new socket to (\S+)", since=since).group(1)
                    os.kill(server.pid, signal.SIGCONT)
                    assert moved == dialled
                    sock.sendall(b"after")
                    assert receive_exactly(sock, 5) == b"after"
        finally:
            os.kill(server.pid, signal.SIGCONT)
            client.stop()
            server.stop()


@pytest.mark.parametrize("kind", ["ours", "go"])
def test_frames_of_any_size(kind: str) -> None:
    options = {**QUICK, "sndwnd": 1024, "rcvwnd": 1024}
    for size in (64, 65_535):
        with Target(exchange_handler) as target:
            tunnel = Tunnel("ours", kind, target.address, options, client_options={"framesize": size})
            with tunnel:
                exchange(connect(tunnel.address), up=300_000, down=1000, seed=size)


# -- the end of streams and sessions -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"client_options": {"closewait": 0}}, {"server_options": {"closewait": 0}}])
def test_closewait_0_ends_both_directions_with_the_first_one_and_cleanly(options: dict[str, Options]) -> None:
    """As kcptun does: who says that it has sent all hears no answer, and the connection is not reset."""
    with Target(digest_handler) as target:
        tunnel = Tunnel("ours", "ours", target.address, QUICK, **options)
        with tunnel, connect(tunnel.address) as sock:
            sock.sendall(b"question")
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""


def test_closewait_0_loses_nothing_that_came_before_the_end() -> None:
    def send_and_leave(sock: socket.socket) -> None:
        sock.sendall(bytes(3_000_000))

    with Target(send_and_leave) as target, Tunnel("ours", "ours", target.address, {**QUICK, "closewait": 0}) as tunnel:
        with connect(tunnel.address) as sock:
            assert len(receive_exactly(sock, 3_000_000)) == 3_000_000
            assert sock.recv(1) == b""


def test_closewait_cuts_a_half_closed_stream_that_idles() -> None:
    def wait(sock: socket.socket) -> None:
        while sock.recv(100):
            pass
        sleep(0.2)  # half-closed, and moving: longer than that would be idle
        sock.sendall(b"late")
        is_over.wait(20)

    is_over = threading.Event()

    with Target(wait) as target, Tunnel("ours", "ours", target.address, {**QUICK, "closewait": 1}) as tunnel:
        with connect(tunnel.address) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert receive_exactly(sock, 4) == b"late"
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        is_over.set()


def test_an_expired_session_lives_on_for_its_streams_until_scavengettl_is_over() -> None:
    with Target(echo_handler) as target:
        expiring = {"autoexpire": 1, "scavengettl": 2}
        with Tunnel("ours", "ours", target.address, QUICK, client_options=expiring) as tunnel:
            with connect(tunnel.address) as old:
                old.sendall(b"1")
                assert old.recv(1) == b"1"
                since = len(tunnel.client.log)
                wait_until(lambda: asks_anew(tunnel, since), "a new session")
                old.sendall(b"2")
                assert old.recv(1) == b"2", "the old session still serves its stream"
                with pytest.raises(ConnectionResetError):
                    old.recv(1)


def asks_anew(tunnel: Tunnel, since: int) -> bool:
    """Whether one more connection has made a new session."""
    ask_echo(tunnel.address)
    return any("on connection:" in line for line in tunnel.client.log[since:])
