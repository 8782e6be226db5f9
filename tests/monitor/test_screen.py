"""The screen, with Textual's pilot at its keys: what is shown, and that nothing makes it stumble."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

import pytest
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Input, Static, TabbedContent

from kcptun_lite.monitor import screen
from kcptun_lite.monitor.screen import PAGES, Help, Monitor
from kcptun_lite.monitor.widgets import Chart, Table
from tests.monitor.statuses import session, teller

PATIENCE = 20.0  # s
Steps = Callable[[Pilot[None], Monitor], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "REFRESH", 0.1)


def drive(paths: list[Path], steps: Steps, size: tuple[int, int] = (80, 24)) -> None:
    async def main() -> None:
        monitor = Monitor([str(path) for path in paths])
        async with monitor.run_test(size=size) as pilot:
            await steps(pilot, monitor)

    asyncio.run(main())


async def until(pilot: Pilot[None], condition: Callable[[], bool], what: str) -> None:
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline, what
        await pilot.pause(0.02)


def rows(monitor: Monitor, table: str) -> list[list[str]]:
    found = monitor.query_one(f"#{table}", Table)
    return [[str(cell).strip() for cell in found.get_row(key)] for key in found.rows]


def drawn(widget: Widget) -> str:
    """What is seen of a widget, without colours."""
    return "\n".join("".join(segment.text for segment in strip) for strip in widget.render_lines(widget.size.region))


def trouble(monitor: Monitor) -> str:
    return drawn(monitor.query_one("#trouble", Static))


def test_several_tunnels_with_their_trouble(tmp_path: Path) -> None:
    paths = [tmp_path / "home.json", tmp_path / "hub.json", tmp_path / "gone.json"]
    with teller(paths[0]), teller(paths[1]) as hub:
        hub.status |= {"role": "server", "sessions": [], "last_diagnosis": "client [b]10.0.0.1[/b] uses another --key"}

        async def steps(pilot: Pilot[None], monitor: Monitor) -> None:
            await until(pilot, lambda: "another --key" in trouble(monitor), "the diagnosis is seen")
            await until(pilot, lambda: "not running" in trouble(monitor), "so is what does not run")
            await until(pilot, lambda: rows(monitor, "tunnels")[0][1] == "client", "the other one is read")
            assert rows(monitor, "tunnels") == [
                ["home", "client", "open", "1", "2", "1.0M", "10.0k", "182", "1.5%", "19.1 MiB"],
                ["hub", "server", "trouble", "1", "2", "1.0M", "10.0k", "", "", "19.1 MiB"],
                ["gone", "", "down", "", "", "", "", "", "", ""],
            ]
            assert "! hub: client [b]10.0.0.1[/b] uses another --key" in trouble(monitor), "no markup is obeyed"
            hub.status["last_diagnosis"] = ""
            await until(pilot, lambda: "--key" not in trouble(monitor), "it is over")

        drive(paths, steps)


def test_a_first_tunnel_may_come_later(tmp_path: Path) -> None:
    """A browser may be older than it."""

    async def steps(pilot: Pilot[None], monitor: Monitor) -> None:
        await until(pilot, lambda: "no tunnel found" in trouble(monitor), "it is told")
        with teller(tmp_path / "home.json"):
            await until(pilot, lambda: len(rows(monitor, "tunnels")) == 1, "it is found")
            await until(pilot, lambda: rows(monitor, "tunnels")[0][1] == "client", "it is read")

    drive([tmp_path], steps)


def test_pages_by_keys_and_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "home.json"
    with teller(path) as tunnel:
        tunnel.status["sessions"] = [session(), session(conv="2", remote="[2001:db8::1]:1", state="silent", loss=None)]

        async def steps(pilot: Pilot[None], monitor: Monitor) -> None:
            await until(pilot, lambda: rows(monitor, "tunnels")[0][1] == "client", "it is read")
            pages = monitor.query_one(TabbedContent)
            for page in (*PAGES[1:], PAGES[0]):
                await pilot.press("right")
                assert pages.active == page
            await pilot.press("2")
            await until(pilot, lambda: len(rows(monitor, "session-rows")) == 2, "sessions")
            assert rows(monitor, "session-rows") == [
                ["198.51.100.7:29900", "line", "182/160", "1.5%", "1.0M", "10.0k", "2", "1h 1m"],
                ["[2001:db8::1]:1", "silent", "182/160", "–", "1.0M", "10.0k", "2", "1h 1m"],
            ]
            tunnel.status["sessions"] = [session(rtt_ms=200)]
            await until(pilot, lambda: len(rows(monitor, "session-rows")) == 1, "one has gone")
            assert rows(monitor, "session-rows")[0][2] == "200/160"
            await pilot.press("3")
            await until(pilot, lambda: bool(rows(monitor, "connection-rows")), "connections")
            await pilot.press("4")
            await until(pilot, lambda: ["OutSegs", "12"] in rows(monitor, "counter-rows"), "counters")
            assert ["memory held_bytes", "5,000"] in rows(monitor, "counter-rows")
            await pilot.press("left", "5", "right", "5")
            await until(pilot, lambda: rows(monitor, "diagnosis-rows")[0][2] == "was down", "diagnoses")

        drive([path], steps)


def test_charts_move_at_80_by_24_and_show_the_selected_tunnel(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    with teller(paths[0]), teller(paths[1]) as other:
        other.status |= {"in_bytes_s": 50_000_000, "sessions": [session(rtt_ms=20)]}

        async def steps(pilot: Pilot[None], monitor: Monitor) -> None:
            def chart(name: str) -> str:
                return drawn(monitor.query_one(f"#{name}", Chart))

            await until(pilot, lambda: "in 1" in chart("throughput") and "now 182" in chart("rtt"), chart("throughput"))
            assert "line 1.5" in chart("loss")
            before = chart("throughput")
            await until(pilot, lambda: chart("throughput") != before, "it moves")
            await pilot.press("down")
            await until(pilot, lambda: "in 400" in chart("throughput") and "now 20" in chart("rtt"), "the other one")
            for found in monitor.query(Chart):
                assert found.size.height >= 6 and found.size.width >= 39

        drive(paths, steps)


def test_filter_and_help_and_quit(tmp_path: Path) -> None:
    path = tmp_path / "home.json"
    with teller(path):

        async def steps(pilot: Pilot[None], monitor: Monitor) -> None:
            await until(pilot, lambda: rows(monitor, "tunnels")[0][1] == "client", "it is read")
            await pilot.press("4", "slash", *"outs")
            await until(pilot, lambda: [row[0] for row in rows(monitor, "counter-rows")] == ["OutSegs"], "filtered")
            assert len(rows(monitor, "tunnels")) == 1
            await pilot.press("enter")
            assert not monitor.query_one("#filter", Input).display
            await pilot.press("escape")
            await until(pilot, lambda: len(rows(monitor, "counter-rows")) > 30, "all again")
            await pilot.press("1", "slash", *"nothing like it")
            await until(pilot, lambda: not rows(monitor, "tunnels"), "no tunnel has that name")
            await pilot.press("escape", "question_mark")
            await until(pilot, lambda: isinstance(monitor.screen, Help), "help")
            assert "quit" in drawn(monitor.screen.query_one("#help", Static))
            await pilot.press("x", "x", "down")
            await until(pilot, lambda: not isinstance(monitor.screen, Help), "any key closes it")
            await pilot.press("q")
            await until(pilot, lambda: not monitor.is_running, "it ends")
            assert monitor.return_code == 0

        drive([path], steps)


@pytest.mark.once
def test_the_screen_holds_where_there_is_hardly_any_room(tmp_path: Path) -> None:
    path = tmp_path / "home.json"
    with teller(path):

        async def steps(pilot: Pilot[None], monitor: Monitor) -> None:
            await until(pilot, lambda: rows(monitor, "tunnels")[0][1] == "client", "it is read")
            for width, height in ((20, 5), (3, 2), (200, 60)):
                await pilot.resize_terminal(width, height)
                await pilot.press("2", "1")
                await pilot.pause(0.3)
            assert monitor.is_running

        drive([path], steps)
