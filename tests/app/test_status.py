"""The status says what the tunnel is doing: the file is never half-written, and gone with the program."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from kcptun_lite import log
from kcptun_lite.app.diagnosis import RECENT, Diagnoses
from kcptun_lite.app.limits import Limits
from kcptun_lite.app.status import LISTED, SCHEMA, Facts, describe
from kcptun_lite.app.status_file import PERIOD, StatusFile
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.counters import CSV_COLUMNS, Counters
from kcptun_lite.net.event_loop import EventLoop
from tests.net.fakes import End, make_context, small_params
from tests.programs import Tunnel, start_client, wait_until
from tests.traffic import Target, connect, exchange, exchange_handler

TYPES: dict[str, Callable[[Any], bool]] = {
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "text": lambda value: type(value) is str,
    "list": lambda value: type(value) is list,
    "object": lambda value: type(value) is dict,
    "null": lambda value: value is None,
}


def documented() -> dict[str, dict[str, list[str]]]:
    """docs/status.md: heading -> key -> the types it may have."""
    page = (Path(__file__).parents[2] / "docs" / "status.md").read_text(encoding="utf-8")
    found: dict[str, dict[str, list[str]]] = {}
    heading = ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| `"):
            _, keys, kind, _ = line.split("|", 3)
            keys_of = found.setdefault(heading, {})
            keys_of.update({key: kind.strip().split(" or ") for key in re.findall(r"`(\w+)`", keys)})
    return found


def check(status: dict[str, Any]) -> None:
    """All that is told is on the page, with its type, and nothing else is."""
    page = documented()
    parts = [("The object", status), ("Memory", status["memory"])]
    parts += [("Of each session", session) for session in status["sessions"]]
    parts += [("Of each connection", connection) for connection in status["connections"]]
    parts += [("Of each diagnosis", diagnosis) for diagnosis in status["diagnoses"]]
    parts += [("Of each worker", worker) for worker in status["workers"]]
    for heading, found in parts:
        assert found.keys() == page[heading].keys(), heading
        for key, value in found.items():
            assert any(TYPES[kind](value) for kind in page[heading][key]), f"{heading}: {key} is {value!r}"
    assert {heading for heading, _ in parts} <= page.keys()
    assert status["schema"] == SCHEMA
    assert list(status["counters"]) == list(CSV_COLUMNS)
    assert all(type(value) is int for value in status["counters"].values())


def is_after_exchange(status: dict[str, Any]) -> bool:
    """Whether it is of a moment when all has been exchanged, and one more stream alone is open."""
    totals = status.get("bytes_in", 0), status.get("bytes_out", 0)
    return status.get("streams") == 1 and min(totals) > 100_000 and max(totals) > 300_000


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


@pytest.mark.parametrize("windows", [{}, {"sndwnd": 512, "rcvwnd": 512}], ids=["auto", "fixed"])
def test_both_ends_tell_what_the_page_says(tmp_path: Path, windows: dict[str, object]) -> None:
    paths = {role: tmp_path / f"{role}.json" for role in ("client", "server")}
    with Target(exchange_handler) as target:
        with Tunnel(
            "ours",
            "ours",
            target.address,
            windows,
            client_options={"status": paths["client"], "name": "home"},
            server_options={"status": paths["server"]},
        ) as tunnel:
            exchange(connect(tunnel.address), up=100_000, down=300_000, seed=1)
            with connect(tunnel.address):
                for role, path in paths.items():
                    # One of a second ago may still tell of the exchange.
                    wait_until(lambda path=path: is_after_exchange(read(path)), role)
                    status = read(path)
                    check(status)
                    (session,) = status["sessions"]
                    (connection,) = status["connections"]
                    assert (status["role"], status["session_count"], session["streams"]) == (role, 1, 1)
                    assert session["state"] == "open"
                    assert (session["loss"] is None) == (session["rtt_least_ms"] is None) == bool(windows)
                    assert status["name"] == ("home" if role == "client" else "")
                    assert session["remote"] in connection["out" if role == "client" else "in"]
                    assert status["memory_bytes"] > 1 << 20
                    assert status["counters"]["BytesReceived"] == status["bytes_in"] == session["bytes_in"]
            assert status["pid"] in (tunnel.client.pid, tunnel.server.pid)
    assert not any(path.exists() for path in paths.values())


def test_a_diagnosis_has_its_times(tmp_path: Path) -> None:
    """Nobody listens at the server's port."""
    path = tmp_path / "status.json"
    client, address = start_client("ours", {"remoteaddr": "127.0.0.1:9", "status": path})
    try:
        with connect(address):
            wait_until(lambda: bool(read(path).get("last_diagnosis")), "it is told")
        status = read(path)
        check(status)
        (diagnosis,) = status["diagnoses"]
        assert diagnosis["text"] == status["last_diagnosis"]
        assert status["updated"] - 60 < diagnosis["since"] <= diagnosis["until"] <= status["updated"]
        assert [session["state"] for session in status["sessions"]] == ["opening"]
    finally:
        client.stop()


