"""The log: format, levels, limits, and what must not stop the program."""

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from kcptun_lite import log
from kcptun_lite.errors import ConfigError


@pytest.fixture
def logfile(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "kcptun.log"
    log.setup(path=str(path))
    yield path
    log.setup()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still; its time is the list's one item."""
    now = [1000.0]
    monkeypatch.setattr(log, "monotonic", lambda: now[0])
    monkeypatch.setattr(log, "_keys", {})
    return now


def texts(path: Path) -> list[str]:
    """The lines without date and time."""
    return [line[20:] for line in path.read_text().splitlines()]


def test_a_line_looks_like_gos(logfile: Path) -> None:
    log.info("key derivation done")
    assert re.fullmatch(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d key derivation done\n", logfile.read_text())


def test_levels_are_named_and_filtered(logfile: Path) -> None:
    log.setup(path=str(logfile), level=log.Level.WARNING)
    log.error("e")
    log.warning("w")
    log.info("i")
    assert texts(logfile) == ["error: e", "warning: w"]
    assert log.is_shown(log.Level.WARNING) and not log.is_shown(log.Level.INFO)


def test_the_systems_log_gets_levels_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SYSLOG", str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(log.SYSLOG)
        daemon.settimeout(10)
        log.setup(path=log.SYSLOG, level=log.Level.INFO, program="kcptun-lite-client", name="home")
        try:
            for write in (log.error, log.warning, log.info):
                write("two\nlines")
            received = [daemon.recv(1000).decode() for _ in range(3)]
        finally:
            log.setup()
    matches = [re.fullmatch(r"<(\d+)>(.{15}) (.*)", line) for line in received]
    assert all(matches)
    assert [int(match[1]) for match in matches if match] == [27, 28, 30], "facility daemon, syslog(3)'s levels"
    time.strptime(f"2000 {matches[0][2]}", "%Y %b %d %H:%M:%S")  # type: ignore[index]
    assert {match[3] for match in matches if match} == {f"kcptun-lite-client[{os.getpid()}]: home: two\\nlines"}


def test_a_systems_log_that_is_slow_gets_the_lines_of_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than its queue holds, which is ten."""
    monkeypatch.setattr(log, "SYSLOG", str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(log.SYSLOG)
        log.setup(path=log.SYSLOG)
        daemon.settimeout(10)
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.extend(daemon.recv(100)[-4:] for _ in range(100)))
        reader.start()
        try:
            for _ in range(100):
                log.info("line")
            reader.join()
            assert received == [b"line"] * 100
        finally:
            log.setup()


def test_a_systems_log_that_is_slow_holds_up_no_thread_that_serves_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a line whenever it is waited for; what it does not take at once is counted."""
    monkeypatch.setattr(log, "SYSLOG", str(tmp_path / "log"))
    monkeypatch.setattr(log._Syslog, "PATIENCE_MS", 60_000)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(log.SYSLOG)
        log.setup(path=log.SYSLOG)
        try:
            writer = threading.Thread(target=lambda: [log.info("line") for _ in range(2000)], daemon=True)
            writer.start()
            writer.join(10)
            assert not writer.is_alive()
            daemon.setblocking(False)
            taken = 0
            with suppress(BlockingIOError):
                while daemon.recv(100):
                    taken += 1
            log.info("again")
            assert daemon.recv(200).decode().endswith(f"lines missing here, as nobody took them: {2000 - taken}")
            assert daemon.recv(200).endswith(b"again")
        finally:
            log.setup()


def test_a_systems_log_that_was_started_anew_gets_the_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    monkeypatch.setattr(log, "SYSLOG", str(path))
    log.setup(path=str(path))
    try:
        for text in "first", "second":
            path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
                daemon.bind(str(path))
                log.info(text)
                daemon.settimeout(10)
                assert daemon.recv(100).decode().endswith(text)
    finally:
        log.setup()


def test_a_systems_log_that_is_full_or_gone_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SYSLOG", str(tmp_path / "log"))
    log.setup(path=log.SYSLOG)
    try:
        log.info("nobody is there")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
            daemon.bind(log.SYSLOG)
            for _ in range(1000):  # the queue of a socket holds some ten
                log.info("nobody reads")
            assert daemon.recv(1000)
    finally:
        log.setup()


def test_quiet_drops_stream_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "quiet.log"
    log.setup(path=str(path), quiet=True)
    log.stream("stream opened in: a out: b")
    log.info("kept")
    log.setup()
    assert texts(path) == ["kept"]


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "old.log"
    path.write_text("2006/01/02 15:04:05 old\n")
    log.setup(path=str(path))
    log.info("new")
    log.setup()
    assert texts(path) == ["old", "new"]


def test_a_file_that_cannot_be_opened_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--log: .*missing/x\.log cannot be opened: No such file"):
        log.setup(path=str(tmp_path / "missing" / "x.log"))


def test_a_peer_cannot_forge_lines_or_move_the_cursor(logfile: Path) -> None:
    log.info("name\n2006/01/02 15:04:05 forged \x1b[2J \x7f \x9b \u202e \udc80 \\ 漢é")
    (text,) = texts(logfile)
    assert text == r"name\n2006/01/02 15:04:05 forged \x1b[2J \x7f \x9b \u202e \udc80 \ 漢é"


def test_limited_speaks_once_a_second_and_tells_what_it_left_out(logfile: Path, clock: list[float]) -> None:
    for _ in range(5):
        log.limited("checksum", "bad packet")
    log.limited("other", "another key")
    clock[0] += log.LIMIT_S
    log.limited("checksum", "bad packet")
    clock[0] += log.LIMIT_S
    log.limited("checksum", "bad packet")
    assert texts(logfile) == [
        "warning: bad packet",
        "warning: another key",
        "warning: bad packet (4 more like this)",
        "warning: bad packet",
    ]


def test_limited_keeps_a_bounded_number_of_keys(logfile: Path, clock: list[float]) -> None:
    for number in range(10_000):
        log.limited(f"from {number}", "bad packet")
    assert len(log._keys) <= log.LIMIT_KEYS + 1
    assert len(texts(logfile)) <= log.LIMIT_KEYS + 1
    clock[0] += log.LIMIT_S
    log.limited("later", "old keys made room")
    assert texts(logfile)[-1] == "warning: old keys made room"


def test_limited_lines_below_the_level_cost_no_key(logfile: Path, clock: list[float]) -> None:
    log.setup(path=str(logfile), level=log.Level.ERROR)
    log.limited("news", "somebody was born", log.Level.INFO)
    assert not log._keys and texts(logfile) == []


def test_lines_of_many_threads_stay_whole(logfile: Path) -> None:
    def write(name: str) -> None:
        for _ in range(100):
            log.info(name * 200)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = texts(logfile)
    assert sorted(lines) == sorted(name * 200 for name in "abcd" for _ in range(100))


def test_a_closed_stderr_is_survived() -> None:
    script = "import os; os.close(2); from kcptun_lite import log; log.error('nobody hears'); print('alive')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=_root())
    assert (done.returncode, done.stdout) == (0, "alive\n")


# Nobody reads


class Reader:
    """Takes so many bytes of each write, as a pipe does that is nearly full."""

    def __init__(self) -> None:
        self.room = 1000
        self.got = b""

    def send(self, data: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        taken = min(self.room, len(data))
        self.room -= taken
        self.got += data[:taken]
        return taken


def test_lines_that_nobody_takes_are_counted_and_no_line_is_left_in_halves() -> None:
    reader = Reader()
    sink = log._Sink(reader.send)
    sink.write(b"first\n")
    reader.room = 3
    sink.write(b"second\n")
    sink.write(b"third\n")
    sink.write(b"fourth\n")
    reader.room = 2
    sink.write(b"fifth\n")
    assert reader.got == b"first\nsecon"
    reader.room = 1000
    sink.write(b"sixth\n")
    sink.write(b"seventh\n")
    first, second, notice, sixth, seventh = reader.got.decode().splitlines()
    assert (first, second, sixth, seventh) == ("first", "second", "sixth", "seventh")
    assert notice[20:] == "warning: lines missing here, as nobody took them: 3"


def test_a_full_disk_costs_lines_only() -> None:
    def fail(data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    sink = log._Sink(fail)
    sink.write(b"x\n")
    reader = Reader()
    sink._send = reader.send
    sink.write(b"y\n")
    assert reader.got.endswith(b"lines missing here, as nobody took them: 1\ny\n")


FLOOD = "from kcptun_lite import log; log.setup()\nfor n in range(5000): log.info('x' * 100)\nprint('alive')"


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_a_reader_who_does_not_read_holds_nothing_up(kind: str) -> None:
    if kind == "pipe":
        ours, theirs = os.pipe()
    elif kind == "terminal":
        ours, theirs = os.openpty()
    else:
        ours, theirs = (sock.detach() for sock in socket.socketpair())
    done = subprocess.run(
        [sys.executable, "-c", FLOOD], stdout=subprocess.PIPE, stderr=theirs, text=True, cwd=_root(), timeout=60
    )
    shared = fcntl.fcntl(theirs, fcntl.F_GETFL)
    assert (done.returncode, done.stdout) == (0, "alive\n")
    assert not shared & os.O_NONBLOCK, "others who write there are not told that it does not block"
    assert os.read(ours, 20).startswith(b"20")
    os.close(ours)
    os.close(theirs)


# A file that is moved away


def test_after_reopening_lines_go_to_the_new_file(logfile: Path) -> None:
    log.info("one")
    moved = logfile.rename(logfile.with_suffix(".1"))
    log.info("two")
    log.reopen()
    log.info("three")
    assert (texts(moved), texts(logfile)) == (["one", "two"], ["three"])


def test_a_file_that_cannot_be_made_again_is_told_in_the_old_one(logfile: Path) -> None:
    moved = logfile.rename(logfile.with_suffix(".1"))
    logfile.mkdir()
    log.reopen()
    log.info("on")
    assert texts(moved) == [
        f"warning: --log: {logfile} cannot be opened again: Is a directory; going on in the old file",
        "on",
    ]


def test_stderr_is_not_reopened() -> None:
    log.setup()
    log.reopen()


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# Other forms: JSON, and systemd's journal


def test_a_json_line_has_time_level_event_and_fields(logfile: Path) -> None:
    log.setup(path=str(logfile), is_json=True)
    log.info('two\nlines "quoted"', "session closed", session="0000beef", count=3)
    log.limited("target", "no answer")
    log.error("e")
    first, second, third = map(json.loads, logfile.read_text().splitlines())
    assert abs(datetime.fromisoformat(first.pop("time")).timestamp() - time.time()) < 100
    assert first == {
        "level": "info",
        "message": 'two\nlines "quoted"',
        "event": "session closed",
        "session": "0000beef",
        "count": 3,
    }
    assert (second["level"], second["event"]) == ("warning", "target")
    assert (third["level"], third["message"]) == ("error", "e")


LEVELS = """
import sys
from kcptun_lite import log
log.setup(is_json=len(sys.argv) > 1)
log.error("e"); log.warning("w"); log.info("i")
"""


def run_with_stderr(stderr: socket.socket, journal: str, *arguments: str) -> None:
    environment = {**os.environ, "JOURNAL_STREAM": journal}
    command = [sys.executable, "-c", LEVELS, *arguments]
    subprocess.run(command, stderr=stderr, env=environment, timeout=60, check=True)


def test_the_journal_gets_levels_and_no_time() -> None:
    """As systemd does it: stderr is a stream socket, and JOURNAL_STREAM tells which."""
    reader, writer = socket.socketpair()
    with reader, writer:
        found = os.fstat(writer.fileno())
        run_with_stderr(writer, f"{found.st_dev}:{found.st_ino}")
        assert reader.recv(1000) == b"<3>e\n<4>w\n<6>i\n"
        run_with_stderr(writer, f"{found.st_dev}:{found.st_ino}", "json")
        lines = reader.recv(1000).decode().splitlines()
        assert [line[:3] for line in lines] == ["<3>", "<4>", "<6>"]
        assert [json.loads(line[3:])["message"] for line in lines] == ["e", "w", "i"]
        run_with_stderr(writer, f"{found.st_dev}:{found.st_ino + 1}")  # a pipe of somebody else's under systemd
        assert reader.recv(1000)[:2] == b"20"
