"""Where tunnels are found, and what is said of one that is not there, or not ours to see."""

import asyncio
import json
import os
from contextlib import aclosing
from pathlib import Path

import pytest

from kcptun_lite.monitor import tunnels
from kcptun_lite.monitor.tunnels import Reading, describe_search, find, follow, read_now
from tests.monitor.statuses import status, teller


def write(path: Path, **values: object) -> Path:
    path.write_text(json.dumps(status(**values)))
    return path


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that runs the tests counts as a tunnel."""
    monkeypatch.setattr(tunnels, "PROCESS", Path("/proc/self/comm").read_text()[:4])


def test_files_sockets_and_directories_are_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.json", "a.json", "sub/c.json", "d.txt"):
        (tmp_path / name).touch()
    assert list(find([str(tmp_path)])) == ["a", "b", "sub/c"]
    assert find([f"{tmp_path}/a.json.sock", f"{tmp_path}/later.json"]) == {
        "a": tmp_path / "a.json",
        "later": tmp_path / "later.json",
    }
    (tmp_path / "sub" / "a.json").touch()
    assert list(find([f"{tmp_path}/a.json", f"{tmp_path}/sub/a.json"])) == [
        f"{tmp_path}/a.json",
        f"{tmp_path}/sub/a.json",
    ]


def test_without_arguments_the_usual_places_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, var = tmp_path / "run", tmp_path / "var"
    run.mkdir()
    var.symlink_to(run)
    monkeypatch.setattr(tunnels, "PLACES", (str(run), str(var)))
    assert find([]) == {}
    assert f"no *.json in {run} or {var}" in describe_search([])
    (run / "home.json").touch()
    assert list(find([])) == ["home"], "once, though there are two ways to it"


def test_a_tunnel_is_read_at_once(tmp_path: Path) -> None:
    with teller(tmp_path / "t.json") as tunnel:
        tunnel.status["role"] = "server"
        found = read_now(tmp_path / "t.json")
        assert found.status and found.status.role == "server" and found.trouble == ""
        tunnel.line = b"nonsense\n"
        assert "no JSON" in read_now(tmp_path / "t.json").trouble


@pytest.mark.usefixtures("ours")
def test_without_the_socket_the_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json")
    found = read_now(path)
    assert found.status and "up to 5 s old" in found.trouble
    os.mkfifo(tmp_path / "pipe.json")
    assert "no JSON" in read_now(tmp_path / "pipe.json").trouble, "it is not waited for"


def test_what_a_dead_tunnel_has_left_is_no_status(tmp_path: Path) -> None:
    assert read_now(write(tmp_path / "t.json", pid=1)).trouble.startswith("not running: process 1 has left")
    assert "not running: process 4194999" in read_now(write(tmp_path / "t.json", pid=4194999)).trouble
    assert read_now(tmp_path / "none.json").trouble == f"not running: there is no {tmp_path}/none.json"


def test_a_line_without_end_is_not_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "LINE_MAX", 10_000)
    with teller(tmp_path / "t.json") as tunnel:
        tunnel.line = b"x" * 20_000
        assert read_now(tmp_path / "t.json").status is None

        async def first() -> Reading:
            async with aclosing(follow(tmp_path / "t.json")) as readings:  # type: ignore[type-var]
                return await anext(readings)

        assert "gives no line" in asyncio.run(first()).trouble


def test_a_tunnel_that_restarts_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    monkeypatch.setattr(tunnels, "PAUSE", 0.05)

    async def watch() -> list[str]:
        seen: list[str] = []
        running = teller(path)
        running.__enter__()
        async with aclosing(follow(path)) as readings:  # type: ignore[type-var]
            async for reading in readings:
                what = "up" if reading.status else "down"
                if what == (seen or [""])[-1]:
                    continue
                seen.append(what)
                if len(seen) in (1, 3):
                    running.__exit__(None, None, None)
                    path.unlink()
                elif len(seen) == 2:
                    running = teller(path)
                    running.__enter__()
                else:
                    return seen
        return seen

    assert asyncio.run(watch()) == ["up", "down", "up", "down"]


def test_whatever_lies_in_a_directory_the_others_are_found(tmp_path: Path) -> None:
    """A link that leads to itself, a name that is no text, one with a terminal's escapes."""
    (tmp_path / "loop.json").symlink_to("loop.json")
    for name in (b"\xff.json", b"\x1b[2J.json", b"good.json"):
        (tmp_path / os.fsdecode(name)).touch()
    assert set(find([str(tmp_path)])) == {"loop", "\\udcff", "\\x1b[2J", "good"}
    assert "symbolic links" in read_now(tmp_path / "loop.json").trouble


def test_a_pipe_is_no_status(tmp_path: Path) -> None:
    path = tmp_path / "pipe.json"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    try:
        assert "no JSON" in read_now(path).trouble
    finally:
        os.close(reader)
        os.close(writer)
