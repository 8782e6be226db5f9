"""Counters for people: kcptun's CSV file and the line that SIGUSR1 brings.

In      summed counters, a time
Out     lines in a file, a line for the log
Knows   kcp-go's names and order, Go's time layout. Not: who counts
Wire    docs/protocol.md, "Counters", "Log and signals"
Cost    0.2 ms per line written
"""

import os
from collections.abc import Callable
from time import localtime, strftime, struct_time, time

from kcptun_lite import files, log
from kcptun_lite.core.counters import CSV_COLUMNS, Counters
from kcptun_lite.errors import ConfigError, describe_os_error

# The FEC counters stand in another order here than in the CSV file (docs/protocol.md, "Log and signals").
_LINE_FEC = ("FECRecovered", "FECErrs", "FECParityShards", "FECShortShards")
_FIRST_FEC = list(CSV_COLUMNS).index("FECParityShards")
_LINE_NAMES = (
    *list(CSV_COLUMNS)[:_FIRST_FEC],
    *_LINE_FEC,
    *(name for name in list(CSV_COLUMNS)[_FIRST_FEC:] if name not in _LINE_FEC),
)

# Go's reference time, element -> strftime's or our own way to write it; a longer element comes before its beginning.
_GO_ELEMENTS: tuple[tuple[str, str | Callable[[struct_time], str]], ...] = (
    ("January", "%B"),
    ("Jan", "%b"),
    ("Monday", "%A"),
    ("Mon", "%a"),
    ("MST", "%Z"),
    ("2006", "%Y"),
    ("-0700", "%z"),
    ("-07:00", lambda t: f"{strftime('%z', t)[:3]}:{strftime('%z', t)[3:]}"),
    ("-07", lambda t: strftime("%z", t)[:3]),
    ("002", "%j"),
    ("01", "%m"),
    ("02", "%d"),
    ("03", "%I"),
    ("04", "%M"),
    ("05", "%S"),
    ("06", "%y"),
    ("15", "%H"),
    ("PM", lambda t: "PM" if t.tm_hour >= 12 else "AM"),
    ("pm", lambda t: "pm" if t.tm_hour >= 12 else "am"),
    ("__2", lambda t: f"{t.tm_yday:3}"),
    ("_2", lambda t: f"{t.tm_mday:2}"),
    ("1", lambda t: f"{t.tm_mon}"),
    ("2", lambda t: f"{t.tm_mday}"),
    ("3", lambda t: f"{(t.tm_hour + 11) % 12 + 1}"),
    ("4", lambda t: f"{t.tm_min}"),
    ("5", lambda t: f"{t.tm_sec}"),
)


def snmp_line(counters: Counters) -> str:
    """What kcptun logs on SIGUSR1, counters of our own at the end."""
    pairs = " ".join(f"{name}:{getattr(counters, CSV_COLUMNS[name])}" for name in _LINE_NAMES)
    return f"KCP SNMP:&{{{pairs}}}"


def csv_header() -> str:
    return ",".join(("Unix", *CSV_COLUMNS)) + "\n"


def csv_line(counters: Counters, unix_s: int) -> str:
    return (
        ",".join(str(value) for value in (unix_s, *(getattr(counters, name) for name in CSV_COLUMNS.values()))) + "\n"
    )


class SnmpLog:
    """Appends the counters to a CSV file once in a period."""

    def __init__(self, path: str, period_s: int) -> None:
        """`path` has Go's time layout in its last part; empty, or period 0: nothing is written."""
        self._path = path
        self._period = period_s * 1000  # ms
        self._due: int | None = None
        "ms; set by the first tick, so that the first line comes a period after the start"

    def check(self) -> None:
        """Raises: ConfigError if the path is none for a file to append to."""
        if not self._path or not self._period:
            return
        path = self._path_at(time())
        try:
            files.check_appendable(path)
        except OSError as exc:
            raise ConfigError(f"--snmplog: {path} cannot be written: {exc.strerror}") from exc

    def tick(self, now: int, counters: Callable[[], Counters]) -> None:
        """Write a line if it is time (`now` in ms); a file that cannot be written costs one line in the log."""
        if not self._path or not self._period:
            return
        if self._due is None:
            self._due = now + self._period
        if now < self._due:
            return
        self._due += self._period * ((now - self._due) // self._period + 1)
        unix_s = time()
        path = self._path_at(unix_s)
        try:
            _append(path, csv_line(counters(), int(unix_s)))
        except OSError as exc:
            log.warning(f"--snmplog: {path} cannot be written: {describe_os_error(exc)}")

    def _path_at(self, unix_s: float) -> str:
        directory, name = os.path.split(self._path)
        return os.path.join(directory, go_time_format(name, localtime(unix_s)))


def _append(path: str, line: str) -> None:
    # Opened anew each time, as kcptun does: the name may have changed with the date.
    descriptor = files.open_to_append(path)
    try:
        is_new = not os.fstat(descriptor).st_size
        os.write(descriptor, ((csv_header() if is_new else "") + line).encode())
    finally:
        os.close(descriptor)


def go_time_format(layout: str, moment: struct_time) -> str:
    """The layout with every element of Go's reference time (Mon Jan 2 15:04:05 -0700 MST 2006) replaced."""
    result = []
    at = 0
    while at < len(layout):
        for element, how in _GO_ELEMENTS:
            if layout.startswith(element, at) and not _is_inside_word(layout, at, element):
                result.append(strftime(how, moment) if isinstance(how, str) else how(moment))
                at += len(element)
                break
        else:
            result.append(layout[at])
            at += 1
    return "".join(result)


def _is_inside_word(layout: str, at: int, element: str) -> bool:
    """Go reads no month or weekday in the beginning of a longer word: Janet, Monitor; and _2006 is not _2 with 006."""
    following = layout[at + len(element) :]
    if element in ("Jan", "Mon"):
        return following[:1].islower()
    return element == "_2" and following.startswith("006")
