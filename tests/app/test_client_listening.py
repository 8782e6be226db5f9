"""Where a client listens: both families, unix sockets, what is in use."""

import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from kcptun_lite.app.client import Client
from kcptun_lite.errors import TransportError
from kcptun_lite.net.tcp import acceptor
from tests.app.tunnels import make_client, running


def listening(**options: object) -> Client:
    client = make_client("127.0.0.1:9", **options)
    client._listen()
    return client


@pytest.mark.parametrize("local", [":0", "[::]:0"])
def test_all_addresses_are_those_of_both_families(local: str) -> None:
    client = listening(localaddr=local)
    port = client._listening.getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port)).close()
    client._listening.close()


def test_without_ipv6_in_the_kernel_it_is_ipv4_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    client = listening(localaddr=":0")
    assert acceptor.name_of(client._listening).startswith("0.0.0.0:")
    client._listening.close()


@pytest.mark.parametrize(
    ("local", "shown"), [("@kcptun-test", "@kcptun-test"), ("[::1]:0", "[::1]:"), ("127.0.0.1:0", "127.0.0.1:")]
)
def test_the_log_shows_an_address_as_it_is_written(local: str, shown: str) -> None:
    client = listening(localaddr=local)
    assert acceptor.name_of(client._listening).startswith(shown)
    client._listening.close()


def test_a_unix_socket_goes_with_the_program_but_not_another_programs(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running(make_client("127.0.0.1:9", localaddr=str(path))):
        assert path.is_socket()
    assert not path.exists()
    first = listening(localaddr=str(path))
    path.unlink()
    second = listening(localaddr=str(path))
    first._stop_accepting()
    assert path.is_socket()
    second._stop_accepting()
    assert not path.exists()


def test_a_unix_socket_in_use_is_left_alone_and_an_abandoned_one_is_taken(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    first = listening(localaddr=path)
    first._listening.listen(0)
    with ExitStack() as stack:
        for _ in range(3):  # a full queue is no sign that nobody is there
            with pytest.raises(TransportError, match="Address already in use"):
                listening(localaddr=path)
            stack.enter_context(sock := socket.socket(socket.AF_UNIX)).setblocking(False)
            sock.connect_ex(path)
    first._listening.close()  # as if it had been killed: the file is still there
    listening(localaddr=path)._stop_accepting()


def test_the_address_in_use_is_told_before_anything_is_started() -> None:
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(TransportError, match="cannot listen on"):
            make_client("127.0.0.1:9", localaddr=f"127.0.0.1:{taken.getsockname()[1]}")._listen()
    assert threading.active_count() == before
