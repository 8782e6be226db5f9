"""A client that is told nothing but a key, a method and an address; and a reader that has stopped.

At the real program's servers in every setting that both ends must share, and at ours.
"""

import hashlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.programs import ROOT, Options, Tunnel, require, require_newest, wait_until
from tests.traffic import STALL_TIMEOUT, Target, connect, exchange, exchange_handler, payload, receive_exactly
from tools.lossy_proxy import Link

TOLD: Options = {"key": "one secret", "crypt": "aes"}
NO_FEC: Options = {"datashard": 0, "parityshard": 0}
FIRST_WITHIN = 3.0  # s from the first connection to its first answer, while others start beside it
SERVERS: list[Options] = [
    {"smuxver": version, "nocomp": nocomp, **fec}
    for version, nocomp, fec in product((1, 2), (False, True), ({}, NO_FEC))
]
SIZE = 2 << 20  # bytes each way
BAD_LINK = Link(loss=0.05, reorder=0.03, duplicate=0.02)
BULK = 24 << 20  # bytes for the reader that stops: far more than all buffers on the way


@pytest.fixture(autouse=True)
def real_programs() -> None:
    require("kcptun-server", "kcptun-client")


# -- what the server speaks --------------------------------------------------------------------------------


def use(server: str, options: Options, client: str = "ours") -> list[str]:
    """32 connections at once, the first ones of a client that is told nothing, then bulk; the client's log."""
    with Target(exchange_handler) as target:
        with Tunnel(client, server, target.address, TOLD, server_options=options) as tunnel:
            begun = time.monotonic()
            with ThreadPoolExecutor(32) as pool:
                asked = [
                    pool.submit(exchange, connect(tunnel.address), up=1000, down=1000, seed=seed) for seed in range(32)
                ]
            for answer in asked:
                answer.result()
            took = time.monotonic() - begun
            exchange(connect(tunnel.address), up=SIZE, down=SIZE, seed=99)
            assert took < FIRST_WITHIN
            return tunnel.client.log


@pytest.mark.parametrize("server", ["go", "newest"])
def test_whatever_the_server_speaks_is_found_out(server: str) -> None:
    if server == "newest":
        require_newest()
    with ThreadPoolExecutor(2) as pool:
        logs = list(pool.map(lambda options: use(server, options), SERVERS))
    for options, log in zip(SERVERS, logs, strict=True):
        said = [line.partition(" speaks ")[2] for line in log if " speaks " in line]
        found = f"--smuxver {options['smuxver']}{' --nocomp' if options['nocomp'] else ''}"
        is_first = found == "--smuxver 1"
        assert said == ([] if is_first else [f"{found}; set so, first answers come some round trips sooner"])
        assert not [line for line in log if " warning: " in line]


def test_what_was_found_is_spoken_at_once_by_the_next_session() -> None:
    with Target(exchange_handler) as target:
        server: Options = {"smuxver": 2, "nocomp": True}
        with Tunnel("ours", "go", target.address, TOLD, client_options={"conn": 3}, server_options=server) as tunnel:
            for seed in range(3):
                exchange(connect(tunnel.address), up=1000, down=1000, seed=seed)

            def spoken() -> list[str]:
                lines = [line for line in tunnel.client.log if "smux version: " in line and " on connection" in line]
                return [line.partition("smux version: ")[2][0] for line in lines]

            wait_until(lambda: len(spoken()) == 3, "a line for each session")  # its log is read beside
            assert spoken() == ["1", "2", "2"]
            assert len([line for line in tunnel.client.log if " speaks " in line]) == 1


def test_a_server_of_ours_is_never_searched() -> None:
    for options in ({}, {"smuxver": 2, "nocomp": True}):
        assert not [line for line in use("ours", options) if " speaks " in line]


def test_a_strict_server_of_ours_is_found_out() -> None:
    log = use("ours", {"strict": True, "smuxver": 2, "nocomp": True})
    assert [line for line in log if " speaks --smuxver 2 --nocomp;" in line]


