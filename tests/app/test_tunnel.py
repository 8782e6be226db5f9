"""What client and server have in common: relays and their limit, sums of counters, an orderly end."""

import errno
import signal
import socket
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kcptun_lite import log
from kcptun_lite.app import client as client_room
from kcptun_lite.app import listening as listening_room
from kcptun_lite.app import server as server_room
from kcptun_lite.app import signals
from kcptun_lite.app import tunnel as tunnel_room
from kcptun_lite.app.client import Client
from kcptun_lite.app.listening import listen_patiently
from kcptun_lite.app.server import Server
from kcptun_lite.app.tunnel import Tunnel
from kcptun_lite.core.counters import Counters
from kcptun_lite.errors import SessionClosed, SessionError, TransportError, describe_exception
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.tcp import relay as relay_room
from kcptun_lite.net.udp.udp_socket import UdpSocket
from tests.app.tunnels import Target, connect, make_client, make_server, running, udp_address
from tests.net.fakes import PATIENCE_S, in_background, wait_until


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(log, "_write", lambda level, text, fields: lines.append(text))
    return lines


def test_bytes_go_through_and_are_counted() -> None:
    with Target() as target, running(server := make_server(target.address)):
        with running(client := make_client(udp_address(server))), connect(client) as application:
            application.sendall(b"hello")
            with target.accept() as tcp:
                assert tcp.recv(5) == b"hello"
                tcp.sendall(b"world")
                assert application.recv(5) == b"world"
            for tunnel in (client, server):
                counters = tunnel.counters()
                assert counters.current_established == counters.max_connections == 1
                assert counters.in_packets > 0 < counters.out_packets
                assert counters.bytes_sent > 5 < counters.bytes_received
            assert (client.counters().active_opens, server.counters().passive_opens) == (1, 1)


def test_what_closed_sessions_have_counted_stays_in_the_sum() -> None:
    client = make_client("127.0.0.1:9")

    class Over:
        conversation = remote = None
        counters = Counters(in_packets=5, active_opens=1)

    over: Any = Over()
    client.count_session(over)
    client.count_session(over)
    super(type(client), client).session_closed(over, SessionClosed("over"))
    counters = client.counters()
    assert (counters.in_packets, counters.active_opens) == (5, 1)
    assert (counters.current_established, counters.max_connections) == (1, 2)


def test_streams_are_told_in_the_log_with_both_ends_and_the_reason(lines: list[str]) -> None:
    with Target() as target, running(server := make_server(target.address)):
        with running(client := make_client(udp_address(server))):
            with connect(client) as application:
                application.sendall(b"x")
                name = f"in: 127.0.0.1:{application.getsockname()[1]} out: {udp_address(server)}(3)"
                with target.accept() as tcp:
                    assert tcp.recv(1) == b"x"
            wait_until(lambda: any(line.startswith(f"stream closed {name}") for line in lines))
            assert f"stream opened {name}" in lines


