"""Clients and servers inside the test's own process, over loopback, started and stopped without signals.

In      options as on the command line
Out     running tunnels, and connections through them
Knows   the life of a Tunnel. Not: processes
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kcptun_lite.app.client import Client
from kcptun_lite.app.config import ClientConfig, ServerConfig
from kcptun_lite.app.parsing import Program, parse
from kcptun_lite.app.server import Server
from kcptun_lite.app.tunnel import Tunnel
from tests.net.fakes import PATIENCE_S

PLAIN = {"crypt": "none", "datashard": 0, "parityshard": 0, "nocomp": "true", "mode": "fast3", "key": "test"}


def config(program: Program, **options: object) -> Any:
    """A configuration; in clear, without FEC and compression unless told otherwise."""
    arguments = [f"--{name}={value}" for name, value in {**PLAIN, **options}.items()]
    return parse(program, arguments, {}, lambda path: b"")[0]


def make_server(target: str, **options: object) -> Server:
    found = config("server", **{"listen": "127.0.0.1:0", "target": target, **options})
    assert isinstance(found, ServerConfig)
    return Server(found)


def make_client(remote: str, **options: object) -> Client:
    found = config("client", **{"localaddr": "127.0.0.1:0", "remoteaddr": remote, **options})
    assert isinstance(found, ClientConfig)
    return Client(found)


@contextmanager
def running(tunnel: Tunnel) -> Iterator[None]:
    """What `Tunnel.run` does, but for signals and the passing of seconds."""
    tunnel._listen()
    tunnel.ticker.start()
    tunnel.loop.start()
    try:
        tunnel._start()
        yield
    finally:
        tunnel._shut_down()


def udp_address(server: Server) -> str:
    return f"127.0.0.1:{server._listeners[0].address[1]}"


def connect(client: Client) -> socket.socket:
    return socket.create_connection(client._listening.getsockname(), timeout=PATIENCE_S)


class Target:
    """A listening socket in the test's hand: what the server connects to."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(PATIENCE_S)
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"

    def accept(self) -> socket.socket:
        tcp, _ = self._listening.accept()
        tcp.settimeout(PATIENCE_S)
        return tcp

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, *exc: object) -> None:
        self._listening.close()
