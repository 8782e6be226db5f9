"""The screen: tunnels, what is wrong with them, and pages about the one that is selected.

In      readings of each tunnel, keys
Out     a Textual application, for terminals and, through its web driver, browsers
Knows   what is shown where. Not: how a status is got and drawn
Cost    50 MiB; 3 % of a core while it is looked at, some kB/s over SSH
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import localtime, monotonic, strftime
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid
from textual.css.query import NoMatches
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Static, TabbedContent, TabPane

from kcptun_lite.monitor.history import History
from kcptun_lite.monitor.status import Status
from kcptun_lite.monitor.tunnels import Reading, describe_search, find, follow, printable
from kcptun_lite.monitor.widgets import Chart, Line, Rows, Table
from kcptun_lite.monitor.words import duration, percent, rate, size

REFRESH = 1.0  # s
TUNNELS_MAX = 64  # that are followed
SHOWN_SECONDS = 120
PAGES = ("charts", "sessions", "connections", "counters", "diagnoses")
MBIT = 8e-6

HELP = """\
 ↑ ↓        select a tunnel, or a row          q        quit
 ← →        turn the pages                     /        filter the page's rows
 1 to 5     charts, sessions, connections,              (of charts: tunnels)
            counters, diagnoses                Esc      show all rows again
 Tab        from the tunnels to the page       ?        this help

 ↓ is what comes from the other end, ↑ what goes there, in bits a second of
 your connections, compressed. RTT and loss are those of the session that
 moves most. What keeps a session from sending more is its limit:
   application      nothing: that is all your programs send
   line             the line is full
   peer's window    the other end's --rcvwnd
   own window       --sndwnd of this end
 "sent again" is the share of packets that were sent once more.