def test_an_ipv4_peer_of_a_port_of_both_families_is_called_by_its_ipv4_address(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(log, "_write", lambda level, text, fields: told.append((text, fields)))
    server = make_server("127.0.0.1:9")
    over: Any = SimpleNamespace(
        conversation=SimpleNamespace(conv=7),
        remote=("::ffff:10.0.0.1", 5, 0, 0),
        counters=Counters(),
        is_validated=True,
    )
    Tunnel.session_closed(server, over, SessionError("no answer"))
    ((text, fields),) = told
    assert text == "session 00000007 with 10.0.0.1 closed: no answer"
    assert fields["peer"] == "10.0.0.1:5", "as when it was opened"


def test_beyond_maxstreams_a_client_lets_connections_wait_their_turn() -> None:
    with Target() as target, running(server := make_server(target.address)):
        with running(client := make_client(udp_address(server), maxstreams=2)):
            applications = [connect(client) for _ in range(3)]
            for number, application in enumerate(applications):
                application.sendall(bytes([number]))
            first = [target.accept() for _ in range(2)]
            assert sorted(tcp.recv(1) for tcp in first) == [b"\0", b"\1"]
            assert len(client._relays) == 2
            for tcp in first:
                tcp.close()
            applications[0].close()
            applications[1].close()
            with target.accept() as tcp:
                assert tcp.recv(1) == b"\2"
            applications[2].close()


def test_connections_that_wait_are_told_once_and_take_the_place_of_one_that_has_ended_half(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application has gone, and its target does not care: with a kcptun's server it learns that after 30 s."""
    monkeypatch.setattr(relay_room, "FULL_IDLE", 0.05)
    with Target() as target, running(server := make_server(target.address)):
        with running(client := make_client(udp_address(server), maxstreams=2)):
            applications = [connect(client) for _ in range(3)]
            opened = [target.accept() for _ in range(2)]
            applications[0].close()
            with target.accept() as tcp:
                applications[2].sendall(b"x")
                assert tcp.recv(1) == b"x"
            for tcp in (*opened, *applications):
                tcp.close()
    assert [line for line in lines if "wait" in line] == [
        "--maxstreams 2 are open: connections wait until one of them has ended"
    ]


def test_beyond_maxstreams_a_server_refuses() -> None:
    with Target() as target, running(server := make_server(target.address, maxstreams=1)):
        with running(client := make_client(udp_address(server))):
            with connect(client) as first:
                first.sendall(b"1")
                with target.accept() as tcp:
                    assert tcp.recv(1) == b"1"
                    with connect(client) as second, pytest.raises(ConnectionResetError):
                        second.recv(1)
                    assert not server.counters().passive_opens - 1, "all in one session"


# -- the end -------------------------------------------------------------------------------------------------


def test_stopping_resets_what_is_open_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with Target() as target, running(server := make_server(target.address)):
        with running(client := make_client(udp_address(server), conn=3)):
            applications = [connect(client) for _ in range(4)]
            for application in applications:
                application.sendall(b"x")
            others = [target.accept() for _ in applications]
            for tcp in others:
                assert tcp.recv(1) == b"x"
        for application in applications:
            with pytest.raises(ConnectionResetError):
                application.recv(1)
            application.close()
        for tcp in others:
            with pytest.raises(ConnectionResetError):
                tcp.recv(1)
            tcp.close()
        assert not client._sessions() or all(session.is_closed for session in client._sessions())
    wait_until(lambda: threading.active_count() == before)
    assert client.pool.usage().in_use_bytes == server.pool.usage().in_use_bytes == 0


def test_stopping_waits_until_what_was_sent_has_arrived() -> None:
    with Target() as target, running(server := make_server(target.address)):
        with running(client := make_client(udp_address(server))):
            application = connect(client)
            application.sendall(b"x" * 50_000)
            tcp = target.accept()
            received = len(tcp.recv(1))
            wait_until(lambda: bool(client._relays) and next(iter(client._relays))._moved == 50_000)
        with tcp, pytest.raises(ConnectionResetError):
            while piece := tcp.recv(65_536):
                received += len(piece)
        assert received <= 50_000
        application.close()


def test_a_start_that_fails_ends_everything_it_has_begun() -> None:
    before = threading.active_count()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        free = None
        while free is None:  # two ports in a row, of which the second one is taken
            taken.close()
            taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                try:
                    probe.bind(("127.0.0.1", port - 1))
                    free = port - 1
                except OSError:
                    continue
        server = make_server("127.0.0.1:9", listen=f"127.0.0.1:{free}-{port}")
        with pytest.raises(TransportError, match=f"{port}"):
            with running(server):
                raise AssertionError("it has started")
        taken.close()
    assert threading.active_count() == before
    assert all(listener._udp.is_closed for listener in server._listeners)


def test_a_stop_while_a_relay_begins_is_no_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver thread has entered the relay in the list and not yet started it when the main thread stops it."""
    is_between, may_go_on = threading.Event(), threading.Event()

    def slow_log(text: str, event: str, **fields: object) -> None:
        if text.startswith("stream opened") and "out: 127.0.0.1:" in text and "(3)" in text.split(" out: ")[0]:
            is_between.set()
            may_go_on.wait(PATIENCE_S)

    monkeypatch.setattr(log, "stream", slow_log)
    with Target() as target:
        server = make_server(target.address)
        server._listen()
        server.ticker.start()
        server.loop.start()
        server._start()
        with running(client := make_client(udp_address(server))), connect(client):
            assert is_between.wait(PATIENCE_S)
            stopping = in_background(server._shut_down)
            wait_until(lambda: server.is_stopping)
            may_go_on.set()
            stopping.result()
        wait_until(lambda: not server._relays)


def test_a_thread_that_cannot_be_had_costs_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_client("127.0.0.1:9")

    class NoStream:
        sid = 3
        cipher = None
        is_closed = False

        def close(self) -> None:
            self.is_closed = True
            self.on_over()  # type: ignore[attr-defined]

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    stream: Any = NoStream()
    client.start_relay(lambda relay: relay.dial(lambda: None, socket.socket), stream, lambda: ("here", "there"))
    assert stream.is_closed and not client._relays


def test_sessions_are_counted_under_the_lock() -> None:
    class Watched(Client):
        def __setattr__(self, name: str, value: object) -> None:
            if name.endswith("_established"):
                assert self._lock.locked(), name
            super().__setattr__(name, value)

    client = make_client("127.0.0.1:9")
    client._lock = threading.Lock()
    client.__class__ = Watched
    over: Any = type("Over", (), {"counters": Counters(), "conversation": None, "remote": None})
    client.count_session(over)
    Tunnel.session_closed(client, over, SessionClosed("over"))
    assert client.counters().max_connections == 1


# -- nothing ends a running program ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        ValueError("a bug"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("program", ["client", "server"])
def test_a_chore_that_fails_keeps_no_other_from_being_done(
    trouble: Exception, program: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tunnel = make_client("127.0.0.1:9") if program == "client" else make_server("127.0.0.1:9")
    count = len(tunnel._chores())
    done: list[int] = []

    def fail(number: int) -> None:
        done.append(number)
        raise trouble

    chores = [lambda now, number=number: fail(number) for number in range(count)]
    monkeypatch.setattr(tunnel, "_chores", lambda: chores)
    monkeypatch.setattr(log, "_keys", {})
    tunnel._every_second(0)
    assert done == list(range(count)) and count >= 5
    assert len(lines) == 1 and lines[0].startswith("housekeeping: ")


def test_a_signal_that_cannot_be_served_costs_a_line(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server("127.0.0.1:9")
    numbers = iter([signals.REPORT, signals.REDIAL, None, signal.SIGTERM])
    monkeypatch.setattr(signals, "wait", lambda timeout_s: next(numbers))

    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(server, "counters", fail)
    monkeypatch.setattr(server, "_redial", fail)
    server._work()
    assert lines == ["housekeeping: no memory left", "stopping: SIGTERM"]


def test_without_memory_for_a_line_it_goes_on_without_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(log, "limited", fail)
    make_server("127.0.0.1:9")._try(fail)


def test_a_program_that_gets_no_thread_says_so_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_client("127.0.0.1:9")

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(signals, "block", lambda: None)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError) as caught:
        patch.setattr(threading.Thread, "start", fail)
        client.run()
    assert describe_exception(caught.value).startswith("no thread can be started (raise the limit")
    assert client._listening.fileno() == -1


# -- nothing holds up the end ------------------------------------------------------------------------------------


def test_stopping_waits_for_nobody_who_waits_for_a_streams_end() -> None:
    with Target() as target, running(server := make_server(target.address)):
        with running(client := make_client(udp_address(server), maxstreams=1)):
            with connect(client) as application, target.accept() as tcp, connect(client):
                application.sendall(b"x")
                assert tcp.recv(1) == b"x"
                wait_until(lambda: client._acceptor._is_paused)
                in_background(client._shut_down).result()
                client._shut_down = lambda: None  # type: ignore[method-assign]


def test_stopping_leaves_a_thread_behind_that_the_system_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving, answered = threading.Event(), threading.Event()

    def resolve(*arguments: object) -> socket.socket:
        resolving.set()
        answered.wait(PATIENCE_S)
        raise TransportError("cannot resolve")

    monkeypatch.setattr(tunnel_room, "STOP_LIMIT", 50)
    monkeypatch.setattr(server_room.Target, "connect", resolve)
    server = make_server("nowhere.invalid:1")
    with running(server):
        with running(client := make_client(udp_address(server))), connect(client) as application:
            application.sendall(b"x")
            assert resolving.wait(PATIENCE_S)
            server._shut_down()
            server._shut_down = lambda: None  # type: ignore[method-assign]
            assert server._relays and not answered.is_set()
            answered.set()


# -- the start ---------------------------------------------------------------------------------------------------


def test_a_port_that_is_freed_soon_is_waited_for(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    client = make_client("127.0.0.1:9", localaddr=f"127.0.0.1:{taken.getsockname()[1]}")
    monkeypatch.setattr(listening_room, "sleep", lambda seconds: taken.close())
    listen_patiently(client._listen)
    client._listening.close()
    assert len(lines) == 1
    assert lines[0].startswith("--localaddr: cannot listen on ") and lines[0].endswith("; trying for 5 s")


def test_a_servers_port_as_well_and_all_of_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        server = make_server("127.0.0.1:9", listen=f"127.0.0.1:{port}")
        monkeypatch.setattr(listening_room, "sleep", lambda seconds: taken.close())
        listen_patiently(server._listen)
        assert server._listeners[0].address[1] == port
        server._close_sessions()


def test_a_port_that_stays_in_use_is_told_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening_room, "PATIENCE", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        client = make_client("127.0.0.1:9", localaddr=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(TransportError, match="another program listens there"):
            listen_patiently(client._listen)


@pytest.mark.parametrize(
    ("address", "number", "remedy"),
    [
        ("127.0.0.1:443", errno.EACCES, " (ports below 1024 are for root, or need CAP_NET_BIND_SERVICE)"),
        ("127.0.0.1:8443", errno.EACCES, ""),
        ("/run/x", errno.EACCES, ""),
        ("127.0.0.1:0", errno.EMFILE, " (raise the limit: ulimit -n, LimitNOFILE= of systemd)"),
    ],
)
@pytest.mark.parametrize("program", ["client", "server"])
def test_what_stops_it_from_listening_is_told_with_the_remedy(
    program: str, address: str, number: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise TransportError("cannot listen") from OSError(number, "")

    if program == "client":
        monkeypatch.setattr(client_room, "listen", fail)
        tunnel: Client | Server = make_client("127.0.0.1:9", localaddr=address)
    elif "/" in address:
        return
    else:
        monkeypatch.setattr(UdpSocket, "listen", fail)
        tunnel = make_server("127.0.0.1:9", listen=address)
    with pytest.raises(TransportError) as caught:
        listen_patiently(tunnel._listen)
    option = "--localaddr" if program == "client" else "--listen"
    assert str(caught.value) == f"{option}: cannot listen{remedy}"


@pytest.mark.parametrize("program", ["client", "server"])
def test_a_name_that_is_not_known_is_told_at_the_start(program: str, lines: list[str]) -> None:
    if program == "client":
        tunnel: Client | Server = make_client("nowhere.invalid:1,127.0.0.1:2")
        option = "--remoteaddr"
    else:
        tunnel, option = make_server("nowhere.invalid:1"), "--target"
    with running(tunnel):
        wait_until(lambda: any(line.startswith(f"{option} nowhere.invalid:1: cannot resolve") for line in lines))
    assert not any("127.0.0.1:2" in line and "cannot" in line for line in lines)


@pytest.mark.parametrize(
    ("is_flushed", "is_validated", "settled"), [(True, True, True), (False, True, False), (False, False, True)]
)
def test_a_stop_waits_for_acknowledgements_of_those_alone_who_are_known_to_be_there(
    is_flushed: bool, is_validated: bool, settled: bool
) -> None:
    session = cast(Session, SimpleNamespace(is_flushed=lambda: is_flushed, is_validated=is_validated))
    assert tunnel_room._is_done(session) == settled
