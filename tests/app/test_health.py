"""--health: what balancers are told, and that nothing an asker does harms the tunnel."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection

import pytest

from kcptun_lite.app.health import ASKERS, REQUEST_MAX
from kcptun_lite.app.server import Server
from kcptun_lite.errors import TransportError
from tests.app.tunnels import Target, connect, make_client, make_server, running, udp_address
from tests.programs import Program, start_client, start_server, wait_until
from tests.traffic import Target as EchoTarget
from tests.traffic import connect as dial
from tests.traffic import echo_handler, receive_exactly

HERE = "127.0.0.1:0"


def ask(address: tuple[str, int], method: str = "GET") -> tuple[int, str]:
    """Status and body."""
    connection = HTTPConnection(*address, timeout=10.0)
    connection.request(method, "/")
    with connection.getresponse() as answer:
        return answer.status, answer.read().decode()


def address_of(server: Server) -> tuple[str, int]:
    assert server._health
    host, port = server._health.listening.getsockname()
    return host, port


def logged_address(server: Program) -> tuple[str, int]:
    host, port = server.wait_for_log(r"health checks on: (\S+):(\d+)").groups()
    return host, int(port)


@contextmanager
def until_stopped(*programs: Program) -> Iterator[None]:
    try:
        yield
    finally:
        for program in programs:
            program.stop()


@pytest.fixture
def server() -> Iterator[Server]:
    server = make_server("127.0.0.1:9", health=HERE)
    with running(server):
        yield server


def test_new_sessions_are_welcome(server: Server) -> None:
    assert ask(address_of(server)) == (200, "ok\n")
    assert ask(address_of(server), "HEAD") == (200, "")
    assert ask(address_of(server), "POST")[0] == 405


def test_full_of_sessions_and_free_again() -> None:
    with Target() as target, ExitStack() as stack:
        server = make_server(target.address, health=HERE, maxsessions=1)
        stack.enter_context(running(server))
        with running(client := make_client(udp_address(server))), connect(client) as app, target.accept() as tcp:
            app.sendall(b"hello")
            assert tcp.recv(5) == b"hello"
            wait_until(lambda: ask(address_of(server)) == (503, "full\n"), "its session is validated")
        wait_until(lambda: ask(address_of(server)) == (200, "ok\n"), "its session has ended")


def test_full_of_memory(server: Server) -> None:
    server.pool.budget.limit = 1
    assert ask(address_of(server)) == (503, "full\n")


def test_slow_and_hostile_askers_are_let_go(server: Server) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(address_of(server), 10.0)) for _ in range(ASKERS)]
        slow[-1].sendall(b"GET / HTTP/1.1\r\n")
        assert ask(address_of(server)) == (200, "ok\n")
        assert slow[0].recv(1) == b"", "the oldest has made room"
        assert slow[-1].recv(1) == b"", "the others go when their time is over"
        endless = stack.enter_context(socket.create_connection(address_of(server), 10.0))
        endless.sendall(b"x" * REQUEST_MAX)
        assert endless.recv(1) == b""
    wait_until(lambda: not server.loop._each_second, "all have gone, and nothing is done for them")
    assert server._health and not server._health._askers


def test_without_the_option_nothing_of_it_is_loaded() -> None:
    with EchoTarget(echo_handler) as target:
        server, _ = start_server("ours", {"target": target.address, "key": "k"})
        with until_stopped(server):
            assert not any("health" in line for line in server.log)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TransportError, match=f"--health: cannot listen on {address}: Address already in use"):
            with running(make_server("127.0.0.1:9", health=address)):
                pass


@pytest.mark.parametrize("workers", [1, 2])
def test_draining_until_what_is_open_has_ended(workers: int) -> None:
    """No new session, the word for balancers, then an end by itself; the old stream is not cut."""
    with EchoTarget(echo_handler) as target, ExitStack() as stack:
        options = {"target": target.address, "key": "k", "mode": "fast3"}
        server, address = start_server("ours", {**options, "health": HERE, "workers": workers})
        stack.enter_context(until_stopped(server))
        client, local = start_client("ours", {"remoteaddr": address, "key": "k", "mode": "fast3"})
        stack.enter_context(until_stopped(client))
        health = logged_address(server)
        wait_until(lambda: ask(health) == (200, "ok\n"), "it serves")
        with dial(local) as old:
            old.sendall(b"before")
            assert receive_exactly(old, 6) == b"before"
            os.kill(server.pid, signal.SIGQUIT)
            wait_until(lambda: ask(health) == (503, "draining\n"), "the word is passed on")
            server.wait_for_log("draining: no new sessions; what is open may go on for 60 s")

            def is_refused() -> bool:
                with dial(local) as late:
                    late.sendall(b"late")
                    return any("takes no more sessions" in line for line in client.log)

            wait_until(is_refused, "the client has heard of it, and gets no new session")
            assert server.is_running()
            old.sendall(b"after")
            assert receive_exactly(old, 5) == b"after"
        wait_until(lambda: not server.is_running(), "its last stream has ended", 15.0)
        server.wait_for_log("all sessions have ended or moved" if workers == 1 else "stopped")


def test_workers_answer_as_one() -> None:
    with EchoTarget(echo_handler) as target, ExitStack() as stack:
        options = {"target": target.address, "key": "k", "health": HERE, "workers": 2}
        server, _ = start_server("ours", options)
        stack.enter_context(until_stopped(server))
        health = logged_address(server)
        wait_until(lambda: ask(health) == (200, "ok\n"), "one of them serves")
        since = len(server.log)
        os.kill(server.pid, signal.SIGUSR2)
        server.wait_for_log("reload: new workers take over", since=since)
        seen = set()
        wait_until(
            lambda: seen.add(ask(health)) or any("old worker 1 has ended" in line for line in server.log),  # type: ignore[func-returns-value]
            "the reload is over",
        )
        assert seen == {(200, "ok\n")}, "a reload closes no door"
