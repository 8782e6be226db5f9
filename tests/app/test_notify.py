"""What systemd is told, by the real program to a real socket: ready when it serves, alive, stopping."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcptun_lite.app.notify import Notifier
from kcptun_lite.net.session.update_thread import UpdateThread
from tests.programs import START_TIMEOUT, Program, wait_until

SERVER = [sys.executable, "-m", "kcptun_lite", "server", "-l", "127.0.0.1:0"]
CLIENT = [sys.executable, "-m", "kcptun_lite", "client", "-l", "127.0.0.1:0", "-r", "127.0.0.1:1"]


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket that systemd listens on, and its name for the environment."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@kcptun-lite-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0") if name.startswith("@") else name)
        sock.settimeout(START_TIMEOUT)
        yield sock, name


@pytest.mark.parametrize("command", [CLIENT, SERVER], ids=["client", "server"])
def test_a_program_says_when_it_serves_and_when_it_stops(
    command: list[str], systemd: tuple[socket.socket, str]
) -> None:
    sock, name = systemd
    program = Program("program", command, env={"KCPTUN_KEY": "k", "NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000"})
    try:
        messages = [sock.recv(1000).decode() for _ in range(4)]
        ready = next(text for text in messages if text.startswith("READY=1\n"))
        assert ready.partition("STATUS=listening on 127.0.0.1:")[2].isdigit()
        assert messages.count("WATCHDOG=1") == 3
        os.kill(program.pid, signal.SIGTERM)
        while (text := sock.recv(1000)) != b"STOPPING=1":
            assert text == b"WATCHDOG=1"
    finally:
        assert program.stop() == 0


def test_a_program_that_cannot_begin_is_never_ready(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, socket.create_server(("127.0.0.1", 0)) as taken:
        sock.bind(str(tmp_path / "notify"))
        environment = {"KCPTUN_KEY": "k", "NOTIFY_SOCKET": str(tmp_path / "notify")}
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        program = Program("client", [*CLIENT[:4], "-l", where, "-r", "a:1"], env=environment)
        program.wait_for_log("cannot listen")
        program.stop()
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1000)


def test_an_update_thread_that_hangs_gives_no_sign_of_life(tmp_path: Path) -> None:
    """Which is what systemd's watchdog waits for: it restarts the program then."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(START_TIMEOUT)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"})
        reader, writer = os.pipe()
        ticker = UpdateThread()
        ticker.start()
        try:
            ticker.attach(notifier)
            assert sock.recv(100) == b"WATCHDOG=1"
            hanging = Hanging(reader)
            ticker.attach(hanging)
            wait_until(lambda: hanging.is_hanging, "the thread hangs")
            sock.setblocking(False)
            while True:  # what came before
                try:
                    sock.recv(100)
                except BlockingIOError:
                    break
            sock.settimeout(0.5)  # fifty times the interval
            with pytest.raises(TimeoutError):
                sock.recv(100)
            os.write(writer, b"x")
            sock.settimeout(START_TIMEOUT)
            assert sock.recv(100) == b"WATCHDOG=1", "it goes on when the thread does"
        finally:
            os.write(writer, b"x")
            ticker.stop()
            notifier.close()
            os.close(reader)
            os.close(writer)


class Hanging:
    """An update that does not come back before there is something to read."""

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self.is_hanging = False

    def update(self, now: int) -> None:
        self.is_hanging = True
        os.read(self._reader, 1)


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, 15_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "nonsense"}, 0),
        ({"WATCHDOG_USEC": "-1"}, 0),
    ],
)
def test_signs_of_life_come_twice_as_often_as_wanted(environment: dict[str, str], interval: int) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/none", **environment})
    assert notifier.interval == interval
    notifier.ready("nobody listens, and nothing happens")
    notifier.close()
