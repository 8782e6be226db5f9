"""Where tunnels are: the paths of their status, and what can be read there now or second by second.

In      paths that the user has named, or the places where tunnels are by custom
Out     names and readings
Knows   files, sockets, processes. Not: what a status says, how it is shown
Cost    a connection for each tunnel that is followed
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from time import monotonic, time
from typing import NamedTuple

from kcptun_lite.monitor.status import LINE_MAX, NoStatus, Status, parse

PLACES = ("/run/kcptun-lite", "/var/run/kcptun-lite")
PATIENCE = 3.0  # s that a tunnel may take for a line; it gives one each second
PAUSE = 1.0  # s between two attempts to read
STALE = 15.0  # s; the file is written every 5
PROCESS = "kcptun-lite"  # what the names of our processes begin with


class Reading(NamedTuple):
    """What is known of a tunnel at one moment."""

    status: Status | None
    trouble: str = ""
    "why there is no status; or why it is up to 5 s old"


def find(arguments: Sequence[str]) -> dict[str, Path]:
    """Name -> path of the status file, of all tunnels that are named or, without arguments, are found in PLACES.

    An argument is a file, its socket, or a directory of files; a file need not be there (yet). Names are printable,
    whatever a file is called.
    """
    found: dict[Path, str] = {}
    for argument in arguments or PLACES:
        path = Path(argument.removesuffix(".sock"))
        if path.is_dir():
            for file in sorted([*path.glob("*.json"), *path.glob("*/*.json")]):
                # realpath, as Path.resolve raises for a link that leads to itself
                found.setdefault(Path(os.path.realpath(file)), printable(str(file.relative_to(path).with_suffix(""))))
        elif arguments:
            found.setdefault(path.absolute(), printable(path.stem))
    names = list(found.values())
    return {name if names.count(name) == 1 else printable(str(path)): path for path, name in found.items()}


def printable(text: str) -> str:
    """A name or a sentence with one, as one line that can be written anywhere: files may be called anything."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def describe_search(arguments: Sequence[str]) -> str:
    """What `find` has looked for, for whoever wonders why it has found nothing."""
    return (
        f"no tunnel found: there is no *.json in {' or '.join(arguments or PLACES)}; start a client or server with "
        f"--status {PLACES[0]}/NAME.json, or name its status file"
    )


def read_now(path: Path) -> Reading:
    """What a tunnel says now, from its socket or else from its file."""
    try:
        return Reading(parse(_read_socket(f"{path}.sock")))
    except OSError as exc:
        return read_file(path, _describe(exc, path))
    except NoStatus as exc:
        return Reading(None, f"{path}.sock: {exc}")


def _read_socket(path: str) -> bytes:
    """The first line. Raises: OSError."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(path)
        data, deadline = b"", monotonic() + PATIENCE
        while b"\n" not in data:
            piece = sock.recv(65536)
            if not piece or len(data) > LINE_MAX or monotonic() > deadline:
                raise ConnectionError("it gives no line")
            data += piece
        return data.partition(b"\n")[0]


def read_file(path: Path, why: str = "") -> Reading:
    """What a tunnel has written last, if it is still there. `why`: the socket could not be used."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = parse(file.read(LINE_MAX) or b"")  # None: a pipe whose writer has not written
    except FileNotFoundError:
        return Reading(None, f"not running: there is no {path}")
    except (OSError, NoStatus) as exc:
        return Reading(None, f"{path}: {exc.strerror if isinstance(exc, OSError) else exc}")
    if not _is_alive(status):
        return Reading(None, f"not running: process {status.pid} has left {path} behind")
    return Reading(status, why)


def _is_alive(status: Status) -> bool:
    """Whether a process of ours has the number; where that cannot be told, whether the status is new."""
    try:
        return Path(f"/proc/{status.pid}/comm").read_text().startswith(PROCESS)
    except FileNotFoundError:
        return not Path("/proc/self/comm").exists() and time() - status.updated < STALE
    except OSError:
        return time() - status.updated < STALE


async def follow(path: Path) -> AsyncIterator[Reading]:
    """What a tunnel says, each second, for ever: also after it was restarted."""
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(f"{path}.sock", limit=LINE_MAX)
        except OSError as exc:
            yield read_file(path, _describe(exc, path))
        else:
            try:
                while line := await asyncio.wait_for(reader.readline(), PATIENCE):
                    yield Reading(parse(line))
                trouble = "it has ended, or has 8 viewers already"
            except NoStatus as exc:
                trouble = str(exc)
            except (OSError, ValueError, TimeoutError):
                trouble = "it gives no line"
            finally:
                writer.close()
            yield Reading(None, f"{path}.sock: {trouble}")
        await asyncio.sleep(PAUSE)


def _describe(exc: OSError, path: Path) -> str:
    """Why the socket cannot be used, and what that means."""
    if isinstance(exc, PermissionError):
        return f"up to 5 s old: {path}.sock is for the tunnel's own user and root"
    return f"up to 5 s old: {path}.sock: {exc.strerror or exc}"
