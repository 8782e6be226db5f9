"""The client: connections to streams of its session slots, sessions that expire, ways that fail."""

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from kcptun_lite import log
from kcptun_lite.app import client as room
from kcptun_lite.app.client import Client
from kcptun_lite.core.batch.packets import Address
from kcptun_lite.core.wire import MASK32
from kcptun_lite.errors import ConfigError, SessionClosed, TransportError
from kcptun_lite.net.session.peer_watch import PeerWatch
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.tcp import acceptor
from kcptun_lite.net.udp.udp_socket import UdpSocket
from tests.app.tunnels import Target, connect, make_client, make_server, running, udp_address
from tests.net.fakes import wait_until

Starter = Callable[..., Client]


@pytest.fixture
def target() -> Iterator[Target]:
    with Target() as target:
        yield target


@pytest.fixture
def start(target: Target) -> Iterator[Starter]:
    """Starts clients of one running server."""
    with ExitStack() as stack:
        server = make_server(target.address)
        stack.enter_context(running(server))

        def start_one(**options: object) -> Client:
            client = make_client(udp_address(server), **options)
            stack.enter_context(running(client))
            return client

        yield start_one


def use(client: Client, target: Target) -> tuple[socket.socket, socket.socket]:
    """A connection that has carried a byte: both its ends."""
    application = connect(client)
    application.sendall(b"x")
    tcp = target.accept()
    assert tcp.recv(1) == b"x"
    return application, tcp


def live_sessions(client: Client) -> list[Session]:
    return [session for session in client._sessions() if not session.is_closed]


def test_connections_take_the_slots_in_turn(start: Starter, target: Target) -> None:
    client = start(conn=3)
    assert not client._sessions(), "no session before the first connection"
    sockets = [use(client, target) for _ in range(7)]
    assert [session.stream_count for session in live_sessions(client)] == [3, 2, 2]
    for pair in sockets:
        for sock in pair:
            sock.close()


def test_a_dead_session_is_replaced_at_the_next_connection(start: Starter, target: Target) -> None:
    client = start()
    for sock in use(client, target):
        sock.close()
    (dead,) = live_sessions(client)
    dead.close()
    for sock in use(client, target):
        sock.close()
    (alive,) = live_sessions(client)
    assert alive is not dead
    assert (client.counters().active_opens, client.counters().current_established) == (2, 1)


def test_a_connection_that_is_gone_before_it_is_served_stops_nobody(start: Starter, target: Target) -> None:
    client = start(maxstreams=1)
    first = use(client, target)
    wait_until(lambda: len(client._relays) == 1)
    with connect(client) as hasty:  # waits for its turn, and gives up with a reset
        hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    for sock in first:
        sock.close()
    for sock in use(client, target):
        sock.close()


