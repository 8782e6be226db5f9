"""A reload: the settings read again, and the parent executed anew from the program as it is installed now.

In      how the server was started; what a parent holds
Out     a parent that goes on with ports and workers of the one before, in the same process; or one line in the log
Knows   what may not change. Not: what is done with old workers
Cost    a process that parses, 100 ms; what it needs is gone when it ends

The settings are read by a child, with the arguments and the environment of the first start, which checks them as
--test-config does. Only when all is well it leaves what the new parent is to know; before that, nothing has changed.
"""

import marshal
import os
import select
from signal import SIGKILL
from typing import Any, NoReturn, TypedDict

from kcptun_lite.app import signals
from kcptun_lite.app.config import JOB_VARIABLE, Endpoint, Plain
from kcptun_lite.app.workers.holdings import Numbers
from kcptun_lite.app.workers.process import Python
from kcptun_lite.errors import ConfigError
from kcptun_lite.net.session.update_thread import monotonic_ms

READ_LIMIT = 30_000  # ms for reading the settings; the file may be a pipe, or on a server that does not answer
LOOK = 100  # ms between two looks whether we are to stop meanwhile
PIPE_BYTES = 64 * 1024


class Origin(TypedDict):
    """How the server was started."""

    command: list[str]
    environment: dict[str, str]
    warnings: list[str]
    "about the settings"


class Inherited(TypedDict):
    """What a parent leaves to the one that it becomes."""

    holdings: Numbers
    workers: list[tuple[int, int, int, int, int]]
    "index, slot, pid, channel, ms of the start"
    retired: dict[str, int]
    generation: int
    health: int
    "descriptor on which balancers ask; -1: none"
    started_at: int


class Job(TypedDict):
    """What the process becomes."""

    path: list[str]
    python: tuple[Any, ...]
    config: Plain
    origin: Origin
    environment: dict[str, str]


def read_settings(origin: Origin, config: Plain) -> Job:
    """What the server is set to now. Raises: ConfigError with one sentence; nothing has changed then."""
    job_reader, job_writer = os.pipe()
    text_reader, text_writer = os.pipe()
    command = origin["command"]
    os.set_inheritable(job_writer, True)
    try:
        pid = os.posix_spawn(
            command[0],
            command,
            {**origin["environment"], JOB_VARIABLE: str(job_writer)},
            file_actions=[(os.POSIX_SPAWN_DUP2, text_writer, 1), (os.POSIX_SPAWN_DUP2, text_writer, 2)],
            setsigmask=[],
        )
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be started: {error.strerror}") from error
    finally:
        os.close(job_writer)
        os.close(text_writer)
    found = _read_all(pid, job_reader, text_reader)
    _, status = os.waitpid(pid, 0)
    if status or not found[0]:
        lines = found[1].decode(errors="replace").strip().splitlines()
        raise ConfigError(lines[-1] if lines else "the settings could not be read")
    try:
        job: Job = marshal.loads(found[0])
    except (EOFError, TypeError, ValueError):
        raise ConfigError("the program is of another Python now, which takes a restart") from None
    for name in ("listen", "workers"):
        if job["config"][name] != config[name]:
            before, after = (Endpoint(*one[name]) if name == "listen" else one[name] for one in (config, job["config"]))
            raise ConfigError(f"--{name} has changed from {before} to {after}, which takes a restart")
    return job


def _read_all(pid: int, *descriptors: int) -> list[bytes]:
    """All that a child writes to each of some pipes, which are closed; it is killed when it takes too long."""
    found = dict.fromkeys(descriptors, b"")
    deadline = monotonic_ms() + READ_LIMIT
    waiting = select.poll()
    for number in descriptors:
        waiting.register(number, select.POLLIN)
    left = set(descriptors)
    while left:
        ready = waiting.poll(LOOK)
        if monotonic_ms() >= deadline or signals.is_stop_pending():
            os.kill(pid, SIGKILL)
        for number, _ in ready:
            data = os.read(number, PIPE_BYTES)
            found[number] += data
            if not data:
                left.discard(number)
                waiting.unregister(number)
    for number in descriptors:
        os.close(number)
    return list(found.values())


def execute(job: Job, inherited: Inherited | None) -> NoReturn:
    """Become the parent that `job` tells of. Raises: OSError."""
    python = Python(*job["python"])
    what: Any = job["path"], job["python"], job["config"], job["origin"], inherited
    reader = os.memfd_create("job")  # an environment may be longer than a pipe
    with open(reader, "wb", closefd=False) as file:
        marshal.dump(what, file)
    os.lseek(reader, 0, os.SEEK_SET)
    kept = [reader]
    if inherited:
        holdings = inherited["holdings"]
        kept += [*holdings["ports"], *(number for box in holdings["inboxes"] for number in box)]
        kept += [channel for _, _, _, channel, _ in inherited["workers"]]
        kept += [inherited["health"]] if inherited["health"] >= 0 else []
    for number in kept:
        os.set_inheritable(number, True)
    try:
        os.execve(python.executable, python.arguments("workers.parent", reader), job["environment"])
    finally:  # it has failed
        os.close(reader)


def close_to_children(inherited: Inherited) -> None:
    """After `execute`, or if that fails: no child gets a descriptor that is not meant for it."""
    holdings = inherited["holdings"]
    for number in [*holdings["ports"], *(one for box in holdings["inboxes"] for one in box)]:
        os.set_inheritable(number, False)
    for _, _, _, channel, _ in inherited["workers"]:
        os.set_inheritable(channel, False)
    if inherited["health"] >= 0:
        os.set_inheritable(inherited["health"], False)