def facts(**values: Any) -> Facts:
    return Facts(**{"sessions": [], "connections": [], "counters": Counters(), "limits": Limits(),
                    "pool": BufferPool(Lock()), "diagnoses": Diagnoses(), **values})  # fmt: skip


def test_of_many_sessions_those_heard_last_are_told() -> None:
    ends = [End(make_context(small_params()), 0, is_client=True) for _ in range(LISTED + 5)]
    for number, end in enumerate(ends):
        end.session.watch.heard_at = number
    sessions = [end.session for end in ends]
    told = describe(facts(sessions=sessions), role="server", name="", uptime=0, now=1_000_000)
    check(told)
    assert told["session_count"] == LISTED + 5
    assert {session["idle_s"] for session in told["sessions"]} <= set(range(900, 1001))
    assert len(told["sessions"]) == LISTED
    assert max(session["idle_s"] for session in told["sessions"]) == (1_000_000 - 5) // 1000


def test_the_last_diagnoses_are_remembered_once_each() -> None:
    diagnoses = Diagnoses()
    for number in range(RECENT + 3):
        diagnoses.note(f"trouble {number}", number)
    diagnoses.note(f"trouble {RECENT}", 100)
    assert [found.text for found in diagnoses.recent[-2:]] == [f"trouble {RECENT + 2}", f"trouble {RECENT}"]
    assert diagnoses.recent[-1][:2] == (RECENT, 100)
    assert len(diagnoses.recent) == RECENT
    diagnoses.clear()
    assert diagnoses.current == "" and len(diagnoses.recent) == RECENT


# -- the file ----------------------------------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    loop.start()
    yield loop
    loop.stop()


def status_file(path: Path, loop: EventLoop, role: str = "client") -> StatusFile:
    return StatusFile(str(path), loop, lambda: describe(facts(), role=role, name="", uptime=0, now=0))


def test_what_is_no_status_file_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: EventLoop
) -> None:
    """It may have come since the start."""
    path = tmp_path / "status"
    status = status_file(path, loop)
    status.check()
    status.tick(0)
    assert read(path)["role"] == "client"
    path.write_text("precious")
    lines: list[str] = []
    monkeypatch.setattr(log, "_write", lambda level, text, fields: lines.append(text))
    for turn in range(1, 4):
        status.tick(turn * PERIOD)
    assert len(lines) == 1 and "a file of another kind is there" in lines[0]
    status.remove()
    assert path.read_text() == "precious"


def test_a_program_removes_no_status_of_its_successor(tmp_path: Path, loop: EventLoop) -> None:
    path = tmp_path / "status"
    first, second = (status_file(path, loop, role) for role in ("client", "server"))
    first.tick(0)
    second.check()
    second.tick(0)
    first.remove()
    assert read(path)["role"] == "server"
    second.tick(PERIOD)
    assert (tmp_path / "status.sock").is_socket(), "what the first has left is free now"
    second.remove()
    assert not list(tmp_path.iterdir())
