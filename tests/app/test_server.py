"""The server: ports, targets, clients who never show that they are there."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kcptun_lite.app import server as room
from kcptun_lite.app.client import Client
from kcptun_lite.net.ends.listener import UNVALIDATED_TIME
from kcptun_lite.net.ends.route import Server
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.tcp.sockets import listen
from tests.app.tunnels import Target, connect, make_client, make_server, running, udp_address
from tests.net.ends.test_listener import SYN
from tests.net.fakes import PATIENCE_S, Peer, segment, wait_until


@pytest.fixture
def target() -> Iterator[Target]:
    with Target() as target:
        yield target


def sealed(body: memoryview) -> memoryview:
    """Under the method none: nonce and checksum in front."""
    from zlib import crc32

    return memoryview(bytes(16) + crc32(body).to_bytes(4, "little") + body)


def test_each_port_of_the_range_serves(target: Target) -> None:
    server = make_server(target.address)
    with running(server):
        first = server._listeners[0].address[1]
    for _ in range(20):  # until three ports in a row are free
        server = make_server(target.address, listen=f"127.0.0.1:{first}-{first + 2}")
        try:
            with running(server):
                assert [listener.address[1] for listener in server._listeners] == [first, first + 1, first + 2]
                for port in range(first, first + 3):
                    with running(client := make_client(f"127.0.0.1:{port}")), connect(client) as application:
                        application.sendall(b"x")
                        with target.accept() as tcp:
                            assert tcp.recv(1) == b"x"
                assert len([listener for listener in server._listeners if listener.counters is not None]) == 3
                return
        except Exception as exc:
            if "cannot listen" not in str(exc):
                raise
            first += 3
    raise AssertionError("no three ports in a row")


def test_a_target_may_be_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "target")
    with listen("", 0, path) as target, running(server := make_server(path)):
        target.settimeout(PATIENCE_S)
        with running(client := make_client(udp_address(server))), connect(client) as application:
            application.sendall(b"x")
            tcp, _ = target.accept()
            with tcp:
                assert tcp.recv(1) == b"x"


def test_a_target_that_is_not_there_resets_the_application() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with running(server := make_server(address)):
            with running(client := make_client(udp_address(server))), connect(client) as application:
                with pytest.raises(ConnectionResetError):
                    application.recv(1)
            assert "--target" in server.diagnoses.current and "refused" in server.diagnoses.current
    wait_until(lambda: not server._relays)


def test_half_open_sessions_are_dropped_by_the_housekeeping(target: Target) -> None:
    with running(server := make_server(target.address)), Peer() as unknown:
        unknown.send(sealed(segment(conv=7, data=SYN)), server._listeners[0].address)
        wait_until(lambda: len(server._sessions()) == 1)
        target.accept().close()
        server._every_second(monotonic_ms())
        assert len(server._sessions()) == 1
        server._every_second(monotonic_ms() + UNVALIDATED_TIME)
        assert not server._sessions()
        counters = server.counters()
        assert (counters.passive_opens, counters.current_established, counters.max_connections) == (1, 0, 1)


def test_packets_of_unknown_sources_are_counted_with_the_port(target: Target) -> None:
    with running(server := make_server(target.address)), Peer() as unknown:
        address = server._listeners[0].address
        unknown.send(memoryview(bytes(range(100))), address)
        unknown.send(sealed(segment(conv=7, sn=5)), address)
        wait_until(lambda: server.counters().kcp_in_errors == 1)
        assert server.counters().in_checksum_errors == 1
        assert not server._sessions()


def test_who_is_refused_hears_it_and_takes_a_session_that_it_has(target: Target) -> None:
    with running(server := make_server(target.address, maxsessions=1)):
        with running(client := make_client(udp_address(server), conn=2)), connect(client) as first:
            first.sendall(b"x")
            with target.accept() as tcp:
                assert tcp.recv(1) == b"x"
                with connect(client) as second, pytest.raises(ConnectionResetError):
                    second.sendall(b"x")
                    second.recv(1)
                wait_until(lambda: "takes no more sessions" in client.diagnoses.current)
                for _ in range(3):
                    with connect(client) as third:
                        third.sendall(b"y")
                        with target.accept() as other:
                            assert other.recv(1) == b"y"
            assert len(server._sessions()) == 1


def test_a_client_that_stops_is_forgotten_at_once_and_so_is_a_server(target: Target) -> None:
    with running(server := make_server(target.address)):
        with running(client := make_client(udp_address(server))), connect(client) as application:
            application.sendall(b"x")
            with target.accept() as tcp:
                assert tcp.recv(1) == b"x"
        wait_until(lambda: not server._sessions())
    server = make_server(target.address)
    with running(client := make_client("127.0.0.1:9")):
        with running(server):
            client._dialer._route._servers[0] = Server("127.0.0.1", *[server._listeners[0].address[1]] * 2)
            with connect(client) as application:
                application.sendall(b"x")
                with target.accept() as tcp:
                    assert tcp.recv(1) == b"x"
        wait_until(lambda: all(session.is_closed for session in client._sessions()))


def test_expired_sessions_do_not_pile_up_at_the_server(target: Target) -> None:
    with running(server := make_server(target.address, maxsessions=8)):
        with running(client := make_client(udp_address(server), conn=4, autoexpire=1)):
            for _ in range(24):
                for session in client._sessions():
                    session.opened_at -= 1000  # a second passes
                now = monotonic_ms()
                client._scavenge(now)
                with connect(client) as application:
                    application.sendall(b"x")
                    with target.accept() as tcp:
                        assert tcp.recv(1) == b"x"
                wait_until(lambda: len(server._sessions()) <= 5)


@pytest.mark.parametrize(("fitting", "hints"), [(["aes"], 1), (["none", "null"], 0), (["none", "aes"], 1), ([], 0)])
def test_a_hint_goes_to_who_has_shown_that_he_knows_the_key(
    fitting: list[str], hints: int, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under none and null a packet fits whoever has made it."""
    given: list[object] = []
    monkeypatch.setattr(room, "hint", lambda context, sample: given.append(sample))
    monkeypatch.setattr(room, "fitting_methods", lambda key, packet: fitting)
    with running(server := make_server(target.address)), Peer() as unknown:
        unknown.send(memoryview(bytes(range(100))), server._listeners[0].address)
        wait_until(lambda: server.counters().in_checksum_errors == 1)
        for _ in range(2):  # the first one may come before the sample, or bring it
            server._look_at_unknown_sources(monotonic_ms())
        assert len(given) == hints


def test_the_last_quarter_of_maxstreams_is_for_clients_who_have_few(target: Target) -> None:
    with running(server := make_server(target.address, maxstreams=16)), ExitStack() as stack:
        many, few = (make_client(udp_address(server), conn=1) for _ in range(2))

        def ask(client: Client) -> socket.socket:
            application = stack.enter_context(connect(client))
            application.sendall(b"x")
            return application

        for client, count in (many, 12), (few, 1):
            stack.enter_context(running(client))
            for _ in range(count):
                ask(client)
                assert stack.enter_context(target.accept()).recv(1) == b"x"
            with pytest.raises(ConnectionResetError):
                ask(many).recv(1)
