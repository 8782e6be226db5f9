"""Numbers as a person reads them.

In      numbers in the units of the status, None for what is not known
Out     short texts
Knows   units. Not: what is counted
"""

UNKNOWN = "–"


def rate(bytes_s: float | None) -> str:
    """Bits a second, as lines are sold: 12.3M."""
    return UNKNOWN if bytes_s is None else _scale(8 * bytes_s, 1000, ("", "k", "M", "G"))


def size(count: float | None) -> str:
    """Bytes: 12.3 MiB."""
    return UNKNOWN if count is None else _scale(count, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f}%"


def duration(seconds: int) -> str:
    """3d 4h, 4h 5m, 5m 6s, 7s."""
    if seconds >= 86400:
        return f"{seconds // 86400}d {seconds % 86400 // 3600}h"
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60}m"
    return f"{seconds // 60}m {seconds % 60}s" if seconds >= 60 else f"{seconds}s"


def _scale(value: float, step: int, units: tuple[str, ...]) -> str:
    unit = units[0]
    for unit in units:
        if value < step or unit == units[-1]:
            break
        value /= step
    return f"{value:.0f}{unit}" if unit == units[0] else f"{value:.1f}{unit}"
