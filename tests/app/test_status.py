"""The status file says what the tunnel is doing, is never half-written, and is gone with the program."""

import json
import re
from pathlib import Path

import pytest

from kcptun_lite import log
from kcptun_lite.app.status import PERIOD, StatusFile
from kcptun_lite.core.counters import Counters
from tests.programs import Target, Tunnel, connect, echo_handler, receive_exactly, wait_until


def documented_keys() -> set[str]:
    """The names in the first columns of docs/status.md."""
    page = (Path(__file__).parents[2] / "docs" / "status.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_both_ends_tell_their_state(tmp_path: Path) -> None:
    paths = {role: tmp_path / f"{role}.json" for role in ("client", "server")}
    with Target(echo_handler) as target:
        with Tunnel(
            "ours",
            "ours",
            target.address,
            client_options={"status": paths["client"]},
            server_options={"status": paths["server"]},
        ) as tunnel:
            with connect(tunnel.address) as sock:
                sock.sendall(b"hello")
                assert receive_exactly(sock, 5) == b"hello"
                for role, path in paths.items():
                    wait_until(lambda path=path: path.exists() and bool(json.loads(path.read_text())["streams"]), role)
                    status = json.loads(path.read_text())
                    assert status["role"] == role
                    assert len(status["sessions"]) == 1
                    assert status["sessions"][0]["streams"] == 1
                    assert status["bytes_in"] > 0 < status["bytes_out"]
                    assert status["memory_bytes"] > 1 << 20
                    assert {*status, *status["sessions"][0]} == documented_keys()
            assert status["pid"] in (tunnel.client.pid, tunnel.server.pid)
    assert not any(path.exists() for path in paths.values())


def test_what_is_no_status_file_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have come since the start."""
    path = tmp_path / "status"
    status = StatusFile(str(path), "client", 0, lambda: ([], Counters(), ""))
    status.check()
    status.tick(0)
    assert json.loads(path.read_text())["role"] == "client"
    path.write_text("precious")
    lines: list[str] = []
    monkeypatch.setattr(log, "_write", lambda level, text, fields: lines.append(text))
    for turn in range(1, 4):
        status.tick(turn * PERIOD)
    assert len(lines) == 1 and "a file of another kind is there" in lines[0]
    status.remove()
    assert path.read_text() == "precious"


def test_a_program_removes_no_status_of_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "status"
    first, second = (StatusFile(str(path), role, 0, lambda: ([], Counters(), "")) for role in ("client", "server"))
    first.tick(0)
    second.check()
    second.tick(0)
    first.remove()
    assert json.loads(path.read_text())["role"] == "server"
    second.remove()
    assert not path.exists()
