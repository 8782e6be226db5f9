"""The log: one line per event, in Go's format, written with one system call that never waits.

In      texts, from any thread, with an event's name and fields for those that programs wait for
Out     lines `2006/01/02 15:04:05 text` in local time, or JSON objects, on stderr or at the end of a file; `<6>text` to
        systemd's journal; datagrams to /dev/log
Knows   levels, limits, the file descriptor. Not: what is logged; secrets and payload never come here
Wire    docs/protocol.md, "Log and signals", RFC 3164 (4.1), sd-daemon(3)
Cost    15 us per line written, 0.1 us per line not wanted; 0.1 MiB

Whoever reads the log may stop (a stuck log daemon, Ctrl-S): then lines are left out and counted.

The standard library's `logging` costs 2 MiB of memory and is not part of OpenWrt's python3-light.
A line of level info is the bare text, as kcptun writes it; other levels put their name in front.
"""

import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from functools import cache
from time import gmtime, monotonic, strftime, time_ns

from kcptun_lite import files
from kcptun_lite.errors import ConfigError, describe_exception

STDERR = 2
SYSLOG = "/dev/log"  # where the system's log takes datagrams; as the path of a log it means that log
LIMIT_S = 1.0  # a key of `limited` speaks once in this time
LIMIT_KEYS = 64  # keys remembered; those beyond share one line per LIMIT_S


class Level(IntEnum):
    """How much a line matters; a log set to one level shows that one and those before it."""

    ERROR = 0
    "a person should look"
    WARNING = 1
    "worse than it should be, but working"
    INFO = 2
    "somebody was born or died"


SEVERITIES = {Level.ERROR: 3, Level.WARNING: 4, Level.INFO: 6}  # syslog(3)'s

Fields = dict[str, str | int]
"what a line tells besides its text, in JSON"


