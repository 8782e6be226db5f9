"""The two kinds of things on the screen: tables whose rows stay where they are, charts that move.

In      rows by key; the points of a history
Out     widgets of Textual
Knows   Textual and plotext. Not: which values are shown
Cost    a chart 5 ms a second
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable
from textual_plotext import PlotextPlot

from kcptun_lite.monitor.history import Point

Rows = Mapping[str, Sequence[str]]
"key -> cells"


class Table(DataTable[Text]):
    """Rows that are changed in place, so that the cursor stays on its row."""

    BINDINGS: ClassVar[list[BindingType]] = [  # the screen turns its pages with these
        Binding("left", "app.turn(-1)", "Page", key_display="← →"),
        Binding("right", "app.turn(1)", show=False),
    ]

    def __init__(self, columns: Sequence[str], *, id: str) -> None:
        """A column that begins with `>` is of numbers, and is adjusted to the right."""
        super().__init__(id=id, cursor_type="row", cell_padding=0, zebra_stripes=True)
        self._numbers = [column.startswith(">") for column in columns]
        for column in columns:
            label = column.removeprefix(">")
            self.add_column(Text(f"{label}  ", justify="right" if column != label else "left"), key=label)

    @property
    def selected(self) -> str | None:
        """The key of the row that the cursor is on."""
        keys = [key.value for key in self.rows]
        return keys[self.cursor_row] if 0 <= self.cursor_row < len(keys) else None

    def show(self, rows: Rows) -> None:
        for key in [key for key in self.rows if key.value not in rows]:
            self.remove_row(key)
        known = {key.value for key in self.rows}
        for name, values in rows.items():
            cells = [
                Text(f"{value}  ", justify="right" if is_number else "left")
                for value, is_number in zip(values, self._numbers, strict=True)
            ]
            if name not in known:
                self.add_row(*cells, key=name)
                continue
            for column, cell in zip(self.columns, cells, strict=True):
                if self.get_cell(name, column) != cell:
                    self.update_cell(name, column, cell, update_width=True)


class Line(NamedTuple):
    """One line of a chart."""

    label: str
    value: Callable[[Point], float | None]
    colour: str


class Chart(PlotextPlot):
    """Values over the last minutes; now is at the right edge."""

    def __init__(self, title: str, lines: Sequence[Line], *, id: str) -> None:
        super().__init__(id=id)
        self._title = title
        self._lines = lines
        # Without colours it is the marker that tells one line from the other.
        self._markers = ("dot", "x") if os.environ.get("NO_COLOR") else ("braille", "braille")

    def show(self, points: Sequence[Point], seconds: int, now: float) -> None:
        """Draw the last `seconds` until `now`; where lines meet the last one is seen."""
        plot = self.plt
        plot.clear_data()
        plot.title(self._title)
        highest = 0.0
        for line, marker in zip(self._lines, self._markers, strict=False):
            found = [(point.at - now, line.value(point)) for point in points if point.at > now - seconds]
            known = [(at, value) for at, value in found if value is not None]
            highest = max([highest, *(value for _, value in known)])
            latest = f"{known[-1][1]:.3g}" if known and known[-1][0] > -3 else "–"
            plot.plot(
                [at for at, _ in known] or [0],
                [value for _, value in known] or [0],
                label=f"{line.label} {latest}",
                marker=marker,
                color=line.colour,
            )
        plot.xlim(-seconds, 0)
        plot.ylim(0, highest * 1.1 or 1)
        ticks: list[float] = [-seconds, -seconds / 2, 0]
        plot.xticks(ticks, [f"{tick:.0f} s" if tick else "now" for tick in ticks])
        self.refresh()