def test_an_accident_costs_one_connection(start: Starter, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    client = start()
    open_stream = client._open_stream
    accidents = [RuntimeError("can't start new thread"), MemoryError(), ValueError("a bug")]

    def fail_first(slot: int) -> object:
        if accidents:
            raise accidents.pop()
        return open_stream(slot)

    monkeypatch.setattr(client, "_open_stream", fail_first)
    for _ in range(3):
        with pytest.raises(ConnectionResetError), connect(client) as application:
            application.recv(1)
    for sock in use(client, target):
        sock.close()


def test_a_session_that_ends_just_now_is_replaced_in_a_thread(
    start: Starter, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    for sock in use(client, target):
        sock.close()
    (session,) = live_sessions(client)

    def end_just_now() -> Stream:
        session.close()
        raise SessionClosed("just now")

    monkeypatch.setattr(session, "open_stream", end_just_now)
    dial, threads = client._dialer.dial, []

    def note(*callbacks: object) -> Session:
        threads.append(threading.current_thread().name)
        return dial(*callbacks)  # type: ignore[arg-type]

    monkeypatch.setattr(client._dialer, "dial", note)
    for sock in use(client, target):
        sock.close()
    assert threads == ["dial"]


def test_where_accepting_cannot_be_waited_for_it_is_tried_again(
    start: Starter, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    watch, failures = client.loop.watch, [OSError(28, "No space left on device")] * 3

    def fail(number: int, callback: Callable[[], None], *, to_write: bool = False) -> None:
        if failures:
            raise failures.pop()
        watch(number, callback, to_write=to_write)

    monkeypatch.setattr(acceptor, "PAUSE", 0.01)
    client.loop.call(client._acceptor.pause)
    monkeypatch.setattr(client.loop, "watch", fail)
    client.loop.call(client._acceptor.resume)
    for sock in use(client, target):
        sock.close()
    assert not failures


def test_an_accident_in_accepting_costs_a_moment(
    start: Starter, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    listening, accidents = client._listening, [OSError(24, "Too many open files"), MemoryError()]

    class Troubled:
        def __getattr__(self, name: str) -> object:
            return getattr(listening, name)

        def accept(self) -> object:
            if accidents:
                raise accidents.pop()
            return listening.accept()

    monkeypatch.setattr(acceptor, "PAUSE", 0.01)
    client._acceptor._listening = Troubled()  # type: ignore[assignment]
    for sock in use(client, target):
        sock.close()
    assert not accidents


def test_who_comes_through_a_unix_socket_holds_no_thread_up_for_ever(
    start: Starter, target: Target, tmp_path: Path
) -> None:
    path = str(tmp_path / "local")
    client = start(localaddr=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as application:
        application.connect(path)
        application.sendall(b"x")
        with target.accept():
            wait_until(lambda: any(relay._tcp for relay in client._relays))
            (tcp,) = [relay._tcp for relay in client._relays if relay._tcp]
            assert any(tcp.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16))


# -- expiry --------------------------------------------------------------------------------------------------


class Shift:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ms = 0

    def __call__(self) -> int:
        return monotonic_ms() + self.ms


@pytest.fixture
def shift(monkeypatch: pytest.MonkeyPatch) -> Shift:
    shift = Shift()
    monkeypatch.setattr(room, "monotonic_ms", shift)
    return shift


def scavenge_twice(client: Client, old: Session, clock: Callable[[], int]) -> None:
    """Its goodbye has arrived before it is closed."""
    client._scavenge(clock())
    assert old.is_ending
    wait_until(lambda: old.is_closed or old.is_flushed())
    client._scavenge(clock())


def test_an_expired_session_gets_no_new_stream_but_keeps_its_old_ones(
    start: Starter, target: Target, shift: Shift
) -> None:
    client = start(autoexpire=60, scavengettl=600)
    application, tcp = use(client, target)
    (old,) = live_sessions(client)
    shift.ms = 61_000
    second = use(client, target)
    assert old in client._expired and old.stream_count == 1
    client._scavenge(shift())
    assert not old.is_closed
    application.sendall(b"still here")
    assert tcp.recv(10) == b"still here"
    for sock in (application, tcp):
        sock.close()
    wait_until(lambda: not old.stream_count and old.is_flushed())
    scavenge_twice(client, old, shift)
    assert old.is_closed and not client._expired
    for sock in second:
        sock.close()


def test_an_expired_session_is_ended_when_its_grace_is_over(start: Starter, target: Target, shift: Shift) -> None:
    client = start(autoexpire=60, scavengettl=600)
    application, tcp = use(client, target)
    (old,) = live_sessions(client)
    shift.ms = 659_000
    client._scavenge(shift())
    assert not old.is_closed
    shift.ms = 661_000
    client._scavenge(shift())
    assert old.is_closed
    with pytest.raises(ConnectionResetError):
        application.recv(1)
    application.close()
    tcp.close()


def test_a_session_without_stream_ids_gives_its_slot_to_a_new_one(start: Starter, target: Target) -> None:
    client = start()
    first = use(client, target)
    (old,) = live_sessions(client)
    old.conversation._streams._next_sid = MASK32 + 2
    second = use(client, target)
    assert len(live_sessions(client)) == 2 and old.stream_count == 1
    client._scavenge(monotonic_ms())
    for source, sink in (first, second):
        source.sendall(b"still here")
        assert sink.recv(10) == b"still here"
    for sock in first:
        sock.close()
    wait_until(lambda: not old.stream_count and old.is_flushed())
    scavenge_twice(client, old, monotonic_ms)
    assert old.is_closed and len(live_sessions(client)) == 1
    for sock in second:
        sock.close()


def test_without_a_limit_the_grace_ends_with_the_streams(start: Starter, target: Target, shift: Shift) -> None:
    client = start(autoexpire=60, scavengettl=-1)
    application, tcp = use(client, target)
    (old,) = live_sessions(client)
    shift.ms = 100_000_000
    client._scavenge(shift())
    assert not old.is_closed
    for sock in (application, tcp):
        sock.close()
    wait_until(lambda: not old.stream_count and old.is_flushed())
    scavenge_twice(client, old, shift)
    assert old.is_closed


def test_an_expired_session_stays_until_its_last_bytes_are_acknowledged(
    start: Starter, target: Target, shift: Shift, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(autoexpire=60, scavengettl=600)
    for sock in use(client, target):
        sock.close()
    (old,) = live_sessions(client)
    wait_until(lambda: not old.stream_count and old.is_flushed())
    shift.ms = 61_000
    with monkeypatch.context() as patch:
        patch.setattr(old, "is_flushed", lambda: False)
        for _ in range(3):
            client._scavenge(shift())
        assert not old.is_closed
    scavenge_twice(client, old, shift)
    assert old.is_closed


def test_without_autoexpire_sessions_live_on(start: Starter, target: Target, shift: Shift) -> None:
    client = start()
    for sock in use(client, target):
        sock.close()
    (session,) = live_sessions(client)
    wait_until(lambda: not session.stream_count)
    shift.ms = 10_000_000
    client._scavenge(shift())
    for sock in use(client, target):
        sock.close()
    assert live_sessions(client) == [session]


# -- the way -------------------------------------------------------------------------------------------------


def test_a_hangup_signal_moves_sessions_that_get_no_answer_to_new_sockets(
    start: Starter, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(conn=2)
    sockets = [use(client, target) for _ in range(2)]
    before = [session.local_address for session in live_sessions(client)]
    monkeypatch.setattr(PeerWatch, "silence", lambda watch, now: 2 * watch.patience)  # as on a way that is dead
    client._redial()
    wait_until(lambda: not {session.local_address for session in live_sessions(client)} & set(before))
    for application, tcp in sockets:
        application.sendall(b"moved")
        assert tcp.recv(5) == b"moved"
        application.close()
        tcp.close()


def test_while_there_is_no_way_connections_wait(
    start: Starter, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    dial = UdpSocket.dial
    tries: list[Address] = []

    def fail_twice(host: str, port: int, options: object) -> object:
        tries.append((host, port))
        if len(tries) < 3:
            raise TransportError("no name server")
        return dial(host, port, options)  # type: ignore[arg-type]

    lines: list[str] = []
    monkeypatch.setattr(log, "_write", lambda level, text, fields: lines.append(text))
    monkeypatch.setattr(room, "REDIAL_PAUSE", 0.01)
    monkeypatch.setattr(client._dialer._route, "_ways", (fail_twice,))
    for sock in use(client, target):
        sock.close()
    assert len(tries) == 3
    assert [line for line in lines if line.startswith("re-connecting")] == [
        "re-connecting: no name server; trying again every 0.01 s"
    ]


def test_while_there_is_no_way_another_session_must_do(
    start: Starter, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(conn=2)
    first = use(client, target)
    with monkeypatch.context() as patch:

        def fail(host: str, port: int, options: object) -> None:
            raise TransportError("no name server")

        patch.setattr(client._dialer._route, "_ways", (fail,))
        second = use(client, target)
        (session,) = live_sessions(client)
        assert session.stream_count == 2
    third, fourth = use(client, target), use(client, target)
    assert [session.stream_count for session in live_sessions(client)] == [3, 1], "the slot is filled when it can be"
    for pair in (first, second, third, fourth):
        for sock in pair:
            sock.close()


def test_a_connection_waits_a_second_between_two_tries() -> None:
    assert room.REDIAL_PAUSE == 1.0, "as kcptun does"


def test_what_was_wrong_is_forgotten_when_all_is_well(start: Starter, target: Target) -> None:
    client = start()
    for sock in use(client, target):
        sock.close()
    client.note_diagnosis("nothing comes back")

    def is_forgotten() -> bool:
        client._look_at_sessions(monotonic_ms())
        return client.diagnoses.current == ""

    wait_until(is_forgotten)  # with the server's first answer, which may be under way


def test_what_fitted_once_is_not_forgotten_for_less(target: Target) -> None:
    """The server tells its --crypt now and then, and in between what it is has not changed."""
    with (
        running(server := make_server(target.address, crypt="salsa20")),
        running(client := make_client(udp_address(server), crypt="aes")),
        connect(client) as application,
    ):
        application.sendall(b"x")
        sentence = f"server {udp_address(server)} uses --crypt salsa20, this client aes"

        def is_told() -> bool:
            server._look_at_unknown_sources(monotonic_ms())
            client._look_at_sessions(monotonic_ms())
            return client.diagnoses.current == sentence

        wait_until(is_told)
        client.context.failed_packets.take()
        client._look_at_sessions(monotonic_ms() + 10_000)
        assert [found.text for found in client.diagnoses.recent] == [sentence]


def test_a_client_that_finds_no_way_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    is_trying = threading.Event()

    def fail(host: str, port: int, options: object) -> None:
        is_trying.set()
        raise TransportError("no name server")

    monkeypatch.setattr(UdpSocket, "dial", fail)
    client = make_client("nowhere.invalid:1")
    with running(client), connect(client) as application:
        is_trying.wait()
        client.stop_event.set()
        with suppress(ConnectionResetError):
            assert application.recv(1) == b""


def test_a_kernel_that_lets_only_root_choose_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = OSError(errno.EPERM, "--interface lo: Operation not permitted")
    monkeypatch.setattr(room, "device_error", lambda device: refusal)
    with pytest.raises(ConfigError, match="--interface lo: .* only root .* run it as root"):
        make_client("127.0.0.1:9", interface="lo")._check_interface()