"""


class Help(ModalScreen[None]):
    """The keys and words; any key closes it."""

    def compose(self) -> ComposeResult:
        yield Static(Text(HELP), id="help")

    def on_key(self, event: Key) -> None:
        event.stop()
        if self.is_current:  # else a key before it has closed it already
            self.dismiss()


class Monitor(App[None]):
    """Several tunnels on one screen."""

    TITLE = "kcptun-lite-monitor"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #tunnels { height: auto; max-height: 30%; min-height: 2; }
    #trouble { height: auto; max-height: 4; padding: 0 1; }
    #trouble.bad { text-style: bold; color: $text-error; background: $error-muted; }
    TabbedContent { height: 1fr; }
    TabPane { padding: 0; }
    Grid { grid-size: 2 2; grid-rows: 1fr 1fr; }
    #throughput { column-span: 2; }
    #filter { display: none; dock: bottom; height: 3; }
    Help { align: center middle; }
    #help { width: 80; max-width: 100%; height: auto; max-height: 100%; border: round $accent; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("left", "turn(-1)", show=False),
        Binding("right", "turn(1)", show=False),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("escape", "show_all", show=False),
        *[Binding(str(number), f"page('{page}')", show=False) for number, page in enumerate(PAGES, 1)],
    ]

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__()
        self.animation_level = "none"  # frames cost bytes over SSH
        self._arguments = arguments
        self._paths: dict[str, Path] = {}
        self._readings: dict[str, Reading] = {}
        self._histories: dict[str, History] = {}
        self._filter = ""
        self._started_by = os.getppid()

    def compose(self) -> ComposeResult:
        yield Table(
            ["Tunnel", "Role", "State", ">Sess", ">Conn", ">↓ bit/s", ">↑ bit/s", ">RTT ms", ">Loss", ">Memory"],
            id="tunnels",
        )
        yield Static(id="trouble")
        with TabbedContent(initial=PAGES[0]):
            with TabPane("Charts", id="charts"), Grid():
                yield Chart(
                    "Mbit/s",
                    [
                        Line("in", lambda point: _times(point.in_bytes_s, MBIT), "cyan+"),
                        Line("out", lambda point: _times(point.out_bytes_s, MBIT), "orange+"),
                    ],
                    id="throughput",
                )
                yield Chart(
                    "Round trip, ms",
                    [
                        Line("least", lambda point: point.rtt_least_ms, "gray+"),
                        Line("now", lambda point: point.rtt_ms, "green+"),
                    ],
                    id="rtt",
                )
                yield Chart(
                    "Loss, %",
                    [
                        Line("sent again", lambda point: _times(point.resent, 100), "cyan+"),
                        Line("line", lambda point: _times(point.loss, 100), "red+"),
                    ],
                    id="loss",
                )
            with TabPane("Sessions", id="sessions"):
                yield Table(
                    ["Other end", "Limit", ">RTT/least", ">Loss", ">↓ bit/s", ">↑ bit/s", ">Conn", ">Age"],
                    id="session-rows",
                )
            with TabPane("Connections", id="connections"):
                yield Table(["In", "Out", ">Age"], id="connection-rows")
            with TabPane("Counters", id="counters"):
                yield Table(["Counter", ">Value"], id="counter-rows")
            with TabPane("Diagnoses", id="diagnoses"):
                yield Table(["Since", "Until", "What was wrong"], id="diagnosis-rows")
        yield Input(placeholder="show rows with ... (Enter: keep, Esc: all)", id="filter")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#tunnels").focus()
        self._look()
        self.set_interval(REFRESH, self._look)

    # -- readings ------------------------------------------------------------------------------

    def _look(self) -> None:
        """Follow tunnels that have come, and draw all that is known."""
        if self.is_web and os.getppid() != self._started_by:
            self.exit()  # the web server was killed, and nobody will say so
        for name, path in find(self._arguments).items():
            if path not in self._paths.values() and len(self._paths) < TUNNELS_MAX:
                self._paths[name] = path
                self._histories[name] = History()
                self._readings[name] = Reading(None, "not read yet")
                self.run_worker(self._follow(name, path), group=name)
        now = monotonic()
        for name, reading in self._readings.items():
            self._histories[name].add(reading.status, now)
        self._draw()

    async def _follow(self, name: str, path: Path) -> None:
        is_first = True
        async for reading in follow(path):
            self._readings[name] = reading
            if is_first:
                self._draw()
            is_first = False

    # -- drawing -------------------------------------------------------------------------------

    def _draw(self) -> None:
        with suppress(NoMatches):  # the screen is being taken down, and the clock ticks once more
            self._draw_all()

    def _draw_all(self) -> None:
        page = self.query_one(TabbedContent).active or PAGES[0]
        rows: Rows = {name: _tunnel_row(name, reading) for name, reading in self._readings.items()}
        tunnels = self.query_one("#tunnels", Table)
        tunnels.show(self._filtered(rows) if page == "charts" else rows)
        self._draw_trouble()
        name = tunnels.selected
        if name is None:
            return
        status = self._readings[name].status
        draw: dict[str, Callable[[], None]] = {
            "charts": lambda: self._draw_charts(self._histories[name]),
            "sessions": lambda: self._draw_rows("session", _session_rows(status)),
            "connections": lambda: self._draw_rows("connection", _connection_rows(status)),
            "counters": lambda: self._draw_rows("counter", _counter_rows(status)),
            "diagnoses": lambda: self._draw_rows("diagnosis", _diagnosis_rows(status)),
        }
        draw[page]()

    def _draw_trouble(self) -> None:
        troubles = [
            f"! {name}: {printable(text)}"
            for name, reading in self._readings.items()
            if (text := (reading.status.last_diagnosis if reading.status else "") or reading.trouble)
        ]
        line = self.query_one("#trouble", Static)
        line.set_class(bool(troubles), "bad")
        well = "no trouble is known" if self._readings else describe_search(self._arguments)
        line.update(Text("\n".join(troubles) or well))

    def _draw_charts(self, history: History) -> None:
        points, now = list(history.points), monotonic()
        for chart in self.query(Chart):
            chart.show(points, SHOWN_SECONDS, now)

    def _draw_rows(self, kind: str, rows: Rows) -> None:
        self.query_one(f"#{kind}-rows", Table).show(self._filtered(rows))

    def _filtered(self, rows: Rows) -> Rows:
        if not self._filter:
            return rows
        return {key: cells for key, cells in rows.items() if self._filter in " ".join(cells).lower()}

    # -- keys ----------------------------------------------------------------------------------

    def on_data_table_row_highlighted(self) -> None:
        self._draw()

    def on_tabbed_content_tab_activated(self) -> None:
        self._draw()

    def action_turn(self, step: int) -> None:
        active = PAGES.index(self.query_one(TabbedContent).active)
        self.action_page(PAGES[(active + step) % len(PAGES)])

    def action_page(self, page: str) -> None:
        is_on_tunnels = self.focused is self.query_one("#tunnels")
        self.query_one(TabbedContent).active = page
        if not is_on_tunnels:
            self.query_one(f"#{page}").query("Table").focus()

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def action_show_all(self) -> None:
        self.query_one("#filter", Input).value = ""
        self._close_filter()

    def action_help(self) -> None:
        self.push_screen(Help())

    def on_input_changed(self, event: Input.Changed) -> None:
        self._filter = event.value.strip().lower()
        self._draw()

    def on_input_submitted(self) -> None:
        self._close_filter()

    def _close_filter(self) -> None:
        self.query_one("#filter", Input).display = False
        self.query_one("#tunnels").focus()


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _tunnel_row(name: str, reading: Reading) -> Sequence[str]:
    status = reading.status
    if status is None:
        return [name, "", "down", "", "", "", "", "", "", ""]
    session = status.busiest
    return [
        name,
        status.role,
        "trouble" if status.last_diagnosis else session.state if session else "idle",
        str(status.session_count),
        str(status.streams),
        rate(status.in_bytes_s),
        rate(status.out_bytes_s),
        str(session.rtt_ms) if session else "",
        percent(session.loss) if session else "",
        size(status.memory_bytes),
    ]


def _session_rows(status: Status | None) -> Rows:
    return {
        session.conv: [
            session.remote,
            session.limited_by if session.state == "open" else session.state,
            f"{session.rtt_ms}/{'–' if session.rtt_least_ms is None else session.rtt_least_ms}",
            percent(session.loss),
            rate(session.in_bytes_s),
            rate(session.out_bytes_s),
            str(session.streams),
            duration(session.age_s),
        ]
        for session in (status.sessions if status else ())
    }


def _connection_rows(status: Status | None) -> Rows:
    return {
        f"{connection.source} {connection.target}": [
            connection.source,
            connection.target,
            duration(connection.age_s),
        ]
        for connection in (status.connections if status else ())
    }


def _counter_rows(status: Status | None) -> Rows:
    if not status:
        return {}
    numbers = {**status.counters, **{f"memory {key}": value for key, value in vars(status.memory).items()}}
    return {key: [key, f"{value:,}"] for key, value in numbers.items()}


def _diagnosis_rows(status: Status | None) -> Rows:
    return {
        diagnosis.text: [_clock(diagnosis.since), _clock(diagnosis.until), diagnosis.text]
        for diagnosis in reversed(status.diagnoses if status else [])
    }


def _clock(unix_s: int) -> str:
    with suppress(ValueError, OverflowError, OSError):
        return strftime("%b %d %H:%M:%S", localtime(unix_s))
    return "?"


def run(arguments: Sequence[str]) -> int:
    """Show the screen until it is left; returns the exit code."""
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        monitor = Monitor(arguments)
        monitor.run()
        return monitor.return_code or 0
    return 0
