"""The monitor in a real terminal of 80 x 24 (tmux), over a real tunnel that ends and comes again.

make test-monitor
"""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import require, start_client, start_server, wait_until
from tests.traffic import Target, connect, echo_handler

PATIENCE = 60.0  # s; beside other tests
SIZE = 80, 24


class Terminal:
    """A terminal with one program in it."""

    def __init__(self, directory: Path, command: list[str], environment: dict[str, str]) -> None:
        self._tmux = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
        words = [f"{name}={value}" for name, value in environment.items()]
        line = f"{shlex.join(['env', '-u', 'NO_COLOR', *words, *command])}; echo ended with $?; sleep 600"
        width, height = SIZE
        self._run("new-session", "-d", "-x", str(width), "-y", str(height), line)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=True)
        return done.stdout

    def press(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def screen(self, *, with_colours: bool = False) -> str:
        return self._run("capture-pane", "-p", *(["-e"] if with_colours else []))

    def wait_for(self, text: str) -> str:
        seen = ""

        def is_there() -> bool:
            nonlocal seen
            seen = self.screen()
            return text in seen

        try:
            wait_until(is_there, text, PATIENCE)
        except AssertionError as exc:
            exc.add_note(seen)
            raise
        return seen

    def close(self) -> None:
        self._run("kill-server")


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server."""
    with Target(echo_handler) as target:
        program, address = start_server("ours", {"target": target.address})
        yield address
        program.stop()


@pytest.mark.parametrize("environment", [{"TERM": "tmux-256color"}, {"TERM": "tmux", "NO_COLOR": "1"}],
                         ids=["colours", "none"])  # fmt: skip
def test_a_tunnel_that_restarts_in_80_by_24(tmp_path: Path, server: str, environment: dict[str, str]) -> None:
    require("tmux")
    status = tmp_path / "home.json"
    client, address = start_client("ours", {"remoteaddr": server, "status": status})
    command = [sys.executable, "-m", "kcptun_lite.monitor", str(tmp_path)]
    wait_until(status.exists, "the tunnel tells its status")
    terminal = Terminal(tmp_path, command, environment)
    try:
        with connect(address) as sock:
            sock.sendall(b"x" * 1000)
            seen = terminal.wait_for("open")
            lines = seen.splitlines()
            assert lines[0].split()[:3] == ["Tunnel", "Role", "State"]
            assert lines[1].split()[:5] == ["home", "client", "open", "1", "1"]
            assert "no trouble is known" in lines[2]
            assert "MiB" in lines[1], "the last column fits"
            assert all(len(line) <= SIZE[0] for line in lines)
            for title in ("Mbit/s", "Round trip, ms", "Loss, %", "q Quit", "/ Filter", "? Help"):
                terminal.wait_for(title)
            is_coloured = "\x1b[38;" in terminal.screen(with_colours=True) and not environment.get("NO_COLOR")
            assert is_coloured == (not environment.get("NO_COLOR"))
            terminal.press("2")
            terminal.wait_for("application")
            terminal.press("3")
            terminal.wait_for(address.rpartition(":")[0])
            terminal.press("?")
            terminal.wait_for("own window")
            terminal.press("Escape")
        client.stop()
        terminal.wait_for("down")
        terminal.wait_for("! home: not running")
        client, _ = start_client("ours", {"remoteaddr": server, "status": status})
        terminal.wait_for("idle")
        terminal.press("q")
        terminal.wait_for("ended with 0")
    finally:
        terminal.close()
        client.stop()
