"""Ours with the last kcptun (20260314): whole data across a bad network, and ends of one direction.

And with that of 2021, whose end of one direction is the end of both.
"""

import socket
import time
from contextlib import suppress
from functools import partial

import pytest

from tests.programs import Options, Tunnel, require, require_newest, wait_until
from tests.traffic import Target, connect, exchange, exchange_handler, receive_exactly
from tools.lossy_proxy import Link

BAD_LINK = Link(loss=0.05, reorder=0.03, duplicate=0.02)
QUICK: Options = {"mode": "fast3", "sndwnd": 1024, "rcvwnd": 1024}
SIZE = 2 << 20  # bytes of each exchange, each way
PAIRINGS = [("ours", "newest"), ("newest", "ours")]
STOPS_WITHIN = 8.0  # s, on a busy machine; promised is one, and then what is in the socket buffers


@pytest.fixture(autouse=True)
def real_programs() -> None:
    require("kcptun-client", "kcptun-server")
    require_newest()


def only_at_go(options: Options, kind: str) -> Options:
    """What the real program must be told to end a direction at once."""
    return {**options, "closewait": 0} if kind == "newest" else options


@pytest.mark.once
@pytest.mark.parametrize(("client", "server"), PAIRINGS, ids=["our client", "our server"])
@pytest.mark.parametrize(
    "options",
    [
        {"smuxver": 2},
        {"smuxver": 1, "crypt": "salsa20", "nocomp": True},
        {"smuxver": 2, "crypt": "aes-128-gcm", "datashard": 20, "parityshard": 10},
        {"smuxver": 2, "crypt": "null", "datashard": 0, "parityshard": 0},
        {"smuxver": 2, "QPP": True, "QPPCount": 7},
    ],
    ids=["default", "smux 1 nocomp", "gcm 20/10", "null bare", "QPP"],
)
def test_data_arrives_whole(client: str, server: str, options: Options) -> None:
    with Target(exchange_handler) as target:
        with Tunnel(client, server, target.address, {**QUICK, **options}, link=BAD_LINK) as tunnel:
            for compressible in (False, True):
                exchange(connect(tunnel.address), up=SIZE, down=SIZE, seed=1, compressible=compressible)


@pytest.mark.once
@pytest.mark.parametrize("client", ["go", "newest"])
@pytest.mark.parametrize("shards", [(5, 5), (3, 1), (20, 10)], ids=["5/5", "3/1", "20/10"])
def test_our_server_sends_parity_that_its_client_can_read(client: str, shards: tuple[int, int]) -> None:
    """With losses both ways; the server is set to 10/3."""
    own: Options = {"datashard": shards[0], "parityshard": shards[1]}
    server: Options = {"datashard": 10, "parityshard": 3}
    with Target(exchange_handler) as target:
        with Tunnel(
            client,
            "ours",
            target.address,
            {**QUICK, "smuxver": 1},
            client_options=own,
            server_options=server,
            link=BAD_LINK,
        ) as tunnel:
            exchange(connect(tunnel.address), up=SIZE, down=SIZE, seed=2)
            for program in (tunnel.client, tunnel.server):
                counters = program.counters()
                assert counters["FECRecovered"] > 0
                assert counters["KCPInErrors"] == 0 or program is tunnel.server


@pytest.mark.parametrize("smuxver", [1, 2])
@pytest.mark.parametrize(("client", "server"), PAIRINGS, ids=["our client", "our server"])
@pytest.mark.parametrize("size", [800, 300_000, 5_000_000])
def test_a_reply_behind_a_half_close_arrives_whole(client: str, server: str, size: int, smuxver: int) -> None:
    with Target(partial(_reply, size)) as target:
        options = {**QUICK, "smuxver": smuxver}
        with Tunnel(client, server, target.address, options, server_options=only_at_go({}, server)) as tunnel:
            for _ in range(3):
                with connect(tunnel.address) as sock:
                    sock.sendall(b"x" * 1000)
                    sock.shutdown(socket.SHUT_WR)
                    assert receive_exactly(sock, 8 + size)[:8] == (1000).to_bytes(8, "little")
                    assert sock.recv(1) == b""


@pytest.mark.once
@pytest.mark.parametrize("smuxver", [1, 2])
@pytest.mark.parametrize("client", ["go", "newest", "ours"])
def test_a_download_that_is_cancelled_stops_at_our_server(client: str, smuxver: int) -> None:
    ended: list[float] = []
    with Target(partial(_flood, ended)) as target:
        with Tunnel(client, "ours", target.address, {**QUICK, "smuxver": smuxver}) as tunnel:
            with connect(tunnel.address) as sock:
                sock.sendall(b"x")
                receive_exactly(sock, 3_000_000)
            wait_until(lambda: bool(ended), "the target notices", STOPS_WITHIN)


@pytest.mark.once
@pytest.mark.parametrize("smuxver", [1, 2])
def test_a_download_that_is_cancelled_stops_coming(smuxver: int) -> None:
    """In version 1 the newest server takes no notice of its end, and would pour for as long as its target does."""
    with Target(partial(_flood, [])) as target:
        with Tunnel("ours", "newest", target.address, QUICK, server_options={"smuxver": smuxver}) as tunnel:
            with connect(tunnel.address) as sock:
                sock.sendall(b"x")
                receive_exactly(sock, 3_000_000)
            if smuxver == 1:
                tunnel.client.wait_for_log("goes on sending what nobody wants: its session is ended")
                wait_until(lambda: tunnel.client.counters()["CurrEstab"] == 0, "the session has ended", STOPS_WITHIN)
            wait_until(partial(_is_quiet, tunnel), "nothing comes any more", STOPS_WITHIN)
            with connect(tunnel.address) as sock:
                sock.sendall(b"x")
                receive_exactly(sock, 3_000_000)


def _is_quiet(tunnel: Tunnel) -> bool:
    before = tunnel.client.counters()["BytesReceived"]
    time.sleep(0.5)
    return tunnel.client.counters()["BytesReceived"] - before < 65536


def _reply(size: int, sock: socket.socket) -> None:
    received = b"".join(iter(lambda: sock.recv(65536), b""))
    sock.sendall(len(received).to_bytes(8, "little") + bytes(size))


def _flood(ended: list[float], sock: socket.socket) -> None:
    sock.recv(1)
    with suppress(OSError):
        while True:
            sock.sendall(bytes(65536))
    ended.append(time.monotonic())