@pytest.mark.parametrize("server", ["go", "ours"])
def test_without_numpy_and_cramjam(server: str, tmp_path: Path) -> None:
    for name in ("numpy", "cramjam"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    log = use(server, {}, client=f"ours@{tmp_path}:{ROOT}")
    assert len([line for line in log if "warning: cramjam is not installed" in line]) == 1


# -- a reader that has stopped -----------------------------------------------------------------------------


class Stopping:
    """A target whose answers depend on the first byte: `f` floods, `s` reads only when told to, others pong."""

    def __init__(self) -> None:
        self.may_read = Event()

    def serve(self, sock: socket.socket) -> None:
        kind = sock.recv(1)
        if kind == b"f":
            with suppress(OSError):
                sock.sendall(payload(BULK, 7))
                sock.recv(1)
        elif kind == b"s":
            self.may_read.wait(60)
            sock.sendall(hashlib.sha256(receive_exactly(sock, BULK)).digest())
            sock.recv(1)
        else:
            sock.sendall(b"pong")
            sock.recv(1)


@contextmanager
def stuck(client: str, server: str, side: str, options: Options) -> Iterator[Tunnel]:
    """A tunnel in which one reader has stopped, at the client's side or at the server's; its bytes are whole after."""
    stopping = Stopping()
    with Target(stopping.serve) as target:
        with Tunnel(client, server, target.address, TOLD, server_options=options) as tunnel:
            ask(tunnel)
            sock = connect(tunnel.address, 30.0)
            data = payload(BULK, 7)
            if side == "client":
                sock.sendall(b"f")
                wait_until_stuck(lambda: tunnel.server.counters()["OutBytes"])
                yield tunnel
                assert receive_exactly(sock, BULK) == data
            else:
                sock.sendall(b"s")
                writer = Thread(target=sock.sendall, args=(data,))
                writer.start()
                wait_until_stuck(lambda: tunnel.client.counters()["OutBytes"])
                yield tunnel
                stopping.may_read.set()
                writer.join()
                assert receive_exactly(sock, 32) == hashlib.sha256(data).digest()
            sock.close()


def ask(tunnel: Tunnel, timeout: float = STALL_TIMEOUT) -> None:
    with connect(tunnel.address, timeout) as sock:
        sock.sendall(b"p")
        assert receive_exactly(sock, 4) == b"pong"


def wait_until_stuck(sent: object) -> None:
    """Until nothing moves any more; signs of life are less than this."""
    assert callable(sent)
    before = [0]

    def rests() -> bool:
        now = sent()
        moved, before[0] = now - before[0], now
        time.sleep(0.3)  # of which nothing depends but when it is asked again
        return bool(now > 1 << 20 and moved < 2000)

    wait_until(rests, "the line is at rest")


PAIRINGS = [("ours", "go", {}), ("ours", "go", {"smuxver": 2})]


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(("client", "server", "options"), PAIRINGS, ids=["smux 1", "smux 2"])
def test_who_stops_reading_stops_nobody_else(client: str, server: str, options: Options, side: str) -> None:
    with stuck(client, server, side, options) as tunnel:
        for _ in range(5):
            ask(tunnel)


@pytest.mark.once
@pytest.mark.parametrize("side", ["client", "server"])
def test_between_two_of_ours_even_those_of_the_same_session_go_on(side: str) -> None:
    with stuck("ours", "ours", side, {}) as tunnel:
        for _ in range(5):
            ask(tunnel)
        assert len([line for line in tunnel.client.log if " on connection: " in line]) == 1


# -- error correction --------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("server", ["go", "newest"])
@pytest.mark.parametrize("shards", [(0, 0), (3, 1), (5, 5), (20, 10)], ids=str)
def test_our_client_sends_parity_that_its_server_can_read(server: str, shards: tuple[int, int]) -> None:
    """With losses both ways: parity in other numbers, or for a server without, would break the stream."""
    if server == "newest":
        require_newest()
    options: Options = {"datashard": shards[0], "parityshard": shards[1]}
    with Target(exchange_handler) as target:
        with Tunnel("ours", server, target.address, TOLD, server_options=options, link=BAD_LINK) as tunnel:
            for seed in range(2):
                exchange(connect(tunnel.address), up=SIZE, down=SIZE, seed=seed)
            counters = tunnel.server.counters()
            assert (counters["FECParityShards"] > 0) == (shards != (0, 0))
            assert (counters["FECRecovered"] > 0) == (shards != (0, 0))
            assert counters["KCPInErrors"] == 0
