"""The sockets that relays need: listening and connecting over TCP and Unix sockets, failures that name the place."""

import os
import socket
from pathlib import Path

import pytest

from kcptun_lite.errors import TransportError
from kcptun_lite.net.tcp.sockets import listen
from kcptun_lite.net.tcp.target import Target


def connect(host: str, port: int, path: str) -> socket.socket:
    return Target(host, port, path).connect()


def test_listening_and_connecting_over_tcp() -> None:
    with listen("127.0.0.1", 0, "") as server:
        with connect("127.0.0.1", server.getsockname()[1], "") as ours:
            theirs, _ = server.accept()
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert ours.getblocking()
            theirs.close()


def test_all_addresses_means_both_families() -> None:
    with listen("", 0, "") as server:
        port = server.getsockname()[1]
        hosts = ["127.0.0.1"] + ["::1"] * (server.family == socket.AF_INET6)
        for host in hosts:
            connect(host, port, "").close()


@pytest.mark.parametrize("name", ["file", "abstract"])
def test_listening_and_connecting_over_unix_sockets(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "socket") if name == "file" else f"@kcptun-lite-test-{os.getpid()}"
    with listen("", 0, path) as server, connect("", 0, path) as ours:
        theirs, _ = server.accept()
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x"
        theirs.close()


def test_a_socket_file_left_behind_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listen("", 0, path).close()
    assert os.path.exists(path)
    with listen("", 0, path), connect("", 0, path):
        pass


def test_a_socket_file_in_use_is_not_taken_away(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with listen("", 0, path):
        with pytest.raises(TransportError, match="cannot listen on"):
            listen("", 0, path)
        connect("", 0, path).close()


def test_a_file_that_is_no_socket_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(TransportError):
        listen("", 0, str(path))
    assert path.read_text() == "data"


def test_failures_name_the_place(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(TransportError, match=f"cannot listen on 127.0.0.1:{port}"):
            listen("127.0.0.1", port, "")
        with pytest.raises(TransportError, match=f"cannot connect to 127.0.0.1:{port}: Connection refused"):
            connect("127.0.0.1", port, "")
    with pytest.raises(TransportError, match="cannot connect to /nowhere: No such file"):
        connect("", 0, "/nowhere")


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_no_interface_has_yet(host: str) -> None:
    with listen(host, 0, "") as server:
        assert server.getsockname()[0] == host
        with pytest.raises(TransportError, match="already in use"):
            listen(host, server.getsockname()[1], "")
