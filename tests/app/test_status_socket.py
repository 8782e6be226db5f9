"""The status's socket: a line at once and one a second, and nothing that a viewer does harms the tunnel."""

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kcptun_lite.app.status_socket import VIEWERS, StatusSocket
from kcptun_lite.net.event_loop import Callback, EventLoop
from tests.programs import Tunnel, wait_until
from tests.traffic import Target, can_connect, connect, echo_handler

LONG = 1 << 20  # bytes; more than the system takes at once


class Source:
    """A socket in a loop of its own."""

    def __init__(self, path: Path) -> None:
        self.loop = EventLoop()
        self.line = b"status\n"
        self.made = 0
        self.socket = StatusSocket(str(path), self.loop, self._make)

    def _make(self) -> bytes:
        self.made += 1
        return self.line

    @property
    def viewers(self) -> int:
        return len(self.socket._viewers)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.sock"


@pytest.fixture
def source(path: Path) -> Iterator[Source]:
    source = Source(path)
    source.loop.start()
    source.socket.open()
    yield source
    source.loop.stop()
    source.socket.close()
    assert not path.exists()


def test_a_viewer_gets_a_line_at_once_and_one_each_second(source: Source, path: Path) -> None:
    with connect(str(path)) as viewer, viewer.makefile("rb") as lines:
        assert [lines.readline() for _ in range(3)] == [b"status\n"] * 3
    wait_until(lambda: not source.viewers, "its end is seen")
    wait_until(lambda: not source.loop._each_second, "nothing is done while nobody looks")


def test_it_is_for_its_user_alone(source: Source, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_there_is_room_for_some_viewers(source: Source, path: Path) -> None:
    viewers = [connect(str(path)) for _ in range(VIEWERS)]
    wait_until(lambda: source.viewers == VIEWERS, "all are served")
    with connect(str(path)) as one_more:
        assert one_more.recv(100) == b""
    viewers.pop().close()
    wait_until(lambda: source.viewers == VIEWERS - 1, "one has gone")
    with connect(str(path)) as next_one:
        assert next_one.recv(100) == b"status\n"
    for viewer in viewers:
        viewer.close()


def test_a_long_line_arrives_whole(source: Source, path: Path) -> None:
    source.line = bytes(LONG) + b"\n"
    with connect(str(path)) as viewer, viewer.makefile("rb") as lines:
        assert lines.readline() == source.line
        assert lines.readline() == source.line


def test_who_does_not_read_is_let_go_and_the_others_go_on(source: Source, path: Path) -> None:
    source.line = bytes(LONG) + b"\n"
    with connect(str(path)) as lazy, connect(str(path)) as viewer, viewer.makefile("rb") as lines:
        lines.readline()
        assert source.viewers == 2
        for _ in range(2):
            lines.readline()
        wait_until(lambda: source.viewers == 1, "the lazy one is gone")
        lazy.settimeout(5)
        while lazy.recv(65536):
            pass
        assert lines.readline() == source.line


def test_who_says_something_is_let_go(source: Source, path: Path) -> None:
    with connect(str(path)) as viewer:
        viewer.sendall(b"GET / HTTP/1.0\r\n\r\n")
        wait_until(lambda: not source.viewers, "it is gone")


def test_what_a_killed_process_has_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    source = Source(path)
    source.socket.open()
    with connect(str(path)):
        pass
    source.socket.close()
    source.loop.stop()


def test_what_is_not_ours_stays(path: Path, tmp_path: Path) -> None:
    source = Source(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(4)
        with pytest.raises(OSError, match="another program"):
            source.socket.open()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(OSError, match="no socket"):
        source.socket.open()
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        source.socket.open()
    assert path.is_symlink()
    source.socket.close()
    source.loop.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that is another user's")
def test_a_socket_of_another_user_stays(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    os.chown(path, 12345, 12345)
    source = Source(path)
    with pytest.raises(OSError, match="belongs to another user"):
        source.socket.open()
    assert path.exists()
    source.loop.stop()


def test_a_socket_that_was_removed_comes_back(source: Source, path: Path) -> None:
    path.unlink()
    source.socket.open()
    with connect(str(path)) as viewer:
        assert viewer.recv(100) == b"status\n"


class Exhausted:
    """A listening socket where there are no descriptors."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening

    def accept(self) -> None:
        raise OSError(24, "Too many open files")

    def __getattr__(self, name: str) -> object:
        return getattr(self._listening, name)


def test_without_descriptors_nobody_is_let_in_until_there_are(
    source: Source, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = source.socket._listening
    source.socket._listening = Exhausted(listening)  # type: ignore[assignment,arg-type]
    with connect(str(path)) as viewer:
        wait_until(lambda: source.socket._is_resting, "it rests")
        source.socket._listening = listening
        source.socket.open()
        assert viewer.recv(100) == b"status\n"


def test_it_goes_on_resting_if_there_are_still_none(
    source: Source, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, had_its_turn = source.loop.watch, threading.Event()

    def watch_and_lose_the_race(number: int, callback: Callback) -> None:
        watch(number, callback)
        wait_until(lambda: number not in source.loop._callbacks, "the loop has found none again")
        source.loop.call(had_its_turn.set)
        assert had_its_turn.wait(10)

    listening = source.socket._listening
    source.socket._listening = Exhausted(listening)  # type: ignore[assignment,arg-type]
    with connect(str(path)) as viewer:
        wait_until(lambda: source.socket._is_resting, "it rests")
        with monkeypatch.context() as patch:
            patch.setattr(source.loop, "watch", watch_and_lose_the_race)
            source.socket.open()
        source.socket._listening = listening
        source.socket.open()
        assert viewer.recv(100) == b"status\n"


def test_the_programs_tell_each_second_what_moves(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with (
        Target(echo_handler) as target,
        Tunnel("ours", "ours", target.address, client_options={"status": path}) as tunnel,
    ):
        wait_until(partial(can_connect, f"{path}.sock"), "somebody listens")
        with connect(f"{path}.sock") as viewer, viewer.makefile("rb") as lines, connect(tunnel.address) as sock:
            while True:
                sock.sendall(bytes(50_000))
                for _ in range(50):
                    sock.recv(1000)
                status = json.loads(lines.readline())
                if status["in_bytes_s"] and status["out_bytes_s"]:
                    break
            assert status["sessions"][0]["in_bytes_s"] == status["in_bytes_s"]
        tunnel.client.stop()
        assert not list(tmp_path.glob("c.json*")), "both are removed at the end"
