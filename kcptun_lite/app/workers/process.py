"""One worker as its parent has it: started, asked, told, ended.

In      a `Place`, a configuration, how Python is to be started
Out     a process; its counters and status as it has told them last
Knows   posix_spawn(3), pipes. Not: when a worker is wanted
Cost    some 100 ms of a core for each start
"""

import marshal
import os
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from kcptun_lite.app.config import Plain
from kcptun_lite.app.workers.share import Place

MESSAGE_MAX = 1 << 18  # bytes of the longest answer: a status with 100 sessions and 100 connections takes 60,000


class Python(NamedTuple):
    """How a process of ours is started: its interpreter, and what that is given before the job."""

    executable: str
    title: str
    "what ps shows first"
    options: tuple[str, ...]
    path: tuple[str, ...]
    "sys.path"
    bootstrap: str
    "the program, with {pipe} and {module}"

    def arguments(self, module: str, pipe: int, suffix: str = "") -> list[str]:
        code = self.bootstrap.format(pipe=pipe, module=module)
        return [self.title + suffix, *self.options, "-S", "-P", "-c", code, "server"]


class Worker:
    """A process that serves; what it tells comes in the loop's thread, all else is the main thread's."""

    def __init__(self, index: int, slot: int, pid: int, channel: socket.socket, started_at: int) -> None:
        self.index, self.slot, self.pid, self.channel, self.started_at = index, slot, pid, channel, started_at
        self.heard_at = started_at
        "ms; when it answered last"
        self.unanswered = 0
        "seconds in a row in which it was asked, and has said nothing"
        self.listening = ""
        "where, once it serves"
        self.is_old = False
        "of before a reload"
        self.counters: Mapping[str, int] = {}
        self.status: dict[str, Any] | None = None
        self.trouble = "starting"
        "why it takes no sessions, in a word"

    @property
    def is_ready(self) -> bool:
        return bool(self.listening)

    def ask(self, word: bytes) -> None:
        with suppress(OSError):  # it is gone, which SIGCHLD tells; or it has not heard the last one yet
            self.channel.send(word)

    def hear(self, now: int) -> bool:
        """Take one answer, if there is one (`now` in ms); False when the worker is gone."""
        try:
            data = self.channel.recv(MESSAGE_MAX)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        kind, value = marshal.loads(data)
        self.heard_at, self.unanswered = now, 0
        if kind == "ready":
            self.listening, self.trouble = value, ""
        elif kind == "counters":
            self.counters = value
        elif kind == "status":
            self.status = value
        elif kind == "health":
            self.trouble = value
        return True

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


def start(python: Python, config: Plain, warnings: Iterable[str], place: Place, now: int) -> Worker:
    """Start a worker; `place` has no channel yet. Raises: OSError."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    its.setblocking(False)
    with its:
        place["channel"] = its.fileno()
        what: Any = list(python.path), "server", config, list(warnings), place
        job = marshal.dumps(what)
        reader, writer = os.pipe()
        try:
            os.set_blocking(writer, False)
            if os.write(writer, job) != len(job):
                raise OSError(0, "the options together are too long")
            kept = [number for number, _ in place["ports"]], place["outboxes"].values()
            with _inherited([reader, its.fileno(), place["inbox"], *kept[0], *kept[1]]):
                pid = os.posix_spawn(
                    python.executable,
                    python.arguments("worker", reader, f" worker {place['index'] + 1}"),
                    _environment(),
                    setsigmask=[signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP],
                )
        except OSError:
            ours.close()
            raise
        finally:
            os.close(reader)
            os.close(writer)
    return Worker(place["index"], place["slot"], pid, ours, now)


def _environment() -> dict[str, str]:
    """The parent speaks to systemd for all."""
    return {name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}


@contextmanager
def _inherited(descriptors: Iterable[int]) -> Iterator[None]:
    """Let the next process have these descriptors, and no later one."""
    numbers = set(descriptors)
    for number in numbers:
        os.set_inheritable(number, True)
    try:
        yield
    finally:
        for number in numbers:
            os.set_inheritable(number, False)
