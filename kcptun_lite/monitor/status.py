"""A tunnel's status as typed values, from the JSON that the tunnel writes.

In      bytes from a file or a socket, which may be anybody's
Out     a `Status`, or a sentence that says why it is none
Knows   docs/status.md, "The object". Not: where the bytes came from, how anything is shown
Cost    0.2 ms for a tunnel with ten sessions
"""

import json
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeVar, get_type_hints

SCHEMA = 2  # that we read
LINE_MAX = 512 * 1024  # bytes; 100 sessions and 100 connections take a fifth of it
TEXT_MAX = 300  # characters
NUMBER_MAX = 2**63
LIST_MAX = 100

Number = int | float
T = TypeVar("T")


class NoStatus(Exception):
    """What was read is no status that we understand; the text says why."""


@dataclass(frozen=True)
class Session:
    """One session; docs/status.md, "Of each session"."""

    conv: str
    remote: str
    state: str
    rtt_ms: int
    rtt_least_ms: int | None
    rto_ms: int
    line_bytes_s: int | None
    loss: Number | None
    window: int
    peer_window: int
    limited_by: str
    bytes_in: int
    bytes_out: int
    in_bytes_s: int
    out_bytes_s: int
    packets_in: int
    packets_out: int
    retransmitted: int
    streams: int
    age_s: int
    idle_s: int


@dataclass(frozen=True)
class Connection:
    """One connection; `source` and `target` are `in` and `out` there."""

    source: str
    target: str
    age_s: int


@dataclass(frozen=True)
class Memory:
    """What is buffered, bytes."""

    limit_bytes: int
    held_bytes: int
    peak_bytes: int
    sending_bytes: int
    receiving_bytes: int
    buffers_used_bytes: int
    buffers_idle_bytes: int


@dataclass(frozen=True)
class Diagnosis:
    """What was wrong, seconds since 1970."""

    since: int
    until: int
    text: str


@dataclass(frozen=True)
class Worker:
    """One process of a server with several; docs/status.md, "Of each worker"."""

    pid: int
    uptime_s: int
    session_count: int
    streams: int
    in_bytes_s: int
    out_bytes_s: int
    memory_bytes: int


@dataclass(frozen=True)
class Status:
    """All that a tunnel tells of one moment."""

    pid: int
    role: str
    name: str
    version: str
    uptime_s: int
    updated: Number
    session_count: int
    streams: int
    bytes_in: int
    bytes_out: int
    in_bytes_s: int
    out_bytes_s: int
    packets_in: int
    packets_out: int
    retransmitted: int
    recovered: int
    lost: int
    checksum_errors: int
    memory_bytes: int
    last_diagnosis: str
    sessions: list[Session]
    connections: list[Connection]
    counters: dict[str, int]
    memory: Memory
    diagnoses: list[Diagnosis]
    workers: list[Worker]

    @property
    def busiest(self) -> Session | None:
        """The session that stands for the line where one is wanted: it moves most now, or has most streams."""

        def weight(session: Session) -> tuple[int, int, int]:
            return session.in_bytes_s + session.out_bytes_s, session.streams, -session.idle_s

        return max(self.sessions, key=weight, default=None)


def parse(data: bytes) -> Status:
    """One object of a status. Raises: NoStatus."""
    try:
        found = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise NoStatus("it is no JSON") from exc
    if not isinstance(found, dict) or "pid" not in found:
        raise NoStatus("it is no status of kcptun_lite")
    if (schema := found.get("schema", 1)) != SCHEMA:
        raise NoStatus(
            f"its schema is {_clean(schema)}, this monitor reads {SCHEMA}: use the monitor of the tunnel's own version"
        )
    try:
        return _make(
            Status,
            found,
            sessions=[_make(Session, item) for item in _items(found, "sessions")],
            connections=[
                _make(Connection, {"source": item["in"], "target": item["out"], "age_s": item["age_s"]})
                for item in _items(found, "connections")
            ],
            counters={_clean(key): _check(int, value) for key, value in list(found["counters"].items())[:LIST_MAX]},
            memory=_make(Memory, found["memory"]),
            diagnoses=[_make(Diagnosis, item) for item in _items(found, "diagnoses")],
            workers=[_make(Worker, item) for item in _items({"workers": [], **found}, "workers")],
        )
    except (KeyError, TypeError, AttributeError) as exc:
        raise NoStatus(f"a key is missing, or its value is of another kind: {_clean(exc)}") from exc


def _items(found: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(found[key], list):
        raise TypeError(key)
    return list(found[key][:LIST_MAX])


def _make(kind: type[T], found: dict[str, Any], **known: object) -> T:
    """A dataclass from the values under its names; `known` are made already."""
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: known[name] if name in known else _check(hints[name], found[name]) for name in names})


def _check(kind: Any, value: object) -> Any:
    """The value if it is of the kind; texts fit for a screen. Raises: TypeError."""
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(repr(value)[:40])
    if isinstance(value, int | float) and abs(value) > NUMBER_MAX:
        raise TypeError("a number beyond all bounds")
    return _clean(value) if isinstance(value, str) else value


def _clean(value: object) -> str:
    """One line of plain characters: no sequence that a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in str(value)[:TEXT_MAX])


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")