class _Syslog:
    """The system's log, where a line keeps its level.

    Its queue holds ten lines, less than a start writes, so the main thread waits for a full one; but not twice. The
    other threads serve sessions: what is not taken from them at once is left out and counted.
    """

    FACILITY = 3 << 3  # daemon
    PATIENCE_MS = 500

    def __init__(self, program: str, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._is_patient = True
        self._lost = 0
        "lines since the last one that was taken"
        self._tag = f"{program}[{os.getpid()}]: " + (f"{name}: " if name else "")
        with suppress(OSError):  # no daemon yet
            self._connect()

    def close(self) -> None:
        self._socket.close()

    def write(self, level: Level, body: str) -> None:
        lost = self._lost
        if lost and self._write(Level.WARNING, _body(Level.WARNING, _missing(lost), {})):
            self._lost -= lost
        if not self._write(level, body):
            self._lost += 1

    def _write(self, level: Level, body: str) -> bool:
        line = f"<{self.FACILITY | SEVERITIES[level]}>{strftime('%b %e %H:%M:%S')} {self._tag}{body}"
        try:
            try:
                self._send(line.encode())
            except BlockingIOError:
                raise
            except OSError:  # nobody listens, or the daemon has been started anew
                self._connect()
                self._send(line.encode())
        except OSError:  # the tunnel matters more than its log
            return False
        return True

    def _connect(self) -> None:
        self._socket.connect(SYSLOG)

    def _send(self, line: bytes) -> None:
        """Raises: BlockingIOError if the queue is full, OSError if nobody listens."""
        if self._is_patient and threading.current_thread() is threading.main_thread():
            ready = select.poll()
            ready.register(self._socket, select.POLLOUT)
            ready.poll(self.PATIENCE_MS)
        self._is_patient = False
        self._socket.send(line)
        self._is_patient = True


def _missing(lines: int) -> str:
    return f"lines missing here, as nobody took them: {lines}"


class _Key:
    """When a limited key last spoke, and how often it was silenced since."""

    __slots__ = ("silenced", "spoke_s")

    def __init__(self, spoke_s: float) -> None:
        self.spoke_s = spoke_s
        self.silenced = 0


class _Sink:
    """Where lines go. What it does not take at once is left out, but never a part of a line."""

    def __init__(self, send: Callable[[bytes], int]) -> None:
        """`send` writes some bytes, returns how many, and does not wait; may raise OSError."""
        self._send = send
        self._lock = threading.Lock()  # a leaf: nothing but `send` is called under it
        self._rest = b""
        "of a line that has gone out in part"
        self._lost = 0
        "lines since then"

    def write(self, line: bytes) -> None:
        with self._lock:
            data = self._rest + (_line(Level.WARNING, _missing(self._lost), {}) if self._lost else b"") + line
            try:
                sent = self._send(data)
            except OSError:  # full, closed, no space: the tunnel matters more than its log
                sent = 0
            if sent and sent >= len(self._rest):
                self._rest = data[sent:]
                self._lost = 0
            else:
                self._rest = self._rest[sent:]
                self._lost += 1


_path = ""
_descriptor = STDERR
_level = Level.INFO
_quiet = False
_is_hushed = False
_is_journal = False
_sink = _Sink(lambda data: os.write(STDERR, data))
_syslog: _Syslog | None = None
_keys: dict[str, _Key] = {}
_keys_lock = threading.Lock()  # a leaf: nothing is called under it


def setup(
    *,
    path: str = "",
    level: Level = Level.INFO,
    quiet: bool = False,
    program: str = "kcptun-lite",
    name: str = "",
    is_json: bool = False,
) -> None:
    """Say where lines go (`path` empty: stderr), how many, whether stream lines are among them, and their form.

    `program`, and the `name` of the tunnel if it has one, stand before each line in the system's log.
    Called before other threads log.
    Raises: ConfigError if the file cannot be opened.
    """
    global _path, _descriptor, _level, _quiet, _sink, _syslog, _body, _is_journal
    descriptor = STDERR
    if _syslog:
        _syslog.close()
    _syslog = _Syslog(program, name) if path == SYSLOG else None
    if _syslog:
        path = ""  # nothing to open again
    if path:
        try:
            descriptor = files.open_to_append(path)
        except OSError as error:
            raise ConfigError(f"--log: {path} cannot be opened: {error.strerror}") from error
    if _descriptor != STDERR:
        os.close(_descriptor)
    _path, _descriptor, _level, _quiet = path, descriptor, level, quiet
    _is_journal = not path and not _syslog and stderr_is_journal()
    _body = _json_body() if is_json else _bare_body if _syslog or _is_journal else _go_body
    _sink = _Sink((lambda data: os.write(descriptor, data)) if path else _sender_to_stderr())


def hush(is_hushed: bool) -> None:
    """Leave out all but errors, or no more: for a process whose start says what another one has said already."""
    global _is_hushed
    _is_hushed = is_hushed


def reopen() -> None:
    """Go on in the file that now has the log's name: the old one was moved away (logrotate). Any thread may."""
    if not _path:
        return
    try:
        fresh = files.open_to_append(_path)
    except OSError as error:
        warning(f"--log: {_path} cannot be opened again: {error.strerror}; going on in the old file")
        return
    os.dup2(fresh, _descriptor, inheritable=False)  # others may be writing to this number just now
    os.close(fresh)


@cache
def _sender_to_stderr() -> Callable[[bytes], int]:
    """How to write to stderr without waiting, and without O_NONBLOCK for the others who have this terminal or pipe."""
    try:
        mode = os.fstat(STDERR).st_mode
        if stat.S_ISREG(mode):
            return lambda data: os.write(STDERR, data)
        if stat.S_ISSOCK(mode):  # systemd's journal
            journal = socket.socket(fileno=os.dup(STDERR))
            return lambda data: journal.send(data, socket.MSG_DONTWAIT)
        own = os.open(f"/proc/self/fd/{STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        return lambda data: os.write(own, data)
    except OSError:  # no /proc; another user's terminal
        ready = select.poll()
        ready.register(STDERR, select.POLLOUT)
        return lambda data: os.write(STDERR, data) if ready.poll(0) else 0


def is_shown(level: Level) -> bool:
    """Whether lines of this level are wanted; asked before work is put into a text."""
    return level <= _level


def error(text: str) -> None:
    _write(Level.ERROR, text, {})


def warning(text: str, event: str = "", **fields: str | int) -> None:
    _write(Level.WARNING, text, _named(event, fields))


def info(text: str, event: str = "", **fields: str | int) -> None:
    _write(Level.INFO, text, _named(event, fields))


def stream(text: str, event: str = "", **fields: str | int) -> None:
    """An info line about one stream: opened, closed. `--quiet` drops it."""
    if not _quiet:
        _write(Level.INFO, text, _named(event, fields))


def _named(event: str, fields: Fields) -> Fields:
    return {"event": event, **fields} if event else fields


def limited(key: str, text: str, level: Level = Level.WARNING, **fields: str | int) -> None:
    """A line that unknown sources can provoke: one per second and key, the next one telling how many were left out.

    The key is the event's name, if `fields` has none.
    """
    if not is_shown(level):
        return
    now_s = monotonic()
    with _keys_lock:
        entry = _keys.get(key) or _new_key_locked(key, now_s)
        if now_s - entry.spoke_s < LIMIT_S:
            entry.silenced += 1
            return
        silenced, entry.silenced, entry.spoke_s = entry.silenced, 0, now_s
    _write(level, f"{text} ({silenced} more like this)" if silenced else text, {"event": key, **fields})


@contextmanager
def told(doing: str) -> Iterator[None]:
    """For a step whose failure is told, and must not keep those from being taken that come after it."""
    try:
        yield
    except Exception as exc:
        with suppress(Exception):  # not even memory for a line
            limited(f"{doing} {type(exc).__name__}", f"{doing}: {describe_exception(exc)}", Level.ERROR)


def _new_key_locked(key: str, now_s: float) -> _Key:
    if len(_keys) >= LIMIT_KEYS:
        for old in [old for old, entry in _keys.items() if now_s - entry.spoke_s >= LIMIT_S]:
            del _keys[old]
    if len(_keys) >= LIMIT_KEYS:
        key = ""
    return _keys.setdefault(key, _Key(now_s - LIMIT_S))


def _write(level: Level, text: str, fields: Fields) -> None:
    if level > _level or (_is_hushed and level != Level.ERROR):
        return
    if _syslog:
        _syslog.write(level, _body(level, text, fields))
    else:
        _sink.write(_line(level, text, fields))


def _line(level: Level, text: str, fields: Fields) -> bytes:
    prefix = f"<{SEVERITIES[level]}>" if _is_journal else ""
    return f"{prefix}{_body(level, text, fields)}\n".encode()


def stderr_is_journal() -> bool:
    """Whether systemd has started us and collects stderr; systemd.exec(5), JOURNAL_STREAM."""
    try:
        found = os.fstat(STDERR)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _go_body(level: Level, text: str, fields: Fields) -> str:
    prefix = "" if level == Level.INFO else f"{level.name.lower()}: "
    return f"{strftime('%Y/%m/%d %H:%M:%S')} {prefix}{escape(text)}"


def _bare_body(level: Level, text: str, fields: Fields) -> str:
    """For those who know time and level without us."""
    return escape(text)


def _json_body() -> "_Body":
    from json import dumps  # 1 MiB, for those alone who want it

    def body(level: Level, text: str, fields: Fields) -> str:
        now_ns = time_ns()
        time = f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(now_ns // 10**9))}.{now_ns // 10**6 % 1000:03}Z"  # RFC 3339
        return dumps({"time": time, "level": level.name.lower(), "message": text, **fields})

    return body


_Body = Callable[[Level, str, Fields], str]
"what a line says, without its end"
_body: _Body = _go_body


def escape(text: str) -> str:
    """The text with everything unprintable written as an escape, so that it stays one line of plain characters."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
